//! File names with `*` and `?`, for `include`.

use std::io;
use std::path::{Component, Path, PathBuf};

/// The files that a pattern names, sorted. Without `*` and `?` it is that file, whether it exists or
/// not. `*` doesn't stand for a dot at the beginning of a name, nor for a slash.
///
/// # Errors
/// The directory that can't be read, when it is one that the pattern names without `*` and `?`.
pub(super) fn expand(base: &Path, pattern: &str) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let mut paths = vec![base.to_owned()];
    let mut certain = true;
    for component in Path::new(pattern).components() {
        let part = match component {
            Component::Normal(part) => part.to_str().unwrap_or_default(),
            other => {
                paths.iter_mut().for_each(|path| path.push(other));
                continue;
            }
        };
        if !part.contains(['*', '?']) {
            paths.iter_mut().for_each(|path| path.push(part));
            continue;
        }
        let mut found = Vec::new();
        for directory in paths {
            match names(&directory) {
                Ok(names) => found.extend(
                    names
                        .into_iter()
                        .filter(|name| matches(part, name))
                        .map(|name| directory.join(name)),
                ),
                Err(error) if certain => return Err((directory, error)),
                Err(_) => {}
            }
        }
        certain = false;
        paths = found;
    }
    if !certain {
        paths.retain(|path| path.is_file());
    }
    paths.sort();
    Ok(paths)
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    std::fs::read_dir(directory)?
        .filter_map(|entry| match entry {
            Ok(entry) => entry.file_name().into_string().ok().map(Ok),
            Err(error) => Some(Err(error)),
        })
        .collect()
}

/// Whether a name fits a pattern. Going back only to the last `*` is enough, so that the work is at
/// most the product of both lengths.
fn matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits() {
        for (pattern, name, fits) in [
            ("*.toml", "a.toml", true),
            ("*.toml", "a.toml.bak", false),
            ("*.toml", ".a.toml", false),
            (".*", ".a", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("*", "", true),
            ("**", "x", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn finds_files_sorted_and_names_the_missing_directory() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path();
        for name in ["b.toml", "a.toml", "c.txt", ".d.toml"] {
            std::fs::write(base.join(name), "").unwrap();
        }
        std::fs::create_dir(base.join("e.toml")).unwrap();
        assert_eq!(
            expand(base, "*.toml").unwrap(),
            [base.join("a.toml"), base.join("b.toml")]
        );
        assert_eq!(expand(base, "no.toml").unwrap(), [base.join("no.toml")]);
        assert_eq!(expand(base, "no/*.toml").unwrap_err().0, base.join("no"));
        assert!(expand(base, "*/*.toml").unwrap().is_empty());
    }
}

//! The valid name that someone probably meant.

/// Longest name that is compared. Nothing longer is a slip of a valid name, and the bound keeps a
/// hostile file from costing more than linear time.
const NAME_LEN_MAX: usize = 48;

/// The candidate nearest to `name`, if one is near enough to be what was meant: one slip for each
/// three characters. Case and the difference between `-` and `_` cost nothing.
pub fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    if name.len() > NAME_LEN_MAX {
        return None;
    }
    let wanted = normalize(name);
    let slips_max = (wanted.len() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(&wanted, &normalize(candidate)), candidate))
        .filter(|&(slips, candidate)| slips <= slips_max && slips < candidate.chars().count())
        .min_by_key(|&(slips, _)| slips)
        .map(|(_, candidate)| candidate)
}

fn normalize(name: &str) -> Vec<char> {
    name.chars()
        .map(|c| {
            if c == '-' {
                '_'
            } else {
                c.to_ascii_lowercase()
            }
        })
        .collect()
}

/// Slips between two words: letters missing, added, wrong or swapped with their neighbour (optimal
/// string alignment distance).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = vec![0; b.len() + 1];
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    let mut current = previous.clone();
    for i in 1..=a.len() {
        current[0] = i;
        for j in 1..=b.len() {
            let wrong = previous[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            current[j] = wrong.min(previous[j] + 1).min(current[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                current[j] = current[j].min(before[j - 2] + 1);
            }
        }
        std::mem::swap(&mut before, &mut previous);
        std::mem::swap(&mut previous, &mut current);
    }
    previous[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 6] = [
        "workers",
        "engine",
        "drain_timeout",
        "max_conns",
        "list",
        "listen",
    ];

    #[test]
    fn finds_what_was_meant() {
        for (written, meant) in [
            ("worker", Some("workers")),
            ("wrokers", Some("workers")),
            ("Drain-Timeout", Some("drain_timeout")),
            ("max_connections", None),
            ("max_con", Some("max_conns")),
            ("lisst", Some("list")),
            ("listn", Some("list")),
            ("lisen", Some("listen")),
            ("zzz", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, KEYS), meant, "{written}");
        }
    }

    #[test]
    fn counts_slips() {
        let chars = |s: &str| s.chars().collect::<Vec<_>>();
        for (a, b, slips) in [
            ("", "abc", 3),
            ("abc", "abc", 0),
            ("abc", "acb", 1),
            ("abc", "axc", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(&chars(a), &chars(b)), slips, "{a} {b}");
            assert_eq!(distance(&chars(b), &chars(a)), slips, "{b} {a}");
        }
    }

    #[test]
    fn long_names_cost_nothing() {
        assert_eq!(nearest(&"x".repeat(1 << 20), KEYS), None);
    }
}

//! A configuration in bytes: what the master sends to a worker, which opens no file of it.
//!
//! It holds the merged tree with its places, every source (so that places and messages are the same
//! on the other side) and what the references stand for, secrets too: it goes over a socket between
//! two processes of one server, and never to a disk. It does not hold the model, which is made again
//! from the tree by the same code, so that there is one way to make one.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::diagnostics::{At, Diagnostics, Source, SourceKind, Sources};
use super::lower::Outside;
use super::raw::{Item, Table, Value};
use super::references::References;
use super::{Loaded, finish};

/// Most bytes of a bundle.
pub const SIZE_MAX: usize = 256 << 20;

/// What a bundle begins with, behind it its version and a line end.
const MAGIC: &[u8] = b"beltway configuration ";

/// Version of the form. Raise it with each change that the form before can't be read as.
const VERSION: u32 = 2;

/// What follows the first line, as JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content<'a> {
    tree: Cow<'a, Table>,
    sources: Vec<WireSource<'a>>,
    variables: Vec<(String, String)>,
    files: Vec<(WirePath, String)>,
    pem: Vec<(WirePath, Cow<'a, Zeroizing<String>>)>,
}

/// A source; its text is borrowed where it is packed.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSource<'a> {
    kind: SourceKind,
    name: String,
    text: Cow<'a, str>,
    base: WirePath,
}

/// A path: a name need not be UTF-8, and a string of JSON is.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WirePath {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<&Path> for WirePath {
    fn from(path: &Path) -> Self {
        match path.to_str() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Bytes(path.as_os_str().as_bytes().to_vec()),
        }
    }
}

impl From<WirePath> for PathBuf {
    fn from(path: WirePath) -> Self {
        match path {
            WirePath::Text(text) => text.into(),
            WirePath::Bytes(bytes) => OsString::from_vec(bytes).into(),
        }
    }
}

/// The configuration in bytes.
///
/// # Errors
/// What to do when it would be larger than [`SIZE_MAX`].
pub fn pack(loaded: &Loaded) -> Result<Vec<u8>, String> {
    let content = Content {
        tree: Cow::Borrowed(&loaded.tree),
        sources: loaded.sources.iter().map(wire_source).collect(),
        variables: loaded.references.variables.clone().into_iter().collect(),
        files: loaded
            .references
            .files
            .iter()
            .map(|(path, text)| (WirePath::from(path.as_path()), text.clone()))
            .collect(),
        pem: loaded
            .references
            .pem
            .iter()
            .map(|(path, text)| (WirePath::from(path.as_path()), Cow::Borrowed(text)))
            .collect(),
    };
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(format!("{VERSION}\n").as_bytes());
    serde_json::to_writer(&mut bytes, &content)
        .expect("keys are strings, and a vector takes every byte");
    check_size(bytes.len())?;
    Ok(bytes)
}

/// The configuration of a bundle, checked and made again without the environment and the files of
/// this machine. Its model is equal in effect to the one that was packed.
///
/// # Errors
/// What is wrong with the bytes, or with the configuration in them. Any bytes may be given.
pub fn unpack(bytes: &[u8]) -> Result<Loaded, String> {
    check_size(bytes.len())?;
    let (version, json) = version(bytes).ok_or("this is not a packed configuration")?;
    if version != VERSION {
        return Err(format!(
            "the packed configuration has version {version}, and this program reads version \
             {VERSION}: master and worker are of different releases"
        ));
    }
    let content: Content<'_> = serde_json::from_slice(json)
        .map_err(|error| format!("the packed configuration is damaged: {error}"))?;
    let mut diagnostics = Diagnostics::default();
    for source in content.sources {
        let base = PathBuf::from(source.base);
        if !base.is_absolute() {
            return Err(damaged("the directory of a source is not absolute"));
        }
        diagnostics.sources.add(Source {
            kind: source.kind,
            name: source.name.into(),
            text: source.text.into_owned(),
            base,
        });
    }
    let tree = content.tree.into_owned();
    check_table(&tree, &diagnostics.sources)?;
    let references = References {
        variables: content.variables.into_iter().collect(),
        files: content
            .files
            .into_iter()
            .map(|(path, text)| (path.into(), text))
            .collect(),
        pem: content
            .pem
            .into_iter()
            .map(|(path, text)| (path.into(), text.into_owned()))
            .collect(),
    };
    finish(tree, Outside::Known(&references), diagnostics)
        .map_err(|diagnostics| diagnostics.render(false))
}

fn damaged(what: &str) -> String {
    format!("the packed configuration is damaged: {what}")
}

fn check_size(size: usize) -> Result<(), String> {
    if size > SIZE_MAX {
        return Err(format!(
            "the configuration takes {} MiB and may take {}: take sites away, or put large bodies \
             into files beneath a root",
            size >> 20,
            SIZE_MAX >> 20
        ));
    }
    Ok(())
}

/// The version in the first line, and what follows it.
fn version(bytes: &[u8]) -> Option<(u32, &[u8])> {
    // Ten digits: what is longer is no version.
    let rest = bytes.strip_prefix(MAGIC)?;
    let digits = rest.iter().take(11).position(|byte| *byte == b'\n')?;
    let version = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
    Some((version, &rest[digits + 1..]))
}

fn wire_source(source: &Source) -> WireSource<'_> {
    WireSource {
        kind: source.kind,
        name: source.name.to_string(),
        text: source.text.as_str().into(),
        base: source.base.as_path().into(),
    }
}

/// Every place has to lie in its source, and keys have to be unique: everything behind this counts
/// on it.
fn check_table(table: &Table, sources: &Sources) -> Result<(), String> {
    let mut keys = HashSet::with_capacity(table.entries.len());
    table.entries.iter().try_for_each(|entry| {
        if !keys.insert(entry.key.as_str()) {
            return Err(damaged("a key stands twice in a table"));
        }
        check_place(entry.key_at, sources)?;
        check_item(&entry.item, sources)
    })
}

fn check_item(item: &Item, sources: &Sources) -> Result<(), String> {
    check_place(item.at, sources)?;
    match &item.value {
        Value::Array(items) => items.iter().try_for_each(|item| check_item(item, sources)),
        Value::Table(table) => check_table(table, sources),
        _ => Ok(()),
    }
}

fn check_place(at: At, sources: &Sources) -> Result<(), String> {
    let source = sources.iter().nth(at.source as usize);
    match source.and_then(|source| source.text.get(at.range())) {
        Some(_) => Ok(()),
        None => Err(damaged("a place lies outside of its source")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{case, whole, without_maps};
    use super::*;
    use crate::config::load;
    use crate::config::sources::{Input, Setting};

    /// What has to be the same on the other side.
    fn effect(loaded: &Loaded) -> String {
        let places: Vec<_> = loaded.model.listeners.iter().map(|l| &l.place).collect();
        format!(
            "{}\n{places:?}\n{:?}\n{:?}",
            without_maps(&loaded.model),
            loaded.tree,
            loaded.sources
        )
    }

    fn same_after(loaded: &Loaded) -> Loaded {
        let again = unpack(&pack(loaded).unwrap()).unwrap();
        assert_eq!(effect(loaded), effect(&again));
        assert!(loaded.references == again.references);
        again
    }

    #[test]
    fn every_example_is_the_same_on_the_other_side() {
        let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
        let mut count = 0;
        for directory in [conf.clone(), conf.join("sites")] {
            for entry in std::fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_none_or(|extension| extension != "toml") {
                    continue;
                }
                let input = Input {
                    file: Some(path.clone()),
                    directory: directory.clone(),
                    ..Input::default()
                };
                same_after(&load(&input).unwrap_or_else(|d| panic!("{}", d.render(false))));
                count += 1;
            }
        }
        assert!(count >= 9, "only {count} examples");
    }

    #[test]
    fn secrets_come_along_and_nothing_is_opened_on_the_other_side() {
        let mut case = whole()
            .file("token", "of the file\n")
            .variable("B", "of the environment")
            .variable("BELTWAY_SERVER_PIN", "true")
            .variable("NOT_REFERRED_TO", "and so not sent");
        case.input
            .settings
            .push(Setting::Set("server.workers=3".into()));
        let loaded = case.loaded();
        let bytes = pack(&loaded).unwrap();
        // The directory and all that is in it is gone.
        drop(case);
        let again = unpack(&bytes).unwrap();
        assert_eq!(effect(&loaded), effect(&again));
        let shown = format!("{:?}", again.model.sites[0].fallback);
        assert!(!shown.contains("file:"), "{shown}");
        assert!(
            loaded
                .references
                .files
                .values()
                .any(|text| text == "of the file")
        );
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains("of the environment") && !text.contains("and so not sent"));
    }

    #[test]
    fn a_directory_need_not_be_utf_8() {
        use std::os::unix::ffi::OsStrExt as _;
        let odd = Path::new(std::ffi::OsStr::from_bytes(b"/srv/\xff"));
        let input = Input {
            file: Some("a.toml".into()),
            content: Some("[site.\":1\"]\nroot = \"www\"\n".into()),
            directory: odd.into(),
            ..Input::default()
        };
        let again = same_after(&load(&input).unwrap());
        assert!(again.sources.iter().all(|source| source.base == odd));
    }

    #[test]
    fn a_file_that_does_not_come_along_is_an_error() {
        let case =
            case("[site.\":1\"]\nrespond = 200\nbody = \"file:token\"\n").file("token", "secret");
        let mut loaded = case.loaded();
        loaded.references.files.clear();
        let error = unpack(&pack(&loaded).unwrap()).unwrap_err();
        assert!(error.contains("is not known here"), "{error}");
        assert!(error.contains("beltway.toml:3:8"), "{error}");
    }

    #[test]
    fn other_bytes_and_other_versions_are_told_apart() {
        let case = case("[site.\":1\"]\nrespond = 200\nbody = \"x\"\n");
        let packed = pack(&case.loaded()).unwrap();
        let text = String::from_utf8(packed).unwrap();
        for (bytes, error) in [
            (String::new(), "is not a packed configuration"),
            ("{}".to_owned(), "is not a packed configuration"),
            (
                text.replacen("configuration 2", "configuration 3", 1),
                "has version 3, and this program reads version 2",
            ),
            (
                text.replacen("configuration 2", "configuration 99999999999", 1),
                "is not a packed configuration",
            ),
            (text[..text.len() - 1].to_owned(), "is damaged: EOF"),
            (
                text.replacen("\"key_at\":[0,", "\"key_at\":[9,", 1),
                "outside of its source",
            ),
            (
                text.replacen("\"key_at\":[0,", "\"key_at\":[0,4294", 1),
                "outside of its source",
            ),
            (
                text.replacen("\"respond\"", "\"answer\"", 1),
                "there is no key `answer`",
            ),
            (
                text.replacen("\"respond\"", "\"body\"", 1),
                "a key stands twice",
            ),
        ] {
            let found = unpack(bytes.as_bytes()).map(|_| ()).unwrap_err();
            assert!(found.contains(error), "{error}: {found}");
        }
    }

    #[test]
    fn damaged_bytes_are_an_error_or_a_whole_configuration() {
        let case = whole();
        let packed = pack(&case.loaded()).unwrap();
        // A linear congruential generator (Knuth, MMIX): the same mutations each time.
        let mut state: u64 = 7;
        let mut random = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let mut refused = 0;
        for _ in 0..3000 {
            let mut bytes = packed.clone();
            for _ in 0..=random(3) {
                let at = random(bytes.len());
                match random(4) {
                    0 => bytes[at] ^= 1 << random(8),
                    1 => bytes[at] = b"0129[]{}\",:"[random(11)],
                    2 => drop(bytes.drain(at..(at + 1 + random(8)).min(bytes.len()))),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            match unpack(&bytes) {
                Ok(loaded) => drop(same_after(&loaded)),
                Err(error) => {
                    assert!(!error.is_empty());
                    refused += 1;
                }
            }
        }
        assert!((1000..3000).contains(&refused), "{refused} refused");
    }
}

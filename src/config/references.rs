//! What the strings of a configuration refer to: `${NAME}` is a variable, `file:NAME` the text of a
//! file.
//!
//! What was found is kept beside the tree, which holds the references as they are written: so
//! nothing that prints the tree prints a secret, and whoever has both needs neither the environment
//! nor the files.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroizing;

/// What the references of one configuration stand for. Only what is referred to is in it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct References {
    /// Variables that are set, by name.
    pub variables: BTreeMap<String, String>,
    /// Texts of files without the line end at their end, by absolute path.
    pub files: BTreeMap<PathBuf, String>,
    /// Certificates, private keys, revocation lists and statements on certificates, these in hexadecimal, as
    /// they stand in their files, by absolute path.
    pub pem: BTreeMap<PathBuf, Zeroizing<String>>,
}

impl References {
    /// This file holds these bytes from now on, which may be no text.
    pub fn put_bytes(&mut self, path: PathBuf, bytes: &[u8]) {
        self.pem.insert(path, to_hexadecimal(bytes).into());
    }
}

impl fmt::Debug for References {
    /// Names without what they stand for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("References")
            .field("variables", &self.variables.keys())
            .field("files", &self.files.keys())
            .field("pem", &self.pem.keys())
            .finish()
    }
}

/// Why a text can't be filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unfilled {
    /// `${` without `}`.
    NotClosed,
    /// A variable of this name is not set, and the text has no default.
    NotSet(String),
}

/// Fills `${NAME}` and `${NAME:-default}` in; `$${` is `${`.
pub(super) fn fill(
    text: &str,
    mut variable: impl FnMut(&str) -> Option<String>,
) -> Result<String, Unfilled> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        if before.ends_with('$') {
            out.push('{');
            rest = &from[2..];
            continue;
        }
        let end = from.find('}').ok_or(Unfilled::NotClosed)?;
        let inner = &from[2..end];
        let (name, default) = match inner.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inner, None),
        };
        match (variable(name), default) {
            (Some(value), _) => out.push_str(&value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => return Err(Unfilled::NotSet(name.to_owned())),
        }
        rest = &from[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Bytes as they are kept beside the tree, where all is text.
pub(super) fn to_hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What [`to_hexadecimal`] was given; `None` for what it didn't make.
pub(super) fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |pair: &[u8]| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8);
    let (pairs, rest) = digits.as_chunks::<2>();
    match rest {
        [] => pairs.iter().map(|pair| byte(pair)).collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_filled_in_and_dollars_escaped() {
        let variable = |name: &str| (name == "A").then(|| "x${A}".to_owned());
        for (text, filled) in [
            ("a", Ok("a")),
            ("${A}-${B:-b}", Ok("x${A}-b")),
            ("${A:-b}", Ok("x${A}")),
            ("$${A}", Ok("${A}")),
            ("${A", Err(Unfilled::NotClosed)),
            ("${B}", Err(Unfilled::NotSet("B".into()))),
        ] {
            assert_eq!(fill(text, variable), filled.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn bytes_are_text_and_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hexadecimal(&to_hexadecimal(&bytes)), Some(bytes));
        for wrong in ["0", "0g", "00 "] {
            assert_eq!(from_hexadecimal(wrong), None);
        }
    }

    #[test]
    fn what_is_printed_for_developers_has_no_secret() {
        let references = References {
            variables: [("TOKEN".to_owned(), "hunter2".to_owned())].into(),
            files: [("/run/key".into(), "hunter3".to_owned())].into(),
            pem: [("/run/pem".into(), "hunter4".to_owned().into())].into(),
        };
        let shown = format!("{references:?}");
        assert!(shown.contains("TOKEN") && shown.contains("/run/key"));
        assert!(!shown.contains("hunter"), "{shown}");
    }
}

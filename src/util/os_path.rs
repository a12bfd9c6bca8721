//! Paths on a wire, as the bytes that they are: a name need not be UTF-8. For `#[serde(with = …)]`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

/// Writes a path.
///
/// # Errors
/// Those of the format.
pub fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    let text: &OsStr = path.as_os_str();
    text.serialize(to)
}

/// Reads a path.
///
/// # Errors
/// Those of the format.
pub fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<PathBuf, D::Error> {
    OsString::deserialize(from).map(PathBuf::from)
}

//! The files that are served, and the one that is replaced again and again.

use std::fs;
use std::io;
use std::path::Path;

use crate::random::content;

/// A file whose bytes are the content of a number.
pub(crate) struct File {
    /// Its name.
    pub(crate) name: &'static str,
    /// The number.
    pub(crate) number: u64,
    /// Its bytes.
    pub(crate) len: u64,
}

const fn file(name: &'static str, number: u64, len: u64) -> File {
    File { name, number, len }
}

/// One for each way in which files are sent: beside the head, behind it, by sendfile, in many turns.
pub(crate) const FILES: [File; 4] = [
    file("small.txt", 1, 100),
    file("page.html", 2, 20_000),
    file("part.bin", 3, 300_000),
    file("big.bin", 4, 8 << 20),
];

/// The file that is replaced by a rename.
pub(crate) const REPLACED: &str = "replaced.bin";

/// Writes all files into a directory.
pub(crate) fn write(directory: &Path) -> io::Result<()> {
    for File { name, number, len } in &FILES {
        fs::write(directory.join(name), content(*number, 0, *len as usize))?;
    }
    replace(directory, 0)
}

/// Puts another file in the place of [`REPLACED`]: its number, then the content of that.
pub(crate) fn replace(directory: &Path, number: u64) -> io::Result<()> {
    let new = directory.join("new");
    let len = 1000 + number % 200_000;
    let bytes = [&number.to_le_bytes()[..], &content(number, 0, len as usize)].concat();
    fs::write(&new, bytes)?;
    fs::rename(new, directory.join(REPLACED))
}

/// Whether this is one of the files that [`replace`] writes, whole.
pub(crate) fn is_whole_replaced(bytes: &[u8]) -> bool {
    let Some((number, rest)) = bytes.split_first_chunk() else {
        return false;
    };
    let number = u64::from_le_bytes(*number);
    rest.len() as u64 == 1000 + number % 200_000 && rest == content(number, 0, rest.len())
}

//! The files that are served, as a function of their length.
//!
//! The generator knows what byte belongs where without being handed the file.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{Advice, fadvise};

/// Bytes written at a time.
const CHUNK: usize = 1 << 20;

/// The byte at `offset` of the file of `len` bytes.
///
/// It changes with the offset in no short period, so that a shifted or repeated range is noticed.
pub fn byte_at(len: u64, offset: u64) -> u8 {
    let mixed = (offset ^ len.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 56) as u8
}

/// Whether `bytes` are what stands at `offset` of the file of `len` bytes.
pub fn matches(len: u64, offset: u64, bytes: &[u8]) -> bool {
    (offset..)
        .zip(bytes)
        .all(|(offset, &byte)| byte == byte_at(len, offset))
}

/// The name of the file of `len` bytes.
pub fn file_name(len: u64) -> String {
    format!("{len}.bin")
}

/// Writes the file of `len` bytes into `directory`, down to the disk: its write-back must not fall
/// into a measurement.
///
/// # Errors
/// Those of the file system.
pub fn write_file(directory: &Path, len: u64) -> io::Result<()> {
    let mut file = File::create(directory.join(file_name(len)))?;
    let mut chunk = Vec::new();
    for start in (0..len).step_by(CHUNK) {
        chunk.clear();
        chunk.extend((start..len.min(start + CHUNK as u64)).map(|offset| byte_at(len, offset)));
        file.write_all(&chunk)?;
    }
    file.sync_all()
}

/// Makes the next read of a file of [`write_file`] one of the disk's: nothing of it stays in memory that
/// nobody holds (posix_fadvise(2)).
///
/// # Errors
/// Those of the file system.
pub fn drop_from_memory(directory: &Path, len: u64) -> io::Result<()> {
    let file = File::open(directory.join(file_name(len)))?;
    Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_matches_itself_and_nothing_shifted() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        write_file(directory.path(), 5000).expect("a file");
        let bytes = std::fs::read(directory.path().join(file_name(5000))).expect("the file");
        assert_eq!(bytes.len(), 5000);
        assert!(matches(5000, 0, &bytes));
        assert!(matches(5000, 4990, &bytes[4990..]));
        assert!(!matches(5000, 1, &bytes[..64]));
        assert!(!matches(5001, 0, &bytes[..64]));
    }
}

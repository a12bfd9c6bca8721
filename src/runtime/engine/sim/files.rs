//! The simulated files: a tree of names in memory, with pages that may have to be read first.
//!
//! There are regular files and directories, no links. A directory exists when it was made or when
//! something stands beneath it.

use std::collections::BTreeMap;

use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::runtime::engine::syscall::{FileKind, FileStat};

/// Bytes in one page of the simulated page cache.
pub(super) const PAGE: usize = 4096;

/// Longest name of one part of a path (`NAME_MAX`).
const NAME_MAX: usize = 255;

struct Inode {
    content: Vec<u8>,
    directory: bool,
    modified_ns: u64,
    /// Which pages are in memory.
    warm: Vec<bool>,
}

struct Name {
    inode: usize,
    /// The kernel knows the name without asking the disk.
    cached: bool,
}

/// All files. Inodes are never used again.
pub(super) struct Files {
    names: BTreeMap<Vec<u8>, Name>,
    inodes: Vec<Inode>,
}

impl Files {
    pub(super) fn new() -> Self {
        let mut files = Self {
            names: BTreeMap::new(),
            inodes: Vec::new(),
        };
        files.directory(b"", 0);
        files
    }

    fn insert(&mut self, path: &[u8], inode: Inode) {
        self.inodes.push(inode);
        let name = Name {
            inode: self.inodes.len() - 1,
            cached: false,
        };
        self.names.insert(path.to_vec(), name);
    }

    /// Makes a directory and those above it.
    pub(super) fn directory(&mut self, path: &[u8], now_ns: u64) {
        if let Some(at) = path.iter().rposition(|byte| *byte == b'/') {
            self.directory(&path[..at], now_ns);
        }
        if !self.names.contains_key(path) {
            let inode = Inode {
                content: Vec::new(),
                directory: true,
                modified_ns: now_ns,
                warm: Vec::new(),
            };
            self.insert(path, inode);
        }
    }

    /// Puts a new file in place, as a rename over the old one would: open handles keep the old.
    pub(super) fn file(&mut self, path: &[u8], content: Vec<u8>, now_ns: u64) {
        if let Some(at) = path.iter().rposition(|byte| *byte == b'/') {
            self.directory(&path[..at], now_ns);
        }
        let inode = Inode {
            warm: vec![false; content.len().div_ceil(PAGE)],
            content,
            directory: false,
            modified_ns: now_ns,
        };
        self.insert(path, inode);
    }

    /// Changes the length of a file in place, which open handles see. Zeros fill what is new.
    pub(super) fn truncate(&mut self, path: &[u8], len: usize, now_ns: u64) {
        let Some(name) = self.names.get(path) else {
            return;
        };
        let inode = &mut self.inodes[name.inode];
        inode.content.resize(len, 0);
        inode.warm.resize(len.div_ceil(PAGE), true);
        inode.modified_ns = now_ns;
    }

    pub(super) fn remove(&mut self, path: &[u8]) {
        self.names.remove(path);
    }

    /// Finds what a path names, relative to the directory `from` (openat2(2)).
    pub(super) fn resolve(
        &self,
        from: &[u8],
        path: &[u8],
        resolve: ResolveFlags,
    ) -> Result<Vec<u8>, Errno> {
        let beneath = resolve.contains(ResolveFlags::BENEATH);
        let in_root = resolve.contains(ResolveFlags::IN_ROOT);
        if path.is_empty() {
            return Err(Errno::NOENT);
        }
        let mut parts: Vec<&[u8]> = from
            .split(|b| *b == b'/')
            .filter(|p| !p.is_empty())
            .collect();
        let depth = parts.len();
        if path[0] == b'/' {
            if beneath {
                return Err(Errno::XDEV);
            }
            parts.truncate(if in_root { depth } else { 0 });
        }
        let mut steps = path.split(|b| *b == b'/').peekable();
        while let Some(part) = steps.next() {
            if part == b".." {
                if parts.len() > depth || !(beneath || in_root) {
                    parts.pop();
                } else if beneath {
                    return Err(Errno::XDEV);
                }
                continue;
            }
            if part.len() > NAME_MAX {
                return Err(Errno::NAMETOOLONG);
            }
            if !part.is_empty() && part != b"." {
                parts.push(part);
            }
            let so_far = parts.join(&b'/');
            let name = self.names.get(&so_far).ok_or(Errno::NOENT)?;
            if steps.peek().is_some() && !self.inodes[name.inode].directory {
                return Err(Errno::NOTDIR);
            }
        }
        Ok(parts.join(&b'/'))
    }

    /// What an open of a resolved path gives, with the path for a directory.
    pub(super) fn open(&mut self, path: &[u8], flags: OFlags) -> Result<(usize, bool), Errno> {
        let name = self.names.get_mut(path).ok_or(Errno::NOENT)?;
        name.cached = true;
        let directory = self.inodes[name.inode].directory;
        if flags.contains(OFlags::DIRECTORY) && !directory {
            return Err(Errno::NOTDIR);
        }
        let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC);
        if writes {
            return Err(if directory { Errno::ISDIR } else { Errno::ROFS });
        }
        Ok((name.inode, directory))
    }

    pub(super) fn is_cached(&self, path: &[u8]) -> bool {
        self.names.get(path).is_some_and(|name| name.cached)
    }

    pub(super) fn inode_of(&self, path: &[u8]) -> Result<usize, Errno> {
        Ok(self.names.get(path).ok_or(Errno::NOENT)?.inode)
    }

    pub(super) fn stat(&self, inode: usize) -> FileStat {
        let of = &self.inodes[inode];
        let since = of.modified_ns;
        let modified = (
            1_700_000_000 + (since / 1_000_000_000) as i64,
            (since % 1_000_000_000) as u32,
        );
        FileStat {
            identity: (1, inode as u64 + 1),
            kind: if of.directory {
                FileKind::Directory
            } else {
                FileKind::Regular
            },
            size: of.content.len() as u64,
            modified,
            changed: modified,
            mode: if of.directory { 0o755 } else { 0o644 },
        }
    }

    /// The bytes of a file from `offset` on, at most `len`.
    pub(super) fn bytes(&self, inode: usize, offset: u64, len: usize) -> Result<&[u8], Errno> {
        let of = &self.inodes[inode];
        if of.directory {
            return Err(Errno::ISDIR);
        }
        let from = usize::try_from(offset).map_or(of.content.len(), |at| at.min(of.content.len()));
        let end = from.saturating_add(len).min(of.content.len());
        Ok(&of.content[from..end])
    }

    /// How many bytes from `offset` on are in memory, at most `len`. At the end of the file: all 0.
    pub(super) fn resident(&self, inode: usize, offset: u64, len: usize) -> usize {
        let of = &self.inodes[inode];
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = from.saturating_add(len).min(of.content.len());
        let mut at = from;
        while at < end && of.warm[at / PAGE] {
            at = (at / PAGE + 1) * PAGE;
        }
        at.min(end).saturating_sub(from)
    }

    /// Brings these bytes into memory, or (`warm` false) drops them from it.
    pub(super) fn set_warm(&mut self, inode: usize, offset: u64, len: usize, warm: bool) {
        let pages = &mut self.inodes[inode].warm;
        let first = usize::try_from(offset).map_or(pages.len(), |at| (at / PAGE).min(pages.len()));
        let end = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .saturating_add(len)
            .div_ceil(PAGE)
            .clamp(first, pages.len());
        pages[first..end].fill(warm);
    }
}

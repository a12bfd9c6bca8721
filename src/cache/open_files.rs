//! What a core knows of the files it serves: descriptors, metadata, and the content of small ones.
//!
//! An entry is believed for less than a second; then its path is resolved anew beneath its root, so
//! a file that was changed, replaced or removed, a directory that was renamed and a `current` link
//! that was switched all show within a second. Bounded in entries and bytes; the bound's policy is
//! CLOCK: what was not used since the hand last passed goes first.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::{Equivalent, HashMap};
use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use super::root::{Roots, open_beneath, open_root};
use crate::http::semantics::date;
use crate::http::semantics::etag::EntityTag;
use crate::http::semantics::mime;
use crate::http::semantics::negotiate::Coding;
use crate::net::send::Warmth;
use crate::runtime::engine::syscall::{FileKind, FileStat};
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::op::{Op, Output};
use crate::util::clock::since_epoch;

pub use super::root::{Links, RootHandle, RootId};

/// How long an entry is believed: a change has to show within a second.
const BELIEVED: Duration = Duration::from_millis(900);

/// Times of files tick with the kernel's clock, every 10 ms at the slowest. Two changes within a tick
/// look like one, so a file that was changed this shortly ago is not yet known by its times.
const TICK: Duration = Duration::from_millis(50);

/// Largest file whose content is hashed for an entity tag when its time of modification says nothing.
const HASHED_MAX: u64 = 256 << 20;

/// Bounds of one core's cache.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Most entries, those for missing files included. Each may hold a descriptor.
    pub entries_max: usize,
    /// Most bytes of content.
    pub bytes_max: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            entries_max: 4096,
            bytes_max: 32 << 20,
        }
    }
}

/// An open regular file.
#[derive(Debug)]
pub struct OpenFile {
    /// The descriptor; `None` while the content is in memory.
    pub fd: Option<Fd>,
    /// What it was when it was looked at.
    pub stat: FileStat,
    /// The content, of a small file.
    pub content: Option<Rc<[u8]>>,
    /// The media type by its name.
    pub media_type: &'static str,
    /// The time of modification as an HTTP date.
    pub last_modified: Arc<[u8]>,
    /// Whether it had rested when it was looked at: then each later change is seen in its times.
    rested: bool,
    /// The entity tag, once it is known.
    tag: RefCell<Option<Arc<[u8]>>>,
    sidecars: Cell<Option<(Instant, Sidecars)>>,
    /// What of it is in memory.
    pub warmth: Warmth,
}

/// Which codings of a file stand beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sidecars([bool; Coding::ALL.len()]);

impl Sidecars {
    /// Whether there is one in this coding.
    pub fn has(self, coding: Coding) -> bool {
        Coding::ALL
            .iter()
            .zip(self.0)
            .any(|(of, there)| *of == coding && there)
    }
}

impl OpenFile {
    /// The entity tag as it is sent; `None` where none is known (yet).
    pub fn tag(&self) -> Option<Arc<[u8]>> {
        self.tag.borrow().clone()
    }
}

/// What stands at a path.
#[derive(Clone, Debug)]
pub enum Found {
    /// A regular file.
    File(Rc<OpenFile>),
    /// A directory.
    Directory,
    /// Nothing, or something that may not be told apart from nothing.
    Missing,
    /// Something that is not served: no permission, a FIFO, a device, a link to the outside.
    Forbidden,
    /// It can't be said now: descriptors have run out, or the disk fails.
    Unavailable(Errno),
}

struct Entry {
    found: Found,
    /// When the directory that it was found beneath was itself looked up. Counted from the entry's own
    /// time, the age of a root and that of an entry would add up to more than a second.
    checked: Instant,
    used: bool,
    bytes: usize,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    root: RootId,
    coding: Option<Coding>,
    path: Box<str>,
}

#[derive(Hash)]
struct KeyRef<'k> {
    root: RootId,
    coding: Option<Coding>,
    path: &'k str,
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.root == key.root && self.coding == key.coding && *self.path == *key.path
    }
}

#[derive(Default)]
struct Table {
    entries: HashMap<Rc<Key>, Entry>,
    /// The CLOCK: every key once.
    hand: VecDeque<Rc<Key>>,
    bytes: usize,
}

impl Equivalent<Rc<Key>> for KeyRef<'_> {
    fn equivalent(&self, key: &Rc<Key>) -> bool {
        Equivalent::<Key>::equivalent(self, key)
    }
}

/// The cache of one core.
pub struct OpenFiles {
    core: Core,
    bounds: Bounds,
    roots: RefCell<Roots>,
    table: RefCell<Table>,
    /// When the control log was told last of a failure, and of how many it was not told since.
    complained: Cell<Option<(Instant, u64)>>,
}

impl OpenFiles {
    /// An empty cache.
    pub fn new(core: &Core, bounds: Bounds) -> Rc<Self> {
        Rc::new(Self {
            core: core.clone(),
            bounds,
            roots: RefCell::default(),
            table: RefCell::default(),
            complained: Cell::new(None),
        })
    }

    /// Holds a root: an absolute directory path and the rule for links beneath it. Whoever asks for the
    /// same holds the same.
    pub fn add_root(self: &Rc<Self>, path: PathBuf, links: Links) -> RootHandle {
        let id = self.roots.borrow_mut().hold(path, links);
        RootHandle::new(self, id)
    }

    /// One holder less of a root.
    pub(super) fn let_go(&self, id: RootId) {
        if self.roots.borrow_mut().let_go(id) {
            self.forget(id);
        }
    }

    /// What is known without asking the kernel; `None` when that is too old, or nothing.
    ///
    /// `path` is canonical and relative: without a slash at its ends. With a `coding`, the file beside
    /// it that has this coding.
    pub fn cached(&self, root: RootId, path: &str, coding: Option<Coding>) -> Option<Found> {
        self.cached_dated(root, path, coding)
            .map(|(found, _)| found)
    }

    fn cached_dated(
        &self,
        root: RootId,
        path: &str,
        coding: Option<Coding>,
    ) -> Option<(Found, Instant)> {
        let table = &mut *self.table.borrow_mut();
        let entry = table.entries.get_mut(&KeyRef { root, coding, path })?;
        if self.core.now().saturating_duration_since(entry.checked) >= BELIEVED {
            return None;
        }
        entry.used = true;
        Some((entry.found.clone(), entry.checked))
    }

    /// What stands at `path`, asked anew if what is known is too old.
    pub async fn look_up(&self, root: RootId, path: &str, coding: Option<Coding>) -> Found {
        self.look_up_dated(root, path, coding).await.0
    }

    /// What stands at `path`, and since when that is known.
    async fn look_up_dated(
        &self,
        root: RootId,
        path: &str,
        coding: Option<Coding>,
    ) -> (Found, Instant) {
        if let Some(known) = self.cached_dated(root, path, coding) {
            return known;
        }
        let (dir, checked) = match self.directory(root).await {
            Ok(dir) => dir,
            Err(errno) => return (self.failed(errno), self.core.now()),
        };
        let opened = self.open(root, &dir, path, coding).await;
        let stat = opened.and_then(|fd| self.core.stat(&fd).map(|stat| (fd, stat)));
        let found = match stat {
            Ok((fd, stat)) => self.found(root, path, coding, fd, stat).await,
            Err(errno) => self.failed(errno),
        };
        if !matches!(found, Found::Unavailable(_)) {
            self.insert(root, path, coding, found.clone(), checked);
        }
        (found, checked)
    }

    /// Which codings of the file at `path` stand beside it; remembered with the file for as long as
    /// an entry is believed.
    pub async fn sidecars(&self, root: RootId, path: &str, file: &OpenFile) -> Sidecars {
        let now = self.core.now();
        if let Some((until, known)) = file.sidecars.get()
            && now < until
        {
            return known;
        }
        let (mut there, mut oldest) = (Sidecars::default(), now);
        for (coding, there) in Coding::ALL.into_iter().zip(&mut there.0) {
            let (found, checked) = self.look_up_dated(root, path, Some(coding)).await;
            *there = matches!(found, Found::File(_));
            oldest = oldest.min(checked);
        }
        file.sidecars.set(Some((oldest + BELIEVED, there)));
        there
    }

    /// Opens a directory to be listed. The caller owns the descriptor and gives it to a helper.
    ///
    /// # Errors
    /// As `openat2(2)`.
    pub async fn open_directory(&self, root: RootId, path: &str) -> Result<OwnedFd, Errno> {
        let (dir, _) = self.directory(root).await?;
        let fd = self.open(root, &dir, path, None).await?;
        self.core.duplicate(&fd)
    }

    fn failed(&self, errno: Errno) -> Found {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => Found::Missing,
            Errno::ACCESS | Errno::PERM | Errno::LOOP | Errno::XDEV | Errno::NXIO => {
                Found::Forbidden
            }
            errno => {
                self.complain(errno);
                if matches!(errno, Errno::MFILE | Errno::NFILE) {
                    // Descriptors have run out: let go of those that are only kept for speed.
                    self.clear();
                }
                Found::Unavailable(errno)
            }
        }
    }

    /// Says in the control log that files can't be opened: once a second, however many clients ask.
    fn complain(&self, errno: Errno) {
        let (now, before) = (self.core.now(), self.complained.get());
        let (last, silent) = before.unwrap_or((now, 0));
        if before.is_some() && now.saturating_duration_since(last) < Duration::from_secs(1) {
            self.complained.set(Some((last, silent + 1)));
            return;
        }
        tracing::warn!(%errno, others = silent, "a file can't be opened");
        self.complained.set(Some((now, 0)));
    }

    /// The directory of a root, resolved anew when that was long ago, and when it was resolved.
    async fn directory(&self, root: RootId) -> Result<(Fd, Instant), Errno> {
        let now = self.core.now();
        let path = {
            let roots = self.roots.borrow();
            let root = roots.get(root)?;
            if let (Some(at), Some(dir)) = (root.checked, &root.dir)
                && now.saturating_duration_since(at) < BELIEVED
            {
                return Ok((dir.clone(), at));
            }
            root.path.clone()
        };
        let opened = open_root(&self.core, &path).await;
        let opened = opened.and_then(|dir| self.core.stat(&dir).map(|stat| (dir, stat)));
        let mut roots = self.roots.borrow_mut();
        let kept = roots.get_mut(root)?;
        let (dir, stat) = match opened {
            Ok(opened) => opened,
            Err(errno) => {
                (kept.dir, kept.identity, kept.checked) = (None, None, None);
                self.forget(root);
                return Err(errno);
            }
        };
        if kept
            .identity
            .is_some_and(|identity| identity != stat.identity)
        {
            self.forget(root);
        }
        kept.identity = Some(stat.identity);
        kept.checked = Some(now);
        kept.dir = Some(dir.clone());
        Ok((dir, now))
    }

    async fn open(
        &self,
        root: RootId,
        dir: &Fd,
        path: &str,
        coding: Option<Coding>,
    ) -> Result<Fd, Errno> {
        let (root_path, links) = {
            let roots = self.roots.borrow();
            let root = roots.get(root)?;
            (root.path.clone(), root.links)
        };
        match coding {
            None => open_beneath(&self.core, dir, &root_path, links, path).await,
            Some(coding) => {
                let sidecar = [path, coding.file_suffix()].concat();
                open_beneath(&self.core, dir, &root_path, links, &sidecar).await
            }
        }
    }

    /// Makes what is known of an opened file, or keeps what was known when it is still the same.
    async fn found(
        &self,
        root: RootId,
        path: &str,
        coding: Option<Coding>,
        fd: Fd,
        stat: FileStat,
    ) -> Found {
        match stat.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Found::Directory,
            FileKind::Other => return Found::Forbidden,
        }
        let known = {
            let table = self.table.borrow();
            table
                .entries
                .get(&KeyRef { root, coding, path })
                .map(|entry| entry.found.clone())
        };
        if let Some(Found::File(known)) = known
            && known.stat == stat
            && known.rested
        {
            return Found::File(known);
        }
        // What is kept in memory whole leaves with its head in one send: no call for the file, no copy
        // but the kernel's.
        let content = if stat.size <= self.core.tuning().sendfile_from {
            self.read(&fd, stat.size).await
        } else {
            None
        };
        let (now, modified) = (since_epoch(), stat.modified);
        let tag = if is_recent(modified, now) {
            None
        } else {
            EntityTag::from_metadata(stat.size, modified.0, modified.1, coding)
        };
        let file = Rc::new(OpenFile {
            fd: content.is_none().then_some(fd),
            stat,
            content,
            media_type: mime::from_path(path),
            last_modified: Arc::from(&date::imf_fixdate(modified.0)[..]),
            rested: !is_recent(stat.changed, now),
            tag: RefCell::new(tag.map(|tag| Arc::from(tag.as_bytes()))),
            sidecars: Cell::new(None),
            warmth: Warmth::default(),
        });
        // The content in memory is what the tag stands for; a file on disk may change under it.
        let hashable = file.rested || file.content.is_some();
        if file.tag.borrow().is_none() && hashable && stat.size <= HASHED_MAX {
            self.hash(&file, coding);
        }
        Found::File(file)
    }

    /// The content of a small file; `None` when it isn't what its size says.
    async fn read(&self, fd: &Fd, size: u64) -> Option<Rc<[u8]>> {
        let size = size as usize;
        if size == 0 {
            return Some(Rc::from([]));
        }
        let mut bytes = vec![0; size];
        if let Ok(read) = self.core.read_resident(fd, &mut bytes, 0)
            && read == size
        {
            return Some(Rc::from(bytes));
        }
        let read = Op::Read {
            file: fd.clone(),
            data: bytes,
            len: size,
            offset: 0,
        };
        match self.core.once(read).await.output {
            Output::Data(bytes) if bytes.len() == size => Some(Rc::from(bytes)),
            _ => None,
        }
    }

    /// Finds the entity tag of a file whose time of modification says nothing, off the loop.
    fn hash(&self, file: &Rc<OpenFile>, coding: Option<Coding>) {
        if let Some(content) = &file.content {
            let tag = EntityTag::from_hash(xxhash_rust::xxh3::xxh3_128(content), coding);
            *file.tag.borrow_mut() = Some(Arc::from(tag.as_bytes()));
            return;
        }
        let Some(fd) = file.fd.as_ref().and_then(|fd| self.core.duplicate(fd).ok()) else {
            return;
        };
        let (core, file) = (self.core.clone(), Rc::clone(file));
        let size = file.stat.size;
        self.core.spawn(async move {
            let done = core
                .once(Op::Offload(Box::new(move || {
                    Box::new(hash_file(&fd, size))
                })))
                .await;
            let Output::Answer(answer) = done.output else {
                return;
            };
            if let Some(hash) = answer
                .downcast::<Option<u128>>()
                .ok()
                .and_then(|hash| *hash)
            {
                let tag = EntityTag::from_hash(hash, coding);
                *file.tag.borrow_mut() = Some(Arc::from(tag.as_bytes()));
            }
        });
    }

    fn insert(
        &self,
        root: RootId,
        path: &str,
        coding: Option<Coding>,
        found: Found,
        checked: Instant,
    ) {
        if self.roots.borrow().get(root).is_err() {
            // It went while this was looked up, and everything beneath it.
            return;
        }
        let bytes = path.len()
            + match &found {
                Found::File(file) => file.content.as_ref().map_or(0, |content| content.len()),
                _ => 0,
            };
        let table = &mut *self.table.borrow_mut();
        let entry = Entry {
            found,
            checked,
            used: true,
            bytes,
        };
        if let Some(known) = table.entries.get_mut(&KeyRef { root, coding, path }) {
            if known.checked > checked {
                // Somebody asked later and was told sooner.
                return;
            }
            table.bytes = table.bytes - known.bytes + bytes;
            *known = entry;
        } else {
            let key = Rc::new(Key {
                root,
                coding,
                path: path.into(),
            });
            table.entries.insert(Rc::clone(&key), entry);
            table.hand.push_back(key);
            table.bytes += bytes;
        }
        self.evict(table);
    }

    fn evict(&self, table: &mut Table) {
        while table.entries.len() > self.bounds.entries_max || table.bytes > self.bounds.bytes_max {
            let Some(key) = table.hand.pop_front() else {
                return;
            };
            let Some(entry) = table.entries.get_mut(&key) else {
                continue;
            };
            if std::mem::take(&mut entry.used) {
                table.hand.push_back(key);
                continue;
            }
            table.bytes -= entry.bytes;
            table.entries.remove(&key);
        }
    }

    /// Forgets everything beneath a root.
    fn forget(&self, root: RootId) {
        let table = &mut *self.table.borrow_mut();
        let mut freed = 0;
        table.entries.retain(|key, entry| {
            let keep = key.root != root;
            freed += if keep { 0 } else { entry.bytes };
            keep
        });
        table.hand.retain(|key| key.root != root);
        table.bytes -= freed;
    }

    /// Forgets everything.
    pub fn clear(&self) {
        *self.table.borrow_mut() = Table::default();
    }

    /// Entries and bytes in use.
    pub fn usage(&self) -> (usize, usize) {
        let table = self.table.borrow();
        (table.entries.len(), table.bytes)
    }
}

/// Whether a file's time lies so short before `now` that a change to come may have the same.
/// One far in the future was set by hand.
fn is_recent(time: (i64, u32), now: Duration) -> bool {
    u64::try_from(time.0).is_ok_and(|seconds| Duration::new(seconds, time.1).abs_diff(now) < TICK)
}

/// Hashes a file of `size` bytes; `None` when it can't be read or is not what its size says.
fn hash_file(fd: &OwnedFd, size: u64) -> Option<u128> {
    let mut hasher = Xxh3::new();
    let mut block = vec![0; 64 << 10];
    let mut at = 0;
    while at < size {
        let read = rustix::io::pread(fd, &mut block[..], at)
            .ok()
            .filter(|read| *read > 0)?;
        hasher.update(&block[..read]);
        at += read as u64;
    }
    (at == size).then(|| hasher.digest128())
}

#[cfg(test)]
mod tests;

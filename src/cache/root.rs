//! Directories that files are served from, and opening beneath them.

use std::any::Any;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;

use super::open_files::OpenFiles;
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::op::{Op, OpenRequest, Output};

/// Which symbolic links are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// None.
    Off,
    /// Those that stay beneath the root.
    Beneath,
    /// All.
    On,
}

impl Links {
    fn resolve(self) -> ResolveFlags {
        match self {
            Self::Off => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
            Self::Beneath => ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
            Self::On => ResolveFlags::NO_MAGICLINKS,
        }
    }
}

/// Names a root of a cache; none gets the number of one that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootId(u64);

/// Holds a root. With the last holder the root goes, and everything that is known beneath it.
pub struct RootHandle {
    files: Rc<OpenFiles>,
    id: RootId,
}

impl RootHandle {
    pub(super) fn new(files: &Rc<OpenFiles>, id: RootId) -> Self {
        let files = Rc::clone(files);
        Self { files, id }
    }

    /// The root's name, which is good while it is held.
    pub fn id(&self) -> RootId {
        self.id
    }
}

impl Drop for RootHandle {
    fn drop(&mut self) {
        self.files.let_go(self.id);
    }
}

/// A directory by its path, and the descriptor that it had when it was last looked at.
pub(super) struct Root {
    id: RootId,
    pub(super) path: PathBuf,
    pub(super) links: Links,
    pub(super) dir: Option<Fd>,
    pub(super) identity: Option<(u64, u64)>,
    pub(super) checked: Option<Instant>,
    holders: usize,
}

/// The roots of one cache: as many as the configurations that live have in all.
#[derive(Default)]
pub(super) struct Roots {
    /// In the order of their numbers.
    list: Vec<Root>,
    last: u64,
}

impl Roots {
    /// Adds a holder to the root with this path and this rule.
    pub(super) fn hold(&mut self, path: PathBuf, links: Links) -> RootId {
        let same = |root: &&mut Root| root.path == path && root.links == links;
        if let Some(root) = self.list.iter_mut().find(same) {
            root.holders += 1;
            return root.id;
        }
        self.last += 1;
        let id = RootId(self.last);
        self.list.push(Root {
            id,
            path,
            links,
            dir: None,
            identity: None,
            checked: None,
            holders: 1,
        });
        id
    }

    /// Takes a holder away; says whether the root went with it.
    pub(super) fn let_go(&mut self, id: RootId) -> bool {
        let Ok(index) = self.index(id) else {
            return false;
        };
        self.list[index].holders -= 1;
        let gone = self.list[index].holders == 0;
        if gone {
            self.list.remove(index);
        }
        gone
    }

    /// # Errors
    /// `ENOENT` for a root that nobody holds any more.
    pub(super) fn get(&self, id: RootId) -> Result<&Root, Errno> {
        self.index(id).map(|index| &self.list[index])
    }

    /// # Errors
    /// As [`Self::get`].
    pub(super) fn get_mut(&mut self, id: RootId) -> Result<&mut Root, Errno> {
        self.index(id).map(|index| &mut self.list[index])
    }

    fn index(&self, id: RootId) -> Result<usize, Errno> {
        let found = self.list.binary_search_by_key(&id, |root| root.id);
        found.map_err(|_| Errno::NOENT)
    }
}

/// Flags for a file that is served: a FIFO must not block the open, a terminal not become ours.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Opens a path without waiting for a disk where that is possible.
async fn open(core: &Core, request: OpenRequest) -> Result<Fd, Errno> {
    match core.open_cached(&request) {
        Err(Errno::AGAIN) => {}
        result => return result,
    }
    let opened = core.once(Op::Open(Box::new(request))).await;
    match (opened.result, opened.output) {
        (Ok(_), Output::Opened(fd)) => Ok(fd),
        (Err(errno), _) => Err(errno),
        (Ok(_), _) => Err(Errno::IO),
    }
}

/// Opens the directory of a root by its path, whatever links lead there.
pub(super) async fn open_root(core: &Core, path: &Path) -> Result<Fd, Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    open(
        core,
        OpenRequest {
            dir: None,
            path,
            flags,
            resolve: ResolveFlags::empty(),
        },
    )
    .await
}

/// Opens `path`, relative and without dot segments, beneath `dir`.
///
/// # Errors
/// `EXDEV` where a link leads out of the root.
pub(super) async fn open_beneath(
    core: &Core,
    dir: &Fd,
    root: &Path,
    links: Links,
    path: &str,
) -> Result<Fd, Errno> {
    let path = if path.is_empty() { "." } else { path };
    let request = |path: CString| OpenRequest {
        dir: Some(dir.clone()),
        path,
        flags: FILE,
        resolve: links.resolve(),
    };
    let name = CString::new(path).map_err(|_| Errno::NOENT)?;
    match open(core, request(name)).await {
        // `RESOLVE_BENEATH` refuses every absolute link, also one to the inside: resolve it once,
        // and open what it leads to beneath the root again.
        Err(Errno::XDEV) if links == Links::Beneath => {
            let inside = resolve_inside(core, root, path).await?;
            open(core, request(inside)).await
        }
        result => result,
    }
}

/// Where `path` leads, relative to the root; `EXDEV` when that is outside.
async fn resolve_inside(core: &Core, root: &Path, path: &str) -> Result<CString, Errno> {
    let (root, full) = (root.to_owned(), root.join(path));
    let job = move || -> Box<dyn Any + Send> {
        let inside = std::fs::canonicalize(&root).ok().and_then(|root| {
            let full = std::fs::canonicalize(&full).ok()?;
            full.strip_prefix(&root).ok().map(Path::to_owned)
        });
        Box::new(inside)
    };
    let answer = core.once(Op::Offload(Box::new(job))).await;
    let Output::Answer(answer) = answer.output else {
        return Err(Errno::IO);
    };
    let inside = answer
        .downcast::<Option<PathBuf>>()
        .ok()
        .and_then(|inside| *inside);
    let inside = inside.ok_or(Errno::XDEV)?;
    let inside = if inside.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        inside
    };
    CString::new(inside.as_os_str().as_bytes()).map_err(|_| Errno::XDEV)
}

//! Directories that files are served from, and opening beneath them.

use std::any::Any;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;

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

/// A directory by its path, and the descriptor that it had when it was last looked at.
pub(super) struct Root {
    pub(super) path: PathBuf,
    pub(super) links: Links,
    pub(super) dir: Option<Fd>,
    pub(super) identity: Option<(u64, u64)>,
    pub(super) checked: Option<Instant>,
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

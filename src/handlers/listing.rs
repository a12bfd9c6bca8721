//! Reads a directory for its listing, on a helper thread: there is no asynchronous form of it.

use std::any::Any;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, statat};
use rustix::io::Errno;

use super::app::App;
use super::autoindex::{CONTENT_SECURITY_POLICY, Entry, Kind, Listing, View, render};
use super::error_page;
use crate::cache::open_files::RootId;
use crate::config::model::{Files, Symlinks};
use crate::http::session::{Body, Response};
use crate::http::types::{Request, ResponseHead};
use crate::runtime::engine::syscall::{FileKind, FileStat};
use crate::runtime::op::{Op, Output};

/// Most entries of a listing; the page says when there are more.
const ENTRIES_MAX: usize = 10_000;

/// A directory to be read, and how.
struct Job {
    dir: OwnedFd,
    /// Path on disk, to see where links lead.
    place: PathBuf,
    root: PathBuf,
    links: Symlinks,
    hidden: bool,
    path: String,
    view: View,
}

type Page = Result<(Vec<u8>, &'static str), Errno>;

/// Answers with the listing of the directory at `path`, relative to the root.
pub(super) async fn respond(
    app: &App,
    files: &Arc<Files>,
    root: RootId,
    path: &str,
    request: &Request<'_>,
) -> Response {
    if app.core.is_out_of_memory() {
        return app.no_memory();
    }
    let dir = match app.files.open_directory(root, path).await {
        Ok(dir) => dir,
        Err(Errno::NOENT | Errno::NOTDIR) => return error_page::plain(404),
        Err(Errno::ACCESS | Errno::PERM) => return error_page::plain(403),
        Err(_) => return error_page::plain(503),
    };
    let mut view = View::from_query(request.query);
    view.json |= prefers_json(request);
    let job = Job {
        dir,
        place: files.root.join(path),
        root: files.root.clone(),
        links: files.symlinks,
        hidden: files.hidden_files,
        path: with_slashes(path),
        view,
    };
    let run = move || -> Box<dyn Any + Send> { Box::new(job.page()) };
    let done = app.core.once(Op::Offload(Box::new(run))).await;
    let Output::Answer(answer) = done.output else {
        return error_page::plain(503);
    };
    match answer.downcast::<Page>().map(|page| *page) {
        Ok(Ok((page, media_type))) => {
            let head = ResponseHead::new(200)
                .with("Content-Type", media_type)
                .with("Content-Security-Policy", CONTENT_SECURITY_POLICY)
                .with("X-Content-Type-Options", "nosniff")
                .with("Cache-Control", "no-cache")
                .with("Vary", "Accept");
            Response {
                head,
                body: Body::Bytes(page),
            }
        }
        Ok(Err(Errno::ACCESS | Errno::PERM)) => error_page::plain(403),
        Ok(Err(_)) | Err(_) => error_page::plain(503),
    }
}

/// Whether the client names JSON and not HTML.
fn prefers_json(request: &Request<'_>) -> bool {
    let mut accepted = request.fields.get_all("accept");
    let names = |value: &[u8], name: &[u8]| memchr::memmem::find(value, name).is_some();
    accepted.any(|value| names(value, b"application/json") && !names(value, b"text/html"))
}

fn with_slashes(path: &str) -> String {
    if path.is_empty() {
        "/".to_owned()
    } else {
        format!("/{path}/")
    }
}

impl Job {
    fn page(self) -> Page {
        let mut entries = Vec::new();
        let mut truncated = false;
        for entry in Dir::read_from(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." || (name.starts_with(b".") && !self.shows_dot(name)) {
                continue;
            }
            if entries.len() == ENTRIES_MAX {
                truncated = true;
                break;
            }
            // What vanished meanwhile, or isn't served, is not listed.
            entries.extend(self.entry(name));
        }
        Ok(render(
            Listing {
                path: &self.path,
                entries,
                truncated,
            },
            self.view,
        ))
    }

    fn shows_dot(&self, name: &[u8]) -> bool {
        self.hidden || (self.path == "/" && name == b".well-known")
    }

    fn entry(&self, name: &[u8]) -> Option<Entry> {
        let stat = statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let is_link = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_symlink();
        let (kind, size, modified) = if is_link {
            self.target(name)?
        } else {
            let stat = FileStat::from(&stat);
            let kind = match stat.kind {
                FileKind::Regular => Kind::File,
                FileKind::Directory => Kind::Directory,
                FileKind::Other => return None,
            };
            (kind, stat.size, stat.modified.0)
        };
        Some(Entry {
            name: name.into(),
            kind,
            size,
            modified,
        })
    }

    /// What a link leads to, if it would be served.
    fn target(&self, name: &[u8]) -> Option<(Kind, u64, i64)> {
        if self.links == Symlinks::Off {
            return None;
        }
        let target = fs::canonicalize(self.place.join(std::ffi::OsStr::from_bytes(name))).ok()?;
        if self.links == Symlinks::Beneath && !self.holds(&target) {
            return None;
        }
        let stat = fs::metadata(&target).ok()?;
        let kind = if stat.is_dir() {
            Kind::Directory
        } else {
            Kind::File
        };
        let modified = std::os::unix::fs::MetadataExt::mtime(&stat);
        (stat.is_dir() || stat.is_file()).then_some((kind, stat.len(), modified))
    }

    fn holds(&self, target: &Path) -> bool {
        fs::canonicalize(&self.root).is_ok_and(|root| target.starts_with(root))
    }
}

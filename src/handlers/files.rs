//! Files of a directory: what a path leads to, in which coding, under which conditions, in which
//! ranges.

use std::rc::Rc;
use std::sync::Arc;

use super::app::{App, allowed, method_not_allowed};
use super::epoch::AppEpoch;
use super::{error_page, listing};
use crate::cache::open_files::{Found, OpenFile, RootId};
use crate::config::model::Files;
use crate::http::semantics::conditional::{Outcome, Validators, evaluate};
use crate::http::semantics::date;
use crate::http::semantics::negotiate::{Choice, Coding, choose};
use crate::http::semantics::range::{
    ByteRange, Multipart, RANGES_MAX, Selection, select, unsatisfied_content_range,
};
use crate::http::session::{Body, Piece, Response};
use crate::http::types::{Method, Request, ResponseHead, Status};
use crate::http::uri::encode_path;
use crate::net::send::FilePart;
use crate::runtime::direct::admission::DirectMode;

/// The one directory whose name begins with a dot and which is served (RFC 8615).
const WELL_KNOWN: &str = ".well-known";

/// A file that was chosen to answer, and how it was chosen.
struct Chosen {
    file: Rc<OpenFile>,
    media_type: &'static str,
    coding: Option<Coding>,
    /// Whether another request might have got another coding.
    varies: bool,
    /// Whether it is read past the page cache where it isn't in memory.
    direct: DirectMode,
}

impl App {
    /// Answers a request for a file or directory.
    pub(super) async fn serve_files(
        &self,
        epoch: &AppEpoch,
        files: &Arc<Files>,
        request: &Request<'_>,
    ) -> Response {
        match request.method {
            Method::Get | Method::Head => {}
            Method::Options => return allowed(),
            _ => return method_not_allowed(),
        }
        let root = epoch.root_of(files);
        let path = request.path.trim_start_matches('/');
        let (path, is_directory) = match path.strip_suffix('/') {
            Some(path) => (path, true),
            None => (path, path.is_empty()),
        };
        if !files.hidden_files && is_hidden(path) {
            return self.missing(files, root, request).await;
        }
        match self.files.look_up(root, path, None).await {
            Found::File(file) if !is_directory => {
                self.negotiated(files, root, path, file, request).await
            }
            Found::Directory if is_directory => self.directory(files, root, path, request).await,
            Found::Directory => with_slash(request),
            Found::File(_) | Found::Missing => self.missing(files, root, request).await,
            Found::Forbidden => error_page::plain(403),
            Found::Unavailable(_) => unavailable(),
        }
    }

    /// A file that answers whole and whatever was asked, under another status: an error page.
    pub(super) async fn whole_file(
        &self,
        root: RootId,
        path: &str,
        status: Status,
    ) -> Option<Response> {
        let Found::File(file) = self.files.look_up(root, path, None).await else {
            return None;
        };
        let mut head = ResponseHead::new(status.0);
        head.push("Content-Type", file.media_type);
        let size = file.stat.size;
        Some(Response {
            head,
            body: part(&file, 0, size, DirectMode::Off),
        })
    }

    async fn directory(
        &self,
        files: &Arc<Files>,
        root: RootId,
        path: &str,
        request: &Request<'_>,
    ) -> Response {
        let mut index = String::with_capacity(path.len() + 16);
        for name in &files.index {
            index.clear();
            if !path.is_empty() {
                index.push_str(path);
                index.push('/');
            }
            index.push_str(name);
            match self.files.look_up(root, &index, None).await {
                Found::File(file) => {
                    return self.negotiated(files, root, &index, file, request).await;
                }
                // It is there, so neither the next name nor a listing may stand in for it.
                Found::Forbidden => return error_page::plain(403),
                Found::Unavailable(_) => return unavailable(),
                Found::Directory | Found::Missing => {}
            }
        }
        if files.list {
            return listing::respond(self, files, root, path, request).await;
        }
        if files.spa_answers(&request.method, &request.path) {
            return self.missing(files, root, request).await;
        }
        error_page::plain(403)
    }

    /// Nothing stands there: the page of a single-page application, or 404.
    async fn missing(&self, files: &Arc<Files>, root: RootId, request: &Request<'_>) -> Response {
        if let Some(page) = &files.spa
            && files.spa_answers(&request.method, &request.path)
        {
            match self.files.look_up(root, page, None).await {
                Found::File(file) => {
                    return self.negotiated(files, root, page, file, request).await;
                }
                // Not 404: caches keep that.
                Found::Unavailable(_) => return unavailable(),
                Found::Directory | Found::Missing | Found::Forbidden => {}
            }
        }
        error_page::plain(404)
    }

    /// Chooses the coding, then answers.
    async fn negotiated(
        &self,
        files: &Arc<Files>,
        root: RootId,
        path: &str,
        file: Rc<OpenFile>,
        request: &Request<'_>,
    ) -> Response {
        let media_type = file.media_type;
        let mut chosen = Chosen {
            file,
            media_type,
            coding: None,
            varies: false,
            direct: files.direct,
        };
        if !files.precompressed.is_empty() {
            let there = self.files.sidecars(root, path, &chosen.file).await;
            let mut codings: smallvec::SmallVec<[Coding; 3]> = files
                .precompressed
                .iter()
                .copied()
                .filter(|coding| there.has(*coding))
                .collect();
            chosen.varies = !codings.is_empty();
            while !codings.is_empty() {
                let coding = match choose(&request.fields, &codings) {
                    Choice::Coded(coding) => coding,
                    Choice::Identity => break,
                    Choice::NotAcceptable => return not_acceptable(),
                };
                if let Found::File(sidecar) = self.files.look_up(root, path, Some(coding)).await {
                    (chosen.file, chosen.coding) = (sidecar, Some(coding));
                    break;
                }
                codings.retain(|other| *other != coding);
            }
        }
        self.conditional(files, &chosen, request)
    }

    fn conditional(&self, files: &Files, chosen: &Chosen, request: &Request<'_>) -> Response {
        let file = &*chosen.file;
        let tag = if files.etag { file.tag() } else { None };
        let modified = file.stat.modified.0;
        let mut range_applies = false;
        let mut status = 200;
        if has_conditions(request) {
            let now = i64::try_from(self.unix_seconds()).unwrap_or(i64::MAX);
            let validators = Validators {
                entity_tag: tag.as_deref(),
                last_modified: Some(modified.min(now)),
            };
            match evaluate(request.method, &request.fields, validators, now) {
                Outcome::NotModified => status = 304,
                Outcome::PreconditionFailed => return error_page::plain(412),
                Outcome::Proceed {
                    range_applies: applies,
                } => range_applies = applies,
            }
        }
        let mut head = ResponseHead::new(status);
        if status != 304 {
            head.push("Content-Type", chosen.media_type);
            if let Some(coding) = chosen.coding {
                head.push("Content-Encoding", coding.token());
            }
        }
        if let Some(tag) = tag {
            head.push("ETag", tag);
        }
        self.push_last_modified(&mut head, file);
        if chosen.varies {
            head.push("Vary", "Accept-Encoding");
        }
        if status == 304 {
            return Response {
                head,
                body: Body::Empty,
            };
        }
        if files.range {
            head.push("Accept-Ranges", "bytes");
        }
        let size = file.stat.size;
        if range_applies && files.range {
            return self.ranged(head, chosen, request, size);
        }
        Response {
            head,
            body: chosen.part(0, size),
        }
    }

    /// Last-Modified is never in the future (RFC 9110 §8.8.2.1).
    fn push_last_modified(&self, head: &mut ResponseHead, file: &OpenFile) {
        let now = i64::try_from(self.unix_seconds()).unwrap_or(i64::MAX);
        if file.stat.modified.0 <= now {
            head.push("Last-Modified", Arc::clone(&file.last_modified));
        } else {
            let now = date::imf_fixdate(now);
            head.push("Last-Modified", Arc::<[u8]>::from(&now[..]));
        }
    }

    fn ranged(
        &self,
        mut head: ResponseHead,
        chosen: &Chosen,
        request: &Request<'_>,
        size: u64,
    ) -> Response {
        match select(&request.fields, size, RANGES_MAX) {
            Selection::Whole => Response {
                head,
                body: chosen.part(0, size),
            },
            Selection::Single(range) => {
                head.status = Status(206);
                head.push("Content-Range", range.content_range(size));
                let body = chosen.part(range.first, range.length());
                Response { head, body }
            }
            Selection::Multiple(ranges) => self.multipart(head, chosen, &ranges, size),
            Selection::Unsatisfiable => {
                let mut response = error_page::plain(416);
                response
                    .head
                    .push("Content-Range", unsatisfied_content_range(size));
                response.head.push("Accept-Ranges", "bytes");
                response
            }
        }
    }

    fn multipart(
        &self,
        mut head: ResponseHead,
        chosen: &Chosen,
        ranges: &[ByteRange],
        size: u64,
    ) -> Response {
        let media_type = Some(chosen.media_type);
        let multipart = Multipart::new(ranges, size, media_type, self.next_random());
        head.status = Status(206);
        head.set("Content-Type", multipart.content_type());
        let mut pieces = Vec::with_capacity(2 * ranges.len() + 1);
        for (part_head, range) in multipart.parts() {
            pieces.push(Piece::Bytes(part_head.as_bytes().to_vec()));
            pieces.push(match chosen.part(range.first, range.length()) {
                Body::File(part) => Piece::File(part),
                Body::Shared(bytes, range) => Piece::Bytes(bytes[range].to_vec()),
                _ => Piece::Bytes(Vec::new()),
            });
        }
        pieces.push(Piece::Bytes(multipart.end().into_bytes()));
        Response {
            head,
            body: Body::Pieces(pieces),
        }
    }
}

impl Chosen {
    fn part(&self, offset: u64, length: u64) -> Body {
        part(&self.file, offset, length, self.direct)
    }
}

/// A part of a file as a body.
fn part(file: &OpenFile, offset: u64, length: u64, direct: DirectMode) -> Body {
    if let Some(content) = &file.content {
        let (start, end) = (offset as usize, (offset + length) as usize);
        return Body::Shared(Rc::clone(content), start..end);
    }
    let Some(fd) = &file.fd else {
        return Body::Empty;
    };
    Body::File(FilePart {
        file: fd.clone(),
        offset,
        length,
        direct,
        warmth: file.warmth.clone(),
    })
}

/// Whether a segment of the path begins with a dot, `/.well-known/` at the top excepted.
fn is_hidden(path: &str) -> bool {
    let visible = path
        .strip_prefix(WELL_KNOWN)
        .filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let path = visible.unwrap_or(path);
    path.starts_with('.') || path.contains("/.")
}

/// Whether the request has a field that may change what is answered: `If-…` or `Range`.
fn has_conditions(request: &Request<'_>) -> bool {
    request.fields.iter().any(|(name, _)| {
        let name = name.as_bytes();
        match name.first() {
            Some(b'i' | b'I') => name.len() > 3 && name[..3].eq_ignore_ascii_case(b"if-"),
            Some(b'r' | b'R') => name.eq_ignore_ascii_case(b"range"),
            _ => false,
        }
    })
}

/// A directory without the slash: relative links in it would lead astray.
fn with_slash(request: &Request<'_>) -> Response {
    let mut location = encode_path(&request.path).into_owned();
    location.push('/');
    if let Some(query) = request.query {
        location.push('?');
        location.push_str(query);
    }
    let mut response = error_page::plain(301);
    response.head.push("Location", location);
    response
}

fn unavailable() -> Response {
    let mut response = error_page::plain(503);
    response.head.push("Retry-After", "1");
    response
}

fn not_acceptable() -> Response {
    let mut response = error_page::plain(406);
    response.head.push("Vary", "Accept-Encoding");
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_files_are_hidden_but_for_well_known() {
        for (path, hidden) in [
            ("", false),
            ("a/b.txt", false),
            (".git/config", true),
            ("a/.env", true),
            (".well-known", false),
            (".well-known/acme-challenge/x", false),
            (".well-known/.secret", true),
            (".well-knownx", true),
            ("a/.well-known/x", true),
        ] {
            assert_eq!(is_hidden(path), hidden, "{path:?}");
        }
    }
}

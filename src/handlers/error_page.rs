//! Error responses: a short page that says nothing about the inside.

use crate::http::session::{Body, Response};
use crate::http::types::{ResponseHead, Status};

/// The page for a status, or no content where the status forbids it.
pub(super) fn plain(status: u16) -> Response {
    let code = Status(status);
    let mut head = ResponseHead::new(status);
    if code.forbids_body() {
        return Response {
            head,
            body: Body::Empty,
        };
    }
    head.push("Content-Type", "text/html; charset=utf-8");
    let reason = code.reason();
    let page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{status} {reason}</title>\n<h1>{status} {reason}</h1>\n</html>\n"
    );
    Response {
        head,
        body: Body::Bytes(page.into_bytes()),
    }
}

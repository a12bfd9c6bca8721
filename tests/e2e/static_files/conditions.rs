//! Validators and conditions, in the order of RFC 9110 §13.2.2.

use crate::support::server::serve;
use crate::support::{Client, Setup, Tree, on_both};

/// 2001-09-09 01:46:40 UTC.
const THEN: u64 = 1_000_000_000;
const THEN_TEXT: &str = "Sun, 09 Sep 2001 01:46:40 GMT";
const EARLIER: &str = "Sun, 09 Sep 2001 01:46:39 GMT";
const LATER: &str = "Mon, 10 Sep 2001 00:00:00 GMT";

fn tree() -> Tree {
    let tree = Tree::with(&[("a.txt", "hello")]);
    tree.set_modified("a.txt", THEN);
    tree
}

fn tag(client: &mut Client) -> String {
    let response = client.get("/a.txt");
    let tag = response.must("ETag").to_owned();
    assert!(tag.starts_with('"') && tag.ends_with('"'), "strong: {tag}");
    tag
}

#[test]
fn conditions_are_evaluated_in_their_order() {
    on_both(|engine| {
        let tree = tree();
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        assert_eq!(client.get("/a.txt").must("Last-Modified"), THEN_TEXT);
        let tag = tag(&mut client);
        let cases = [
            (format!("If-None-Match: {tag}\r\n"), 304),
            (format!("If-None-Match: W/{tag}\r\n"), 304),
            (format!("If-None-Match: \"x\", {tag}\r\n"), 304),
            (
                format!("If-None-Match: \"x\"\r\nIf-None-Match: {tag}\r\n"),
                304,
            ),
            ("If-None-Match: *\r\n".into(), 304),
            ("If-None-Match: \"x\"\r\n".into(), 200),
            ("If-None-Match: W/\"x\"\r\n".into(), 200),
            (format!("If-Modified-Since: {THEN_TEXT}\r\n"), 304),
            (format!("If-Modified-Since: {LATER}\r\n"), 304),
            (format!("If-Modified-Since: {EARLIER}\r\n"), 200),
            ("If-Modified-Since: yesterday\r\n".into(), 200),
            // The old forms of a date (RFC 9110 §5.6.7).
            (
                "If-Modified-Since: Sunday, 09-Sep-01 01:46:40 GMT\r\n".into(),
                304,
            ),
            (
                "If-Modified-Since: Sun Sep  9 01:46:40 2001\r\n".into(),
                304,
            ),
            // A tag is asked before a date, and alone.
            (
                format!("If-None-Match: \"x\"\r\nIf-Modified-Since: {LATER}\r\n"),
                200,
            ),
            (
                format!("If-None-Match: {tag}\r\nIf-Modified-Since: {EARLIER}\r\n"),
                304,
            ),
            (format!("If-Match: {tag}\r\n"), 200),
            ("If-Match: *\r\n".into(), 200),
            ("If-Match: \"x\"\r\n".into(), 412),
            // Strong comparison: a weak tag never matches.
            (format!("If-Match: W/{tag}\r\n"), 412),
            (format!("If-Unmodified-Since: {THEN_TEXT}\r\n"), 200),
            (format!("If-Unmodified-Since: {LATER}\r\n"), 200),
            (format!("If-Unmodified-Since: {EARLIER}\r\n"), 412),
            (
                format!("If-Match: {tag}\r\nIf-Unmodified-Since: {EARLIER}\r\n"),
                200,
            ),
            (format!("If-Match: \"x\"\r\nIf-None-Match: {tag}\r\n"), 412),
            (format!("If-Match: {tag}\r\nIf-None-Match: {tag}\r\n"), 304),
            (
                format!("If-Unmodified-Since: {EARLIER}\r\nIf-None-Match: {tag}\r\n"),
                412,
            ),
        ];
        for (fields, status) in cases {
            for method in ["GET", "HEAD"] {
                let response = client.request(method, "/a.txt", &fields);
                assert_eq!(response.status, status, "{method} {fields:?}");
                if status == 304 {
                    assert_eq!(response.must("ETag"), tag, "{fields:?}");
                    assert!(response.body.is_empty());
                }
            }
        }
        // Conditions do not make a missing file a present one.
        assert_eq!(
            client.get_with("/b.txt", "If-None-Match: *\r\n").status,
            404
        );
        assert_eq!(client.get_with("/b.txt", "If-Match: *\r\n").status, 404);
    });
}

#[test]
fn if_range_gives_the_part_only_of_the_same_file() {
    on_both(|engine| {
        let tree = tree();
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        let tag = tag(&mut client);
        for (value, status) in [
            (tag.clone(), 206),
            (format!("W/{tag}"), 200),
            ("\"x\"".into(), 200),
            (THEN_TEXT.into(), 206),
            (EARLIER.into(), 200),
            (LATER.into(), 200),
            ("nonsense".into(), 200),
        ] {
            let fields = format!("Range: bytes=1-2\r\nIf-Range: {value}\r\n");
            let response = client.get_with("/a.txt", &fields);
            assert_eq!(response.status, status, "{value}");
            let content = if status == 206 { "el" } else { "hello" };
            assert_eq!(response.text(), content, "{value}");
        }
        let fields = format!("Range: bytes=1-2\r\nIf-None-Match: {tag}\r\n");
        assert_eq!(client.get_with("/a.txt", &fields).status, 304);
        let fields = "Range: bytes=1-2\r\nIf-Match: \"x\"\r\n";
        assert_eq!(client.get_with("/a.txt", fields).status, 412);
    });
}

#[test]
fn a_tag_does_not_depend_on_the_time_alone() {
    on_both(|engine| {
        let tree = Tree::with(&[("a", "hello"), ("b", "hello!"), ("c", "HELLO")]);
        // Epoch-like, as reproducible builds and package stores have it.
        for name in ["a", "b", "c"] {
            tree.set_modified(name, 1);
        }
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        let mut tag = |name: &str| {
            // The hash of the content may not be known at once; until then there is no tag.
            crate::support::wait_for("a tag", crate::support::PATIENCE, || {
                let response = client.get(name);
                assert_eq!(response.status, 200);
                response.field("ETag").map(str::to_owned)
            })
        };
        let (a, b, c) = (tag("/a"), tag("/b"), tag("/c"));
        assert!(a != b && a != c && b != c, "{a} {b} {c}");
        assert_eq!(tag("/a"), a, "it stays the same");
    });
}

#[test]
fn last_modified_is_never_in_the_future() {
    on_both(|engine| {
        let tree = tree();
        tree.set_modified("a.txt", 4_000_000_000);
        let server = serve(engine, &tree, &[]);
        let response = server.connect().get("/a.txt");
        if let Some(modified) = response.field("Last-Modified") {
            let modified = httpdate::parse_http_date(modified).expect("a date");
            let date = httpdate::parse_http_date(response.must("Date")).expect("a date");
            assert!(modified <= date);
        }
    });
}

#[test]
fn validators_and_ranges_can_be_switched_off() {
    on_both(|engine| {
        let tree = tree();
        let server = Setup::serve(engine, tree.root())
            .arguments(&["--no-etag", "--no-range"])
            .start();
        let mut client = server.connect();
        let response = client.get_with("/a.txt", "Range: bytes=1-2\r\n");
        assert_eq!((response.status, response.text()), (200, "hello"));
        assert_eq!(response.field("ETag"), None);
        assert_ne!(response.field("Accept-Ranges"), Some("bytes"));
    });
}

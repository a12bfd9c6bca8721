//! Ranges: single, suffix and several, refused ones, and no amplification (RFC 9110 §14).

use crate::support::server::serve;
use crate::support::{Response, Tree, noise, on_both};

#[test]
fn a_single_range_is_answered_with_that_part() {
    on_both(|engine| {
        let tree = Tree::new();
        for size in [1000, 1_000_000] {
            tree.write(&format!("{size}"), noise(size));
        }
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        for size in [1000_usize, 1_000_000] {
            let content = noise(size);
            let last = size - 1;
            for (range, from, to) in [
                ("0-0".to_owned(), 0, 0),
                ("0-99".into(), 0, 99),
                ("100-199".into(), 100, 199),
                ("999-".into(), 999, last),
                (format!("0-{last}"), 0, last),
                (format!("0-{}", size * 9), 0, last),
                ("0-".into(), 0, last),
                ("0-99999999999999999999999".into(), 0, last),
                ("-1".into(), last, last),
                ("-500".into(), size - 500, last),
                (format!("-{}", size * 2), 0, last),
                (format!("{last}-{last}"), last, last),
                ("000-0007".into(), 0, 7),
            ] {
                let response =
                    client.get_with(&format!("/{size}"), &format!("Range: bytes={range}\r\n"));
                assert_eq!(response.status, 206, "{range} of {size}");
                assert_eq!(
                    response.must("Content-Range"),
                    format!("bytes {from}-{to}/{size}"),
                    "{range}"
                );
                assert!(response.body == content[from..=to], "{range} of {size}");
            }
        }
        // Other units and broken ranges are ignored (RFC 9110 §14.2); so is Range in a HEAD.
        for range in [
            "lines=0-1",
            "bytes 0-1",
            "bytes=",
            "bytes=a-b",
            "bytes=5-1",
            "bytes=1",
            "bytes=--1",
        ] {
            let response = client.get_with("/1000", &format!("Range: {range}\r\n"));
            assert_eq!(
                (response.status, response.body.len()),
                (200, 1000),
                "{range}"
            );
        }
        let head = client.request("HEAD", "/1000", "Range: bytes=0-1\r\n");
        assert_eq!((head.status, head.must("Content-Length")), (200, "1000"));
        assert_eq!(head.must("Accept-Ranges"), "bytes");
        assert_eq!(client.get_with("/1000", "range: BYTES=0-1\r\n").status, 206);
    });
}

#[test]
fn a_range_beyond_the_end_is_416_and_says_the_size() {
    on_both(|engine| {
        let tree = Tree::with(&[("a", "hello"), ("empty", "")]);
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        for (target, range, size) in [
            ("/a", "5-", 5),
            ("/a", "5-9", 5),
            ("/a", "-0", 5),
            ("/a", "99999999999999999999-", 5),
            ("/a", "7-8,9-", 5),
            ("/empty", "0-", 0),
            ("/empty", "0-0", 0),
        ] {
            let response = client.get_with(target, &format!("Range: bytes={range}\r\n"));
            assert_eq!(response.status, 416, "{target} {range}");
            assert_eq!(
                response.must("Content-Range"),
                format!("bytes */{size}"),
                "{target} {range}"
            );
        }
    });
}

/// The parts of a multipart response: Content-Range and content.
fn parts(response: &Response) -> Vec<(String, Vec<u8>)> {
    let media_type = response.must("Content-Type");
    let boundary = media_type
        .strip_prefix("multipart/byteranges; boundary=")
        .expect("multipart/byteranges")
        .trim_matches('"');
    let find = |bytes: &[u8], what: &str| {
        bytes
            .windows(what.len())
            .position(|window| window == what.as_bytes())
    };
    let mut rest = &response.body[..];
    let first = format!("--{boundary}\r\n");
    let at = find(rest, &first).expect("the first boundary");
    assert!(at == 0 || &rest[..at] == b"\r\n", "a preamble");
    rest = &rest[at + first.len()..];
    let mut parts = Vec::new();
    loop {
        let head_end = find(rest, "\r\n\r\n").expect("the head of a part");
        let head = std::str::from_utf8(&rest[..head_end]).expect("text");
        let field = |name: &str| {
            head.split("\r\n")
                .filter_map(|line| line.split_once(": "))
                .find(|(other, _)| other.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.to_owned())
        };
        assert!(field("Content-Type").is_some(), "{head}");
        let range = field("Content-Range").expect("Content-Range");
        rest = &rest[head_end + 4..];
        let end = find(rest, &format!("\r\n--{boundary}")).expect("the next boundary");
        parts.push((range, rest[..end].to_vec()));
        rest = &rest[end + boundary.len() + 4..];
        match rest {
            b"--\r\n" | b"--" => return parts,
            _ => rest = rest.strip_prefix(b"\r\n").expect("a line end"),
        }
    }
}

#[test]
fn several_ranges_come_as_parts() {
    on_both(|engine| {
        let tree = Tree::new();
        for size in [5000_usize, 500_000] {
            tree.write(&format!("{size}"), noise(size));
        }
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        for size in [5000_usize, 500_000] {
            let content = noise(size);
            for ranges in [
                "0-0,1000-1999,-1",
                "4000-4999, 0-9",
                "1000-1001,2000-2001 ,, 3000-4000",
            ] {
                let fields = format!("Range: bytes={ranges}\r\n");
                let response = client.get_with(&format!("/{size}"), &fields);
                assert_eq!(response.status, 206);
                assert_eq!(response.field("Content-Range"), None);
                let mut total = 0;
                for (range, part) in parts(&response) {
                    let numbers = range.strip_prefix("bytes ").expect("bytes");
                    let (numbers, whole) = numbers.split_once('/').expect("the size");
                    let (from, to) = numbers.split_once('-').expect("a range");
                    let number = |text: &str| text.parse::<usize>().expect("a number");
                    assert_eq!(number(whole), size);
                    assert!(
                        part == content[number(from)..=number(to)],
                        "{ranges}: {range}"
                    );
                    total += part.len();
                }
                let asked: usize = ranges
                    .split(',')
                    .map(str::trim)
                    .filter(|range| !range.is_empty())
                    .map(|range| match range.split_once('-').expect("a range") {
                        ("", count) => count.parse().expect("a number"),
                        (from, to) => {
                            let number = |text: &str| text.parse::<usize>().expect("a number");
                            number(to) - number(from) + 1
                        }
                    })
                    .sum();
                assert_eq!(total, asked, "{ranges}");
                let head = client.request("HEAD", &format!("/{size}"), &fields);
                assert_eq!(head.status, 200, "Range is for GET alone");
            }
        }
    });
}

#[test]
fn ranges_never_multiply_the_content() {
    on_both(|engine| {
        let tree = Tree::new();
        let size = 10_000;
        tree.write("a", noise(size));
        let server = serve(engine, &tree, &[]);
        let mut client = server.connect();
        for ranges in [
            "0-,".repeat(1000),
            (0..900).map(|from| format!("{from}-,")).collect::<String>(),
            (0..800).map(|n| format!("{}-{},", n * 2, n * 2)).collect(),
            "0-9999,0-9999,0-9999".into(),
            "-10000,-9999,-9998,-9997".into(),
        ] {
            let fields = format!("Range: bytes={}\r\n", ranges.trim_end_matches(','));
            let response = client.get_with("/a", &fields);
            assert!(
                [200, 206, 416].contains(&response.status),
                "{}",
                response.status
            );
            assert!(
                response.body.len() < size + 8192,
                "{} bytes for a file of {size}",
                response.body.len()
            );
        }
    });
}

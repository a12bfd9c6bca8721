//! Canonical paths and hosts: what is accepted is unambiguous and a fixed point.

use std::borrow::Cow;

use beltway::http::uri;

use crate::Target;

/// The target.
pub const TARGET: Target = Target {
    name: "uri",
    run,
    corpus: &[
        b"/",
        b"/index.html",
        b"/a/../b/./c//d/",
        b"/%61%2e%2e/%C3%A9/%252f",
        b"/..%2f..%5c%00",
        b"/a?b=c&d",
        b"http://Example.com:8080/path?query",
        b"example.com:443",
        b"[2001:db8::1]:80",
        b"user@host.",
    ],
    tokens: &[
        b"/../",
        b"/./",
        b"//",
        b"..",
        b"%2e",
        b"%2E%2e",
        b"%2f",
        b"%5C",
        b"%00",
        b"%25",
        b"%ff",
        b"%c3%a9",
        b"\\",
        b"\xc3\xa9",
        b"://",
        b"http://",
        b"[::1]",
        b":65536",
        b"?",
        b"#",
        b"@",
    ],
};

fn run(input: &[u8]) {
    check_host(input);
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    let (path, query) = uri::split_query(text);
    assert_eq!(path.len() + query.map_or(0, |q| q.len() + 1), text.len());
    check_path(path);
    if let Some((authority, rest)) = uri::split_absolute(text) {
        assert!(rest.is_empty() || rest.starts_with(['/', '?', '#']));
        assert!(!authority.contains(['/', '?', '#']));
    }
}

fn check_path(raw: &str) {
    let Ok(path) = uri::canonical_path(raw) else {
        return;
    };
    assert!(path.starts_with('/') && !path.contains("//"));
    assert!(!path.contains(['\0', '\\']));
    assert!(
        path.split('/')
            .all(|segment| segment != "." && segment != "..")
    );
    assert!(
        path.len() <= raw.len(),
        "decoding never makes a path longer"
    );
    let borrowed = matches!(path, Cow::Borrowed(_));
    assert_eq!(
        borrowed,
        path == raw,
        "borrowed exactly when it was canonical"
    );
    let encoded = uri::encode_path(&path);
    assert!(encoded.bytes().all(|byte| byte.is_ascii_graphic()));
    assert!(!encoded.contains(['"', '\'', '<', '>', '?', '#', '\\']));
    let again = uri::canonical_path(&encoded);
    assert_eq!(again.as_deref(), Ok(&*path));
}

fn check_host(value: &[u8]) {
    let Ok(authority) = uri::parse_authority(value) else {
        return;
    };
    let host = &*authority.host;
    assert!(!host.is_empty() && host.is_ascii());
    assert!(!host.contains(|c: char| c.is_ascii_uppercase() || "/?#@, \\".contains(c)));
    let again = uri::parse_authority(host.as_bytes()).expect("a canonical host is valid");
    assert_eq!((&*again.host, again.port), (host, None));
}

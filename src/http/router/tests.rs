//! What a user of routes would notice.

use proptest::prelude::*;

use super::*;
use crate::http::types::{Fields, Framing, Method, Request, TargetForm, Version};

/// A GET request for a canonical path, as the parser would hand it over.
pub(super) fn request(path: &str) -> Request<'_> {
    Request {
        method: Method::Get,
        version: Version::Http11,
        target: path,
        form: TargetForm::Origin,
        host: "example.com".into(),
        port: None,
        path: path.into(),
        query: None,
        fields: Fields::default(),
        framing: Framing::None,
        keep_alive: true,
        expects_continue: false,
    }
}

fn router(patterns: &[&str]) -> Router<String> {
    let routes = patterns
        .iter()
        .map(|text| (Pattern::parse(text).unwrap(), (*text).to_owned()))
        .collect();
    Router::build(routes).unwrap()
}

fn all(router: &Router<String>, path: &str) -> Vec<(String, String)> {
    let mut cache = RouterCache::new();
    let mut candidates = router.candidates(path);
    std::iter::from_fn(|| candidates.advance(&mut cache))
        .map(|found| (found.value.clone(), found.rest.to_owned()))
        .collect()
}

#[test]
fn a_prefix_ends_at_a_segment() {
    let router = router(&["/api/*"]);
    for (path, rest) in [
        ("/api", Some("")),
        ("/api/", Some("")),
        ("/api/x", Some("x")),
        ("/api/x/y/", Some("x/y/")),
        ("/apix", None),
        ("/ap", None),
        ("/", None),
        ("/API/x", None),
        ("/x/api/", None),
    ] {
        let found = router.find(&mut RouterCache::new(), path).map(|m| m.rest);
        assert_eq!(found, rest, "{path}");
    }
}

#[test]
fn everything_is_everything() {
    let router = router(&["/*"]);
    for (path, rest) in [("/", ""), ("/a", "a"), ("/a/b/", "a/b/"), ("/é", "é")] {
        assert_eq!(all(&router, path), [("/*".into(), rest.into())]);
    }
}

#[test]
fn a_suffix_holds_at_any_depth_below_its_prefix() {
    let router = router(&["*.php", "/assets/*.js"]);
    for (path, expected) in [
        ("/x.php", Some(("*.php", "x"))),
        ("/a/b/x.php", Some(("*.php", "a/b/x"))),
        ("/.php", Some(("*.php", ""))),
        ("/x.php/", None),
        ("/x.phpx", None),
        ("/assets/app.js", Some(("/assets/*.js", "app"))),
        ("/assets/v1/app.js", Some(("/assets/*.js", "v1/app"))),
        ("/assets.js", None),
        ("/app.js", None),
    ] {
        let mut cache = RouterCache::new();
        let found = router.find(&mut cache, path);
        let found = found.as_ref().map(|m| (m.value.as_str(), m.rest));
        assert_eq!(found, expected, "{path}");
    }
}

#[test]
fn the_most_specific_wins_in_whatever_order_they_are_written() {
    let mut patterns = [
        "/*",
        "/a/*",
        "/a/b/*",
        "*.js",
        "*.min.js",
        "/a/*.js",
        "~^/a/b/x",
        "/a/b/x.min.js",
    ];
    let expected = [
        "/a/b/x.min.js",
        "~^/a/b/x",
        "/a/*.js",
        "*.min.js",
        "*.js",
        "/a/b/*",
        "/a/*",
        "/*",
    ];
    for _ in 0..patterns.len() {
        patterns.rotate_left(1);
        let found = all(&router(&patterns), "/a/b/x.min.js");
        let found: Vec<_> = found.iter().map(|(value, _)| value.as_str()).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn of_several_expressions_the_first_in_the_file_wins() {
    let found = all(&router(&["~b", "~a", "~z"]), "/ab");
    assert_eq!(
        found,
        [("~b".into(), "ab".into()), ("~a".into(), "ab".into())]
    );
}

#[test]
fn captures_come_with_the_match() {
    let router = router(&["~^/u/(?<id>[0-9]+)$"]);
    let mut cache = RouterCache::new();
    let found = router.find(&mut cache, "/u/7").unwrap();
    assert_eq!(found.captures.name("id"), Some("7"));
    assert_eq!(found.pattern.group("id"), Some(1));
    assert!(router.find(&mut cache, "/u/x").is_none());
}

#[test]
fn routes_that_match_the_same_requests_are_refused_all_at_once() {
    let texts = [
        "/a", "*.php", "/api/*", "=/a", "/*.php", "/b", "~x", "~x", "=/b",
    ];
    let routes = texts
        .iter()
        .map(|text| (Pattern::parse(text).unwrap(), ()))
        .collect();
    let conflicts = Router::build(routes).unwrap_err();
    let pairs: Vec<_> = conflicts.iter().map(|c| (c.first, c.second)).collect();
    assert_eq!(pairs, [(0, 3), (1, 4), (6, 7), (5, 8)]);
    assert_eq!(
        conflicts[0].to_string(),
        "`=/a` matches the same requests as `/a`"
    );
}

#[test]
fn overlapping_routes_are_no_conflict() {
    router(&["/a", "/a/", "/a/*", "/*", "*.a", "/a/*.a", "~^/a$"]);
}

#[test]
fn an_empty_router_finds_nothing() {
    assert!(all(&router(&[]), "/").is_empty());
    assert!(router(&[]).is_empty());
}

proptest! {
    /// The tables agree with a plain comparison of every prefix, and the longest comes first.
    #[test]
    fn prefixes_agree_with_a_plain_comparison(
        prefixes in proptest::collection::btree_set("(/[ab]{1,2}){0,3}", 0..12),
        path in "(/[ab]{1,2}){1,4}/?",
    ) {
        let patterns: Vec<_> = prefixes.iter().map(|p| format!("{p}/*")).collect();
        let patterns: Vec<_> = patterns.iter().map(String::as_str).collect();
        let found: Vec<_> = all(&router(&patterns), &path).into_iter().map(|m| m.0).collect();
        let mut expected: Vec<_> = prefixes
            .iter()
            .filter(|prefix| path == ***prefix || path.starts_with(&format!("{prefix}/")))
            .map(|prefix| format!("{prefix}/*"))
            .collect();
        expected.sort_by_key(|pattern| std::cmp::Reverse(pattern.len()));
        prop_assert_eq!(found, expected);
    }

    /// Neither a pattern nor a path of any kind makes the router panic.
    #[test]
    fn nothing_panics(text in "[/*=~.%a-cé\\\\(){}\\[\\]?+^$]{0,16}", path in "/[/.a-cé%]{0,16}") {
        if let Ok(pattern) = Pattern::parse(&text) {
            let router = Router::build(vec![(pattern, ())]).unwrap();
            router.find(&mut RouterCache::new(), &path);
        }
    }
}

//! Targets of redirects: a text with variables, checked when the configuration is read, so that no
//! request can turn it into another site, another scheme or another header field.

use super::expression::Captures;
use super::pattern::{Pattern, PatternError};
use crate::http::types::Request;

/// The target of a redirect.
///
/// | written | becomes |
/// | --- | --- |
/// | `{path}` | what `*` of the route matched; the path without its first slash where there is no `*` |
/// | `{uri}` | the whole path, and the query with its `?` if there is one |
/// | `{query}` | the query without its `?`, or nothing |
/// | `{host}` | the host of the request, without a port |
/// | `{1}`, `{id}` | what a group of the route's regular expression matched, or nothing |
///
/// The query of the request is kept: it is appended (before a fragment) unless the target says
/// something about queries itself, by a `?`, `{query}` or `{uri}`. So `/new?` drops the query and
/// `/new?a=1&{query}` adds to it; where there is none, the `?` or `&` before it is left out.
///
/// Values are percent-encoded. Variables other than `{host}` can't stand where the host of the
/// target is decided, and a target that begins with one slash always stays on its host.
#[derive(Clone, Debug)]
pub struct Template {
    parts: Vec<Part>,
    /// Whether the target is a path on the host of the request.
    is_path: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// Text that may stand in a URI as it is.
    Literal(String),
    Path,
    Uri,
    Query,
    Host,
    Group(usize),
    /// The query of the request with its `?`.
    AppendedQuery,
}

impl Template {
    /// Reads a target for a route with that pattern.
    ///
    /// # Errors
    /// When it is neither an absolute path nor an `http` or `https` URL, when a variable is unknown
    /// or stands in the host, when a brace is left open, or when a control character occurs.
    pub fn parse(text: &str, pattern: &Pattern) -> Result<Self, PatternError> {
        let is_path = text.starts_with('/') || text.starts_with("{uri}");
        let host_start = host_start(text, is_path)?;
        let mut parts = split(text, pattern)?;
        if let Some(start) = host_start {
            check_host(&text[start..], start)?;
        }
        let says_query = parts.iter().any(|part| match part {
            Part::Literal(text) => text.split('#').next().is_some_and(|t| t.contains('?')),
            part => matches!(part, Part::Query | Part::Uri),
        });
        if !says_query {
            append_query(&mut parts);
        } else if let Some(Part::Literal(text)) = parts.last_mut()
            && text.ends_with('?')
        {
            text.pop();
        }
        Ok(Self { parts, is_path })
    }

    /// The same host, path and query under TLS, at this port.
    pub fn to_https(port: u16) -> Self {
        let mut parts = vec![Part::Literal("https://".to_owned()), Part::Host];
        if port != 443 {
            parts.push(Part::Literal(format!(":{port}")));
        }
        parts.push(Part::Uri);
        Self {
            parts,
            is_path: false,
        }
    }

    /// The value of Location for a request that a route matched with this rest and these groups.
    ///
    /// It is printable ASCII without spaces, quotes and angle brackets.
    pub fn render(&self, request: &Request<'_>, rest: &str, captures: &Captures<'_, '_>) -> String {
        let mut out = String::with_capacity(64);
        for (index, part) in self.parts.iter().enumerate() {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Path => encode_path(&mut out, rest),
                Part::Uri => {
                    encode_path(&mut out, &request.path);
                    append(&mut out, request.query);
                }
                Part::Query => match request.query.unwrap_or("") {
                    "" if self.query_ends_at(index) => {
                        out.truncate(out.trim_end_matches(['?', '&']).len());
                    }
                    query => encode_query(&mut out, query),
                },
                Part::Host => encode_host(&mut out, &request.host),
                Part::Group(number) => encode_path(&mut out, captures.get(*number).unwrap_or("")),
                Part::AppendedQuery => append(&mut out, request.query),
            }
        }
        if self.is_path && out.starts_with("//") {
            // A group may begin with a slash: `/{1}` must not become `//other.example`.
            let slashes = out.bytes().take_while(|byte| *byte == b'/').count();
            out.drain(..slashes - 1);
        }
        out
    }

    /// Whether the query of the target ends with part `index` and stands behind a delimiter.
    fn query_ends_at(&self, index: usize) -> bool {
        let delimited = index.checked_sub(1).is_some_and(|before| {
            matches!(&self.parts[before], Part::Literal(text) if text.ends_with(['?', '&']))
        });
        delimited
            && match self.parts.get(index + 1) {
                None => true,
                Some(Part::Literal(text)) => text.starts_with('#'),
                Some(_) => false,
            }
    }
}

/// Where the host of the target begins; `None` for a path.
fn host_start(text: &str, is_path: bool) -> Result<Option<usize>, PatternError> {
    if text.starts_with("//") {
        return Err(PatternError::new(
            0,
            "a target without a scheme would take the client's",
            "write `https:` before it, or one slash for a path on this host",
        ));
    }
    if is_path {
        return Ok(None);
    }
    for scheme in ["https://", "http://"] {
        if text
            .get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
        {
            return Ok(Some(scheme.len()));
        }
    }
    Err(PatternError::new(
        0,
        "a redirect goes to a path or to an http or https URL",
        "begin it with `/`, `{uri}`, `https://` or `http://`",
    ))
}

/// Checks the host and the port of a URL: what `text` has before its first `/`, `?` or `#`.
fn check_host(text: &str, offset: usize) -> Result<(), PatternError> {
    let mut rest = text;
    loop {
        let at = offset + text.len() - rest.len();
        match rest.chars().next() {
            Some('{') if rest.starts_with("{host}") => rest = &rest["{host}".len()..],
            Some('{') if rest.starts_with("{uri}") && rest.len() < text.len() => return Ok(()),
            Some('{') => {
                return Err(PatternError::new(
                    at,
                    "this variable would become part of the host, and a client could choose it",
                    "write `/` before it; only `{host}` may stand in the host",
                ));
            }
            Some(c) if c.is_ascii_alphanumeric() || "-._:[]".contains(c) => rest = &rest[1..],
            Some('/' | '?' | '#') | None if rest.len() < text.len() => return Ok(()),
            Some('/' | '?' | '#') | None => {
                return Err(PatternError::new(at, "the host is missing", "write one"));
            }
            Some(_) => {
                return Err(PatternError::new(
                    at,
                    "this character can't stand in a host",
                    "write a host such as `www.example.com`, and a port after `:` if need be",
                ));
            }
        }
    }
}

/// Splits the text at its variables.
fn split(text: &str, pattern: &Pattern) -> Result<Vec<Part>, PatternError> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let offset = text.len() - rest.len();
        let brace = rest.find(['{', '}']).unwrap_or(rest.len());
        let (literal, tail) = rest.split_at(brace);
        if !literal.is_empty() {
            parts.push(Part::Literal(encode_literal(literal, offset)?));
        }
        if tail.is_empty() {
            break;
        }
        let Some((name, after)) = tail.strip_prefix('{').and_then(|t| t.split_once('}')) else {
            return Err(PatternError::new(
                offset + brace,
                "this brace has no partner",
                "close the variable with `}`, or write `%7B` and `%7D` for braces in a URL",
            ));
        };
        parts.push(variable(name, pattern, offset + brace)?);
        rest = after;
    }
    Ok(parts)
}

fn variable(name: &str, pattern: &Pattern, offset: usize) -> Result<Part, PatternError> {
    match name {
        "path" => Ok(Part::Path),
        "uri" => Ok(Part::Uri),
        "query" => Ok(Part::Query),
        "host" => Ok(Part::Host),
        name => match pattern.group(name) {
            Some(number) => Ok(Part::Group(number)),
            None => Err(PatternError::new(
                offset,
                format!("`{{{name}}}` is not known here"),
                format!(
                    "write {{path}}, {{uri}}, {{query}} or {{host}}, or give the pattern \
                     `{pattern}` a group `(?<name>…)` and name that"
                ),
            )),
        },
    }
}

/// Puts the query of the request before the fragment or at the end.
fn append_query(parts: &mut Vec<Part>) {
    let fragment = parts
        .iter()
        .enumerate()
        .find_map(|(index, part)| match part {
            Part::Literal(text) => text.find('#').map(|at| (index, at)),
            _ => None,
        });
    match fragment {
        None => parts.push(Part::AppendedQuery),
        Some((index, at)) => {
            if let Part::Literal(text) = &mut parts[index] {
                let tail = text.split_off(at);
                parts.insert(index + 1, Part::AppendedQuery);
                parts.insert(index + 2, Part::Literal(tail));
            }
        }
    }
}

/// Text of the configuration: already a URI, so escapes and delimiters stay as they are.
fn encode_literal(text: &str, offset: usize) -> Result<String, PatternError> {
    if let Some(at) = text.find(|c: char| c.is_ascii_control()) {
        return Err(PatternError::new(
            offset + at,
            "a control character can't stand in a URL",
            "remove it",
        ));
    }
    let mut out = String::with_capacity(text.len());
    encode(&mut out, text, |byte| {
        byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte)
    });
    Ok(out)
}

/// A decoded path or a part of one: what could end it, or be taken for a slash, is escaped.
fn encode_path(out: &mut String, text: &str) {
    encode(out, text, |byte| {
        byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte)
    });
}

/// A query as it came: escapes stay; what may not stand in a query (RFC 3986 §3.4) is escaped.
fn encode_query(out: &mut String, text: &str) {
    encode(out, text, |byte| {
        byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@?%[]".contains(&byte)
    });
}

fn encode_host(out: &mut String, text: &str) {
    encode(out, text, |byte| {
        byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte)
    });
}

fn append(out: &mut String, query: Option<&str>) {
    if let Some(query) = query.filter(|query| !query.is_empty()) {
        out.push('?');
        encode_query(out, query);
    }
}

fn encode(out: &mut String, text: &str, allowed: impl Fn(u8) -> bool) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if allowed(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(DIGITS[usize::from(byte >> 4)]));
            out.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::router::tests::request;
    use crate::http::router::{Router, RouterCache};

    /// The target of a redirect for a request with that path and query.
    fn redirect(pattern: &str, target: &str, path: &str, query: Option<&str>) -> String {
        let pattern = Pattern::parse(pattern).unwrap();
        let template = Template::parse(target, &pattern).unwrap();
        let router = Router::build(vec![(pattern, ())]).unwrap();
        let mut cache = RouterCache::new();
        let found = router.find(&mut cache, path).unwrap();
        let mut request = request(path);
        request.query = query;
        template.render(&request, found.rest, &found.captures)
    }

    #[test]
    fn variables_are_filled_in() {
        for (pattern, target, path, expected) in [
            ("/old/*", "/new/{path}", "/old/a/b", "/new/a/b"),
            ("/old/*", "/new/{path}", "/old", "/new/"),
            (
                "/*",
                "https://{host}{uri}",
                "/a b",
                "https://example.com/a%20b",
            ),
            (
                "/*",
                "https://www.{host}:8443/{path}",
                "/x",
                "https://www.example.com:8443/x",
            ),
            (
                "~^/u/(?<id>[0-9]+)$",
                "/users?id={id}",
                "/u/7",
                "/users?id=7",
            ),
            ("~^/(a)(b)?$", "/{1}-{2}-{0}", "/a", "/a--/a"),
            ("/about", "/{path}/us", "/about", "/about/us"),
            ("*.htm", "/{path}.html", "/a/b.htm", "/a/b.html"),
            ("/x", "{uri}", "/x", "/x"),
            ("/x", "/grüße%20 y", "/x", "/gr%C3%BC%C3%9Fe%20%20y"),
        ] {
            assert_eq!(redirect(pattern, target, path, None), expected, "{target}");
        }
    }

    #[test]
    fn the_query_is_kept_unless_the_target_says_otherwise() {
        for (target, query, expected) in [
            ("/n", Some("a=1"), "/n?a=1"),
            ("/n", None, "/n"),
            ("/n", Some(""), "/n"),
            ("/n#top", Some("a=1"), "/n?a=1#top"),
            ("/n#top?", Some("a=1"), "/n?a=1#top?"),
            ("/n?", Some("a=1"), "/n"),
            ("/n?b=2", Some("a=1"), "/n?b=2"),
            ("/n?b=2&{query}", Some("a=1"), "/n?b=2&a=1"),
            ("/n?b=2&{query}", None, "/n?b=2"),
            ("/n?{query}", None, "/n"),
            ("/n?{query}#top", None, "/n#top"),
            ("/n?{query}&b=2", None, "/n?&b=2"),
            ("/{path}&", None, "/x&"),
            ("https://a.b{uri}", Some("a=1"), "https://a.b/x?a=1"),
            (
                "https://a.b/",
                Some("a=%0d%0A \"<é"),
                "https://a.b/?a=%0d%0A%20%22%3C%C3%A9",
            ),
        ] {
            assert_eq!(
                redirect("/x", target, "/x", query),
                expected,
                "{target} {query:?}"
            );
        }
    }

    #[test]
    fn a_path_never_becomes_another_host() {
        for (pattern, target, path, expected) in [
            ("~^/r(.*)$", "/{1}", "/r/evil.example", "/evil.example"),
            ("~^/r(.*)$", "/{1}", "/r\\evil.example", "/%5Cevil.example"),
            ("/*", "/{path}", "/\\/evil.example", "/%5C/evil.example"),
            (
                "/*",
                "{uri}",
                "/\r\nSet-Cookie: a=b",
                "/%0D%0ASet-Cookie:%20a=b",
            ),
            ("/*", "/n/{path}", "/a?b#c%d", "/n/a%3Fb%23c%25d"),
        ] {
            assert_eq!(
                redirect(pattern, target, path, None),
                expected,
                "{target} {path}"
            );
        }
    }

    #[test]
    fn a_wrong_target_is_refused_where_the_fault_is() {
        for (target, position, part) in [
            ("", 0, "begin it with"),
            ("new", 0, "begin it with"),
            ("{path}", 0, "begin it with"),
            ("javascript:alert(1)", 0, "begin it with"),
            ("//cdn.example", 0, "without a scheme"),
            ("https://", 8, "host is missing"),
            ("https:///x", 8, "host is missing"),
            ("https://{uri}", 8, "part of the host"),
            ("https://a.b{path}", 11, "part of the host"),
            ("https://{1}.a.b/", 8, "part of the host"),
            ("https://a@b/", 9, "can't stand in a host"),
            ("/{nope}", 1, "`{nope}` is not known"),
            ("/{2}", 1, "`{2}` is not known"),
            ("/{path", 1, "no partner"),
            ("/a}b", 2, "no partner"),
            ("/a\r\nb", 2, "control character"),
        ] {
            let pattern = Pattern::parse("~^/(x)").unwrap();
            let error = Template::parse(target, &pattern).unwrap_err();
            assert_eq!(error.position, position, "{target}: {error}");
            assert!(error.to_string().contains(part), "{target}: {error}");
        }
    }

    proptest! {
        /// Whatever a client sends, Location is one line and stays on the host it was written for.
        #[test]
        fn no_request_changes_host_or_header(path in "/\\PC{0,20}|/[\\\\/\r\n\t.:@]{0,8}", query in "\\PC{0,20}") {
            for (pattern, target) in [
                ("/*", "/{path}"),
                ("~(?s)^(.*)$", "/{1}"),
                ("/*", "{uri}"),
                ("/*", "/a/{path}?{query}"),
                ("/*", "https://a.b/{path}"),
                ("/*", "https://a.b{uri}"),
            ] {
                let location = redirect(pattern, target, &path, Some(&query));
                prop_assert!(location.bytes().all(|b| b.is_ascii_graphic()), "{}", location);
                prop_assert!(!location.contains(['\\', '"', '<', '>']));
                if target.starts_with("https") {
                    prop_assert!(location.starts_with("https://a.b/"), "{}", location);
                } else {
                    prop_assert!(location.starts_with('/') && !location.starts_with("//"));
                }
            }
        }
    }
}

//! A parser of requests that takes only what nobody could understand in another way.
//!
//! It shares nothing with the server's own one: what a proxy sends is judged by somebody else.

/// A request as it arrived at a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// The method.
    pub(super) method: String,
    /// The request target.
    pub(super) target: String,
    /// The fields in their order, names as they came.
    pub(super) fields: Vec<(String, String)>,
    /// The content, without framing.
    pub(super) body: Vec<u8>,
    /// The trailer fields.
    pub(super) trailers: Vec<(String, String)>,
    /// All bytes of it.
    pub(super) raw: Vec<u8>,
}

impl Request {
    /// The value of a field that stands there at most once.
    #[track_caller]
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let mut values = self.values(name);
        let value = values.next();
        assert!(values.next().is_none(), "{name} twice: {self:?}");
        value
    }

    /// The value of a field that has to be there once.
    #[track_caller]
    pub(super) fn must(&self, name: &str) -> &str {
        self.field(name)
            .unwrap_or_else(|| panic!("no field {name}: {self:?}"))
    }

    /// All values of a field.
    pub(super) fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        values(&self.fields, name)
    }

    /// Whether a field is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.values(name).next().is_some()
    }

    /// The content as text.
    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    /// Whether its body comes chunked.
    pub(super) fn is_chunked(&self) -> bool {
        self.has("Transfer-Encoding")
    }
}

fn values<'f>(fields: &'f [(String, String)], name: &str) -> impl Iterator<Item = &'f str> {
    fields
        .iter()
        .filter(move |(other, _)| other.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

/// The head at the start of these bytes, and its length; `None` when it isn't whole.
pub(super) fn head(bytes: &[u8]) -> Option<(usize, Request)> {
    let end = find(bytes, b"\r\n\r\n")?;
    let text = text(&bytes[..end + 2]);
    let mut lines = text.split_terminator("\r\n");
    let line = lines.next().expect("a request line");
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, version] = words[..] else {
        panic!("not a request line: {line:?}");
    };
    assert!(is_token(method), "{line:?}");
    let visible = |target: &str| target.bytes().all(|byte| byte.is_ascii_graphic());
    assert!(!target.is_empty() && visible(target), "{line:?}");
    assert!(
        target.starts_with('/') || (target == "*" && method == "OPTIONS"),
        "{line:?}"
    );
    assert!(!target.contains('#'), "{line:?}");
    assert_eq!(version, "HTTP/1.1", "{line:?}");
    let request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        fields: lines.map(field).collect(),
        body: Vec::new(),
        trailers: Vec::new(),
        raw: Vec::new(),
    };
    check(&request);
    Some((end + 4, request))
}

/// What must hold of every request that a proxy sends.
fn check(request: &Request) {
    assert!(!request.must("Host").is_empty(), "{request:?}");
    let length = request.field("Content-Length");
    if let Some(length) = length {
        assert!(
            length.bytes().all(|byte| byte.is_ascii_digit()),
            "{length:?}"
        );
    }
    if let Some(coding) = request.field("Transfer-Encoding") {
        assert_eq!(coding, "chunked");
        assert_eq!(length, None, "a length beside chunks: {request:?}");
    }
}

/// The body behind the head of `request`: its length in bytes of framing and all, its content, its
/// trailers. `None` when it isn't whole.
#[expect(clippy::type_complexity, reason = "three parts, used in one place")]
pub(super) fn body(
    request: &Request,
    bytes: &[u8],
) -> Option<(usize, Vec<u8>, Vec<(String, String)>)> {
    if !request.is_chunked() {
        let length = request.field("Content-Length").unwrap_or("0");
        let length = length.parse().expect("a length that fits");
        return Some((length, bytes.get(..length)?.to_vec(), Vec::new()));
    }
    let (mut at, mut content) = (0, Vec::new());
    loop {
        let end = at + find(&bytes[at..], b"\r\n")?;
        let digits = text(&bytes[at..end]);
        let hex = |byte: u8| byte.is_ascii_hexdigit();
        assert!(
            !digits.is_empty() && digits.bytes().all(hex),
            "not a chunk size alone: {digits:?}"
        );
        let length = usize::from_str_radix(&digits, 16).expect("a length that fits");
        at = end + 2;
        if length == 0 {
            break;
        }
        content.extend_from_slice(bytes.get(at..at + length)?);
        at += length;
        assert_eq!(bytes.get(at..at + 2)?, b"\r\n", "the end of a chunk");
        at += 2;
    }
    let mut trailers = Vec::new();
    loop {
        let end = at + find(&bytes[at..], b"\r\n")?;
        let line = text(&bytes[at..end]);
        at = end + 2;
        if line.is_empty() {
            return Some((at, content, trailers));
        }
        trailers.push(field(&line));
    }
}

fn field(line: &str) -> (String, String) {
    let (name, value) = line
        .split_once(": ")
        .unwrap_or_else(|| panic!("not a field line: {line:?}"));
    assert!(is_token(name), "{line:?}");
    assert!(
        !value.chars().any(|c| c.is_ascii_control() && c != '\t'),
        "{line:?}"
    );
    (name.to_owned(), value.to_owned())
}

fn is_token(word: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !word.is_empty() && word.bytes().all(token)
}

/// As text, a character for a byte: fields may have others than those of ASCII.
fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[test]
fn what_could_be_understood_in_two_ways_is_refused() {
    let read = |bytes: &[u8]| {
        let bytes = bytes.to_vec();
        std::panic::catch_unwind(move || {
            let (length, request) = head(&bytes)?;
            body(&request, &bytes[length..]).map(|(_, body, _)| body)
        })
        .ok()
    };
    let refused = [
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nX: y\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n X: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;x\r\na\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    ]
    .map(|text| (text, read(text.as_bytes()).is_none()));
    let taken = [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\nX", Some(&b""[..])),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nabc", Some(b"ab")),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabc", None),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nT: x\r\n\r\n",
            Some(b"ab"),
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nT: x\r\n",
            None,
        ),
    ]
    .map(|(text, body)| (text, read(text.as_bytes()) == Some(body.map(<[u8]>::to_vec))));
    for (text, holds) in refused.into_iter().chain(taken) {
        assert!(holds, "{text:?}");
    }
}

//! Conditions of a route beyond its path: method, header fields and query parameters.

use smallvec::SmallVec;

use super::expression::{Expression, RouterCache};
use super::pattern::PatternError;
use crate::http::types::{Method, Request};

/// What must hold of a request besides its path. Without conditions it always holds.
///
/// Of the methods one must be the request's; every field and every parameter must hold.
#[derive(Clone, Debug, Default)]
pub struct When {
    methods: Vec<Box<str>>,
    headers: Vec<(Box<str>, ValueTest)>,
    parameters: Vec<(Box<str>, ValueTest)>,
}

/// What must hold of a field value or of a query parameter.
#[derive(Clone, Debug)]
pub enum ValueTest {
    /// It is there, with any value (`true`).
    Present,
    /// It is not there (`false`).
    Absent,
    /// One of its values fits these pieces with anything between them (`abc`, `abc*`, `*abc`,
    /// `a*c`); bytes are compared, case included. There is at least one piece.
    Glob(Box<[Box<str>]>),
    /// A regular expression finds a match in one of its values (`~…`).
    Expression(Expression),
}

impl ValueTest {
    /// Reads the text form: `~` and a regular expression, or a text in which `*` is anything.
    ///
    /// # Errors
    /// When the regular expression is wrong.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if let Some(source) = text.strip_prefix('~') {
            return match Expression::parse(source) {
                Ok(expression) => Ok(Self::Expression(expression)),
                Err(mut error) => {
                    error.position += 1;
                    Err(error)
                }
            };
        }
        Ok(Self::Glob(text.split('*').map(Box::from).collect()))
    }

    /// Whether it holds of these values: all that go by the name in question.
    fn holds<V: AsRef<[u8]>>(
        &self,
        cache: &mut RouterCache,
        mut values: impl Iterator<Item = V>,
    ) -> bool {
        match self {
            Self::Present => values.next().is_some(),
            Self::Absent => values.next().is_none(),
            Self::Glob(pieces) => values.any(|value| glob(pieces, value.as_ref())),
            Self::Expression(e) => values.any(|value| e.is_match(cache, value.as_ref())),
        }
    }
}

impl From<bool> for ValueTest {
    /// `true` asks for presence, `false` for absence.
    fn from(present: bool) -> Self {
        if present { Self::Present } else { Self::Absent }
    }
}

impl When {
    /// Adds a method that is allowed. GET allows HEAD too, which asks for the same response.
    ///
    /// # Errors
    /// When it is not a token (RFC 9110 §5.6.2), or a standard method not in capitals, which would
    /// never match (methods are case-sensitive).
    pub fn add_method(&mut self, method: &str) -> Result<(), PatternError> {
        if let Some(position) = not_a_token(method) {
            return Err(PatternError::new(
                position,
                "this is not a method",
                "write a name such as `GET` or `POST`",
            ));
        }
        let upper = method.to_ascii_uppercase();
        if upper != method && !matches!(Method::from_token(&upper), Method::Other(_)) {
            return Err(PatternError::new(
                0,
                format!("`{method}` never matches, because methods are case-sensitive"),
                format!("write `{upper}`"),
            ));
        }
        self.methods.push(method.into());
        Ok(())
    }

    /// Adds a condition on a header field; each of several lines of that name is tested by itself.
    ///
    /// # Errors
    /// When the name is not a token.
    pub fn add_header(&mut self, name: &str, test: ValueTest) -> Result<(), PatternError> {
        if let Some(position) = not_a_token(name) {
            return Err(PatternError::new(
                position,
                "this is not a field name",
                "write a name such as `Accept-Language`, without a colon",
            ));
        }
        self.headers.push((name.into(), test));
        Ok(())
    }

    /// Adds a condition on a query parameter, given by its decoded name.
    pub fn add_query(&mut self, name: &str, test: ValueTest) {
        self.parameters.push((name.into(), test));
    }

    /// Whether there are no conditions.
    pub fn is_empty(&self) -> bool {
        self.methods.is_empty() && self.headers.is_empty() && self.parameters.is_empty()
    }

    /// Whether the conditions hold. The query is read as `application/x-www-form-urlencoded`.
    pub fn matches(&self, cache: &mut RouterCache, request: &Request<'_>) -> bool {
        self.matches_method(request.method)
            && self
                .headers
                .iter()
                .all(|(name, test)| test.holds(cache, request.fields.get_all(name)))
            && self.parameters.iter().all(|(name, test)| {
                test.holds(cache, parameters(request.query.unwrap_or(""), name))
            })
    }

    fn matches_method(&self, method: Method<'_>) -> bool {
        let token = method.as_str();
        self.methods.is_empty()
            || self.methods.iter().any(|allowed| {
                &**allowed == token || (method == Method::Head && &**allowed == "GET")
            })
    }
}

/// The offset at which `text` stops being a token; `None` if it is one.
fn not_a_token(text: &str) -> Option<usize> {
    if text.is_empty() {
        return Some(0);
    }
    text.bytes()
        .position(|b| !(b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)))
}

/// Whether `value` is the pieces with anything between them. Taking each piece where it stands
/// first is enough, so the work is linear in the value for each piece.
fn glob(pieces: &[Box<str>], value: &[u8]) -> bool {
    let [first, middle @ .., last] = pieces else {
        return pieces.iter().all(|only| only.as_bytes() == value);
    };
    let Some(value) = value.strip_prefix(first.as_bytes()) else {
        return false;
    };
    let Some(mut value) = value.strip_suffix(last.as_bytes()) else {
        return false;
    };
    for piece in middle {
        match memchr::memmem::find(value, piece.as_bytes()) {
            Some(at) => value = &value[at + piece.len()..],
            None => return false,
        }
    }
    true
}

/// Decoded bytes of a query parameter; on the stack as long as it is short.
type Decoded = SmallVec<[u8; 64]>;

/// The decoded values of a parameter. One without `=` has the empty value.
fn parameters<'q>(query: &'q str, name: &'q str) -> impl Iterator<Item = Decoded> + 'q {
    query.split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let named = !pair.is_empty() && decode(key).eq(name.bytes());
        named.then(|| decode(value).collect())
    })
}

/// Undoes form encoding: `+` is a space; an escape that is not two hexadecimal digits stays.
fn decode(text: &str) -> impl Iterator<Item = u8> + '_ {
    let mut bytes = text.as_bytes();
    std::iter::from_fn(move || {
        let (&first, rest) = bytes.split_first()?;
        if let (b'%', Some(&[high, low])) = (first, rest.first_chunk::<2>())
            && let (Some(high), Some(low)) = (hex(high), hex(low))
        {
            bytes = &rest[2..];
            return Some(high << 4 | low);
        }
        bytes = rest;
        Some(if first == b'+' { b' ' } else { first })
    })
}

fn hex(digit: u8) -> Option<u8> {
    // The digit is below 16, so it fits.
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::router::tests::request;

    fn when(method: &[&str], header: &[(&str, &str)], query: &[(&str, &str)]) -> When {
        let test = |text: &str| match text {
            "true" => ValueTest::from(true),
            "false" => ValueTest::from(false),
            text => ValueTest::parse(text).unwrap(),
        };
        let mut when = When::default();
        for method in method {
            when.add_method(method).unwrap();
        }
        for (name, value) in header {
            when.add_header(name, test(value)).unwrap();
        }
        for (name, value) in query {
            when.add_query(name, test(value));
        }
        when
    }

    #[test]
    fn methods_are_alternatives_and_get_allows_head() {
        let cases: [(&[&str], &str, bool); 7] = [
            (&[], "PURGE", true),
            (&["GET"], "GET", true),
            (&["GET"], "HEAD", true),
            (&["HEAD"], "GET", false),
            (&["POST", "PUT"], "PUT", true),
            (&["POST"], "GET", false),
            (&["PURGE"], "PURGE", true),
        ];
        for (allowed, method, expected) in cases {
            let mut request = request("/");
            request.method = Method::from_token(method);
            let cache = &mut RouterCache::new();
            let holds = when(allowed, &[], &[]).matches(cache, &request);
            assert_eq!(holds, expected, "{allowed:?} {method}");
        }
    }

    #[test]
    fn fields_are_tested_line_by_line() {
        let mut request = request("/");
        request.fields.push("Accept-Language", b"de-CH");
        request.fields.push("X-Tag", b"one");
        request.fields.push("x-tag", b"two three");
        request.fields.push("X-Empty", b"");
        for (name, test, expected) in [
            ("accept-language", "de-CH", true),
            ("accept-language", "de-ch", false),
            ("accept-language", "de*", true),
            ("accept-language", "*CH", true),
            ("accept-language", "d*C*", true),
            ("accept-language", "*", true),
            ("accept-language", "de-CH*CH", false),
            ("accept-language", "*fr*", false),
            ("x-tag", "one", true),
            ("x-tag", "two*three", true),
            ("x-tag", "one*three", false),
            ("x-tag", "~^tw", true),
            ("x-tag", "~^hr", false),
            ("x-empty", "true", true),
            ("x-empty", "", true),
            ("x-none", "true", false),
            ("x-none", "false", true),
            ("x-none", "*", false),
            ("x-tag", "false", false),
        ] {
            let cache = &mut RouterCache::new();
            let holds = when(&[], &[(name, test)], &[]).matches(cache, &request);
            assert_eq!(holds, expected, "{name}: {test}");
        }
    }

    #[test]
    fn parameters_are_decoded_once() {
        let mut request = request("/");
        request.query = Some("a=1&b=x+y%2Fz&&flag&c%20d=%zz&a=2&e==");
        for (name, test, expected) in [
            ("a", "1", true),
            ("a", "2", true),
            ("a", "3", false),
            ("b", "x y/z", true),
            ("b", "~^x y/z$", true),
            ("flag", "true", true),
            ("flag", "", true),
            ("c d", "%zz", true),
            ("e", "=", true),
            ("", "true", false),
            ("A", "true", false),
            ("g", "false", true),
        ] {
            let cache = &mut RouterCache::new();
            let holds = when(&[], &[], &[(name, test)]).matches(cache, &request);
            assert_eq!(holds, expected, "{name}: {test}");
        }
        request.query = None;
        let cache = &mut RouterCache::new();
        assert!(when(&[], &[], &[("a", "false")]).matches(cache, &request));
    }

    #[test]
    fn all_conditions_must_hold() {
        let mut request = request("/");
        request.query = Some("a=1");
        request.fields.push("X", b"y");
        for (header, query, expected) in [("y", "1", true), ("z", "1", false), ("y", "2", false)] {
            let when = when(&["GET"], &[("x", header)], &[("a", query)]);
            assert_eq!(when.matches(&mut RouterCache::new(), &request), expected);
            assert!(!when.is_empty());
        }
    }

    #[test]
    fn what_could_never_match_is_refused() {
        let mut when = When::default();
        for method in ["", "G ET", "GET,POST", "get", "Post"] {
            assert!(when.add_method(method).is_err(), "{method}");
        }
        assert!(
            when.add_method("mkcol").is_ok(),
            "unknown ones may be lower case"
        );
        for name in ["", "Accept:", "a b", "é"] {
            assert!(when.add_header(name, true.into()).is_err(), "{name}");
        }
        assert_eq!(ValueTest::parse("~(").unwrap_err().position, 1);
    }

    proptest::proptest! {
        #[test]
        fn globs_agree_with_the_expression_they_stand_for(
            glob in "[ab*]{0,6}", value in "[ab]{0,8}"
        ) {
            let cache = &mut RouterCache::new();
            let source = format!("^{}$", glob.replace('*', ".*"));
            let expected = Expression::parse(&source).unwrap().is_match(cache, value.as_bytes());
            let holds = ValueTest::parse(&glob).unwrap().holds(cache, [&value].into_iter());
            proptest::prop_assert_eq!(holds, expected);
        }
    }
}

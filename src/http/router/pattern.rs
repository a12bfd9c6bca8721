//! What a route's key means: the forms of a pattern, checked once when the configuration is read.

use std::fmt;

use super::expression::Expression;

/// Why a pattern, a predicate, a host name or a redirect target of the configuration is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternError {
    /// Offset in bytes of the fault in the text that was given; at most its length.
    pub position: usize,
    /// What is wrong, as a clause without a final stop.
    pub problem: String,
    /// What to write instead, as a clause without a final stop.
    pub help: String,
}

impl PatternError {
    pub(super) fn new(
        position: usize,
        problem: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            position,
            problem: problem.into(),
            help: help.into(),
        }
    }
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.problem, self.help)
    }
}

impl std::error::Error for PatternError {}

/// Which paths a route answers.
///
/// | written | answers |
/// | --- | --- |
/// | `/about`, `=/about` | that path alone; after `=` an asterisk is an ordinary character |
/// | `/api/*` | `/api`, `/api/` and everything below; never `/apix` |
/// | `/*` | everything |
/// | `*.php`, `/assets/*.js` | paths with that end, at any depth below the prefix |
/// | `~^/u/(?<id>[0-9]+)$` | paths in which the regular expression finds a match |
///
/// Patterns are compared with canonical paths: percent-decoded, without dot segments or empty
/// segments, so a pattern that holds one of these could never match and is refused.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: Box<str>,
    kind: Kind,
}

/// The forms, most specific first.
///
/// Invariant: a prefix is empty or begins with a slash, and never ends with one.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Exact(Box<str>),
    Expression(Expression),
    Suffix { prefix: Box<str>, suffix: Box<str> },
    Prefix(Box<str>),
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// When the text is none of the forms above, is not canonical, or is a regular expression that
    /// does not compile within its size limit.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let kind = if let Some(source) = text.strip_prefix('~') {
            Kind::Expression(Expression::parse(source).map_err(|mut error| {
                error.position += 1;
                error
            })?)
        } else if let Some(path) = text.strip_prefix('=') {
            check_start(path, 1)?;
            check_canonical(path, 1)?;
            Kind::Exact(path.into())
        } else if let Some(star) = text.find('*') {
            parse_wildcard(text, star)?
        } else {
            check_start(text, 0)?;
            check_canonical(text, 0)?;
            Kind::Exact(text.into())
        };
        Ok(Self {
            text: text.into(),
            kind,
        })
    }

    /// The pattern `/*`, which answers everything.
    pub fn everything() -> Self {
        Self {
            text: "/*".into(),
            kind: Kind::Prefix("".into()),
        }
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The path of an exact pattern.
    pub fn exact_path(&self) -> Option<&str> {
        match &self.kind {
            Kind::Exact(path) => Some(path),
            _ => None,
        }
    }

    /// What stands before the asterisk, without its last slash (`/api` for `/api/*`, the empty
    /// string for `/*` and `*.php`); `None` for patterns without one.
    pub fn prefix(&self) -> Option<&str> {
        match &self.kind {
            Kind::Prefix(prefix) | Kind::Suffix { prefix, .. } => Some(prefix),
            Kind::Exact(_) | Kind::Expression(_) => None,
        }
    }

    /// The number of the group that this name stands for in a redirect target: a name or a decimal
    /// number from 0, which is the whole match. `None` where the pattern has no such group.
    pub fn group(&self, name: &str) -> Option<usize> {
        match &self.kind {
            Kind::Expression(expression) => expression.group(name),
            _ => None,
        }
    }

    pub(super) fn kind(&self) -> &Kind {
        &self.kind
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Reads a pattern with an asterisk at byte `star`: a prefix or a suffix.
fn parse_wildcard(text: &str, star: usize) -> Result<Kind, PatternError> {
    let (before, after) = (&text[..star], &text[star + 1..]);
    if let Some(second) = after.find('*') {
        return Err(PatternError::new(
            star + 1 + second,
            "a pattern has at most one `*`",
            "write a regular expression, such as `~^/[^/]+/edit/`",
        ));
    }
    if before.is_empty() && after.is_empty() {
        return Err(PatternError::new(
            0,
            "`*` alone is not a pattern",
            "write `/*` for every path",
        ));
    }
    if !before.is_empty() {
        check_start(before, 0)?;
        if !before.ends_with('/') {
            return Err(PatternError::new(
                star,
                "`*` begins in the middle of a segment",
                format!("write `{before}/*` for what is below, or a regular expression"),
            ));
        }
    }
    check_canonical(before, 0)?;
    let prefix = before.strip_suffix('/').unwrap_or(before).into();
    if after.is_empty() {
        return Ok(Kind::Prefix(prefix));
    }
    if let Some(slash) = after.find('/') {
        return Err(PatternError::new(
            star + 1 + slash,
            "only the end of a file name may follow `*`",
            "end the pattern with `/*`, or write a regular expression such as `~^/a/[^/]+/b$`",
        ));
    }
    check_characters(after, star + 1)?;
    Ok(Kind::Suffix {
        prefix,
        suffix: after.into(),
    })
}

fn check_start(path: &str, offset: usize) -> Result<(), PatternError> {
    if path.starts_with('/') {
        return Ok(());
    }
    let help = if path.is_empty() {
        "write `/` for the root or `/*` for every path".to_owned()
    } else {
        format!("write `/{path}`, `*.ext` for a suffix, or `~` before a regular expression")
    };
    Err(PatternError::new(offset, "a path begins with `/`", help))
}

/// Refuses what a canonical path never holds. `path` is empty or begins with a slash.
fn check_canonical(path: &str, offset: usize) -> Result<(), PatternError> {
    check_characters(path, offset)?;
    if let Some(at) = path.find("//") {
        return Err(PatternError::new(
            offset + at,
            "`//` never matches, because slashes are merged before routing",
            "write one slash",
        ));
    }
    let mut at = offset;
    for segment in path.split('/') {
        if segment == "." || segment == ".." {
            return Err(PatternError::new(
                at,
                format!("`{segment}` never matches, because dot segments are removed"),
                "write the path that remains without it",
            ));
        }
        at += segment.len() + 1;
    }
    Ok(())
}

fn check_characters(text: &str, offset: usize) -> Result<(), PatternError> {
    for (at, character) in text.char_indices() {
        let (problem, help) = match character {
            '%' => (
                "`%` never matches an escape, because paths are decoded before routing",
                "write the decoded character; a real percent sign needs a regular expression",
            ),
            '?' => (
                "the query is not part of the path",
                "test it with `when = { query = { name = \"value\" } }`",
            ),
            c if c.is_control() => ("a path holds no control characters", "remove the character"),
            _ => continue,
        };
        return Err(PatternError::new(offset + at, problem, help));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        for (text, kind) in [
            ("/about", "Exact(\"/about\")"),
            ("=/about/", "Exact(\"/about/\")"),
            ("=/a*b", "Exact(\"/a*b\")"),
            ("/", "Exact(\"/\")"),
            ("/*", "Prefix(\"\")"),
            ("/api/*", "Prefix(\"/api\")"),
            ("/grüße/*", "Prefix(\"/grüße\")"),
            ("*.php", "Suffix { prefix: \"\", suffix: \".php\" }"),
            ("/*.php", "Suffix { prefix: \"\", suffix: \".php\" }"),
            ("/a/*.js", "Suffix { prefix: \"/a\", suffix: \".js\" }"),
        ] {
            let pattern = Pattern::parse(text).unwrap();
            assert_eq!(format!("{:?}", pattern.kind()), kind, "{text}");
            assert_eq!(pattern.as_str(), text);
        }
    }

    #[test]
    fn a_wrong_pattern_is_refused_where_the_fault_is() {
        for (text, position, part) in [
            ("", 0, "begins with `/`"),
            ("about", 0, "begins with `/`"),
            ("=about", 1, "begins with `/`"),
            ("*", 0, "`*` alone"),
            ("/api*", 4, "middle of a segment"),
            ("api/*", 0, "begins with `/`"),
            ("/a/*/b", 4, "end of a file name"),
            ("/a/*/*", 5, "at most one"),
            ("/a//b", 2, "merged"),
            ("/a/../b", 3, "dot segments"),
            ("/a/./*", 3, "dot segments"),
            ("=/..", 2, "dot segments"),
            ("/a%20b", 2, "decoded"),
            ("*.p%68p", 3, "decoded"),
            ("/a?b=c", 2, "query"),
            ("/a\r\nb", 2, "control"),
            ("~^/u/(", 5, "unclosed group"),
            ("~^/u/[z-a]", 6, "range"),
        ] {
            let error = Pattern::parse(text).unwrap_err();
            assert_eq!(error.position, position, "{text}: {error}");
            assert!(error.problem.contains(part), "{text}: {error}");
            assert!(!error.help.is_empty(), "{text}");
        }
    }

    #[test]
    fn the_help_names_what_to_write() {
        let error = Pattern::parse("/api*").unwrap_err();
        assert_eq!(
            error.to_string(),
            "`*` begins in the middle of a segment: \
             write `/api/*` for what is below, or a regular expression"
        );
    }
}

//! Regular expressions of routes and predicates: linear time, bounded in size, and searched with a
//! cache that belongs to the core, so that no core waits for another.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;
use regex_automata::meta::{BuildError, Cache, Config, Regex};
use regex_automata::util::primitives::NonMaxUsize;
use regex_automata::{Input, util::captures::GroupInfo};

use super::pattern::PatternError;

/// Groups of one expression that a redirect target may name, the whole match (0) included.
const GROUPS_MAX: usize = 10;
/// Heap bytes of a compiled expression. `\w` in Unicode takes about 50 KiB.
const COMPILED_BYTES_MAX: usize = 1 << 20;
/// Heap bytes of the lazily built automaton of one expression on one core.
const CACHE_BYTES_MAX: usize = 256 << 10;
/// Nesting of groups and repetitions in the source.
const NESTING_MAX: u32 = 50;
/// Expressions for which one core keeps search state.
const CACHED_MAX: usize = 1024;

/// A compiled regular expression. A clone shares the compiled form.
#[derive(Clone)]
pub struct Expression(Arc<Compiled>);

struct Compiled {
    /// Tells whose search state a cache holds: state of another expression must not be used.
    id: u64,
    source: Box<str>,
    regex: Regex,
}

impl Expression {
    /// Compiles an expression (the syntax of the crate `regex`: no back-references, no look-around).
    ///
    /// # Errors
    /// When the syntax is wrong, with the position of the fault; when there are more than nine
    /// groups; when the compiled form would be larger than 1 MiB.
    pub fn parse(source: &str) -> Result<Self, PatternError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        if source.is_empty() {
            return Err(PatternError::new(
                0,
                "the regular expression is empty",
                "write one after `~`, such as `~^/u/[0-9]+$`",
            ));
        }
        // Field values may be any bytes, and offsets are checked where they are used, so an empty
        // match need not stand between two characters.
        let config = Config::new()
            .utf8_empty(false)
            .nfa_size_limit(Some(COMPILED_BYTES_MAX))
            .onepass_size_limit(Some(CACHE_BYTES_MAX))
            .hybrid_cache_capacity(CACHE_BYTES_MAX);
        let syntax = regex_automata::util::syntax::Config::new().nest_limit(NESTING_MAX);
        let regex = Regex::builder()
            .configure(config)
            .syntax(syntax)
            .build(source)
            .map_err(|error| explain(source, &error))?;
        let groups = regex.group_info().group_len(ONLY);
        if groups > GROUPS_MAX {
            return Err(PatternError::new(
                0,
                format!("the regular expression has {} groups", groups - 1),
                format!(
                    "at most {} are allowed; write `(?:…)` for those that are not used",
                    GROUPS_MAX - 1
                ),
            ));
        }
        Ok(Self(Arc::new(Compiled {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            source: source.into(),
            regex,
        })))
    }

    /// The expression as it was written, without the `~`.
    pub fn as_str(&self) -> &str {
        &self.0.source
    }

    /// The number of a group by its name or decimal number.
    pub(super) fn group(&self, name: &str) -> Option<usize> {
        let info = self.0.regex.group_info();
        match name.parse::<usize>() {
            Ok(number) if number < info.group_len(ONLY) => Some(number),
            Ok(_) => None,
            Err(_) => info.to_index(ONLY, name),
        }
    }

    /// Whether the expression matches somewhere in `text`.
    pub fn is_match(&self, cache: &mut RouterCache, text: &[u8]) -> bool {
        let input = Input::new(text).earliest(true);
        self.0
            .regex
            .search_half_with(cache.of(self), &input)
            .is_some()
    }

    /// The groups of the first match in `text`.
    pub(super) fn captures<'r, 'p>(
        &'r self,
        cache: &mut RouterCache,
        text: &'p str,
    ) -> Option<Captures<'r, 'p>> {
        let regex = &self.0.regex;
        let groups = regex.group_info().group_len(ONLY);
        let mut slots = [None::<NonMaxUsize>; 2 * GROUPS_MAX];
        let slots = &mut slots[..2 * groups];
        regex.search_slots_with(cache.of(self), &Input::new(text), slots)?;
        let mut captures = Captures {
            info: Some(regex.group_info()),
            text,
            groups: [const { None }; GROUPS_MAX],
        };
        // With one expression the slots of group n are 2n and 2n + 1.
        for (group, pair) in captures.groups.iter_mut().zip(slots.chunks_exact(2)) {
            if let [Some(start), Some(end)] = pair {
                *group = Some(start.get() as u32..end.get() as u32);
            }
        }
        Some(captures)
    }
}

/// Each compiled form holds one expression.
const ONLY: regex_automata::PatternID = regex_automata::PatternID::ZERO;

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expression({:?})", self.0.source)
    }
}

/// Turns the error of the compiler into one that has a position and says what to do.
fn explain(source: &str, error: &BuildError) -> PatternError {
    let syntax = match error.syntax_error() {
        Some(regex_syntax::Error::Parse(e)) => Some((e.span().start.offset, e.kind().to_string())),
        Some(regex_syntax::Error::Translate(e)) => {
            Some((e.span().start.offset, e.kind().to_string()))
        }
        _ => None,
    };
    if let Some((position, problem)) = syntax {
        return PatternError::new(
            position.min(source.len()),
            format!("the regular expression is wrong: {problem}"),
            "mend it here; a literal `.`, `(`, `[`, `{`, `+`, `?` or `*` needs `\\` before it",
        );
    }
    PatternError::new(
        0,
        if error.size_limit().is_some() {
            "the regular expression is too large when compiled".to_owned()
        } else {
            format!("the regular expression can't be used: {error}")
        },
        "use smaller repetition counts, and `[0-9]` or `(?-u:\\w)` in place of `\\d` and `\\w`",
    )
}

/// What the groups of an expression matched in a path; empty for patterns of other forms.
#[derive(Clone, Debug)]
pub struct Captures<'r, 'p> {
    info: Option<&'r GroupInfo>,
    text: &'p str,
    /// Offsets in `text`, which is shorter than 4 GiB because a request target is.
    groups: [Option<Range<u32>>; GROUPS_MAX],
}

impl<'p> Captures<'_, 'p> {
    /// No groups.
    pub const fn none() -> Self {
        Self {
            info: None,
            text: "",
            groups: [const { None }; GROUPS_MAX],
        }
    }

    /// What group `number` matched; 0 is the whole match. `None` where it took no part.
    pub fn get(&self, number: usize) -> Option<&'p str> {
        let range = self.groups.get(number)?.clone()?;
        self.text.get(range.start as usize..range.end as usize)
    }

    /// What the group of that name matched.
    pub fn name(&self, name: &str) -> Option<&'p str> {
        self.get(self.info?.to_index(ONLY, name)?)
    }
}

/// Search state of expressions: one per core, handed to every search.
///
/// It fills as expressions are used and serves any number of routers. State that belonged to a
/// configuration that is gone stays until [`RouterCache::clear`], or until 1024 expressions were
/// seen, when it starts again from nothing.
#[derive(Default)]
pub struct RouterCache {
    by_expression: HashMap<u64, Cache>,
}

impl RouterCache {
    /// An empty cache; allocates nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Frees the state: to be called when a new configuration has replaced the old one.
    pub fn clear(&mut self) {
        self.by_expression = HashMap::new();
    }

    fn of(&mut self, expression: &Expression) -> &mut Cache {
        let id = expression.0.id;
        if self.by_expression.len() >= CACHED_MAX && !self.by_expression.contains_key(&id) {
            self.clear();
        }
        self.by_expression
            .entry(id)
            .or_insert_with(|| expression.0.regex.create_cache())
    }
}

impl fmt::Debug for RouterCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RouterCache({} expressions)", self.by_expression.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_name_and_number() {
        let expression = Expression::parse("^/u/(?<id>[0-9]+)(/x)?$").unwrap();
        let cache = &mut RouterCache::new();
        let captures = expression.captures(cache, "/u/42").unwrap();
        assert_eq!(captures.get(0), Some("/u/42"));
        assert_eq!(captures.get(1), Some("42"));
        assert_eq!(captures.name("id"), Some("42"));
        assert_eq!(captures.get(2), None, "took no part");
        assert_eq!(captures.get(99), None);
        assert_eq!(captures.name("other"), None);
        assert!(expression.captures(cache, "/u/x").is_none());
        assert_eq!(expression.group("id"), Some(1));
        assert_eq!(expression.group("2"), Some(2));
        assert_eq!(expression.group("3"), None);
    }

    #[test]
    fn one_cache_serves_expressions_that_come_and_go() {
        let cache = &mut RouterCache::new();
        for n in 0..CACHED_MAX + 10 {
            let expression = Expression::parse(&format!("^{n}$")).unwrap();
            assert!(expression.is_match(cache, n.to_string().as_bytes()));
            assert!(!expression.is_match(cache, b"x"));
        }
        assert!(cache.by_expression.len() <= CACHED_MAX);
    }

    #[test]
    fn what_would_cost_too_much_is_refused() {
        for source in [
            "",
            r"(?:\w{200}){200}",
            "(a)(b)(c)(d)(e)(f)(g)(h)(i)(j)",
            &"(".repeat(1000),
            &format!("{}a{}", "(?:".repeat(100), ")".repeat(100)),
        ] {
            assert!(Expression::parse(source).is_err(), "{source}");
        }
        assert!(Expression::parse("(a)(b)(c)(d)(e)(f)(g)(h)(i)").is_ok());
    }

    #[test]
    fn any_bytes_can_be_searched() {
        let cache = &mut RouterCache::new();
        for source in ["", "^", "$", r"\b", r"(?-u:\b)x", r"\w*", "x?", "(?i)É|x"] {
            let Ok(expression) = Expression::parse(source) else {
                continue;
            };
            for text in [&b""[..], b"\xff", b"\xc3", b"x\xe2\x82", "é".as_bytes()] {
                expression.is_match(cache, text);
            }
            expression.captures(cache, "é€x");
        }
        let boundary = Expression::parse(r"\bé\b").unwrap();
        assert!(boundary.is_match(cache, "a é".as_bytes()));
        assert!(!boundary.is_match(cache, "aé".as_bytes()));
    }

    #[test]
    fn a_hostile_path_costs_linear_time() {
        // Exponential for an engine that backtracks.
        let expression = Expression::parse("^/(a+)+$").unwrap();
        let path = format!("/{}b", "a".repeat(8000));
        assert!(!expression.is_match(&mut RouterCache::new(), path.as_bytes()));
    }
}

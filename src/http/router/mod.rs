//! Sites by host and port, routes by specificity.
//!
//! A router is built once from the configuration, never changes, and is shared by all cores. It
//! knows paths, not sockets: everything here is a pure function of a request that was parsed.
//!
//! # Which route wins
//! The most specific one, wherever it stands in the file. The form of the pattern decides first:
//!
//! 1. exact: `/about`;
//! 2. regular expression: `~^/u/[0-9]+$`; of several, the first in the file;
//! 3. suffix: `/assets/*.js` before `*.js` (longest prefix, then longest suffix);
//! 4. prefix: `/api/v2/*` before `/api/*` before `/*` (longest prefix).
//!
//! So a rule for a kind of file (`*.php`) holds everywhere, also below a prefix that is added
//! later; `/blog/*.php` or an exact path makes the exception. Two routes that match the same
//! requests are an error when the router is built, never a question of order.

mod expression;
mod host;
mod pattern;
mod template;
mod when;

pub use expression::{Captures, Expression, RouterCache};
pub use host::{HostMap, HostPattern};
pub use pattern::{Pattern, PatternError};
pub use template::Template;
pub use when::{ValueTest, When};

use std::fmt;

use hashbrown::HashMap;

use pattern::Kind;

/// Two patterns that match the same requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Index of the earlier one in the list that was given.
    pub first: usize,
    /// Index of the later one.
    pub second: usize,
    /// The earlier one as it was written.
    pub first_text: String,
    /// The later one as it was written.
    pub second_text: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, second) = (&self.first_text, &self.second_text);
        write!(f, "`{second}` matches the same requests as `{first}`")
    }
}

impl std::error::Error for Conflict {}

/// Routes by path. See the module for the rule of specificity.
#[derive(Debug)]
pub struct Router<T> {
    routes: Vec<(Pattern, T)>,
    exact: HashMap<Box<str>, usize>,
    /// Routes with a regular expression, in file order.
    expressions: Vec<usize>,
    /// Routes with a suffix, longest prefix first, then longest suffix.
    suffixes: Vec<usize>,
    prefixes: HashMap<Box<str>, usize>,
    /// The distinct lengths of `prefixes`, longest first: a search costs one look-up for each, so
    /// its work is bounded by the configuration and not by what a client sends.
    prefix_lengths: Vec<usize>,
}

/// A route that matches a path.
#[derive(Clone, Debug)]
pub struct Match<'r, 'p, T> {
    /// What the route was built with.
    pub value: &'r T,
    /// The route's pattern.
    pub pattern: &'r Pattern,
    /// The route's place in the list that the router was built from.
    pub index: usize,
    /// What `*` matched, without a slash at its start; for a pattern without `*` the whole path
    /// without its first slash.
    pub rest: &'p str,
    /// What the groups of a regular expression matched; none for other patterns.
    pub captures: Captures<'r, 'p>,
}

impl<T> Router<T> {
    /// Builds the tables.
    ///
    /// # Errors
    /// Every pair of routes that match the same requests: equal patterns, also when they are
    /// spelled differently (`/a` and `=/a`, `*.php` and `/*.php`).
    pub fn build(routes: Vec<(Pattern, T)>) -> Result<Self, Vec<Conflict>> {
        let conflicts = find_conflicts(&routes);
        if !conflicts.is_empty() {
            return Err(conflicts);
        }
        let mut router = Self {
            routes: Vec::new(),
            exact: HashMap::new(),
            expressions: Vec::new(),
            suffixes: Vec::new(),
            prefixes: HashMap::new(),
            prefix_lengths: Vec::new(),
        };
        for (index, (pattern, _)) in routes.iter().enumerate() {
            match pattern.kind() {
                Kind::Exact(path) => {
                    router.exact.insert(path.clone(), index);
                }
                Kind::Expression(_) => router.expressions.push(index),
                Kind::Suffix { .. } => router.suffixes.push(index),
                Kind::Prefix(prefix) => {
                    router.prefixes.insert(prefix.clone(), index);
                    router.prefix_lengths.push(prefix.len());
                }
            }
        }
        router
            .suffixes
            .sort_by_key(|&index| match routes[index].0.kind() {
                Kind::Suffix { prefix, suffix } => std::cmp::Reverse((prefix.len(), suffix.len())),
                _ => std::cmp::Reverse((0, 0)),
            });
        sort_longest_first(&mut router.prefix_lengths);
        router.routes = routes;
        Ok(router)
    }

    /// The most specific route for a canonical path.
    pub fn find<'r, 'p>(
        &'r self,
        cache: &mut RouterCache,
        path: &'p str,
    ) -> Option<Match<'r, 'p, T>> {
        self.candidates(path).advance(cache)
    }

    /// All routes for a canonical path, most specific first, found one by one as they are asked
    /// for: when the conditions of one do not hold, the next one is tried.
    pub fn candidates<'r, 'p>(&'r self, path: &'p str) -> Candidates<'r, 'p, T> {
        Candidates {
            router: self,
            path,
            stage: Stage::Exact,
        }
    }

    /// The routes in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = (&Pattern, &T)> {
        self.routes.iter().map(|(pattern, value)| (pattern, value))
    }

    /// How many routes there are.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }
}

/// The routes for one path, most specific first.
#[derive(Debug)]
pub struct Candidates<'r, 'p, T> {
    router: &'r Router<T>,
    path: &'p str,
    stage: Stage,
}

/// Where a search goes on: an index into the table of that form.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Exact,
    Expression(usize),
    Suffix(usize),
    Prefix(usize),
}

impl<'r, 'p, T> Candidates<'r, 'p, T> {
    /// The next route. It takes the cache for the call only, so that the caller can use it for the
    /// conditions of the route between two calls.
    pub fn advance(&mut self, cache: &mut RouterCache) -> Option<Match<'r, 'p, T>> {
        loop {
            match self.stage {
                Stage::Exact => {
                    self.stage = Stage::Expression(0);
                    if let Some(&index) = self.router.exact.get(self.path) {
                        return Some(self.found(index, whole(self.path), Captures::none()));
                    }
                }
                Stage::Expression(at) => match self.router.expressions.get(at) {
                    None => self.stage = Stage::Suffix(0),
                    Some(&index) => {
                        self.stage = Stage::Expression(at + 1);
                        if let Kind::Expression(expression) = self.router.routes[index].0.kind()
                            && let Some(captures) = expression.captures(cache, self.path)
                        {
                            return Some(self.found(index, whole(self.path), captures));
                        }
                    }
                },
                Stage::Suffix(at) => match self.router.suffixes.get(at) {
                    None => self.stage = Stage::Prefix(0),
                    Some(&index) => {
                        self.stage = Stage::Suffix(at + 1);
                        if let Kind::Suffix { prefix, suffix } = self.router.routes[index].0.kind()
                            && let Some(rest) = below(self.path, prefix)
                            && let Some(rest) = rest.strip_suffix(&**suffix)
                        {
                            return Some(self.found(index, rest, Captures::none()));
                        }
                    }
                },
                Stage::Prefix(at) => {
                    let &length = self.router.prefix_lengths.get(at)?;
                    self.stage = Stage::Prefix(at + 1);
                    if let Some((prefix, rest)) = split_segments(self.path, length)
                        && let Some(&index) = self.router.prefixes.get(prefix)
                    {
                        return Some(self.found(index, rest, Captures::none()));
                    }
                }
            }
        }
    }

    fn found(&self, index: usize, rest: &'p str, captures: Captures<'r, 'p>) -> Match<'r, 'p, T> {
        let (pattern, value) = &self.router.routes[index];
        Match {
            value,
            pattern,
            index,
            rest,
            captures,
        }
    }
}

/// `rest` of a pattern without an asterisk.
fn whole(path: &str) -> &str {
    path.strip_prefix('/').unwrap_or(path)
}

/// What stands below `prefix` and the slash that must follow it.
fn below<'p>(path: &'p str, prefix: &str) -> Option<&'p str> {
    path.strip_prefix(prefix)?.strip_prefix('/')
}

/// Splits a path after `length` bytes, where a segment must end, and drops the slash between.
fn split_segments(path: &str, length: usize) -> Option<(&str, &str)> {
    let (prefix, rest) = path.split_at_checked(length)?;
    if rest.is_empty() {
        return Some((prefix, rest));
    }
    Some((prefix, rest.strip_prefix('/')?))
}

/// Sorts lengths and removes those that occur twice.
fn sort_longest_first(lengths: &mut Vec<usize>) {
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    lengths.dedup();
}

/// Every later route that matches exactly what an earlier one does.
fn find_conflicts<T>(routes: &[(Pattern, T)]) -> Vec<Conflict> {
    let mut seen: HashMap<(u8, &str, &str), usize> = HashMap::new();
    let mut conflicts = Vec::new();
    for (second, (pattern, _)) in routes.iter().enumerate() {
        let key = match pattern.kind() {
            Kind::Exact(path) => (0, &**path, ""),
            Kind::Expression(expression) => (1, expression.as_str(), ""),
            Kind::Suffix { prefix, suffix } => (2, &**prefix, &**suffix),
            Kind::Prefix(prefix) => (3, &**prefix, ""),
        };
        let first = *seen.entry(key).or_insert(second);
        if first != second {
            conflicts.push(Conflict {
                first,
                second,
                first_text: routes[first].0.as_str().to_owned(),
                second_text: pattern.as_str().to_owned(),
            });
        }
    }
    conflicts
}

#[cfg(test)]
mod tests;

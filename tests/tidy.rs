//! Reads the source tree and keeps the rules that no compiler knows: who may import whom, which
//! calls are banned where, where `unsafe` may stand, how long a file may be.
//!
//! Every finding says file, line, rule and what to do. A rule has exceptions where it would do
//! harm, each with its reason; an exception that isn't needed any more is a finding too.

use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Longest file, lines of tests not counted.
const FILE_LINES_MAX: usize = 600;

/// A place where a rule doesn't hold, and why.
struct Exception {
    rule: &'static str,
    path: &'static str,
    reason: &'static str,
}

const fn except(rule: &'static str, path: &'static str, reason: &'static str) -> Exception {
    Exception { rule, path, reason }
}

/// `rule` is the name in a finding: `layering:UNIT` for an import of that unit, `banned:CALL` for a
/// call, `length` for a file that is too long.
const EXCEPTIONS: &[Exception] = &[
    except(
        "banned:std::fs",
        "src/runtime/affinity.rs",
        "read at the start, before any core runs",
    ),
    except(
        "banned:std::fs",
        "src/runtime/affinity/topology.rs",
        "read at the start, before any core runs",
    ),
    except(
        "banned:std::fs",
        "src/runtime/memory.rs",
        "read at the start, before any core runs",
    ),
    except(
        "banned:std::fs",
        "src/runtime/engine/caps.rs",
        "asked at the start, to say why there is no io_uring",
    ),
    except(
        "banned:std::fs",
        "src/cache/root.rs",
        "in a job for a helper thread",
    ),
    except(
        "banned:std::fs",
        "src/handlers/listing.rs",
        "in a job for a helper thread",
    ),
    except(
        "banned:std::fs",
        "src/net/owner.rs",
        "asked when the start has failed",
    ),
    except(
        "banned:panic!",
        "src/runtime/engine/sim/kernel.rs",
        "a detector for tests: a broken rule ends the run",
    ),
    except(
        "banned:Mutex",
        "src/runtime/offload.rs",
        "never contended: a lane has one helper",
    ),
    except(
        "banned:Mutex",
        "src/upstream/roster.rs",
        "taken when servers change, and by each core once after that",
    ),
    except(
        "banned:Mutex",
        "src/upstream/line.rs",
        "taken only while all servers are full",
    ),
    except(
        "banned:Instant::now",
        "src/upstream/resolve/mod.rs",
        "the resolver isn't a core; its schedule takes `now`",
    ),
    except(
        "banned:Instant::now",
        "src/upstream/resolve/client.rs",
        "on the thread of a lookup",
    ),
    except(
        "banned:std::fs",
        "src/upstream/resolve/lookup.rs",
        "on the thread of a lookup",
    ),
    except(
        "banned:Instant::now",
        "src/certificates/ocsp/fetch.rs",
        "on the thread of a question",
    ),
    except(
        "banned:mpsc::channel",
        "src/runtime/offload.rs",
        "carries nothing but its end",
    ),
    except(
        "banned:mpsc::channel",
        "src/observability/sink.rs",
        "carries nothing but its end",
    ),
    except(
        "banned:Instant::now",
        "src/observability/sink.rs",
        "the writer isn't a core",
    ),
    except(
        "banned:SystemTime::now",
        "src/observability/control_log.rs",
        "any thread logs",
    ),
];

/// The parts that layering is about. `src/ARCHITECTURE.md` has the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unit {
    name: &'static str,
    level: u8,
    /// Paths of modules below `crate`, first and second segment; no second one means all others.
    modules: &'static [(&'static str, Option<&'static str>)],
}

const fn unit(
    level: u8,
    name: &'static str,
    modules: &'static [(&'static str, Option<&'static str>)],
) -> Unit {
    Unit {
        name,
        level,
        modules,
    }
}

const UNITS: &[Unit] = &[
    unit(0, "util", &[("util", None)]),
    unit(1, "runtime", &[("runtime", None)]),
    unit(
        1,
        "http codecs",
        &[
            ("http", Some("types")),
            ("http", Some("h1")),
            ("http", Some("semantics")),
            ("http", Some("router")),
            ("http", Some("uri")),
        ],
    ),
    // Sans-IO, as the codecs are: what a configuration says of certificates is checked by it.
    unit(1, "tls", &[("net", Some("tls"))]),
    unit(2, "certificates", &[("certificates", None)]),
    unit(2, "net", &[("net", None)]),
    unit(2, "config", &[("config", None)]),
    unit(2, "observability", &[("observability", None)]),
    unit(3, "upstream", &[("upstream", None)]),
    unit(3, "cache", &[("cache", None)]),
    unit(3, "http session", &[("http", None)]),
    unit(4, "handlers", &[("handlers", None)]),
    unit(4, "stream", &[("stream", None)]),
    unit(4, "mail", &[("mail", None)]),
    unit(5, "supervisor", &[("supervisor", None)]),
    unit(6, "cli", &[("cli", None), ("main", None)]),
];

/// A call or type that is banned outside of tests.
struct Ban {
    text: &'static str,
    /// Path prefixes where it is banned.
    within: &'static [&'static str],
    /// Path prefixes where it is at home.
    home: &'static [&'static str],
    instead: &'static str,
}

const fn ban(
    text: &'static str,
    within: &'static [&'static str],
    home: &'static [&'static str],
    instead: &'static str,
) -> Ban {
    Ban {
        text,
        within,
        home,
        instead,
    }
}

const ALL: &[&str] = &["src/"];
/// What runs on a core.
const HOT: &[&str] = &[
    "src/runtime/",
    "src/net/",
    "src/http/",
    "src/handlers/",
    "src/cache/",
    "src/upstream/",
];
const PRINTERS: &[&str] = &["src/cli/", "src/main.rs"];
const WALL_CLOCKS: &[&str] = &["src/util/clock", "src/runtime/clock"];
const CLOCKS: &[&str] = &[
    "src/util/clock",
    "src/runtime/clock",
    "src/runtime/engine/",
    "src/supervisor/",
    "src/cli/",
];

const BANS: &[Ban] = &[
    ban(
        ".unwrap()",
        ALL,
        &[],
        "return the error, or `expect` with the invariant",
    ),
    ban(
        "panic!",
        ALL,
        &[],
        "return an error; an invariant is an `assert!` or `unreachable!`",
    ),
    ban("todo!", ALL, &[], "finish it"),
    ban("unimplemented!", ALL, &[], "finish it"),
    ban("dbg!", ALL, &[], "use `tracing::debug!`"),
    ban(
        "print!",
        ALL,
        PRINTERS,
        "only the command line prints; use `tracing`",
    ),
    ban(
        "println!",
        ALL,
        PRINTERS,
        "only the command line prints; use `tracing`",
    ),
    ban(
        "eprint!",
        ALL,
        PRINTERS,
        "only the command line prints; use `tracing`",
    ),
    ban(
        "eprintln!",
        ALL,
        PRINTERS,
        "only the command line prints; use `tracing`",
    ),
    ban(
        "thread::sleep",
        ALL,
        &[],
        "set a timer in the wheel, or wait on a condition",
    ),
    ban(
        "process::exit",
        ALL,
        PRINTERS,
        "return to the command line, so that all is drained",
    ),
    ban(
        "SystemTime::now",
        ALL,
        WALL_CLOCKS,
        "take the time from the core's clock",
    ),
    ban(
        "Instant::now",
        ALL,
        CLOCKS,
        "take `now` as an argument, so that the simulator decides",
    ),
    ban(
        "std::fs",
        HOT,
        &[],
        "make it an `Op`: it must not block a core, and `Sim` can fail it",
    ),
    ban(
        "Mutex",
        HOT,
        &[],
        "share immutable data or atomics; send by `runtime::mailbox`",
    ),
    ban(
        "RwLock",
        HOT,
        &[],
        "share immutable data or atomics; send by `runtime::mailbox`",
    ),
    ban(
        "mpsc::channel",
        ALL,
        &[],
        "a queue has a bound: `mailbox::channel` or `sync_channel`",
    ),
];

/// Where `unsafe` may stand.
const UNSAFE_HOMES: &[&str] = &[
    "src/runtime/sys",
    "src/runtime/buf",
    "src/runtime/task",
    "src/runtime/engine/ring",
    "src/supervisor/sys",
];

/// One broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    line: usize,
    rule: String,
    advice: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            line,
            rule,
            advice,
        } = self;
        write!(f, "{path}:{line}: {rule}: {advice}")
    }
}

/// A Rust file. `code` is the text with comments and literals blanked; `product` is that with tests
/// blanked too. All three have the same length and lines.
struct Source {
    path: String,
    text: String,
    code: String,
    product: String,
    /// Lines that aren't tests.
    product_lines: usize,
}

impl Source {
    fn new(path: &str, text: &str, is_test: bool) -> Self {
        let code = blank_comments_and_literals(text);
        let tests = if is_test || !path.starts_with("src/") {
            Vec::from([Range {
                start: 0,
                end: code.len(),
            }])
        } else {
            test_ranges(&code)
        };
        let newlines = |range: &Range<usize>| line_of(&text[range.clone()], range.len()) - 1;
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            product: blank(&code, &tests),
            product_lines: text.lines().count() - tests.iter().map(newlines).sum::<usize>(),
            code,
        }
    }

    fn is_product(&self) -> bool {
        self.path.starts_with("src/")
    }

    fn is_in(&self, prefixes: &[&str]) -> bool {
        prefixes.iter().any(|prefix| self.path.starts_with(prefix))
    }

    fn finding(&self, at: usize, rule: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding {
            path: self.path.clone(),
            line: line_of(&self.text, at),
            rule: rule.into(),
            advice: advice.into(),
        }
    }

    /// Segments of the module's path below `crate`.
    fn module(&self) -> Vec<&str> {
        let path = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        path.split('/')
            .filter(|segment| *segment != "mod")
            .collect()
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
        + 1
}

/// Every finding in a file, exceptions not yet taken out.
fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    check_layering(source, &mut findings);
    check_bans(source, &mut findings);
    check_unsafe(source, &mut findings);
    check_shape(source, &mut findings);
    findings
}

fn check_layering(source: &Source, findings: &mut Vec<Finding>) {
    if !source.is_product() || source.path == "src/lib.rs" {
        return;
    }
    let module = source.module();
    let Some(own) = unit_of(&module) else {
        let advice = "give the module a level in UNITS of tests/tidy.rs";
        findings.push(source.finding(0, "layering", advice));
        return;
    };
    for (at, path) in imports(&source.product, &module) {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let Some(other) = unit_of(&path) else {
            continue;
        };
        if other != own && other.level >= own.level {
            let advice = format!(
                "{} (level {}) may not import {} (level {}), imports point down only: move what is \
                 shared down, or let the level above pass it in",
                own.name, own.level, other.name, other.level
            );
            findings.push(source.finding(at, format!("layering:{}", other.name), advice));
        }
    }
}

/// The unit of a module path; the most specific entry wins.
fn unit_of(path: &[&str]) -> Option<Unit> {
    let first = *path.first()?;
    let find = |second: Option<&str>| {
        let is_it = |unit: &&Unit| unit.modules.contains(&(first, second));
        UNITS.iter().find(is_it).copied()
    };
    let specific = path.get(1).and_then(|second| find(Some(second)));
    specific.or_else(|| find(None))
}

/// Every path that begins with `crate` or with `super`: where it stands, and its first two segments
/// below `crate`.
fn imports(code: &str, module: &[&str]) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    let mut add = |at: usize, rest: &str, mut prefix: Vec<String>| {
        let mut paths = Vec::new();
        expand(rest, &mut prefix, &mut paths);
        paths.dedup();
        found.extend(paths.into_iter().map(|path| (at, path)));
    };
    for at in words(code, "crate") {
        add(at, &code[at + "crate".len()..], Vec::new());
    }
    for at in words(code, "super") {
        if code[..at].ends_with("super::") {
            continue;
        }
        let (mut rest, mut ups) = (&code[at..], 0);
        while let Some(after) = rest.strip_prefix("super") {
            ups += 1;
            rest = after;
            match after.strip_prefix("::") {
                Some(next) if next.starts_with("super") => rest = next,
                _ => break,
            }
        }
        // `super` inside of an inline module goes up less far than it seems.
        if let Some(kept) = module.len().checked_sub(ups)
            && rest.starts_with("::")
        {
            add(
                at,
                rest,
                module[..kept]
                    .iter()
                    .map(|segment| (*segment).to_owned())
                    .collect(),
            );
        }
    }
    found
}

/// Expands `::a::{b, c::d}` behind `prefix` into paths of at most two segments, and gives what
/// stands behind it.
fn expand<'c>(code: &'c str, prefix: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> &'c str {
    let Some(rest) = code.trim_start().strip_prefix("::").map(str::trim_start) else {
        add_path(prefix, found);
        return code;
    };
    let Some(mut rest) = rest.strip_prefix('{') else {
        return expand_segment(rest, prefix, found);
    };
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return rest;
        }
        if let Some(after) = rest.strip_prefix('}') {
            return after;
        }
        rest = expand_segment(rest, prefix, found);
        // `as name`, and the comma.
        let end = rest.find([',', '}']).unwrap_or(rest.len());
        rest = rest[end..].strip_prefix(',').unwrap_or(&rest[end..]);
    }
}

fn expand_segment<'c>(
    code: &'c str,
    prefix: &mut Vec<String>,
    found: &mut Vec<Vec<String>>,
) -> &'c str {
    let end = code.find(|c: char| !is_word(c)).unwrap_or(code.len());
    let (segment, rest) = code.split_at(end);
    if segment.is_empty() || segment == "self" {
        // A glob, the module itself, or something that isn't a path.
        add_path(prefix, found);
        return rest;
    }
    prefix.push(segment.to_owned());
    let rest = expand(rest, prefix, found);
    prefix.pop();
    rest
}

fn add_path(path: &[String], found: &mut Vec<Vec<String>>) {
    if !path.is_empty() {
        found.push(path.iter().take(2).cloned().collect());
    }
}

fn check_bans(source: &Source, findings: &mut Vec<Finding>) {
    for ban in BANS {
        if !source.is_in(ban.within) || source.is_in(ban.home) {
            continue;
        }
        let rule = format!("banned:{}", ban.text.trim_matches(['.', '(', ')']));
        for at in words(&source.product, ban.text) {
            findings.push(source.finding(at, &rule, format!("not here: {}", ban.instead)));
        }
    }
    if source.is_in(&["src/", "tests/"]) {
        for at in words(&source.code, "thread::sleep") {
            if !source.product[at..].starts_with("thread::sleep") {
                let advice = "wait for a condition with a deadline, never for time to pass";
                findings.push(source.finding(at, "banned:sleep in tests", advice));
            }
        }
    }
    for at in find_all(&source.code, "#[ignore") {
        let advice = "a test that doesn't run proves nothing: mend it or remove it";
        findings.push(source.finding(at, "ignored test", advice));
    }
}

fn check_unsafe(source: &Source, findings: &mut Vec<Finding>) {
    if !source.is_product() {
        return;
    }
    for at in words(&source.code, "unsafe") {
        if !source.is_in(UNSAFE_HOMES) {
            let advice = format!("only {} may hold it", UNSAFE_HOMES.join(", "));
            findings.push(source.finding(at, "unsafe", advice));
        } else if !says_why_it_is_safe(source, at) {
            let advice = "put a `// SAFETY:` comment (`# Safety` for a function) right before it";
            findings.push(source.finding(at, "unsafe without reason", advice));
        }
    }
}

/// Whether the lines from the start of the statement, and the comments and attributes before it,
/// give the reason.
fn says_why_it_is_safe(source: &Source, at: usize) -> bool {
    let has_reason = |line: &str| line.contains("SAFETY:") || line.contains("# Safety");
    // The type of a function, or an attribute, does nothing unsafe.
    let after = source.code[at + "unsafe".len()..].trim_start();
    let before = source.code[..at].trim_end();
    if after.starts_with('(') || before.ends_with(['(', ':', '<', '=']) && after.starts_with("fn") {
        return true;
    }
    let last = line_of(&source.text, at) - 1;
    let text: Vec<&str> = source.text.lines().collect();
    let code: Vec<&str> = source.code.lines().collect();
    if has_reason(text[last]) {
        return true;
    }
    for line in (0..last).rev() {
        if has_reason(text[line]) {
            return true;
        }
        let code = code[line].trim();
        let is_end = code.ends_with([';', '{', '}', ',']) || text[line].trim().is_empty();
        if is_end && !code.starts_with("#[") {
            return false;
        }
    }
    false
}

fn check_shape(source: &Source, findings: &mut Vec<Finding>) {
    if !source.text.starts_with("//!") {
        let advice = "begin with a `//!` comment: why the module exists, what it may not know";
        findings.push(source.finding(0, "module comment", advice));
    }
    let lines = source.product_lines;
    if source.is_product() && lines > FILE_LINES_MAX {
        let advice = format!("{lines} lines: split it by subject, {FILE_LINES_MAX} at most");
        findings.push(source.finding(0, "length", advice));
    }
    for word in [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
    ] {
        for at in words(&source.text, word) {
            findings.push(source.finding(at, "unfinished", "do it now, or file an issue"));
        }
    }
}

/// Traces of the machine that a file was made on: in any text file of the tree.
fn check_traces(path: &str, text: &str, checkout: &str) -> Vec<Finding> {
    let mut traces = vec![
        (concat!("/ho", "me/"), "a home directory"),
        (concat!("/Us", "ers/"), "a home directory"),
        (concat!("/ro", "ot/"), "a home directory"),
        (concat!("replace", "-with"), "a registry mirror"),
        (concat!("sparse", "+http"), "a registry mirror"),
    ];
    // A checkout right below `/` has a name too common to look for.
    if checkout.matches('/').count() > 1 {
        traces.push((checkout, "the directory of a checkout"));
    }
    let finding = |line: usize, advice: String| Finding {
        path: path.to_owned(),
        line,
        rule: "trace of a machine".to_owned(),
        advice,
    };
    let mut findings = Vec::new();
    for (trace, what) in traces {
        for at in find_all(text, trace) {
            // Within a longer path it isn't absolute.
            if !text[..at].ends_with(|c: char| is_word(c) || matches!(c, '.' | '-' | '}' | ')')) {
                let advice = format!("names {what} ({trace}): make it relative to what is known");
                findings.push(finding(line_of(text, at), advice));
            }
        }
    }
    if path.ends_with("Cargo.lock") {
        let public = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
        for (number, line) in text.lines().enumerate() {
            if line.starts_with("source = ") && line != public {
                findings.push(finding(
                    number + 1,
                    "take the dependency from crates.io".to_owned(),
                ));
            }
        }
    }
    findings
}

// ---- Reading Rust, as far as the rules need it ----

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn find_all<'t>(text: &'t str, part: &'t str) -> impl Iterator<Item = usize> + 't {
    text.match_indices(part).map(|(at, _)| at)
}

/// Where `part` stands without being a piece of a longer word.
fn words<'t>(text: &'t str, part: &'t str) -> impl Iterator<Item = usize> + 't {
    let (first, last) = (part.starts_with(is_word), part.ends_with(is_word));
    find_all(text, part).filter(move |at| {
        let joined_before = text[..*at].ends_with(is_word);
        let joined_after = text[at + part.len()..].starts_with(is_word);
        !(first && joined_before || last && joined_after)
    })
}

/// Replaces ranges by spaces, newlines kept.
fn blank(text: &str, ranges: &[Range<usize>]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for range in ranges {
        for byte in &mut bytes[range.clone()] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    }
    String::from_utf8(bytes).expect("whole characters became spaces")
}

/// Blanks comments, strings and characters.
fn blank_comments_and_literals(text: &str) -> String {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let length = if rest.starts_with("//") {
            Some(rest.find('\n').unwrap_or(rest.len()))
        } else if rest.starts_with("/*") {
            Some(block_comment_length(rest))
        } else {
            let follows_word = text[..at].ends_with(is_word);
            string_length(rest, follows_word).or_else(|| character_length(rest))
        };
        if let Some(length) = length {
            ranges.push(at..at + length);
        }
        at += length.unwrap_or_else(|| first_length(rest));
    }
    blank(text, &ranges)
}

fn first_length(text: &str) -> usize {
    text.chars().next().map_or(1, char::len_utf8)
}

fn block_comment_length(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += first_length(&rest[at..]);
        }
    }
    rest.len()
}

/// Length of the string literal at the start, its prefix (`b`, `c`, `r#`) included.
fn string_length(rest: &str, follows_word: bool) -> Option<usize> {
    let letters = rest.len() - rest.trim_start_matches(['b', 'c', 'r']).len();
    let letters = if follows_word { 0 } else { letters };
    let (prefix, body) = rest.split_at(letters);
    if prefix.contains('r') {
        let hashes = body.len() - body.trim_start_matches('#').len();
        let opened = body[hashes..].strip_prefix('"')?;
        let close = format!("\"{}", "#".repeat(hashes));
        let end = opened
            .find(&close)
            .map_or(opened.len(), |end| end + close.len());
        return Some(letters + hashes + 1 + end);
    }
    let opened = body.strip_prefix('"')?;
    let mut is_escaped = false;
    for (at, character) in opened.char_indices() {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return Some(letters + 1 + at + 1),
            _ => {}
        }
    }
    Some(rest.len())
}

/// Length of the character literal at the start; `None` for a lifetime.
fn character_length(rest: &str) -> Option<usize> {
    let opened = rest.strip_prefix('\'')?;
    if let Some(escape) = opened.strip_prefix('\\') {
        // The escaped character itself may be a quote.
        let skipped = first_length(escape);
        return escape
            .get(skipped..)?
            .find('\'')
            .map(|end| 2 + skipped + end + 1);
    }
    let length = first_length(opened);
    opened
        .get(length..)?
        .starts_with('\'')
        .then_some(1 + length + 1)
}

/// Items under `#[cfg(test)]`, in code without comments and literals.
fn test_ranges(code: &str) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for attribute in ["#[cfg(test)]", "#[cfg(all(test"] {
        for at in find_all(code, attribute) {
            let body = at + code[at..].find(']').map_or(0, |end| end + 1);
            if !ranges.iter().any(|range| range.contains(&at)) {
                ranges.push(at..body + item_length(&code[body..]));
            }
        }
    }
    ranges
}

/// Length of the item at the start: up to its `;`, or the `}` of its first block.
fn item_length(code: &str) -> usize {
    let mut depth = 0;
    for (at, character) in code.char_indices() {
        match character {
            '{' | '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            '}' if depth == 1 => return at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

// ---- The tree ----

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file that belongs to the project: its path from the root, and its content.
fn tree() -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(root().join(&directory)).expect("a directory of the project");
        for entry in entries.map(|entry| entry.expect("an entry of the directory")) {
            let path = directory.join(entry.file_name());
            let kind = entry.file_type().expect("the type of an entry");
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if [".git", "target", "corpus", "artifacts"].contains(&name) {
                continue;
            }
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_file()
                && let Ok(text) = fs::read_to_string(root().join(&path))
            {
                let path = path.to_str().expect("names in the tree are UTF-8");
                files.push((path.to_owned(), text));
            }
        }
    }
    files.sort();
    files
}

fn is_rust(path: &str) -> bool {
    path.ends_with(".rs")
}

/// Files and directories of modules declared as `#[cfg(test)] mod name;`.
fn test_modules(files: &[(String, String)]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| is_rust(path)) {
        let code = blank_comments_and_literals(text);
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let directory = match name {
            "mod.rs" | "lib.rs" | "main.rs" => directory,
            _ => path.trim_end_matches(".rs"),
        };
        for at in find_all(&code, "#[cfg(test)]") {
            let item = code[at + "#[cfg(test)]".len()..].trim_start();
            let declared = item
                .strip_prefix("mod ")
                .and_then(|rest| rest.split_once(';'));
            if let Some((module, _)) = declared
                && module.chars().all(is_word)
            {
                found.push(format!("{directory}/{module}.rs"));
                found.push(format!("{directory}/{module}/"));
            }
        }
    }
    found
}

#[test]
fn the_tree_keeps_the_rules() {
    let files = tree();
    let tests = test_modules(&files);
    let checkout = root().to_str().expect("names in the tree are UTF-8");
    let mut findings = Vec::new();
    for (path, text) in &files {
        findings.extend(check_traces(path, text, checkout));
        if is_rust(path) {
            let is_test = tests.iter().any(|test| path.starts_with(test));
            findings.extend(check(&Source::new(path, text, is_test)));
        }
    }
    for Exception { rule, path, reason } in EXCEPTIONS {
        assert!(!reason.is_empty(), "{rule} in {path} has no reason");
        let before = findings.len();
        findings.retain(|finding| finding.rule != *rule || finding.path != *path);
        if findings.len() == before && files.iter().any(|(file, _)| file == path) {
            findings.push(Finding {
                path: (*path).to_owned(),
                line: 1,
                rule: "stale exception".to_owned(),
                advice: format!("nothing breaks `{rule}` any more: remove it from EXCEPTIONS"),
            });
        }
    }
    let report: Vec<_> = findings.iter().map(Finding::to_string).collect();
    assert!(report.is_empty(), "\n{}\n", report.join("\n"));
}

// ---- The rules themselves, on small snippets ----

fn rules(path: &str, text: &str) -> Vec<(usize, String)> {
    let text = format!("//! Why.\n{text}");
    let findings = check(&Source::new(path, &text, false));
    findings
        .into_iter()
        .map(|finding| (finding.line, finding.rule))
        .collect()
}

fn is_clean(path: &str, text: &str) {
    assert_eq!(rules(path, text), [], "{path}: {text}");
}

fn is_refused(path: &str, text: &str, line: usize, rule: &str) {
    assert_eq!(
        rules(path, text),
        [(line, rule.to_owned())],
        "{path}: {text}"
    );
}

#[test]
fn imports_point_down() {
    is_clean(
        "src/net/listener.rs",
        "use crate::runtime::op::Op;\nuse crate::util;",
    );
    is_clean(
        "src/runtime/timer.rs",
        "use crate::runtime::{op, slot::Slot};",
    );
    is_clean(
        "src/http/session.rs",
        "use crate::http::types::Status;\nuse crate::net::send;",
    );
    is_clean(
        "src/http/h1/a.rs",
        "use crate::http::types::S;\nuse super::super::uri::Uri;",
    );
    is_clean(
        "src/http/h1/a.rs",
        "use super::b::C;\npub(crate) struct D;\npub(super) struct E;",
    );
    is_clean("src/lib.rs", "pub use crate::supervisor::worker;");
    is_refused(
        "src/runtime/op.rs",
        "use crate::net::Stream;",
        2,
        "layering:net",
    );
    is_refused(
        "src/util/mod.rs",
        "\nfn f(_: crate::config::Model) {}",
        3,
        "layering:config",
    );
    is_refused(
        "src/handlers/a.rs",
        "use crate::supervisor;",
        2,
        "layering:supervisor",
    );
}

#[test]
fn modules_of_one_level_do_not_import_each_other() {
    is_refused(
        "src/config/a.rs",
        "use crate::observability::L;",
        2,
        "layering:observability",
    );
    is_refused(
        "src/http/h1/mod.rs",
        "use crate::runtime::op;",
        2,
        "layering:runtime",
    );
    is_refused(
        "src/http/types.rs",
        "use crate::{util, runtime::op};",
        2,
        "layering:runtime",
    );
    is_refused(
        "src/http/types.rs",
        "use crate::http::{h1, s::S};",
        2,
        "layering:http session",
    );
    is_refused(
        "src/http/router/mod.rs",
        "use super::session::S;",
        2,
        "layering:http session",
    );
    is_refused(
        "src/cache/mod.rs",
        "use super::http::session;",
        2,
        "layering:http session",
    );
    let nested = "use crate::{\n    http::{types::{A, B}},\n    util as u,\n};";
    is_refused("src/runtime/a.rs", nested, 2, "layering:http codecs");
}

#[test]
fn a_module_without_a_level_is_refused() {
    is_refused("src/plumbing/mod.rs", "use crate::util;", 1, "layering");
}

#[test]
fn banned_calls_are_refused_outside_of_tests() {
    is_refused(
        "src/config/a.rs",
        "fn f() {\n    x.unwrap();\n}",
        3,
        "banned:unwrap",
    );
    is_refused(
        "src/config/a.rs",
        "fn f() { panic!(\"no\") }",
        2,
        "banned:panic!",
    );
    is_refused(
        "src/net/a.rs",
        "fn f() { println!() }",
        2,
        "banned:println!",
    );
    is_refused(
        "src/net/a.rs",
        "use std::thread::sleep;",
        2,
        "banned:thread::sleep",
    );
    is_refused("src/handlers/a.rs", "use std::fs;", 2, "banned:std::fs");
    is_refused(
        "src/handlers/a.rs",
        "fn f(_: std::fs::File) {}",
        2,
        "banned:std::fs",
    );
    is_refused(
        "src/http/session.rs",
        "fn f(_: &Mutex<u8>) {}",
        2,
        "banned:Mutex",
    );
    is_refused(
        "src/handlers/a.rs",
        "fn f() { SystemTime::now(); }",
        2,
        "banned:SystemTime::now",
    );
    is_refused(
        "src/net/a.rs",
        "fn f() { mpsc::channel::<u8>(); }",
        2,
        "banned:mpsc::channel",
    );
    is_clean(
        "src/config/a.rs",
        "use std::fs;\nfn f() { x.unwrap_or(1); catch_panic!(); }",
    );
    is_clean("src/cli/a.rs", "fn f() { println!() }");
    is_clean(
        "src/util/clock.rs",
        "fn f() { SystemTime::now(); Instant::now(); }",
    );
    is_clean(
        "src/net/a.rs",
        "#[cfg(test)]\nmod tests { fn f() { x.unwrap(); panic!() } }",
    );
    is_clean(
        "src/net/a.rs",
        "/// Never `panic!`.\nfn f() -> &'static str { r#\"\"panic!\"# }",
    );
    is_clean("tests/e2e.rs", "fn f() { x.unwrap(); println!(); }");
    let after = "#[cfg(test)]\nmod tests { fn f() { x.unwrap() } }\nfn g() { x.unwrap() }";
    is_refused("src/net/a.rs", after, 4, "banned:unwrap");
}

#[test]
fn tests_do_not_sleep_and_are_not_ignored() {
    is_refused(
        "tests/e2e.rs",
        "fn f() { std::thread::sleep(d) }",
        2,
        "banned:sleep in tests",
    );
    let inline = "#[cfg(test)]\nmod tests { fn f() { thread::sleep(d) } }";
    is_refused("src/net/a.rs", inline, 3, "banned:sleep in tests");
    is_refused(
        "tests/e2e.rs",
        "#[test]\n#[ignore = \"slow\"]\nfn f() {}",
        3,
        "ignored test",
    );
}

#[test]
fn unsafe_stands_in_its_modules_with_its_reason() {
    let (home, rule) = ("src/runtime/sys.rs", "unsafe without reason");
    is_refused("src/net/a.rs", "fn f() { unsafe { g() } }", 2, "unsafe");
    is_refused(home, "fn f() {\n    unsafe { g() }\n}", 3, rule);
    is_refused(
        home,
        "fn f() {\n    // SAFETY: g may.\n    g();\n    unsafe { h() }\n}",
        5,
        rule,
    );
    is_clean(
        home,
        "fn f() {\n    // SAFETY: g may.\n    unsafe { g() }\n}",
    );
    is_clean(
        home,
        "fn f() {\n    // SAFETY: g may.\n    let x =\n        unsafe { g() };\n}",
    );
    is_clean(
        home,
        "/// # Safety\n/// Care.\n#[inline]\npub unsafe fn f() {}",
    );
    is_clean(home, "struct S {\n    f: unsafe fn(u8),\n}");
    is_clean(
        "src/net/a.rs",
        "#![deny(unsafe_code)]\n// unsafe\nconst S: &str = \"unsafe\";",
    );
}

#[test]
fn files_are_short_and_begin_with_their_reason() {
    let long = "fn f() {}\n\n".repeat(FILE_LINES_MAX / 2);
    is_refused("src/net/a.rs", &long, 1, "length");
    is_clean(
        "src/net/a.rs",
        &format!("#[cfg(test)]\nmod tests {{\n{long}}}"),
    );
    is_clean("tests/a.rs", &long);
    let bare = check(&Source::new("src/net/a.rs", "fn f() {}\n", false));
    assert!(
        bare[0]
            .to_string()
            .starts_with("src/net/a.rs:1: module comment: begin with")
    );
    is_refused(
        "src/net/a.rs",
        concat!("// TO", "DO: later"),
        2,
        "unfinished",
    );
}

#[test]
fn a_file_declared_as_a_test_module_is_a_test() {
    let files = [
        (
            "src/net/mod.rs".to_owned(),
            "#[cfg(test)]\nmod sim;\nmod a;".to_owned(),
        ),
        (
            "src/net/a.rs".to_owned(),
            "#[cfg(test)]\nmod tests;".to_owned(),
        ),
    ];
    let expected = [
        "src/net/sim.rs",
        "src/net/sim/",
        "src/net/a/tests.rs",
        "src/net/a/tests/",
    ];
    assert_eq!(test_modules(&files), expected);
    let source = Source::new("src/net/sim.rs", "//! Why.\nfn f() { x.unwrap() }", true);
    assert_eq!(check(&source), []);
}

#[test]
fn traces_of_machines_are_refused() {
    let traced = |path: &str, text: &str| check_traces(path, text, "/build/some/checkout").len();
    assert_eq!(traced("README.md", concat!("see\n/ho", "me/me/beltway")), 1);
    assert_eq!(
        traced("conf/a.toml", "root = \"/build/some/checkout/site\""),
        1
    );
    assert_eq!(
        traced(
            ".cargo/config.toml",
            concat!("replace", "-with = \"mirror\"")
        ),
        1
    );
    assert_eq!(
        traced(
            "Cargo.lock",
            "source = \"registry+https://mirror.example/index\""
        ),
        1
    );
    let public = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
    assert_eq!(traced("Cargo.lock", public), 0);
    assert_eq!(
        traced(
            "conf/a.toml",
            concat!("\"/srv/www\", \"data/ro", "ot/index.html\"")
        ),
        0
    );
}

#[test]
fn comments_and_literals_are_blanked_and_nothing_else() {
    for (text, code) in [
        ("a /* b /* c */ d */ e", "a                   e"),
        ("a // b\nc", "a     \nc"),
        (r#"f("a\"b", c)"#, r#"f(      , c)"#),
        ("f(br##\"a\"#b\"##, c)", "f(            , c)"),
        (r"f('a', '\'', '\u{1f}')", r"f(   ,     ,         )"),
        ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
        ("bar(\"x\")", "bar(   )"),
    ] {
        assert_eq!(blank_comments_and_literals(text), code);
        assert_eq!(text.len(), code.len());
    }
}

//! Fuzz targets, and a mutation driver that needs nothing but stable Rust.
//!
//! A target is a function of bytes that panics when something that must always hold does not. It
//! asserts more than the absence of panics: that the verdict does not depend on how the input was
//! cut, that what is accepted is unambiguous, that canonical forms are fixed points.
//!
//! Each input is a pure function of its target and its seed, so a failure is repeated by its seed
//! alone. The README says how to run the same targets under libFuzzer.

pub mod mutate;
pub mod targets;

use std::time::{Duration, Instant};

/// A fuzz target: its name on the command line, what it asserts, and where mutation begins.
#[derive(Clone, Copy)]
pub struct Target {
    /// The name on the command line.
    pub name: &'static str,
    /// Runs one input; panics if an invariant is broken.
    pub run: fn(&[u8]),
    /// Inputs that mutation starts from.
    pub corpus: &'static [&'static [u8]],
    /// Tokens that mean something to the target, for insertion.
    pub tokens: &'static [&'static [u8]],
}

/// All targets.
pub const TARGETS: &[Target] = &[
    targets::body::TARGET,
    targets::bundle::TARGET,
    targets::config::TARGET,
    targets::date::TARGET,
    targets::dns::TARGET,
    targets::forward::TARGET,
    targets::proxy_protocol::TARGET,
    targets::range::TARGET,
    targets::records::TARGET,
    targets::request::TARGET,
    targets::response::TARGET,
    targets::tls::TARGET,
    targets::uri::TARGET,
];

/// The target of that name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Runs the corpus and then `runs` inputs with the seeds from `seed` on.
///
/// # Panics
/// If an input breaks an invariant; the target, the seed and the input are printed before.
pub fn run_bounded(target: &Target, seed: u64, runs: u64) {
    for input in target.corpus {
        run_one(target, None, input);
    }
    for seed in (0..runs).map(|n| seed.wrapping_add(n)) {
        run_one(target, Some(seed), &mutate::mutate(seed, target));
    }
}

/// Runs inputs with the seeds from `seed` on for this long; returns how many.
///
/// # Panics
/// As [`run_bounded`].
pub fn run_for(target: &Target, seed: u64, time: Duration) -> u64 {
    const BATCH: u64 = 1000;
    let begin = Instant::now();
    let mut runs = 0;
    while begin.elapsed() < time {
        run_bounded(target, seed.wrapping_add(runs), BATCH);
        runs += BATCH;
    }
    runs
}

/// Runs one input. What it was is printed while its panic unwinds, by a guard rather than a hook,
/// since tests of several targets run at the same time.
pub fn run_one(target: &Target, seed: Option<u64>, input: &[u8]) {
    let guard = Report {
        target,
        seed,
        input,
    };
    (target.run)(input);
    std::mem::forget(guard);
}

struct Report<'a> {
    target: &'a Target,
    seed: Option<u64>,
    input: &'a [u8],
}

impl Drop for Report<'_> {
    #[allow(clippy::print_stderr)] // This is the report of a failed test.
    fn drop(&mut self) {
        let origin = match self.seed {
            Some(seed) => format!("--seed {seed} --runs 1"),
            None => "an input of the corpus".to_owned(),
        };
        let input = self.input.escape_ascii();
        eprintln!(
            "target {} failed: {origin}\ninput: b\"{input}\"",
            self.target.name
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// The bounded run of `cargo test`: the same inputs each time.
    fn smoke(name: &str) {
        let target = find(name).expect("a target of that name");
        run_bounded(target, 0, 100_000);
    }

    #[test]
    fn body() {
        smoke("body");
    }

    #[test]
    fn bundle() {
        run_bounded(find("bundle").expect("a target of that name"), 0, 20_000);
    }

    #[test]
    fn config() {
        // A configuration costs a hundred times as much as a range.
        run_bounded(find("config").expect("a target of that name"), 0, 20_000);
    }

    #[test]
    fn date() {
        smoke("date");
    }

    #[test]
    fn dns() {
        smoke("dns");
    }

    #[test]
    fn forward() {
        smoke("forward");
    }

    #[test]
    fn proxy_protocol() {
        smoke("proxy_protocol");
    }

    #[test]
    fn range() {
        smoke("range");
    }

    #[test]
    fn records() {
        // Each input takes two handshakes.
        run_bounded(find("records").expect("a target of that name"), 0, 4000);
    }

    #[test]
    fn request() {
        smoke("request");
    }

    #[test]
    fn tls() {
        smoke("tls");
    }

    #[test]
    fn response() {
        smoke("response");
    }

    #[test]
    fn uri() {
        smoke("uri");
    }

    #[test]
    fn every_target_has_a_name_of_its_own_and_a_corpus() {
        for (index, target) in TARGETS.iter().enumerate() {
            assert!(!target.corpus.is_empty(), "{}", target.name);
            let first = TARGETS.iter().position(|other| other.name == target.name);
            assert_eq!(first, Some(index), "{}", target.name);
        }
    }

    #[test]
    fn a_share_of_the_inputs_gets_past_the_parsers() {
        use beltway::http::h1::{HeadLimits, HeadScanner, parse_head};
        let target = find("request").expect("a target of that name");
        let limits = HeadLimits::default();
        let accepted = |seed: &u64| {
            let input = mutate::mutate(*seed, target);
            match HeadScanner::default().scan(&input, &limits) {
                Ok(Some(end)) => parse_head(&input[..end], &limits).is_ok(),
                _ => false,
            }
        };
        let count = (0..2000).filter(accepted).count();
        assert!((200..1800).contains(&count), "{count} of 2000 accepted");
    }

    #[test]
    fn a_broken_invariant_is_found() {
        thread_local!(static FOUND: Cell<bool> = const { Cell::new(false) });
        let target = Target {
            name: "test",
            run: |input| {
                let found = input.windows(3).any(|three| three == b"\r\n\0");
                FOUND.set(FOUND.get() || found);
            },
            corpus: &[b"a line\r\n"],
            tokens: &[b"\0"],
        };
        run_bounded(&target, 0, 5000);
        assert!(FOUND.get(), "mutation is too weak to find three bytes");
    }
}

//! Power of two choices: draw two, take the one where a request is done sooner.
//!
//! The best of all would draw every core to the same server at the same time; the better of two drawn
//! ones is nearly as good and doesn't herd (Mitzenmacher, "The power of two choices in randomized load
//! balancing", 2001). Sooner means the peak-sensitive latency times the requests in flight and this
//! one.

use std::time::Instant;

use super::{Candidate, Candidates, random};
use crate::util::random::Random;

/// What a server without a sample is believed to take while its first requests are out, in seconds.
/// One request finds out; the others go elsewhere meanwhile.
const UNKNOWN_S: f64 = 1.0;

pub(super) fn pick(candidates: &Candidates<'_>, random: &mut Random) -> Option<usize> {
    let weight = candidates.weight();
    let first = random::draw(candidates, weight, None, random)?;
    let rest = weight - first.weight;
    let Some(second) = random::draw(candidates, rest, Some(first.index), random) else {
        return Some(first.index);
    };
    let mean = (first.weight + second.weight) as f64 / 2.0;
    let cost = |candidate| cost(candidate, mean, candidates.now);
    // Equal ones: the first, so that draws by weight stay so.
    if cost(&second) < cost(&first) {
        Some(second.index)
    } else {
        Some(first.index)
    }
}

/// Seconds until the server would be done with one more, when a weight of `mean` does one at a time.
/// The request itself doesn't count by weight, or an idle upstream would prefer heavy servers twice.
fn cost(candidate: &Candidate<'_>, mean: f64, now: Instant) -> f64 {
    let view = candidate.view;
    let latency_s = match view.latency.seconds(now) {
        Some(latency_s) => latency_s,
        None if view.in_flight == 0 => 0.0,
        None => UNKNOWN_S,
    };
    latency_s * (f64::from(view.in_flight) * mean / candidate.weight as f64 + 1.0)
}

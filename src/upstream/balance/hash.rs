//! Consistent hashing with bounded load, by weighted rendezvous.
//!
//! Every server gets a score from key and id, and the highest one wins. So each key has an order of
//! servers of its own: when a server leaves, its keys go to their second choices, all over the others,
//! and no other key moves. A ring does the same with some hundred points per server to keep in memory
//! and to rebuild; this is exact, follows weights (and slow start) to the last digit, and costs one
//! multiplication chain per server and pick, which is less than the cache misses of a ring up to
//! about a hundred servers.
//!
//! With a bound a server above it is passed over, and the key goes to its next choice. One server is
//! always below: the loads of all can't each exceed a bound whose sum is above their sum.

use std::cmp::Ordering;
use std::num::NonZeroU32;

use xxhash_rust::xxh3::xxh3_64;

use super::{Candidate, Candidates};
use crate::util::random::mix;

pub(super) fn pick(
    candidates: &Candidates<'_>,
    key: &[u8],
    load_percent_max: Option<NonZeroU32>,
) -> Option<usize> {
    let key = xxh3_64(key);
    let bound = load_percent_max.map(|percent| Bound::new(candidates, percent.get()));
    let best = candidates
        .iter()
        .filter(|candidate| bound.as_ref().is_none_or(|bound| bound.has_room(candidate)))
        .map(|candidate| (mix(key ^ mix(candidate.view.id)), candidate))
        .max_by(compare);
    best.map(|(_, candidate)| candidate.index)
}

/// By score; the same hash and weight twice would be the same id twice, and then either is right.
fn compare(one: &(u64, Candidate<'_>), other: &(u64, Candidate<'_>)) -> Ordering {
    if one.1.weight == other.1.weight {
        // The score grows with the hash: no need for logarithms.
        return one.0.cmp(&other.0);
    }
    score(one).total_cmp(&score(other))
}

/// `weight / -ln(u)` for a `u` evenly within (0, 1): the highest of these belongs to a server with
/// the probability of its share of the weights (Schindelhauer, Schomaker, "Weighted distributed hash
/// tables", 2005).
fn score((hash, candidate): &(u64, Candidate<'_>)) -> f64 {
    const STEPS: f64 = (1_u64 << 53) as f64;
    let u = ((hash >> 11) as f64 + 0.5) / STEPS;
    candidate.weight as f64 / -u.ln()
}

/// How much the candidates may have in flight: `percent` of their share of what all have with this
/// request, rounded up.
struct Bound {
    /// Percent times requests, this one included.
    load: u128,
    /// Percent (100) times the sum of weights.
    weight: u128,
}

impl Bound {
    fn new(candidates: &Candidates<'_>, percent: u32) -> Self {
        let (mut in_flight, mut weight) = (1_u128, 0_u128);
        for candidate in candidates.iter() {
            in_flight += u128::from(candidate.view.in_flight);
            weight += u128::from(candidate.weight);
        }
        Self {
            load: in_flight * u128::from(percent.max(100)),
            weight: weight * 100,
        }
    }

    fn has_room(&self, candidate: &Candidate<'_>) -> bool {
        // in_flight < load / 100 × own weight / weight
        let own = u128::from(candidate.view.in_flight) * self.weight;
        own < self.load * u128::from(candidate.weight)
    }
}

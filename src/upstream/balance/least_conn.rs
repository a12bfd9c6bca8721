//! Least connections: the server with the fewest requests in flight for its weight.
//!
//! Servers that are equal take turns by weight. Without that an upstream with little to do would send
//! everything to its first server.

use super::round_robin::Turns;
use super::{Candidate, Candidates};

pub(super) fn pick(candidates: &Candidates<'_>, turns: &mut Turns) -> Option<usize> {
    // `a / weight(a) < b / weight(b)` without division; below 2^58.
    let load =
        |one: &Candidate<'_>, other: &Candidate<'_>| u64::from(one.view.in_flight) * other.weight;
    let least = candidates.iter().reduce(|least, candidate| {
        if load(&candidate, &least) < load(&least, &candidate) {
            candidate
        } else {
            least
        }
    })?;
    turns.pick(candidates.servers.len(), || {
        let equal = |candidate: &Candidate<'_>| load(candidate, &least) == load(&least, candidate);
        candidates.iter().filter(equal)
    })
}

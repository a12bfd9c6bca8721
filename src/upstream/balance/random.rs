//! A server drawn by weight.
//!
//! Needs no memory and no agreement between cores, and is within a few percent of the weights after
//! some thousand requests.

use super::{Candidate, Candidates};
use crate::util::random::Random;

pub(super) fn pick(candidates: &Candidates<'_>, random: &mut Random) -> Option<usize> {
    draw(candidates, candidates.weight(), None, random).map(|drawn| drawn.index)
}

/// Draws one by weight, never the one at the index `except`. `weight` is the sum of those that may be
/// drawn.
pub(super) fn draw<'v>(
    candidates: &Candidates<'v>,
    weight: u64,
    except: Option<usize>,
    random: &mut Random,
) -> Option<Candidate<'v>> {
    let mut at = random.below(weight);
    candidates
        .iter()
        .filter(|candidate| Some(candidate.index) != except)
        .find(|candidate| {
            let is_drawn = at < candidate.weight;
            at = at.saturating_sub(candidate.weight);
            is_drawn
        })
}

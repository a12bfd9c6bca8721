//! Smooth weighted round robin, as nginx does it.
//!
//! With weights 5, 1, 1 the turns are a a b a c a a and not a a a a a b c: each round gives every
//! server credit for its weight, the one with the most credit takes the turn and pays for the round.

use super::Candidate;

/// Whose turn it is.
///
/// Invariant: what one round gives it also takes, so the sum of all credit is 0, and nobody's credit
/// grows beyond the sum of weights.
#[derive(Debug)]
pub(super) struct Turns {
    /// By index, in parts of a weight.
    credit: Vec<i64>,
    seed: u64,
}

impl Turns {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            credit: Vec::new(),
            seed,
        }
    }

    /// The one of `candidates` whose turn it is. Servers that aren't candidates keep their credit.
    /// `servers` is the number of all, and every index is below it.
    pub(super) fn pick<'v, I>(
        &mut self,
        servers: usize,
        candidates: impl Fn() -> I,
    ) -> Option<usize>
    where
        I: Iterator<Item = Candidate<'v>>,
    {
        if self.credit.len() < servers {
            // At the first pick only. Cores begin at different places.
            self.credit.resize(servers, 0);
            for _ in 0..self.seed % servers as u64 {
                self.turn(candidates());
            }
        }
        self.turn(candidates())
    }

    fn turn<'v>(&mut self, candidates: impl Iterator<Item = Candidate<'v>>) -> Option<usize> {
        let (mut best, mut round): (Option<usize>, i64) = (None, 0);
        for Candidate { index, weight, .. } in candidates {
            // A weight is below 2^26.
            let weight = weight as i64;
            round += weight;
            self.credit[index] += weight;
            if best.is_none_or(|best| self.credit[index] > self.credit[best]) {
                best = Some(index);
            }
        }
        self.credit[best?] -= round;
        best
    }
}

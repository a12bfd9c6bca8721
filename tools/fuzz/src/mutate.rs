//! Makes inputs: a corpus entry, changed a few times by chance.

use crate::Target;

/// Longest input made, in bytes; targets with larger limits lower them.
const INPUT_MAX: usize = 4096;

/// Bytes at the edges of what parsers distinguish.
const EDGES: &[u8] = b"\0\t\n\r !\"%+,-./019:;?@AZ[\\]_az{|}\x7f\x80\xc0\xff";

/// A small seeded generator (splitmix64): equal seeds give equal inputs on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator; any seed will do.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, or 0 where the bound is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        match bound as u64 {
            0 => 0,
            bound => (self.bits() % bound) as usize,
        }
    }

    /// One element of `list`, or None where it is empty.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> Option<&'a T> {
        list.get(self.below(list.len()))
    }

    /// Ascending places at which to cut `length` bytes, for targets that test input in pieces.
    pub fn cuts(&mut self, length: usize) -> Vec<usize> {
        let mut cuts: Vec<usize> = (0..self.below(8)).map(|_| self.below(length + 1)).collect();
        cuts.sort_unstable();
        cuts
    }
}

/// The input of `seed`: an entry of the corpus, changed one to eight times. Few changes are the
/// likelier, so that a good share of the inputs gets past the first check of a parser.
pub fn mutate(seed: u64, target: &Target) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut input = random.pick(target.corpus).map_or(vec![], |i| i.to_vec());
    for _ in 0..=random.bits().trailing_zeros().min(7) {
        change(&mut random, target, &mut input);
    }
    input.truncate(INPUT_MAX);
    input
}

/// Changes `input` once.
fn change(random: &mut Random, target: &Target, input: &mut Vec<u8>) {
    let at = random.below(input.len() + 1);
    let range = at..at + random.below((input.len() - at).min(32) + 1);
    match random.below(16) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => {
            if let (Some(byte), Some(edge)) = (input.get_mut(at), random.pick(EDGES)) {
                *byte = *edge;
            }
        }
        2 => input.insert(at, random.bits() as u8),
        3 => input.insert(at, random.pick(EDGES).copied().unwrap_or_default()),
        4 => {
            input.drain(range);
        }
        5 => input.truncate(at),
        6 => {
            // Repeat a piece, now and then so often that a limit is met.
            let piece = input[range].to_vec();
            let times = [1, 2, 3, 40][random.below(4)];
            let piece = piece.repeat(times);
            input.splice(at..at, piece);
        }
        7 => {
            // The end of another entry behind the beginning of this one.
            if let Some(other) = random.pick(target.corpus) {
                let from = random.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
        _ => {
            // A token in the place of nothing, or of something.
            if let Some(token) = random.pick(target.tokens) {
                let replaced = if random.below(2) == 0 { at..at } else { range };
                input.splice(replaced, token.iter().copied());
            }
        }
    }
    input.truncate(INPUT_MAX);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const TARGET: Target = Target {
        name: "test",
        run: |_| {},
        corpus: &[b"GET / HTTP/1.1\r\n\r\n", b"", b"0123456789"],
        tokens: &[b"chunked"],
    };

    #[test]
    fn an_input_is_a_function_of_its_seed() {
        let inputs: Vec<_> = (0..1000).map(|seed| mutate(seed, &TARGET)).collect();
        let again: Vec<_> = (0..1000).map(|seed| mutate(seed, &TARGET)).collect();
        assert_eq!(inputs, again);
        let different: HashSet<_> = inputs.iter().collect();
        assert!(different.len() > 500, "{} different", different.len());
    }

    #[test]
    fn inputs_are_bounded_and_an_empty_target_is_allowed() {
        let empty = Target {
            corpus: &[],
            tokens: &[],
            ..TARGET
        };
        for seed in 0..2000 {
            assert!(mutate(seed, &TARGET).len() <= INPUT_MAX);
            mutate(seed, &empty);
        }
    }

    #[test]
    fn cuts_ascend_within_the_length() {
        let mut random = Random::new(1);
        for length in 0..100 {
            let cuts = random.cuts(length);
            assert!(cuts.is_sorted() && cuts.iter().all(|cut| *cut <= length));
        }
    }
}

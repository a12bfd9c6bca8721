//! Numbers that follow from a seed, and content that follows from a number.

/// A generator (SplitMix64): the same numbers for the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The generator of one part of a run: which engine, which client.
    pub(crate) fn new(seed: u64, part: &str) -> Self {
        let bytes = part.bytes();
        Self(bytes.fold(mix(seed), |state, byte| mix(state ^ u64::from(byte))))
    }

    /// 64 bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From 0 to below `end`, which isn't 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    /// One of these.
    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The bytes `from..from + len` of the endless content of this number.
pub(crate) fn content(number: u64, from: u64, len: usize) -> Vec<u8> {
    let first_word = from / 8;
    let words = (from % 8 + len as u64).div_ceil(8);
    let bytes = (first_word..first_word + words)
        .flat_map(|word| mix(number ^ word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes());
    bytes.skip((from % 8) as usize).take(len).collect()
}

/// A sum that tells whether two contents are the same (FNV-1a).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sum(pub(crate) u64);

impl Sum {
    /// Of nothing.
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// With these bytes behind.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_content_is_that_part() {
        let whole = content(7, 0, 100);
        for (from, len) in [(0, 3), (5, 20), (8, 8), (15, 1), (99, 1), (40, 0)] {
            assert_eq!(content(7, from, len), whole[from as usize..][..len]);
        }
        assert_ne!(whole, content(8, 0, 100));
    }

    #[test]
    fn parts_of_a_run_draw_other_numbers_and_the_same_again() {
        let draw = |part| Random::new(3, part).bits();
        assert_eq!(draw("epoll 1"), draw("epoll 1"));
        assert_ne!(draw("epoll 1"), draw("epoll 2"));
    }
}

//! From costs to the numbers that the server works with. Pure.

use std::time::Duration;

use super::measure::Way;
use crate::runtime::tuning::Tuning;

/// How much less another way has to cost before it counts: what one and the same way differs by from
/// one run to the next.
const GAIN: f64 = 0.03;

/// A depth of reads that comes this near to the best is enough: each further one takes memory.
const NEAR: f64 = 1.1;

/// What each way costs at each size.
#[derive(Clone, Debug, Default)]
pub(super) struct Costs {
    /// Sizes in bytes, ascending.
    pub(super) sizes: Vec<u64>,
    /// For each way that was measured: a cost for each size, `None` where it wasn't measured.
    pub(super) of: Vec<(Way, Vec<Option<Duration>>)>,
    /// For each depth of direct reads, ascending: time for the same bytes.
    pub(super) direct: Vec<(usize, Duration)>,
}

impl Costs {
    pub(super) fn of(&self, way: Way) -> Option<&[Option<Duration>]> {
        let found = self.of.iter().find(|(known, _)| *known == way);
        found.map(|(_, costs)| &**costs)
    }

    /// The smallest size from which on `new` costs less than `old` at every size that both have.
    fn cross_over(&self, old: Way, new: Way) -> Option<Cross> {
        let (old, new) = (self.of(old)?, self.of(new)?);
        let pairs = self.sizes.iter().zip(old.iter().zip(new));
        let both: Vec<(u64, bool)> = pairs
            .filter_map(|(size, (old, new))| {
                let (old, new) = ((*old)?.as_secs_f64(), (*new)?.as_secs_f64());
                Some((*size, new < old * (1.0 - GAIN)))
            })
            .collect();
        let wins = both.iter().rev().take_while(|(_, wins)| *wins).count();
        let first = both.len() - wins;
        Some(Cross {
            last_old: first.checked_sub(1).map(|index| both[index].0),
            first_new: both.get(first).map(|(size, _)| *size),
        })
    }

    /// The numbers, with the names of those that were measured.
    pub(super) fn numbers(&self) -> (Tuning, Vec<&'static str>) {
        let mut tuning = Tuning::default();
        let mut keys = Vec::new();
        if let Some(cross) = self.cross_over(Way::Copy, Way::Pair) {
            // Up to the last size at which a copy is no worse.
            let size = cross.last_old.unwrap_or(0);
            tuning.copy_up_to = within(size, Tuning::COPY_UP_TO);
            keys.push("copy_up_to");
        }
        if let Some(cross) = self.cross_over(Way::Pair, Way::Sendfile) {
            let size = cross.last_old.unwrap_or(0);
            tuning.sendfile_from = within(size, Tuning::SENDFILE_FROM);
            keys.push("sendfile_from");
        }
        if let Some(cross) = self.cross_over(Way::Relay, Way::Splice) {
            let size = cross
                .first_new
                .map_or(u64::MAX, |_| cross.last_old.unwrap_or(0));
            tuning.splice_from = within(size, Tuning::SPLICE_FROM);
            keys.push("splice_from");
        }
        if let Some(cross) = self.cross_over(Way::Send, Way::ZeroCopy) {
            tuning.zerocopy_from = cross
                .first_new
                .filter(|size| size <= Tuning::ZEROCOPY_FROM.end())
                .map(|size| within(size, Tuning::ZEROCOPY_FROM));
            keys.push("zerocopy_from");
        }
        if let Some(best) = self.direct.iter().map(|(_, time)| *time).min() {
            let enough = |(_, time): &&(usize, Duration)| *time <= best.mul_f64(NEAR);
            if let Some((depth, _)) = self.direct.iter().find(enough) {
                let depth = within(*depth as u64, Tuning::DIRECT_DEPTH);
                tuning.direct_depth = usize::try_from(depth).unwrap_or(tuning.direct_depth);
                keys.push("direct_depth");
            }
        }
        (tuning, keys)
    }
}

/// Where one way takes over from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cross {
    /// The largest size at which the old one is no worse.
    last_old: Option<u64>,
    /// The smallest from which on the new one is better.
    first_new: Option<u64>,
}

fn within(value: u64, bounds: std::ops::RangeInclusive<u64>) -> u64 {
    value.clamp(*bounds.start(), *bounds.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    fn costs(ways: &[(Way, &[u64])]) -> Costs {
        let row = |row: &[u64]| {
            let us = row.iter();
            us.map(|us| (*us > 0).then(|| Duration::from_micros(*us)))
                .collect()
        };
        Costs {
            sizes: [4, 16, 64, 256].map(|size| size * KIB).to_vec(),
            of: ways.iter().map(|(way, costs)| (*way, row(costs))).collect(),
            direct: Vec::new(),
        }
    }

    #[test]
    fn a_number_is_where_the_other_way_begins_to_pay_for_good() {
        use Way::{Copy, Pair, Relay, Send, Sendfile, Splice, ZeroCopy};
        let measured = costs(&[
            (Copy, &[10, 20, 100, 0]),
            (Pair, &[11, 18, 90, 400]),
            (Sendfile, &[20, 30, 89, 300]),
            (Relay, &[10, 30, 120, 500]),
            (Splice, &[20, 40, 60, 100]),
            (Send, &[10, 20, 80, 300]),
            (ZeroCopy, &[30, 40, 90, 200]),
        ]);
        let (tuning, keys) = measured.numbers();
        assert_eq!(tuning.copy_up_to, 4 * KIB);
        // At 64 KiB it is better by less than what measurements differ by.
        assert_eq!(tuning.sendfile_from, 64 * KIB);
        assert_eq!(tuning.splice_from, 16 * KIB);
        assert_eq!(tuning.zerocopy_from, Some(256 * KIB));
        assert_eq!(
            keys,
            [
                "copy_up_to",
                "sendfile_from",
                "splice_from",
                "zerocopy_from"
            ]
        );
    }

    #[test]
    fn what_never_pays_or_always_does_stays_within_the_bounds() {
        use Way::{Copy, Pair, Relay, Send, Sendfile, Splice, ZeroCopy};
        let never = costs(&[
            (Copy, &[1, 1, 1, 1]),
            (Pair, &[9, 9, 9, 9]),
            (Sendfile, &[9, 9, 9, 9]),
            (Relay, &[1, 1, 1, 1]),
            (Splice, &[9, 9, 9, 9]),
            (Send, &[1, 1, 1, 1]),
            (ZeroCopy, &[9, 9, 9, 9]),
        ]);
        let (tuning, _) = never.numbers();
        assert_eq!(tuning.copy_up_to, *Tuning::COPY_UP_TO.end());
        assert_eq!(tuning.sendfile_from, *Tuning::SENDFILE_FROM.end());
        assert_eq!(tuning.splice_from, *Tuning::SPLICE_FROM.end());
        assert_eq!(tuning.zerocopy_from, None);
        let always = costs(&[
            (Copy, &[9, 9, 9, 9]),
            (Pair, &[5, 5, 5, 5]),
            (Sendfile, &[1, 1, 1, 1]),
            (Relay, &[9, 9, 9, 9]),
            (Splice, &[1, 1, 1, 1]),
        ]);
        let (tuning, keys) = always.numbers();
        assert_eq!(tuning.copy_up_to, 0);
        assert_eq!(tuning.sendfile_from, *Tuning::SENDFILE_FROM.start());
        assert_eq!(tuning.splice_from, *Tuning::SPLICE_FROM.start());
        assert!(!keys.contains(&"zerocopy_from"), "it was not measured");
        let default = Tuning::default();
        assert_eq!(tuning.zerocopy_from, default.zerocopy_from);
    }

    #[test]
    fn the_least_depth_that_is_near_the_best_is_enough() {
        let ms = Duration::from_millis;
        for (direct, depth) in [
            (vec![(1, ms(100)), (2, ms(60)), (4, ms(52)), (8, ms(50))], 4),
            (vec![(1, ms(50)), (2, ms(50))], 1),
            (vec![], Tuning::default().direct_depth),
        ] {
            let costs = Costs {
                direct,
                ..Costs::default()
            };
            assert_eq!(costs.numbers().0.direct_depth, depth);
        }
    }
}

//! Latencies, counted in buckets that keep their relative precision.
//!
//! Log-linear: every power of two is cut into 256 equal parts, so that a value is known to 0.4 %
//! whatever its size, and recording one is a few instructions on a fixed array. Medians are compared,
//! and servers differ by little more than that.

/// Bits of a value that are kept: 256 buckets for each power of two.
const PRECISION_BITS: u32 = 8;
const SUB_BUCKETS: usize = 1 << PRECISION_BITS;
/// One linear part for values below 256, then one part for each of the 56 powers above.
const BUCKETS: usize = (64 - PRECISION_BITS as usize + 1) * SUB_BUCKETS;

/// Counts of values, in whatever unit they were recorded (the generator: nanoseconds).
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    /// An empty histogram, for any `u64`.
    pub fn new() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            total: 0,
            max: 0,
        }
    }

    /// Counts one value.
    pub fn record(&mut self, value: u64) {
        self.counts[bucket_of(value)] += 1;
        self.total += 1;
        self.max = self.max.max(value);
    }

    /// Forgets everything that was recorded.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        self.total = 0;
        self.max = 0;
    }

    /// The largest value recorded, exactly; 0 when there is none.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The value that `share` (0 to 1) of the recorded values do not exceed, rounded up to the end of
    /// its bucket and never above [`Self::max`]; 0 when there is none.
    pub fn quantile(&self, share: f64) -> u64 {
        let rank = ((self.total as f64 * share).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return last_of(bucket).min(self.max);
            }
        }
        self.max
    }
}

/// The bucket that counts this value.
fn bucket_of(value: u64) -> usize {
    if value < SUB_BUCKETS as u64 {
        return value as usize;
    }
    let exponent = 63 - value.leading_zeros();
    let shift = exponent - PRECISION_BITS;
    let part = (value >> shift) as usize - SUB_BUCKETS;
    (shift as usize + 1) * SUB_BUCKETS + part
}

/// The largest value that falls into this bucket.
fn last_of(bucket: usize) -> u64 {
    if bucket < SUB_BUCKETS {
        return bucket as u64;
    }
    let shift = (bucket / SUB_BUCKETS - 1) as u32;
    let part = (bucket % SUB_BUCKETS + SUB_BUCKETS) as u64;
    (part << shift) + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_the_bucket_that_ends_at_or_after_it_within_the_precision() {
        let powers = (0..64).flat_map(|bit| {
            let power = 1u64 << bit;
            [power - 1, power, power + 1, power + power / 3]
        });
        for value in powers.chain([u64::MAX, u64::MAX - 1]) {
            let last = last_of(bucket_of(value));
            assert!(last >= value, "{value} in a bucket that ends at {last}");
            assert!(
                last - value <= value >> PRECISION_BITS,
                "{value} reported as {last}"
            );
        }
    }

    #[test]
    fn buckets_do_not_overlap_and_leave_no_gap() {
        for bucket in 0..BUCKETS - 1 {
            assert_eq!(bucket_of(last_of(bucket)), bucket);
            assert_eq!(bucket_of(last_of(bucket) + 1), bucket + 1);
        }
        assert_eq!(last_of(BUCKETS - 1), u64::MAX);
    }

    #[test]
    fn quantiles_of_one_to_a_thousand() {
        let mut histogram = Histogram::new();
        (1..=1000).for_each(|value| histogram.record(value));
        for (share, exact) in [(0.5, 500), (0.99, 990), (0.999, 999), (1.0, 1000)] {
            let found = histogram.quantile(share);
            assert!(
                (exact..=exact + exact / 250 + 1).contains(&found),
                "{share}: {found}"
            );
        }
        assert_eq!(histogram.max(), 1000);
    }

    #[test]
    fn an_empty_or_cleared_histogram_says_zero() {
        let mut histogram = Histogram::new();
        histogram.record(70);
        histogram.clear();
        assert_eq!((histogram.quantile(0.99), histogram.max()), (0, 0));
    }
}

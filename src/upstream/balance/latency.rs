//! How long a server takes, as a peak-sensitive moving average.
//!
//! A plain average forgives a server that has begun to stall until many answers have come late, and
//! a stalled server sends none. This one (from Finagle and linkerd) jumps to a worse sample at once
//! and comes down slowly, with the time that passes and not with the number of samples, so a server
//! nobody asks any more is asked again.

use std::time::{Duration, Instant};

/// Weight of the past falls to 1/e in this time.
const DECAY: Duration = Duration::from_secs(10);

/// The least latency that a failed try stands for. A server that refuses at once is the fastest one
/// to answer, and would draw every request.
const FAILURE_AT_LEAST: Duration = Duration::from_secs(1);

/// Latency of one server as one core sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PeakEwma {
    value_s: f64,
    /// `None`: no sample yet.
    updated: Option<Instant>,
}

impl PeakEwma {
    /// Takes the time from the begin of a try to the head of its response.
    pub fn observe(&mut self, latency: Duration, now: Instant) {
        let sample_s = latency.as_secs_f64();
        self.value_s = match self.updated {
            Some(updated) if sample_s < self.value_s => {
                let past = weight_of_past(updated, now);
                self.value_s * past + sample_s * (1.0 - past)
            }
            _ => sample_s,
        };
        self.updated = Some(now);
    }

    /// Takes a try that failed after `elapsed`.
    pub fn observe_failure(&mut self, elapsed: Duration, now: Instant) {
        self.observe(elapsed.max(FAILURE_AT_LEAST), now);
    }

    /// Seconds at `now`, less the longer nothing was heard; `None` before the first sample.
    pub fn seconds(&self, now: Instant) -> Option<f64> {
        let updated = self.updated?;
        Some(self.value_s * weight_of_past(updated, now))
    }
}

fn weight_of_past(updated: Instant, now: Instant) -> f64 {
    let passed = now.saturating_duration_since(updated);
    (-passed.as_secs_f64() / DECAY.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn ms(latency: &PeakEwma, now: Instant) -> f64 {
        latency.seconds(now).unwrap() * 1e3
    }

    #[test]
    fn jumps_to_a_peak_and_comes_down_slowly() {
        let (mut latency, now) = (PeakEwma::default(), Instant::now());
        assert_eq!(latency.seconds(now), None);
        latency.observe(10 * MS, now);
        assert_eq!(ms(&latency, now), 10.0);
        latency.observe(500 * MS, now);
        assert_eq!(ms(&latency, now), 500.0);
        // A good answer right after the peak changes little, one after a while a lot.
        latency.observe(10 * MS, now + MS);
        assert!(ms(&latency, now + MS) > 499.0);
        let later = now + 4 * DECAY;
        latency.observe(10 * MS, later);
        assert!((10.0..25.0).contains(&ms(&latency, later)));
    }

    #[test]
    fn a_server_that_nobody_asks_becomes_attractive_again() {
        let (mut latency, now) = (PeakEwma::default(), Instant::now());
        latency.observe(Duration::from_secs(2), now);
        assert!(ms(&latency, now + 10 * DECAY) < 1.0);
    }

    #[test]
    fn failing_fast_is_not_being_fast() {
        let (mut latency, now) = (PeakEwma::default(), Instant::now());
        latency.observe(5 * MS, now);
        latency.observe_failure(MS / 10, now);
        assert_eq!(ms(&latency, now), 1_000.0);
        latency.observe_failure(Duration::from_secs(5), now);
        assert_eq!(ms(&latency, now), 5_000.0);
    }

    #[test]
    fn a_clock_that_stands_or_goes_back_does_no_harm() {
        let (mut latency, now) = (PeakEwma::default(), Instant::now() + DECAY);
        latency.observe(5 * MS, now);
        latency.observe(MS, now - DECAY);
        assert_eq!(ms(&latency, now - DECAY), 5.0);
    }
}

//! What a small request costs, piece by piece: `cargo bench --bench hot_path`.
//!
//! Prints nanoseconds per piece, the median of several rounds. Compare runs on a quiet machine only;
//! nothing here asserts a time. `instructions` is the one that asserts.

mod pieces;

use std::time::{Duration, Instant};

const ROUNDS: usize = 9;

/// How long a round takes at least; each piece is repeated as often as that needs.
const ROUND: Duration = Duration::from_millis(10);

fn main() {
    for mut piece in pieces::pure().into_iter().chain(pieces::real()) {
        let repetitions = fitting(&mut piece.run);
        let mut rounds: Vec<f64> = (0..ROUNDS)
            .map(|_| time(&mut piece.run, repetitions).as_nanos() as f64 / f64::from(repetitions))
            .collect();
        rounds.sort_by(f64::total_cmp);
        let (median, spread) = (rounds[ROUNDS / 2], rounds[ROUNDS - 1] - rounds[0]);
        #[expect(clippy::print_stdout, reason = "this is what the program is for")]
        {
            println!("{:<28} {median:>8.1} ns  (spread {spread:.1})", piece.name);
        }
    }
}

fn time(run: &mut dyn FnMut(), repetitions: u32) -> Duration {
    let begin = Instant::now();
    (0..repetitions).for_each(|_| run());
    begin.elapsed()
}

/// How many repetitions last a round.
fn fitting(run: &mut dyn FnMut()) -> u32 {
    let mut repetitions = 16;
    while time(run, repetitions) < ROUND && repetitions < 1 << 24 {
        repetitions *= 2;
    }
    repetitions
}

//! The program that callgrind watches: each piece, first to warm it up, then to be counted.

use std::hint::black_box;

use crate::pieces;

/// The argument that makes this program the subject.
pub(crate) const ARGUMENT: &str = "subject";

/// How often a piece runs while it is counted.
pub(crate) const REPETITIONS: u32 = 500;

/// Tables have grown and caches are filled after so many.
const WARM_UP: u32 = 100;

/// Runs all pieces.
pub(crate) fn run() {
    for mut piece in pieces::pure() {
        (0..WARM_UP).for_each(|_| (piece.run)());
        callgrind_counted(&mut *piece.run);
        callgrind_boundary();
    }
}

/// Callgrind counts what is called from here.
#[inline(never)]
fn callgrind_counted(run: &mut dyn FnMut()) {
    (0..REPETITIONS).for_each(|_| run());
    // Work behind the last call, or the calls of this could be one with those of the warm-up.
    black_box(());
}

/// Callgrind writes down what it has counted, and begins anew, when this is called.
#[inline(never)]
fn callgrind_boundary() {
    black_box(());
}

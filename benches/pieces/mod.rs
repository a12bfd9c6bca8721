//! The pieces that a small request is made of, each as something to be repeated: what `hot_path` times
//! and `instructions` counts. Nothing here measures.

mod machine;
mod messages;
mod tables;

/// A piece of work, and the state that it keeps between its repetitions.
pub(crate) struct Piece {
    /// Names it, also in the baseline: lower case with hyphens.
    pub(crate) name: &'static str,
    /// Does it once.
    pub(crate) run: Box<dyn FnMut()>,
}

fn piece(name: &'static str, run: impl FnMut() + 'static) -> Piece {
    Piece {
        name,
        run: Box::new(run),
    }
}

/// What does the same work whenever it runs, without the kernel: it can be counted.
pub(crate) fn pure() -> Vec<Piece> {
    let mut pieces = messages::pieces();
    pieces.extend(tables::pieces());
    pieces.extend(machine::simulated());
    pieces
}

/// What asks the kernel, too: it can only be timed.
#[allow(dead_code, reason = "only one of the two programs times")]
pub(crate) fn real() -> Vec<Piece> {
    machine::real()
}

/// The bytes where a vector would like them, in every build: searches take steps by the address.
fn aligned(bytes: &[u8]) -> &'static [u8] {
    const ALIGNMENT: usize = 64;
    let mut space = vec![0; bytes.len() + ALIGNMENT];
    let start = space.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    space[start..][..bytes.len()].copy_from_slice(bytes);
    &space.leak()[start..][..bytes.len()]
}

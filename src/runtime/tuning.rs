//! What is a matter of measuring on the machine that it runs on: numbers, with what holds where nobody
//! has measured.

/// When a send goes out of a fixed buffer without a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Never.
    Off,
    /// From [`Tuning::zerocopy_from`] on, to clients on other machines, while the kernel doesn't say that
    /// it copied after all.
    #[default]
    Auto,
    /// Whenever there are at least 16 KiB to be sent, to whomever.
    On,
}

/// Bytes from which on [`ZeroCopy::On`] sends without a copy: below it, pages are pinned for longer than
/// a copy takes on any machine.
pub const ZEROCOPY_ON_FROM: u64 = 16 << 10;

/// Numbers that depend on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Bytes from which on a send without a copy costs less than one with it, on a route that leaves the
    /// machine; `None` where it never does.
    pub zerocopy_from: Option<u64>,
    /// Most blocks of one transfer that are read from the disk ahead, 1 to 8.
    pub direct_depth: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            zerocopy_from: Some(256 << 10),
            direct_depth: 4,
        }
    }
}

impl Tuning {
    /// [`Self::direct_depth`] within its bounds.
    pub(crate) fn depth(self) -> usize {
        self.direct_depth.clamp(1, 8)
    }
}

//! What is a matter of measuring on the machine that it runs on: numbers, with what holds where nobody
//! has measured. `beltway tune` measures them.

use std::ops::RangeInclusive;

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
    /// A body of up to so many bytes that is at hand is copied behind its head, so that answers leave
    /// together; a larger one leaves from where it is.
    pub copy_up_to: u64,
    /// Files of more than so many bytes leave by sendfile(2); smaller ones are kept in memory.
    pub sendfile_from: u64,
    /// From more than so many bytes on that are still to come a body goes from socket to socket by
    /// splice(2). What the socket has had so far came into a receive buffer and is copied in any case. To
    /// change over ends the receive and arms another one afterwards; to receive the rest by buffers of
    /// 4 KiB costs more on both engines.
    pub splice_from: u64,
    /// Bytes from which on a send without a copy costs less than one with it, on a route that leaves the
    /// machine; `None` where it never does.
    pub zerocopy_from: Option<u64>,
    /// Most blocks of one transfer that are read from the disk ahead, 1 to 8.
    pub direct_depth: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            copy_up_to: 8 << 10,
            sendfile_from: 64 << 10,
            splice_from: 16 << 10,
            zerocopy_from: Some(256 << 10),
            direct_depth: 4,
        }
    }
}

impl Tuning {
    /// Bounds of [`Self::copy_up_to`]: what is copied waits in the batch of a connection.
    pub const COPY_UP_TO: RangeInclusive<u64> = 0..=32 << 10;
    /// Bounds of [`Self::sendfile_from`]: what isn't sent so is kept in memory.
    pub const SENDFILE_FROM: RangeInclusive<u64> = 4 << 10..=256 << 10;
    /// Bounds of [`Self::splice_from`]: what has come into a buffer is copied in any case.
    pub const SPLICE_FROM: RangeInclusive<u64> = 16 << 10..=16 << 20;
    /// Bounds of [`Self::zerocopy_from`].
    pub const ZEROCOPY_FROM: RangeInclusive<u64> = 16 << 10..=16 << 20;
    /// Bounds of [`Self::direct_depth`].
    pub const DIRECT_DEPTH: RangeInclusive<u64> = 1..=8;

    /// [`Self::direct_depth`] within its bounds.
    pub(crate) fn depth(self) -> usize {
        self.direct_depth.clamp(1, 8)
    }
}

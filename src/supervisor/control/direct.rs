//! What `beltway status` tells of files that were read past the page cache, and of sends without a copy.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::status::{bytes, count};
use crate::runtime::direct::DirectCounts;

/// What was done since the worker's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DirectStatus {
    /// Transfers that read past the page cache.
    pub transfers: u64,
    /// Bytes read that way.
    pub read_bytes: u64,
    /// Bytes sent of them.
    pub sent_bytes: u64,
    /// Blocks that another transfer had read already.
    pub shared_blocks: u64,
    /// Transfers whose file system has no O_DIRECT.
    pub unsupported: u64,
    /// Blocks for which no buffer was free: the page cache was used.
    pub no_room: u64,
    /// Transfers whose reads failed: the page cache was used.
    pub failed: u64,
    /// Times that a slow client's blocks were given back.
    pub given_back: u64,
    /// Sends without a copy.
    pub zerocopy_sends: u64,
    /// Bytes of them.
    pub zerocopy_bytes: u64,
    /// Those that the kernel has copied after all.
    pub zerocopy_copied: u64,
}

impl DirectStatus {
    /// What a core has counted.
    pub(in crate::supervisor) fn of(counts: &DirectCounts) -> Self {
        Self {
            transfers: counts.transfers,
            read_bytes: counts.read_bytes,
            sent_bytes: counts.sent_bytes,
            shared_blocks: counts.shared,
            unsupported: counts.unsupported,
            no_room: counts.no_room,
            failed: counts.failed,
            given_back: counts.given_back,
            zerocopy_sends: counts.zerocopy_sends,
            zerocopy_bytes: counts.zerocopy_bytes,
            zerocopy_copied: counts.zerocopy_copied,
        }
    }

    /// Of several cores together.
    pub(super) fn sum<'c>(cores: impl Iterator<Item = &'c Self>) -> Self {
        cores.fold(Self::default(), |sum, core| Self {
            transfers: sum.transfers + core.transfers,
            read_bytes: sum.read_bytes + core.read_bytes,
            sent_bytes: sum.sent_bytes + core.sent_bytes,
            shared_blocks: sum.shared_blocks + core.shared_blocks,
            unsupported: sum.unsupported + core.unsupported,
            no_room: sum.no_room + core.no_room,
            failed: sum.failed + core.failed,
            given_back: sum.given_back + core.given_back,
            zerocopy_sends: sum.zerocopy_sends + core.zerocopy_sends,
            zerocopy_bytes: sum.zerocopy_bytes + core.zerocopy_bytes,
            zerocopy_copied: sum.zerocopy_copied + core.zerocopy_copied,
        })
    }

    /// A line each for what there was, none for what there wasn't.
    pub(super) fn text(&self, text: &mut String) {
        let times = |number: u64, what: &str| (number > 0).then(|| format!("{what} ×{number}"));
        if self.transfers + self.unsupported > 0 {
            let trouble = [
                times(self.shared_blocks, "shared"),
                times(self.unsupported, "not supported"),
                times(self.no_room, "no buffer free"),
                times(self.failed, "failed"),
                times(self.given_back, "given back by slow clients"),
            ];
            let _ = writeln!(
                text,
                "    direct    {}, {} read, {} sent{}",
                count(self.transfers, "transfer"),
                bytes(self.read_bytes),
                bytes(self.sent_bytes),
                trouble
                    .iter()
                    .flatten()
                    .fold(String::new(), |all, one| all + ", " + one)
            );
        }
        if self.zerocopy_sends > 0 {
            let copied = times(self.zerocopy_copied, "copied after all");
            let _ = writeln!(
                text,
                "    zerocopy  {}, {}{}",
                count(self.zerocopy_sends, "send"),
                bytes(self.zerocopy_bytes),
                copied.map_or(String::new(), |copied| format!(", {copied}"))
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_was_is_told_and_nothing_else() {
        let told = |status: &DirectStatus| {
            let mut text = String::new();
            status.text(&mut text);
            text
        };
        assert_eq!(told(&DirectStatus::default()), "");
        let core = DirectStatus {
            transfers: 1,
            read_bytes: 3 << 20,
            sent_bytes: 1 << 20,
            no_room: 2,
            zerocopy_sends: 4,
            zerocopy_bytes: 1 << 20,
            zerocopy_copied: 1,
            ..DirectStatus::default()
        };
        let text = told(&DirectStatus::sum([&core, &core].into_iter()));
        assert_eq!(
            text,
            "    direct    2 transfers, 6.0 MiB read, 2.0 MiB sent, no buffer free ×4\n    \
             zerocopy  8 sends, 2.0 MiB, copied after all ×2\n"
        );
    }
}

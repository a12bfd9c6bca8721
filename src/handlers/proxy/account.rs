//! What all bodies in files take of the disk together, on all cores of a worker process.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::spill::WRITE_BYTES;

/// An account of bytes on a disk.
#[derive(Debug, Default)]
pub(super) struct Account {
    held: AtomicU64,
    /// That it is full has been told to the log.
    told: AtomicBool,
}

/// That of this process.
pub(super) static ACCOUNT: Account = Account {
    held: AtomicU64::new(0),
    told: AtomicBool::new(false),
};

impl Account {
    /// Whether one more write stays within `most` bytes. Cores that ask at the same moment may exceed it by
    /// a write each.
    pub(super) fn has_room(&self, most: u64) -> bool {
        let held = self.held.load(Ordering::Relaxed);
        let has_room = held.saturating_add(WRITE_BYTES as u64) <= most;
        if !has_room && !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                held,
                most,
                "`server.limits.spill` is reached: bodies go at the pace of the slower side until \
                 others are gone; raise it if the disk has room"
            );
        }
        if held <= most / 2 && self.told.load(Ordering::Relaxed) {
            self.told.store(false, Ordering::Relaxed);
        }
        has_room
    }
}

/// Bytes that one file takes; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    account: &'static Account,
    bytes: u64,
}

impl Taken {
    /// Nothing yet.
    pub(super) fn none(account: &'static Account) -> Self {
        Self { account, bytes: 0 }
    }

    /// The account.
    pub(super) fn account(&self) -> &'static Account {
        self.account
    }

    /// The file takes this many bytes more.
    pub(super) fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.account.held.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The file takes this many bytes less.
    pub(super) fn give_back(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.account.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_makes_room() {
        let account: &Account = Box::leak(Box::default());
        let write = WRITE_BYTES as u64;
        let most = 2 * write;
        let (mut one, mut other) = (Taken::none(account), Taken::none(account));
        one.add(write);
        assert!(account.has_room(most));
        other.add(1);
        assert!(!account.has_room(most) && account.told.load(Ordering::Relaxed));
        other.give_back(5);
        assert!(
            account.has_room(most),
            "no more is given back than was taken"
        );
        drop(one);
        assert_eq!(account.held.load(Ordering::Relaxed), 0);
        assert!(account.has_room(most) && !account.told.load(Ordering::Relaxed));
    }
}

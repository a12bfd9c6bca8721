//! Bounded messages between threads, with a coalesced wake.

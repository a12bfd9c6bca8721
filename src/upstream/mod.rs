//! Groups of servers that requests are passed to: which one takes the next request, which ones are
//! well, what happens after one has failed; and the connections that wait for the next request.
//!
//! All but [`pool`], [`prober`] and [`resolve`] decides and does not act. The deciders are functions of
//! what they were told and of a `now` that is passed in; they know no socket, no engine and no clock, so
//! their laws are property tests in virtual time. Whoever uses them tells them what happened and does
//! what they say.

/// Which core of how many this is: what is configured for a worker is divided between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which one, from 0.
    pub index: usize,
    /// How many there are, at least 1.
    pub of: usize,
}

pub mod balance;
pub mod group;
pub mod health;
pub mod line;
pub mod pool;
pub mod prober;
pub mod queue;
pub mod resolve;
pub mod retry;
pub mod roster;
pub mod shared;
pub mod source;

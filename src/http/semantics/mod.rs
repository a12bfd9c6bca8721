//! RFC 9110 as pure functions: ranges, conditions, negotiation, dates, validators, media types,
//! and what a proxy passes on.
//!
//! Nothing here reads a clock or a file: times are given in seconds since 1970-01-01 UTC, and what
//! is known of a representation comes as arguments.

pub mod conditional;
pub mod date;
pub mod etag;
pub mod forwarding;
pub mod mime;
pub mod negotiate;
pub mod range;

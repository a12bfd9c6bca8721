//! Small things that know nothing of the rest.

pub mod clock;
pub mod random;

//! One file per target. A new one is listed in `TARGETS` and gets its line in the tests there.

pub mod body;
pub mod bundle;
pub mod config;
pub mod date;
pub mod dns;
pub mod forward;
pub mod proxy_protocol;
pub mod range;
pub mod records;
pub mod request;
pub mod response;
pub mod tls;
pub mod uri;

use crate::mutate::Random;

/// Cuts that depend on the input alone, so that a target stays a function of its bytes.
pub(crate) fn cuts_of(input: &[u8]) -> Vec<usize> {
    let hash = input.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Random::new(hash).cuts(input.len())
}

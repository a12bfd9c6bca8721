//! Of upstreams, the choice of a server.

#[path = "../../../src/upstream/balance/mod.rs"]
pub mod balance;

//! The part of the server that the hot path is made of, compiled alone.
//!
//! These are the server's own files. The whole server is three times as much to optimise, and the gate
//! has to be cheap enough to run with every change. That it works at all is what the layers promise:
//! nothing here imports what isn't here.
#![allow(dead_code, reason = "what the left out modules use is unused here")]

#[path = "../../../src/http/mod.rs"]
pub mod http;
#[path = "../../../src/net/mod.rs"]
pub mod net;
pub mod observability;
#[path = "../../../src/runtime/mod.rs"]
pub mod runtime;
pub mod upstream;
#[path = "../../../src/util/mod.rs"]
pub mod util;

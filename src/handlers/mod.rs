//! What answers a request: one file per feature.

pub mod autoindex;

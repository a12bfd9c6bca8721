//! The master: the privileged process above the workers.
//!
//! What it decides stands in [`machine`], which knows no process, socket or clock.

pub mod machine;

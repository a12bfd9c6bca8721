//! Processes: the worker that wires everything; the master comes above it.

mod banner;
pub mod bind;
mod core_thread;
mod hook;
mod limits;
pub mod master;
#[cfg(test)]
mod ok_service;
mod signals;
mod sys;
pub mod worker;

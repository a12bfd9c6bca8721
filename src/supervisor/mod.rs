//! Processes: the worker that wires everything; the master comes above it.

mod banner;
pub mod bind;
pub mod control;
mod core_thread;
mod hook;
mod limits;
#[cfg(test)]
mod ok_service;
mod signals;
mod sys;
pub mod worker;

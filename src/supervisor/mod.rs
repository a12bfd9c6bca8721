//! Processes: the worker that wires everything; the master comes above it.

mod banner;
pub mod bind;
pub mod control;
mod core_thread;
mod hook;
mod limits;
pub mod listen_fds;
pub mod notify;
#[cfg(test)]
mod ok_service;
mod signals;
mod sys;
mod sys_fds;
pub mod worker;

pub use limits::connections_for;

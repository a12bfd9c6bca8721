//! Processes: the worker that wires everything; the master comes above it.

#[cfg(test)]
mod alone;
mod banner;
pub mod bind;
mod channel;
pub mod control;
mod core_thread;
mod hook;
mod limits;
pub mod listen_fds;
pub mod notify;
pub mod master;
#[cfg(test)]
mod ok_service;
pub mod refusal;
pub mod privileges;
pub mod sandbox;
mod signals;
mod stall;
pub mod standalone;
mod sys;
mod sys_process;
mod sys_fds;
pub mod worker;

pub use limits::connections_for;

//! Processes: the worker that wires everything; the master comes above it.

mod banner;
pub mod bind;
mod channel;
mod core_thread;
mod hook;
mod limits;
#[cfg(test)]
mod ok_service;
pub mod refusal;
mod signals;
mod stall;
pub mod standalone;
mod sys;
mod sys_process;
pub mod worker;

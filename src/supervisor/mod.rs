//! Processes: the master that watches, the workers that serve, and the server without a master.

#[cfg(test)]
mod alone;
mod banner;
pub mod bind;
pub mod certificates;
mod channel;
pub mod control;
mod core_thread;
mod hook;
mod limits;
pub mod listen_fds;
pub mod master;
mod messages;
pub mod notify;
#[cfg(test)]
mod ok_service;
pub mod privileges;
pub mod refusal;
pub mod sandbox;
mod signals;
mod stall;
pub mod standalone;
mod swap;
mod sys;
mod sys_fds;
mod sys_process;
pub mod worker;
pub mod worker_process;

pub use limits::connections_for;
pub use master::check::main as check_for_upgrade;
pub use master::{CHECK_COMMAND, WORKER_COMMAND};

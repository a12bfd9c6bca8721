//! Processes: the worker that wires everything; the master comes above it.

#[cfg(test)]
mod alone;
mod banner;
pub mod bind;
mod core_thread;
mod hook;
mod limits;
#[cfg(test)]
mod ok_service;
pub mod privileges;
pub mod sandbox;
mod signals;
mod sys;
pub mod worker;

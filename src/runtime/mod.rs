//! The runtime of one core: engines, operations, buffers, tasks and timers. It knows nothing of
//! HTTP. `LIFECYCLE.md` beside this file has the states of an op, a buffer and a descriptor.

pub mod address;
pub mod affinity;
pub mod budget;
pub mod buf;
pub mod direct;
pub mod engine;
pub mod executor;
pub mod fd;
pub mod future;
pub mod heartbeat;
pub mod kernel_tls;
pub mod mailbox;
pub mod memory;
pub mod offload;
pub mod op;
pub mod pipe;
pub mod scope;
pub mod slot;
pub(crate) mod sys;
pub mod task;
#[cfg(test)]
mod testing;
pub mod timer;
pub mod tuning;

#[cfg(test)]
pub(crate) use testing::{on_each_engine, run, skipped};

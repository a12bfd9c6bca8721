//! The runtime of one core: engines, operations, buffers, tasks and timers. It knows nothing of
//! HTTP. `LIFECYCLE.md` beside this file has the states of an op, a buffer and a descriptor.

pub mod affinity;
pub mod mailbox;
pub mod offload;
pub mod timer;

//! Processes: the worker that wires everything; the master comes above it.

pub mod worker;

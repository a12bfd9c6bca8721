//! Which CPUs a core may be pinned to.

//! Where batches of the access log go: one writer thread per target, shared by all cores.

//! Measures Beltway beside its peers.
fn main() {}

//! Configuration: raw (serde shape) → lower (checked) → model (immutable snapshot), with diagnostics.

//! Configuration: raw (spanned tree) → lower (checked) → model (immutable snapshot), with diagnostics.
//!
//! One tree is made of every source (`sources`): files, environment, `--set` and flags, each value
//! with its place. `lower` walks the tree once, reports everything that is wrong, and builds the
//! [`model::Model`] that the cores share. `schema` is the one list of keys: unknown names,
//! suggestions, defaults and the reference file all come from it.

pub mod diagnostics;
mod glob;
pub mod model;
pub mod nearest;
pub mod raw;
pub mod schema;
pub mod sources;
pub mod units;

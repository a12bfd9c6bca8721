//! Configuration: raw (spanned tree) → lower (checked) → model (immutable snapshot), with diagnostics.
//!
//! One tree is made of every source (`sources`): files, environment, `--set` and flags, each value
//! with its place. `lower` walks the tree once, reports everything that is wrong, and builds the
//! [`model::Model`] that the cores share. `schema` is the one list of keys: unknown names,
//! suggestions, defaults and the reference file all come from it. `bundle` carries a configuration
//! to another process, `diff` says what another one would change.

pub mod bundle;
pub mod diagnostics;
pub mod diff;
mod glob;
mod lower;
pub mod model;
pub mod nearest;
pub mod print;
pub mod raw;
pub mod references;
pub mod schema;
pub mod sources;
pub mod tuning;
pub mod units;

use std::sync::Arc;

use self::diagnostics::{Diagnostics, Sources};
use self::lower::Outside;
use self::model::Model;
use self::raw::Table;
use self::references::References;
use self::sources::Input;

/// A configuration that was read and checked.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the cores see.
    pub model: Arc<Model>,
    /// What was written, all sources laid over each other.
    pub tree: Table,
    /// The sources.
    pub sources: Sources,
    /// What the strings of the tree refer to.
    pub references: References,
}

/// Reads and checks a configuration.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(input: &Input) -> Result<Loaded, Diagnostics> {
    let mut diagnostics = Diagnostics::default();
    let Some(tree) = sources::read(input, &mut diagnostics) else {
        return Err(diagnostics);
    };
    let outside = Outside::Machine {
        environment: &input.environment,
        check_files: input.check_files,
    };
    finish(tree, outside, diagnostics)
}

/// Checks a tree that was read, and makes the model of it.
fn finish(
    tree: Table,
    outside: Outside<'_>,
    mut diagnostics: Diagnostics,
) -> Result<Loaded, Diagnostics> {
    let (model, references) = lower::lower(&tree, outside, &mut diagnostics);
    if diagnostics.is_empty() {
        Ok(Loaded {
            model: Arc::new(model),
            tree,
            sources: diagnostics.sources,
            references,
        })
    } else {
        Err(diagnostics)
    }
}

#[cfg(test)]
mod tests;

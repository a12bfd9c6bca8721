//! Caches: open files and small responses, one per core.

pub mod open_files;
mod root;

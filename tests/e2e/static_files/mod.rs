//! Static files: each rule of what is served, what isn't, and how it follows the file system.

mod changes;
mod coded;
mod cold;
mod conditions;
mod content;
pub(crate) mod direct;
mod directories;
mod paths;
mod pressure;
mod ranges;

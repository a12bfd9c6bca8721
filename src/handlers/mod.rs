//! What answers a request: one file per feature, and the dispatch that chooses.

pub mod app;
pub mod autoindex;
mod backends;
pub mod client;
pub mod epoch;
mod error_page;
mod files;
mod listing;
mod proxy;
pub mod secured;
#[cfg(test)]
mod tests;

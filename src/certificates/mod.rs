//! Certificates as an administrator has them: files, names, days that are left; and the local
//! authority that signs for names that no public one would.
//!
//! What runs here runs in the master or on the command line, never in a worker: keys are read and
//! made where clients can't reach. It knows neither sites nor processes.

pub mod expiry;
pub mod files;
pub mod local_ca;
pub mod names;
pub mod ocsp;
pub mod pairs;
mod pem;
pub mod places;
mod store;
pub mod watch;
pub mod watcher;

pub use local_ca::{Authority, Leaf, LocalCa};
pub use names::Name;
pub use places::Places;
pub use watcher::Watcher;

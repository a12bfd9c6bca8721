//! Small things that know nothing of the rest.

pub mod clock;
pub mod network;
pub mod os_path;
pub mod random;
pub mod unnamed_file;
pub mod x509;

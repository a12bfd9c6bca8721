//! Access log and control log.

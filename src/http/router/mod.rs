//! Sites by host and port, routes by specificity.

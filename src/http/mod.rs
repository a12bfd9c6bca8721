//! HTTP: the words all versions share, the codecs (pure: bytes in, events out), the semantics of
//! RFC 9110 as pure functions, the router, and the session that drives them over a connection.

pub mod h1;
pub mod router;
pub mod semantics;
pub mod session;
pub mod types;
pub mod uri;

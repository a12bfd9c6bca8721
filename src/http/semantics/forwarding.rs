//! What a reverse proxy may pass on: the request head towards a backend, the response head towards
//! the client, and whose word about the client is believed (RFC 9110 §7.6, RFC 7239).
//!
//! Each side speaks to us alone. Fields that are about one connection end here, what is about the
//! client is written by us and not by the client, and nothing that came from either side can start
//! a line of its own. Pure: it may not know of backends, pools or retries, nor of the configuration,
//! which hands over what it wants as [`FieldOp`]s.

mod fields;
mod forwarded;
mod request;
mod response;
mod role;
mod spelling;
mod trusted;

pub use fields::{CONNECTION_OPTIONS_MAX, FieldOp, FieldOpError, is_written_anew};
pub use request::{HostField, RequestContext, Target, offered_upgrade, write_request_head};
pub use response::{client_framing, passes_interim, response_head, write_response_head};
pub use trusted::client_address;

/// Our name in Via (RFC 9110 §7.6.3): a pseudonym, so that the inside of a network isn't told.
pub const PSEUDONYM: &str = "beltway";

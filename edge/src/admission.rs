//! Admit or reject: how much one client may do at a time. Knows counting; must not know
//! HTTP, sockets or why a client is who it is.

mod in_flight;

pub use in_flight::{InFlight, Permit, Rejected};

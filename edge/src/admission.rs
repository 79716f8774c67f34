//! Admit or reject: who is banned, how much one client may do at a time and how fast it may ask. Knows
//! counting; must not know HTTP, sockets or why a client is who it is.

mod banned;
mod in_flight;
mod rate;

pub use banned::{Banned, Standing};
pub use in_flight::{InFlight, Permit, Rejected};
pub use rate::{MAX_KEYS, Rate, RateFault, Rates, TooFast};

//! Admit or reject: who is banned, how much one client may do at a time and how fast it may ask. Knows
//! counting; must not know HTTP, sockets or why a client is who it is.

mod banned;
mod in_flight;
mod rate;

pub use banned::{Banned, Standing};
pub use in_flight::{InFlight, Permit, Rejected};
pub use rate::{MAX_KEYS, Rate, RateFault, Rates, TooFast};

use crate::client::Client;

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Its client gets nothing.
    Banned,
    /// Its client asks faster than it may.
    TooFast {
        /// The name of the rate that it is held to: `rate` or `throttled`.
        rate: &'static str,
        /// It is throttled as a visitor: that is no fault of its own.
        visitor: bool,
        /// When it may come back.
        fault: TooFast,
    },
}

impl Denied {
    /// For counters.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Banned => "banned",
            Self::TooFast { rate, .. } => rate,
        }
    }

    /// For the log.
    #[must_use]
    pub fn reason(self) -> String {
        match self {
            Self::Banned => self.label().to_owned(),
            Self::TooFast { visitor: true, fault, .. } => format!("throttled for foreign pages: {fault}"),
            Self::TooFast { rate, fault, .. } => format!("{rate}: {fault}"),
        }
    }
}

/// May this client ask at all at `now` (whole seconds since the UNIX epoch), and so soon? Counts the
/// request.
///
/// # Errors
/// It is banned, or asks too fast.
pub fn let_in(banned: &Banned, rates: &Rates, client: Client, now: u64) -> Result<(), Denied> {
    let standing = banned.standing(client.address, now);
    let throttled = match standing {
        Standing::Banned { .. } => return Err(Denied::Banned),
        Standing::Throttled | Standing::Visitor => true,
        Standing::Free => false,
    };
    rates.client(client, throttled).map_err(|fault| Denied::TooFast {
        rate: if throttled { "throttled" } else { "rate" },
        visitor: standing == Standing::Visitor,
        fault,
    })
}

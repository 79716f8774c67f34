//! What the broker counts, for Prometheus, and what it complains of, at most once a second. No
//! addresses and no names in labels.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec, IntGauge, Registry, opts};
use tokio::time::Instant;

use super::fault::Refused;

/// Strangers write no more lines into the log.
const COMPLAINS_EVERY: Duration = Duration::from_secs(1);

/// The counters.
#[derive(Debug)]
pub(super) struct Counts {
    pub(super) connections: IntGauge,
    pub(super) received: IntCounter,
    pub(super) delivered: IntCounter,
    refused: IntCounterVec,
}

/// Why a connection was closed from here, as a label.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reason {
    Limit,
    Handshake,
    Password,
    Busy,
    Client,
    Frame,
    Silence,
    Slow,
    Stalled,
    Ousted,
    Other,
}

impl Reason {
    pub(super) fn of(refused: &Refused) -> Self {
        match refused {
            Refused::Password { .. } | Refused::Users => Self::Password,
            Refused::Busy => Self::Busy,
            Refused::ClientTaken { .. } => Self::Client,
            Refused::Decode(_) | Refused::Oversized { .. } => Self::Frame,
            Refused::Unknown | Refused::Misfit { .. } | Refused::Narrow { .. } => Self::Frame,
            _ => Self::Other,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Handshake => "handshake",
            Self::Password => "password",
            Self::Busy => "busy",
            Self::Client => "client",
            Self::Frame => "frame",
            Self::Silence => "silence",
            Self::Slow => "slow",
            Self::Stalled => "stalled",
            Self::Ousted => "ousted",
            Self::Other => "other",
        }
    }
}

impl Counts {
    /// Registers them.
    ///
    /// # Errors
    /// They are registered already.
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let refused =
            opts!("vault_broker_connections_refused_total", "Connections closed from here, by reason");
        let counts = Self {
            connections: IntGauge::new("vault_broker_connections", "Connections open now")?,
            received: IntCounter::new("vault_broker_messages_received_total", "Messages sent to the broker")?,
            delivered: IntCounter::new(
                "vault_broker_messages_delivered_total",
                "Messages given to consumers",
            )?,
            refused: IntCounterVec::new(refused, &["reason"])?,
        };
        registry.register(Box::new(counts.connections.clone()))?;
        registry.register(Box::new(counts.received.clone()))?;
        registry.register(Box::new(counts.delivered.clone()))?;
        registry.register(Box::new(counts.refused.clone()))?;
        Ok(counts)
    }

    pub(super) fn refused(&self, reason: Reason) {
        self.refused.with_label_values(&[reason.label()]).inc();
    }
}

/// A log that strangers cannot fill.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    last: Mutex<(Option<Instant>, u64)>,
}

impl Complaints {
    /// Tells it now, or counts it among those that the next line tells of.
    pub(super) fn tell(&self, what: &str) {
        if let Some(untold) = self.due(Instant::now()) {
            let more = if untold == 0 { String::new() } else { format!(" (and {untold} like it)") };
            tracing::warn!("broker: {what}{more}");
        }
    }

    /// How many were not told before this one, if it may be told.
    fn due(&self, now: Instant) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (told, untold) = &mut *last;
        if told.is_some_and(|told| now.duration_since(told) < COMPLAINS_EVERY) {
            *untold += 1;
            return None;
        }
        *told = Some(now);
        Some(std::mem::take(untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_fill_one_line_a_second() {
        let complaints = Complaints::default();
        let now = Instant::now();
        assert_eq!(complaints.due(now), Some(0));
        assert_eq!(complaints.due(now), None);
        assert_eq!(complaints.due(now + COMPLAINS_EVERY / 2), None);
        assert_eq!(complaints.due(now + COMPLAINS_EVERY), Some(2));
    }
}

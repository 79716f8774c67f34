//! The coordinator's figures. Knows no numbers, and stands by itself so that `coordinator.rs` stays short.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// What the thread counts.
pub(in crate::sequence) struct Metrics {
    pub(in crate::sequence) entries: IntCounterVec,
    pub(in crate::sequence) together: IntGauge,
    pub(super) alarms: IntCounter,
    pub(in crate::sequence) expired: IntGauge,
}

impl Metrics {
    pub(in crate::sequence) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let entries = IntCounterVec::new(
            Opts::new("vault_ledger_entries_total", "Entries made final by this vault as owner, by act"),
            &["act"],
        )?;
        let together = IntGauge::new(
            "vault_sequence_together",
            "1 while both vaults are together and numbers are given",
        )?;
        let alarms = IntCounter::new(
            "vault_sequence_alarms_total",
            "Numbers given alone that did not fit the ledger when both vaults were together again",
        )?;
        registry.register(Box::new(entries.clone()))?;
        registry.register(Box::new(together.clone()))?;
        let expired = IntGauge::new(
            "vault_sequence_reservations_expired",
            "Reservations that were neither confirmed nor voided within their series' expires_after",
        )?;
        registry.register(Box::new(alarms.clone()))?;
        registry.register(Box::new(expired.clone()))?;
        Ok(Self { entries, together, alarms, expired })
    }
}

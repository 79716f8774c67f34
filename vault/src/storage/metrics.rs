//! What storage counts, for Prometheus. Names no object and no owner.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Storage's metrics, in a registry of their own.
pub(super) struct Metrics {
    pub(super) registry: Registry,
    pub(super) uploads: IntCounterVec,
    pub(super) uploaded_bytes: IntCounter,
    pub(super) downloaded_bytes: IntCounter,
    pub(super) healed: IntCounter,
    pub(super) damaged: IntCounterVec,
    pub(super) objects: IntGauge,
    pub(super) pending: IntGauge,
    pub(super) owed: IntGauge,
    pub(super) owed_oldest: IntGauge,
    pub(super) without_replica: IntGauge,
    pub(super) removals_owed: IntGauge,
    pub(super) deleted: IntGauge,
    pub(super) up: IntGaugeVec,
    pub(super) full: IntGaugeVec,
    pub(super) errors: IntGaugeVec,
    pub(super) low: IntGaugeVec,
    pub(super) server_owed: IntGaugeVec,
    pub(super) server_owed_oldest: IntGaugeVec,
    pub(super) restored: IntCounterVec,
    pub(super) slots_rotten: IntCounterVec,
    pub(super) slots_mended: IntCounterVec,
    pub(super) scrubbed: IntCounter,
    pub(super) scrub_finished: IntGauge,
    pub(super) sync_finished: IntGauge,
}

impl Metrics {
    /// Registers all of them.
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let made = Self {
            uploads: IntCounterVec::new(
                Opts::new("vault_storage_uploads_total", "Uploads by outcome"),
                &["outcome"],
            )?,
            uploaded_bytes: IntCounter::new("vault_storage_uploaded_bytes_total", "Plaintext bytes stored")?,
            downloaded_bytes: IntCounter::new(
                "vault_storage_downloaded_bytes_total",
                "Plaintext bytes read",
            )?,
            healed: IntCounter::new("vault_storage_healed_total", "Owed replicas copied")?,
            damaged: IntCounterVec::new(
                Opts::new("vault_storage_damaged_total", "Replicas found missing or damaged"),
                &["server"],
            )?,
            objects: IntGauge::new("vault_storage_objects", "Objects that can be read")?,
            pending: IntGauge::new("vault_storage_pending", "Intents that came to nothing yet")?,
            owed: IntGauge::new("vault_storage_owed_replicas", "Replicas owed to a file server")?,
            owed_oldest: IntGauge::new(
                "vault_storage_owed_oldest_seconds",
                "Age of the oldest owed replica",
            )?,
            without_replica: IntGauge::new(
                "vault_storage_files_without_replica",
                "Files of which no whole replica is left",
            )?,
            removals_owed: IntGauge::new("vault_storage_owed_removals", "Removals owed to a file server")?,
            deleted: IntGauge::new("vault_storage_deleted", "Deleted objects that wait for their purge")?,
            up: by_server("vault_storage_file_server_up", "1 while it answers")?,
            full: by_server("vault_storage_file_server_full", "1 while it has no space")?,
            errors: by_server("vault_storage_file_server_errors", "Failed operations since start")?,
            low: by_server("vault_storage_file_server_low", "1 while it has less space than keep_free")?,
            server_owed: by_server("vault_storage_file_server_owed_replicas", "Replicas owed to it")?,
            server_owed_oldest: by_server(
                "vault_storage_file_server_owed_oldest_seconds",
                "Age of the oldest replica owed to it",
            )?,
            restored: IntCounterVec::new(
                Opts::new("vault_storage_restored_total", "File servers found restored from a backup"),
                &["server"],
            )?,
            slots_rotten: IntCounterVec::new(
                Opts::new(
                    "vault_storage_records_rotten_total",
                    "Replicas found with one of their two records rotten",
                ),
                &["server"],
            )?,
            slots_mended: IntCounterVec::new(
                Opts::new("vault_storage_records_mended_total", "Of these, records written anew in place"),
                &["server"],
            )?,
            scrubbed: IntCounter::new("vault_storage_scrubbed_total", "Replicas read again by the scrub")?,
            scrub_finished: IntGauge::new(
                "vault_storage_scrub_finished_timestamp_seconds",
                "When a scrub last came to its end; 0: never",
            )?,
            sync_finished: IntGauge::new(
                "vault_storage_sync_finished_timestamp_seconds",
                "When catalog and file servers were last compared as a whole; 0: never",
            )?,
            registry,
        };
        let registry = &made.registry;
        registry.register(Box::new(made.uploads.clone()))?;
        registry.register(Box::new(made.damaged.clone()))?;
        for counters in [&made.restored, &made.slots_rotten, &made.slots_mended] {
            registry.register(Box::new(counters.clone()))?;
        }
        for counter in [&made.uploaded_bytes, &made.downloaded_bytes, &made.healed, &made.scrubbed] {
            registry.register(Box::new(counter.clone()))?;
        }
        let owed = [&made.owed, &made.owed_oldest, &made.without_replica, &made.removals_owed];
        for gauge in [&made.objects, &made.pending, &made.deleted].into_iter().chain(owed) {
            registry.register(Box::new(gauge.clone()))?;
        }
        for gauge in [&made.scrub_finished, &made.sync_finished] {
            registry.register(Box::new(gauge.clone()))?;
        }
        for gauges in
            [&made.up, &made.full, &made.errors, &made.low, &made.server_owed, &made.server_owed_oldest]
        {
            registry.register(Box::new(gauges.clone()))?;
        }
        Ok(made)
    }
}

fn by_server(name: &str, help: &str) -> Result<IntGaugeVec, prometheus::Error> {
    IntGaugeVec::new(Opts::new(name, help), &["server"])
}

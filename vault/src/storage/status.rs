//! How storage is, in figures: for the operator's status and for Prometheus. Tells; changes
//! nothing.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::patrol::SYNC;
use super::round::Round;
use super::scrub::SCRUB;
use super::task::Progress;
use super::{Storage, StorageError, now};

/// How storage is, for the operator.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The age recipient that new records are sealed to; both vaults must say the same. None: uploads
    /// are refused.
    pub recipient: Option<String>,
    /// Those of all storage keys here, the newest first.
    pub recipients: Vec<String>,
    /// That of the escrow key; both vaults must say the same.
    pub escrow_recipient: String,
    /// What an operator has to mend about the two vaults' keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_trouble: Option<String>,
    /// Objects on the file servers that no key opens, when they were last looked for.
    pub unopened: u64,
    /// Objects that can be read.
    pub objects: u64,
    /// Intents that have not come to anything yet.
    pub pending: u64,
    /// Replicas owed.
    pub owed: u64,
    /// Age in seconds of the oldest of them.
    pub owed_oldest_seconds: Option<u64>,
    /// Files of which no whole replica is left, as far as the catalog knows: nothing heals them by
    /// itself.
    pub without_replica: u64,
    /// Removals owed.
    pub removals_owed: u64,
    /// Deleted objects that can still be taken back, or wait for their purge.
    pub deleted: u64,
    /// Age in seconds of the oldest deletion among them.
    pub deleted_oldest_seconds: Option<u64>,
    /// The last change's number.
    pub last_change: u64,
    /// The comparison of the catalog with the file servers.
    pub sync: Round,
    /// The scrub.
    pub scrub: Round,
    /// The last rewrapping since start, or one that a restart broke off.
    pub rewrap: Progress,
    /// The last rebuilding of the catalog since start, or one that a restart broke off.
    pub rebuild: Progress,
    /// Where uploads pass on their way to the file servers.
    pub spool: SpoolStatus,
    /// Each file server.
    pub file_servers: Vec<ServerStatus>,
}

/// How the spool is.
#[derive(Debug, Clone, Serialize)]
pub struct SpoolStatus {
    /// Its folder.
    pub folder: PathBuf,
    /// Bytes free on its disk, where the disk tells.
    pub free_bytes: Option<u64>,
    /// Has its disk less room than one upload of `max_file` takes?
    pub low: bool,
}

/// How one file server is.
#[derive(Debug, Clone, Serialize)]
pub struct ServerStatus {
    /// Its name.
    pub name: String,
    /// Does it answer?
    pub up: bool,
    /// Why not.
    pub away: Option<String>,
    /// Since when not, in Unix seconds.
    pub away_since: Option<i64>,
    /// Has it refused a write for lack of space?
    pub full: bool,
    /// Has it less space left than `keep_free`?
    pub low: bool,
    /// Replicas owed to it.
    pub owed: u64,
    /// Age in seconds of the oldest of them.
    pub owed_oldest_seconds: Option<u64>,
    /// How often since start it came back from a backup.
    pub restored: u64,
    /// Average time to a read's first bytes, in milliseconds.
    pub first_byte_ms: Option<f64>,
    /// Failed operations since start.
    pub errors: u64,
    /// The last of them.
    pub last_error: Option<String>,
}

impl Storage {
    /// How things are.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn status(&self) -> Result<Status, StorageError> {
        let (counts, ring) = (self.0.catalog.counts().await?, self.0.ring());
        let age = |since: i64| u64::try_from(now() - since).unwrap_or_default();
        let debts = self.0.catalog.debts_by_server().await?;
        let file_servers = self.0.servers.iter().enumerate().map(|(at, server)| {
            let health = server.health();
            let debts = debts.iter().find(|debts| debts.server == server.name());
            let first_byte = self.0.preference().first_byte(at);
            ServerStatus {
                name: server.name().to_owned(),
                up: health.suspended.is_none(),
                away: health.suspended.as_ref().map(|_| health.cause),
                away_since: health.suspended.map(|_| health.since),
                full: health.full,
                low: health.low,
                owed: debts.map_or(0, |debts| debts.owed),
                owed_oldest_seconds: debts.map(|debts| age(debts.since)),
                restored: health.restored,
                first_byte_ms: first_byte.map(|took| took.as_secs_f64() * 1000.0),
                errors: health.errors,
                last_error: health.last_error,
            }
        });
        Ok(Status {
            recipient: ring.active().map(|key| key.recipient().to_string()),
            recipients: ring.all(),
            escrow_recipient: ring.escrow().to_string(),
            key_trouble: self.key_trouble(),
            unopened: self.0.unopened.load(Ordering::Relaxed),
            objects: counts.objects,
            pending: counts.pending,
            owed: counts.owed,
            owed_oldest_seconds: counts.owed_since.map(age),
            without_replica: counts.without_replica,
            removals_owed: counts.removals_owed,
            deleted: counts.deleted,
            deleted_oldest_seconds: counts.deleted_since.map(age),
            last_change: self.last_change(),
            sync: self.0.catalog.round(SYNC).await?,
            scrub: self.0.catalog.round(SCRUB).await?,
            rewrap: self.rewrap_progress(),
            rebuild: self.rebuild_progress(),
            spool: self.spool_status(),
            file_servers: file_servers.collect(),
        })
    }

    fn spool_status(&self) -> SpoolStatus {
        let free = self.0.spool.free();
        SpoolStatus {
            folder: self.0.settings.spool.clone(),
            free_bytes: free,
            low: free.is_some_and(|free| free < self.0.settings.max_file.0),
        }
    }

    /// The registry of `vault_storage_*`, its gauges brought up to date.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn metrics(&self) -> Result<prometheus::Registry, StorageError> {
        let status = self.status().await?;
        let metrics = &self.0.metrics;
        let whole = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        metrics.objects.set(whole(status.objects));
        metrics.pending.set(whole(status.pending));
        metrics.owed.set(whole(status.owed));
        metrics.owed_oldest.set(whole(status.owed_oldest_seconds.unwrap_or_default()));
        metrics.without_replica.set(whole(status.without_replica));
        metrics.removals_owed.set(whole(status.removals_owed));
        metrics.deleted.set(whole(status.deleted));
        for server in &status.file_servers {
            let name = [server.name.as_str()];
            metrics.up.with_label_values(&name).set(i64::from(server.up));
            metrics.full.with_label_values(&name).set(i64::from(server.full));
            metrics.errors.with_label_values(&name).set(whole(server.errors));
            metrics.low.with_label_values(&name).set(i64::from(server.low));
            metrics.server_owed.with_label_values(&name).set(whole(server.owed));
            let oldest = whole(server.owed_oldest_seconds.unwrap_or_default());
            metrics.server_owed_oldest.with_label_values(&name).set(oldest);
        }
        metrics.scrub_finished.set(status.scrub.finished.unwrap_or_default());
        metrics.sync_finished.set(status.sync.finished.unwrap_or_default());
        Ok(metrics.registry.clone())
    }
}

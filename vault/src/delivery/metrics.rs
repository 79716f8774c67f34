//! What deliveries count, for Prometheus: by target, as configured; no messages, no URLs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, histogram_opts};

use super::Status;

/// The deliveries' counters. Cheap to clone.
#[derive(Clone)]
pub(super) struct Metrics {
    delivered: IntCounterVec,
    failed: IntCounterVec,
    dead: IntCounterVec,
    gone: IntCounterVec,
    seconds: HistogramVec,
    under_way: IntGaugeVec,
    retrying: IntGaugeVec,
    oldest: IntGaugeVec,
    paused: IntGaugeVec,
}

impl Metrics {
    /// Registers them.
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| -> Result<IntCounterVec, prometheus::Error> {
            let made = IntCounterVec::new(Opts::new(name, help), &["target"])?;
            registry.register(Box::new(made.clone()))?;
            Ok(made)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGaugeVec, prometheus::Error> {
            let made = IntGaugeVec::new(Opts::new(name, help), &["target"])?;
            registry.register(Box::new(made.clone()))?;
            Ok(made)
        };
        let buckets = vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
        let seconds: HistogramOpts = histogram_opts!(
            "vault_delivery_try_seconds",
            "Time until a handler answered, or did not",
            buckets
        );
        let seconds = HistogramVec::new(seconds, &["target"])?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Self {
            delivered: counter("vault_delivery_delivered_total", "Messages that the handler took")?,
            failed: counter("vault_delivery_failed_tries_total", "Tries that failed")?,
            dead: counter("vault_delivery_dead_letters_total", "Messages given up, now dead letters")?,
            gone: counter("vault_delivery_gone_total", "Messages given up that were not persistent")?,
            seconds,
            under_way: gauge("vault_delivery_under_way", "Messages taken and not done yet")?,
            retrying: gauge("vault_delivery_retrying", "Of these, such as wait for their next try")?,
            oldest: gauge("vault_delivery_oldest_seconds", "Age of the oldest message under way")?,
            paused: gauge("vault_delivery_paused", "1 while nothing is sent to it")?,
        })
    }

    pub(super) fn delivered(&self, target: &str) {
        self.delivered.with_label_values(&[target]).inc();
    }

    pub(super) fn failed(&self, target: &str) {
        self.failed.with_label_values(&[target]).inc();
    }

    pub(super) fn died(&self, target: &str) {
        self.dead.with_label_values(&[target]).inc();
    }

    pub(super) fn gone(&self, target: &str) {
        self.gone.with_label_values(&[target]).inc();
    }

    pub(super) fn tried(&self, target: &str, took: Duration) {
        self.seconds.with_label_values(&[target]).observe(took.as_secs_f64());
    }

    pub(super) fn show(&self, status: &Status, now: SystemTime) {
        let target = [status.name.as_str()];
        let whole = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let age = status.oldest.map(|at| now.saturating_sub(Duration::from_millis(at)).as_secs());
        self.under_way.with_label_values(&target).set(whole(status.under_way));
        self.retrying.with_label_values(&target).set(whole(status.retrying));
        self.oldest.with_label_values(&target).set(i64::try_from(age.unwrap_or(0)).unwrap_or(i64::MAX));
        self.paused.with_label_values(&target).set(i64::from(status.paused.is_some()));
    }
}

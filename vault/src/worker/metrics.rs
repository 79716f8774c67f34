//! What the worker counts, for Prometheus: by job, as configured or built in; no keys, no times.

use std::time::Duration;

use jiff::Timestamp;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, histogram_opts, opts,
};

use super::standing::{Standing, between};

/// The worker's counters. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    runs: IntCounterVec,
    left_out: IntCounterVec,
    seconds: HistogramVec,
    failures: IntGaugeVec,
    late: IntGaugeVec,
    running: IntGaugeVec,
    paused: IntGaugeVec,
    ended: IntGaugeVec,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// They are registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| -> Result<IntGaugeVec, prometheus::Error> {
            let made = IntGaugeVec::new(Opts::new(name, help), &["job"])?;
            registry.register(Box::new(made.clone()))?;
            Ok(made)
        };
        let buckets = vec![0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 7200.0, 43_200.0];
        let seconds: HistogramOpts =
            histogram_opts!("vault_worker_run_seconds", "How long runs on this vault took", buckets);
        let runs: Opts = opts!("vault_worker_runs_total", "Runs that ended on this vault, by outcome");
        let left_out = opts!("vault_worker_left_out_total", "Times of a job that this vault left out");
        let metrics = Self {
            runs: IntCounterVec::new(runs, &["job", "outcome"])?,
            left_out: IntCounterVec::new(left_out, &["job"])?,
            seconds: HistogramVec::new(seconds, &["job"])?,
            failures: gauge("vault_worker_job_failures", "Failed runs in a row")?,
            late: gauge("vault_worker_job_late_seconds", "For how long it is due and not begun")?,
            running: gauge("vault_worker_job_running", "1 while a run is under way")?,
            paused: gauge("vault_worker_job_paused", "1 while an operator keeps it from running")?,
            ended: gauge("vault_worker_job_ended_seconds", "Unix time at which the last run ended")?,
        };
        registry.register(Box::new(metrics.runs.clone()))?;
        registry.register(Box::new(metrics.left_out.clone()))?;
        registry.register(Box::new(metrics.seconds.clone()))?;
        Ok(metrics)
    }

    pub(super) fn ran(&self, job: &str, well: bool, took: Duration) {
        self.runs.with_label_values(&[job, if well { "done" } else { "failed" }]).inc();
        self.seconds.with_label_values(&[job]).observe(took.as_secs_f64());
    }

    pub(super) fn left_out(&self, job: &str) {
        self.left_out.with_label_values(&[job]).inc();
    }

    /// Brings the gauges up to date.
    pub(super) fn show(&self, standing: &Standing, now: Timestamp) {
        let job = [standing.name.as_str()];
        let late = standing.late_since.map_or(0, |since| between(since, now).as_secs());
        self.failures.with_label_values(&job).set(i64::from(standing.failures));
        self.late.with_label_values(&job).set(i64::try_from(late).unwrap_or(i64::MAX));
        self.running.with_label_values(&job).set(i64::from(standing.running.is_some()));
        self.paused.with_label_values(&job).set(i64::from(standing.paused.is_some()));
        if let Some(last) = &standing.last {
            self.ended.with_label_values(&job).set(last.ended.as_second());
        }
    }
}

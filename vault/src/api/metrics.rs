//! What the API counts, for Prometheus. No addresses and no names in labels.

use std::time::Duration;

use http::StatusCode;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, histogram_opts, opts,
};

/// The API's counters. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    requests: IntCounterVec,
    seconds: Histogram,
    pub(super) connections: IntGauge,
    refused: IntCounterVec,
    pub(super) cut: IntCounter,
}

/// Why a connection was refused, as a label.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reason {
    Limit,
    Handshake,
    Identity,
    Revoked,
    Pair,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// They are registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let buckets = vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
        let seconds: HistogramOpts =
            histogram_opts!("vault_api_request_seconds", "Time until the answer's head", buckets);
        let requests: Opts = opts!("vault_api_requests_total", "Requests answered, by status class");
        let refused = opts!("vault_api_connections_refused_total", "Connections refused, by reason");
        let metrics = Self {
            requests: IntCounterVec::new(requests, &["class"])?,
            seconds: Histogram::with_opts(seconds)?,
            connections: IntGauge::new("vault_api_connections", "Connections open now")?,
            refused: IntCounterVec::new(refused, &["reason"])?,
            cut: IntCounter::new(
                "vault_api_sessions_cut_total",
                "Live sessions ended by revocation or expiry",
            )?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.seconds.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        registry.register(Box::new(metrics.cut.clone()))?;
        Ok(metrics)
    }

    pub(super) fn answered(&self, status: StatusCode, took: Duration) {
        let class = match status.as_u16() {
            100..=199 => "1xx",
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            _ => "5xx",
        };
        self.requests.with_label_values(&[class]).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    pub(super) fn refused(&self, reason: Reason) {
        let label = match reason {
            Reason::Limit => "limit",
            Reason::Handshake => "handshake",
            Reason::Identity => "identity",
            Reason::Revoked => "revoked",
            Reason::Pair => "pair",
        };
        self.refused.with_label_values(&[label]).inc();
    }
}

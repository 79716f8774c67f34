//! What edge counts, as Prometheus reads it: one struct of handles on a registry of its own.
//! Knows names and units; must not know who counts. No label ever holds an address, a path
//! or anything else that a client chooses, so the number of series is fixed by the configuration.

use std::sync::Arc;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// From a cached page to a report that takes a minute, in seconds.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
/// The status classes, so that every series stands at 0 from the start.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// Why edge refuses; every series stands at 0 from the start.
const REASONS: [&str; 8] = [
    "banned",
    "client_connections",
    "connections",
    "in_flight",
    "proxy_header",
    "rate",
    "route_rate",
    "throttled",
];

/// Frames of HTTP/2 that can be too many; every series stands at 0 from the start.
const FLOODS: [&str; 5] = ["empty", "ping", "priority", "settings", "window_update"];

/// Every handle. Cheap to count on from any thread.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Requests answered, by `class` of status (`2xx`).
    pub requests: IntCounterVec,
    /// Requests and connections that edge itself refused, by `reason`: `in_flight`, `connections`,
    /// `client_connections`, `proxy_header`, `banned`, `rate`, `route_rate`, `throttled`.
    pub rejected: IntCounterVec,
    /// Client connections open now.
    pub connections: IntGauge,
    /// Client connections that were cut because their client was banned.
    pub connections_cut: IntCounter,
    /// Idle client connections that were asked to leave because their client had too many.
    pub idle_closed: IntCounter,
    /// Clients that the rates remember now.
    pub rate_clients: IntGauge,
    /// Requests that had to share a rate since too many clients were remembered.
    pub rate_crowded: IntCounter,
    /// TLS handshakes that failed or ran out of time.
    pub handshake_failures: IntCounter,
    /// Requests that are no valid HTTP.
    pub malformed: IntCounter,
    /// HTTP/2 connections ended for a flood, by `kind` of frame.
    pub floods: IntCounterVec,
    /// From a request's head to the end of its answer.
    pub request_seconds: Histogram,
    /// Requests in flight now; the admin room brings it up to date when it is read.
    pub in_flight: IntGauge,
    /// Access-log lines lost because the writer could not follow.
    pub access_log_dropped: IntCounter,
    /// Writes to the access log that failed (disk full, folder gone).
    pub access_log_errors: IntCounter,
    /// Attempts to reach an upstream's server that failed, by `upstream`.
    pub upstream_failures: IntCounterVec,
}

impl Metrics {
    /// Registers everything on a new registry.
    ///
    /// # Panics
    /// Never: the names below are valid and distinct, which a test shows.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let r = Registry::new();
        let buckets =
            HistogramOpts::new("edge_request_seconds", "From a request's head to the end of its answer.")
                .buckets(SECONDS.to_vec());
        let metrics = Self {
            requests: labelled(&r, "edge_requests_total", "Requests answered, by class of status.", "class"),
            rejected: labelled(&r, "edge_rejected_total", "What edge itself refused, by reason.", "reason"),
            connections: gauge(&r, "edge_connections", "Client connections open now."),
            connections_cut: counter(
                &r,
                "edge_connections_cut_total",
                "Connections cut because their client was banned.",
            ),
            idle_closed: counter(
                &r,
                "edge_idle_closed_total",
                "Idle connections closed because their client had too many.",
            ),
            rate_clients: gauge(&r, "edge_rate_clients", "Clients that the rates remember now."),
            rate_crowded: counter(
                &r,
                "edge_rate_crowded_total",
                "Requests that shared a rate because too many clients were remembered.",
            ),
            handshake_failures: counter(&r, "edge_handshake_failures_total", "TLS handshakes that failed."),
            malformed: counter(&r, "edge_malformed_total", "Requests that are no valid HTTP."),
            floods: labelled(
                &r,
                "edge_h2_floods_total",
                "HTTP/2 connections ended for a flood, by kind of frame.",
                "kind",
            ),
            request_seconds: registered(&r, Histogram::with_opts(buckets)),
            in_flight: gauge(&r, "edge_in_flight", "Requests in flight now."),
            access_log_dropped: counter(&r, "edge_access_log_dropped_total", "Access-log lines lost."),
            access_log_errors: counter(
                &r,
                "edge_access_log_errors_total",
                "Failed writes to the access log.",
            ),
            upstream_failures: labelled(
                &r,
                "edge_upstream_failures_total",
                "Attempts to reach an upstream's server that failed.",
                "upstream",
            ),
            registry: r,
        };
        for reason in REASONS {
            metrics.rejected.with_label_values(&[reason]);
        }
        for kind in FLOODS {
            metrics.floods.with_label_values(&[kind]);
        }
        for class in CLASSES {
            metrics.requests.with_label_values(&[class]);
        }
        let build = Opts::new("edge_build_info", "Always 1; the label says what runs.");
        let build = registered(&metrics.registry, IntGaugeVec::new(build, &["version"]));
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Arc::new(metrics)
    }

    /// Counts one answered request. A status outside 100 to 599 (a handshake that failed,
    /// a client that left) belongs to no class and is only timed.
    pub fn answered(&self, status: u16, took: Duration) {
        if let Some(class) = usize::from(status / 100).checked_sub(1).and_then(|index| CLASSES.get(index)) {
            self.requests.with_label_values(&[class]).inc();
        }
        self.request_seconds.observe(took.as_secs_f64());
    }

    /// Where other rooms register what only they count.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Everything in the text format, version 0.0.4.
    #[must_use]
    pub fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_else(|error| {
            tracing::error!("metrics: cannot be written as text: {error}; the scrape is answered empty");
            String::new()
        })
    }
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    registered(registry, IntCounter::new(name, help))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    registered(registry, IntGauge::new(name, help))
}

fn labelled(registry: &Registry, name: &str, help: &str, label: &str) -> IntCounterVec {
    registered(registry, IntCounterVec::new(Opts::new(name, help), &[label]))
}

/// The names are constants of whoever registers: a refusal here is a mistake there, not an event.
pub(crate) fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<C>,
) -> C {
    let collector = made.expect("names and labels are valid");
    registry.register(Box::new(collector.clone())).expect("names are distinct");
    collector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_there_from_the_start_under_edges_prefix() {
        let metrics = Metrics::new();
        let text = metrics.text();
        for line in [
            "edge_requests_total{class=\"2xx\"} 0",
            "edge_connections 0",
            "edge_connections_cut_total 0",
            "edge_rejected_total{reason=\"banned\"} 0",
            "edge_access_log_dropped_total 0",
            "edge_request_seconds_bucket{le=\"+Inf\"} 0",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.starts_with("edge_"), "{line}");
        }
    }

    #[test]
    fn an_answer_counts_in_its_class_alone() {
        let metrics = Metrics::new();
        metrics.answered(204, Duration::from_millis(3));
        metrics.answered(429, Duration::from_millis(1));
        metrics.answered(0, Duration::ZERO);
        metrics.answered(777, Duration::ZERO);
        let counted = |class: &str| metrics.requests.with_label_values(&[class]).get();
        assert_eq!(CLASSES.map(counted), [0, 1, 0, 1, 0]);
        assert_eq!(metrics.request_seconds.get_sample_count(), 4);
    }

    #[test]
    fn two_sets_of_metrics_do_not_share_a_registry() {
        let (left, right) = (Metrics::new(), Metrics::new());
        left.malformed.inc();
        assert_eq!((left.malformed.get(), right.malformed.get()), (1, 0));
    }
}

//! What `edge status` shows: one snapshot of the rooms' own figures. Must not know how it
//! travels.

use std::collections::BTreeMap;
use std::fmt;

use prometheus::IntCounterVec;
use prometheus::core::Collector;
use serde::{Deserialize, Serialize};

use super::{Part, Parts, Stage};
use crate::ban::words::Summary;

/// One edge at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The cluster's host name.
    pub name: String,
    /// Of the program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Whole seconds since start.
    pub uptime_seconds: u64,
    /// Where it is in its life.
    pub stage: Stage,
    /// Does it want traffic? As `/readyz` answers.
    pub ready: bool,
    /// What rooms and upstreams report.
    pub parts: Vec<Part>,
    /// Client connections open now.
    pub connections: i64,
    /// Requests in flight now.
    pub in_flight: usize,
    /// Clients that have requests in flight.
    pub clients: usize,
    /// Requests answered, by class of status.
    pub requests: BTreeMap<String, u64>,
    /// What edge itself refused, by reason.
    pub rejected: BTreeMap<String, u64>,
    /// TLS handshakes that failed.
    pub handshake_failures: u64,
    /// Requests that were no valid HTTP.
    pub malformed: u64,
    /// Access-log lines lost.
    pub access_log_dropped: u64,
    /// The ban engine; absent where it is switched off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bans: Option<Summary>,
}

impl Status {
    /// The rooms as they are now.
    pub(super) fn of(parts: &Parts, uptime_seconds: u64) -> Self {
        let Parts { name, metrics, readiness, in_flight, .. } = parts;
        Self {
            name: name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds,
            stage: readiness.stage(),
            ready: readiness.answer("/readyz", false).is_some_and(|(status, _)| status == 200),
            parts: readiness.parts(),
            connections: metrics.connections.get(),
            in_flight: in_flight.total(),
            clients: in_flight.clients(),
            requests: by_label(&metrics.requests),
            rejected: by_label(&metrics.rejected),
            handshake_failures: metrics.handshake_failures.get(),
            malformed: metrics.malformed.get(),
            access_log_dropped: metrics.access_log_dropped.get(),
            bans: (parts.bans_summary)(),
        }
    }
}

/// A counter with one label, as label → count.
fn by_label(counters: &IntCounterVec) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for family in counters.collect() {
        for metric in family.get_metric() {
            let [label] = metric.get_label() else { continue };
            let count = counters.with_label_values(&[label.value()]).get();
            counts.insert(label.value().to_owned(), count);
        }
    }
    counts
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match (self.stage, self.ready) {
            (Stage::Starting, _) => "starting",
            (Stage::Draining, _) => "draining",
            (Stage::Serving, true) => "serving, ready",
            (Stage::Serving, false) => "serving, NOT ready",
        };
        writeln!(f, "edge {}  {}  {stage}", self.version, self.name)?;
        writeln!(f, "{:<22}{} (up {})", "process", self.pid, uptime(self.uptime_seconds))?;
        writeln!(f, "{:<22}{}", "connections", self.connections)?;
        writeln!(f, "{:<22}{} of {} clients", "requests in flight", self.in_flight, self.clients)?;
        writeln!(f, "{:<22}{}", "requests answered", counts(&self.requests))?;
        writeln!(f, "{:<22}{}", "refused", counts(&self.rejected))?;
        writeln!(f, "{:<22}{}", "malformed", self.malformed)?;
        writeln!(f, "{:<22}{}", "handshakes failed", self.handshake_failures)?;
        writeln!(f, "{:<22}{}", "log lines lost", self.access_log_dropped)?;
        match &self.bans {
            Some(bans) => writeln!(f, "{:<22}{bans}", "bans")?,
            None => writeln!(f, "{:<22}switched off (bans.enabled)", "bans")?,
        }
        for Part { part, healthy, detail } in &self.parts {
            let word = if *healthy { "ok" } else { "FAILING" };
            writeln!(f, "{part:<22}{word}: {detail}")?;
        }
        Ok(())
    }
}

fn counts(counts: &BTreeMap<String, u64>) -> String {
    let seen: Vec<String> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    if seen.is_empty() { "none".to_owned() } else { seen.join(", ") }
}

fn uptime(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::admin::Readiness;
    use crate::admission::InFlight;
    use crate::ban::words::Answer;
    use crate::metrics::Metrics;

    #[test]
    fn an_operator_sees_what_is_wrong_at_a_glance() {
        let parts = Parts {
            name: "www.example.org".to_owned(),
            metrics: Metrics::new(),
            readiness: Readiness::new(),
            in_flight: InFlight::new(50),
            reload: Arc::new(|| Ok(String::new())),
            bans: Arc::new(|_| Answer::Off { until: None }),
            bans_summary: Arc::new(|| {
                Some(Summary {
                    bans: 3,
                    max_bans: 1_048_576,
                    kernel: "out of reach: no helper; bans hold in the proxy alone".to_owned(),
                    ..Summary::default()
                })
            }),
        };
        parts.readiness.serving();
        parts.readiness.report("upstream app", false, "127.0.0.1:9000 refuses".to_owned());
        parts.metrics.requests.with_label_values(&["2xx"]).inc_by(7);
        parts.metrics.rejected.with_label_values(&["in_flight"]).inc_by(2);
        let mut status = Status::of(&parts, 93_784);
        status.pid = 4711;
        assert_eq!(
            status.to_string(),
            concat!(
                "edge ",
                env!("CARGO_PKG_VERSION"),
                "  www.example.org  serving, NOT ready\n",
                "process               4711 (up 1d 2h)\n",
                "connections           0\n",
                "requests in flight    0 of 0 clients\n",
                "requests answered     2xx 7\n",
                "refused               in_flight 2\n",
                "malformed             0\n",
                "handshakes failed     0\n",
                "log lines lost        0\n",
                "bans                  3 of at most 1048576 in force; kernel: out of reach: no helper; \
                 bans hold in the proxy alone\n",
                "upstream app          FAILING: 127.0.0.1:9000 refuses\n",
            )
        );
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
    }
}

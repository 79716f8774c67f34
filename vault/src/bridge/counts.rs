//! What the bridge counts, for Prometheus: by direction and hop.

use prometheus::{IntCounterVec, IntGaugeVec, Registry, opts};

use super::direction::status::{Report, State};

/// The metrics; none where there is no bridge.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts(Option<Metrics>);

#[derive(Debug, Clone)]
struct Metrics {
    messages: IntCounterVec,
    waiting: IntGaugeVec,
    waiting_bytes: IntGaugeVec,
    uncertain: IntGaugeVec,
    returned: IntGaugeVec,
    journal_bytes: IntGaugeVec,
    dead_letters: IntGaugeVec,
    lag: IntGaugeVec,
    carrying: IntGaugeVec,
    connected: IntGaugeVec,
}

impl Counts {
    /// Registers them.
    ///
    /// # Errors
    /// They are registered already.
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| {
            let gauge = IntGaugeVec::new(opts!(name, help), &["bridge"])?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let messages = opts!(
            "vault_bridge_messages_total",
            "Messages since the journal's birth (circled: since vault's start), by hop; received are those \
             known to be taken, beside vault_bridge_uncertain_messages"
        );
        let connected = opts!("vault_bridge_connected", "Is this side connected?");
        let metrics = Metrics {
            messages: IntCounterVec::new(messages, &["bridge", "hop"])?,
            waiting: gauge("vault_bridge_waiting_messages", "Messages that wait for the target")?,
            waiting_bytes: gauge("vault_bridge_waiting_bytes", "Bytes of them in the journal")?,
            uncertain: gauge(
                "vault_bridge_uncertain_messages",
                "Messages of which it is not known yet whether they were taken",
            )?,
            returned: gauge(
                "vault_bridge_returned_messages",
                "Messages that are the source's, kept for a while",
            )?,
            journal_bytes: gauge("vault_bridge_journal_limit_bytes", "Bytes that the journal may hold")?,
            dead_letters: gauge("vault_bridge_dead_letters", "Dead letters that are kept")?,
            lag: gauge("vault_bridge_lag_seconds", "Age of the oldest message that waits")?,
            carrying: gauge("vault_bridge_carrying", "Does this vault hold the lock at the source?")?,
            connected: IntGaugeVec::new(connected, &["bridge", "side"])?,
        };
        registry.register(Box::new(metrics.messages.clone()))?;
        registry.register(Box::new(metrics.connected.clone()))?;
        Ok(Self(Some(metrics)))
    }

    /// What a direction tells of itself.
    pub(super) fn show(&self, name: &str, report: &Report) {
        let Some(metrics) = &self.0 else { return };
        let counts = report.counts;
        for (hop, total) in [
            // What is uncertain may turn out to be the source's, and a counter never falls.
            ("received", counts.journalled),
            ("journalled", counts.journalled),
            ("forwarded", counts.forwarded),
            ("expired", counts.expired),
            ("dead", counts.dead),
            ("circled", report.circled),
        ] {
            let counter = metrics.messages.with_label_values(&[name, hop]);
            // The journal counts on over restarts.
            counter.inc_by(total.saturating_sub(counter.get()));
        }
        let set = |gauge: &IntGaugeVec, value: u64| {
            gauge.with_label_values(&[name]).set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&metrics.waiting, report.waiting.rows);
        set(&metrics.waiting_bytes, report.waiting.bytes);
        set(&metrics.uncertain, report.uncertain.rows);
        set(&metrics.returned, report.returned.rows);
        set(&metrics.journal_bytes, report.journal_bytes);
        set(&metrics.dead_letters, report.dead_letters.rows);
        set(&metrics.lag, report.lag_seconds);
        set(&metrics.carrying, u64::from(report.state == State::Carrying));
        let source = matches!(report.state, State::Carrying | State::Standby);
        for (side, is_connected) in [("source", source), ("target", report.target.is_none())] {
            metrics.connected.with_label_values(&[name, side]).set(i64::from(is_connected));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::bridge::core::Load;
    use crate::bridge::direction::status::Status;

    #[test]
    fn what_turns_out_to_be_the_sources_was_never_counted_as_received() {
        let registry = Registry::new();
        let counts = Counts::register(&registry).unwrap();
        let now = Instant::now();
        let mut status = Status::at(now);
        status.figures.counts.journalled = 2449;
        status.uncertain = Load { rows: 500, bytes: 9 };
        counts.show("a-to-b", &status.report(now, 0, 1));
        (status.uncertain, status.returned) = (Load::default(), status.uncertain);
        counts.show("a-to-b", &status.report(now, 0, 1));
        let shown = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            "vault_bridge_messages_total{bridge=\"a-to-b\",hop=\"received\"} 2449",
            "vault_bridge_uncertain_messages{bridge=\"a-to-b\"} 0",
            "vault_bridge_returned_messages{bridge=\"a-to-b\"} 500",
        ] {
            assert!(shown.lines().any(|it| it == line), "{line}: {shown}");
        }
    }
}

//! What operators watch of the queues: their sums, the largest of them for Prometheus, and what nobody
//! serves. Knows no broker and no handlers; asks the queues, changes nothing.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};
use serde::Serialize;

use super::journal::{JournalError, left};
use super::message::DEAD_LETTERS;
use super::{QueueError, QueueStatus, Queues};

/// So many queues, those with most messages, have gauges of their own: names are the clients' choice.
const SHOWN: usize = 50;
/// So many are named in a sentence.
const NAMED: usize = 3;

/// Whose messages are taken by somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Served {
    /// Clients of the broker may take those of every queue.
    All,
    /// Only deliveries take some.
    Only(BTreeSet<String>),
}

/// The queues in sum, without temporary ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Overview {
    /// Queues, without that of dead letters.
    pub queues: usize,
    /// Messages in them, in consumers' hands or not.
    pub messages: u64,
    /// Bytes of these that the journal keeps.
    pub bytes: u64,
    /// When the oldest of these came, in ms since 1970.
    pub oldest_at: Option<u64>,
    /// Messages that nobody could process.
    pub dead_letters: u64,
    /// Bytes that the journal holds, and may hold.
    pub journal: (u64, u64),
    /// The same of the memory for non-persistent messages.
    pub memory: (u64, u64),
    /// What an operator should look at, each in a few words.
    pub troubles: Vec<String>,
}

impl Queues {
    /// How they are, in sum and each by itself.
    ///
    /// # Errors
    /// [`QueueError::Journal`], [`QueueError::Stopped`].
    pub async fn overview(&self, served: &Served) -> Result<(Overview, Vec<QueueStatus>), QueueError> {
        let mut all = self.list().await?;
        all.retain(|queue| !queue.state.destination.is_temporary());
        let (gate, settings) = (self.gate(), &self.shared.settings);
        let memory = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
        let mut overview = Overview {
            journal: (gate.stored_bytes, settings.journal_bytes),
            memory: (memory(gate.resident_bytes), memory(settings.memory_bytes)),
            ..Overview::default()
        };
        for QueueStatus { state, oldest_at } in &all {
            if state.destination.name() == DEAD_LETTERS {
                overview.dead_letters = state.depth;
                continue;
            }
            overview.queues += 1;
            overview.messages += state.depth;
            overview.bytes += state.bytes;
            overview.oldest_at = [overview.oldest_at, *oldest_at].into_iter().flatten().min();
        }
        let waiting = all.iter().map(|queue| (queue.state.destination.name(), queue.state.depth));
        overview.troubles.extend(stranded(waiting, served));
        if let dead @ 1.. = overview.dead_letters {
            overview.troubles.push(format!(
                "{dead} dead letters: vault message browse {DEAD_LETTERS}, then vault message retry, or purge"
            ));
        }
        Ok((overview, all))
    }
}

/// What waits in a journal's file for nobody; changes nothing there, and may be asked while it is open.
///
/// # Errors
/// SQLite's own.
pub fn left_behind(file: &Path, served: &Served) -> Result<Option<String>, JournalError> {
    let left = left(file)?;
    Ok(stranded(left.iter().map(|(name, messages)| (&**name, *messages)), served))
}

/// Messages of queues that nobody serves, in a sentence. Dead letters wait for an operator anyway, unless
/// nobody serves any queue.
fn stranded<'a>(waiting: impl Iterator<Item = (&'a str, u64)>, served: &Served) -> Option<String> {
    let Served::Only(served) = served else { return None };
    let counts = |name: &str| !served.contains(name) && (name != DEAD_LETTERS || served.is_empty());
    let (mut messages, mut names) = (0, Vec::new());
    for (name, depth) in waiting.filter(|(name, depth)| *depth > 0 && counts(name)) {
        messages += depth;
        names.push(name.escape_debug().to_string());
    }
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    (messages > 0).then(|| {
        format!(
            "{messages} messages wait in queues that nothing serves ({}{more}): no [broker] and no [[delivery]] \
             of theirs is configured; configure it as before until they are gone, or vault message move or purge \
             them",
            names.join(", ")
        )
    })
}

/// The gauges, and the names that have some.
#[derive(Debug)]
pub struct Gauges {
    queues: IntGauge,
    messages: IntGauge,
    bytes: IntGauge,
    oldest: IntGauge,
    dead_letters: IntGauge,
    journal: IntGaugeVec,
    memory: IntGaugeVec,
    each: [IntGaugeVec; 4],
    shown: Mutex<BTreeSet<String>>,
}

impl Gauges {
    /// Registers them.
    ///
    /// # Errors
    /// They are registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let made = IntGauge::new(name, help)?;
            registry.register(Box::new(made.clone()))?;
            Ok(made)
        };
        let by = |label: &str, name: &str, help: &str| -> Result<IntGaugeVec, prometheus::Error> {
            let made = IntGaugeVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(made.clone()))?;
            Ok(made)
        };
        Ok(Self {
            queues: gauge("vault_queues", "Queues, without temporary ones and dead letters")?,
            messages: gauge("vault_queues_messages", "Messages that wait or are in consumers' hands")?,
            bytes: gauge("vault_queues_bytes", "Bytes of these that the journal keeps")?,
            oldest: gauge("vault_queues_oldest_seconds", "Age of the oldest of these")?,
            dead_letters: gauge("vault_queues_dead_letters", "Messages that nobody could process")?,
            journal: by("what", "vault_queues_journal_bytes", "Bytes in the queues' journal: used, limit")?,
            memory: by("what", "vault_queues_memory_bytes", "Bytes of messages in memory: used, limit")?,
            each: [
                by("queue", "vault_queue_messages", "Messages of one of the largest queues")?,
                by("queue", "vault_queue_bytes", "Bytes that the journal keeps of it")?,
                by("queue", "vault_queue_oldest_seconds", "Age of its oldest message")?,
                by("queue", "vault_queue_consumers", "Its consumers")?,
            ],
            shown: Mutex::default(),
        })
    }

    /// Brings them up to date. `now`: ms since 1970.
    pub fn show(&self, overview: &Overview, mut all: Vec<QueueStatus>, now: u64) {
        let whole = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let age = |at: Option<u64>| whole(at.map_or(0, |at| now.saturating_sub(at) / 1000));
        self.queues.set(i64::try_from(overview.queues).unwrap_or(i64::MAX));
        self.messages.set(whole(overview.messages));
        self.bytes.set(whole(overview.bytes));
        self.oldest.set(age(overview.oldest_at));
        self.dead_letters.set(whole(overview.dead_letters));
        for (gauge, (used, limit)) in [(&self.journal, overview.journal), (&self.memory, overview.memory)] {
            gauge.with_label_values(&["used"]).set(whole(used));
            gauge.with_label_values(&["limit"]).set(whole(limit));
        }
        all.sort_by(|one, other| {
            let size = |queue: &QueueStatus| (queue.state.depth, queue.state.bytes);
            size(other).cmp(&size(one)).then_with(|| one.state.destination.cmp(&other.state.destination))
        });
        all.truncate(SHOWN);
        let names = all.iter().map(|queue| queue.state.destination.name().to_owned()).collect();
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in shown.difference(&names) {
            for gauge in &self.each {
                // It is there: it was set when the name came.
                let _gone = gauge.remove_label_values(&[gone]);
            }
        }
        *shown = names;
        for QueueStatus { state, oldest_at } in &all {
            let values = [whole(state.depth), whole(state.bytes), age(*oldest_at), whole(state.consumers)];
            for (gauge, value) in self.each.iter().zip(values) {
                gauge.with_label_values(&[state.destination.name()]).set(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::core::QueueState;
    use crate::queue::message::Destination;

    fn status(name: &str, depth: u64) -> QueueStatus {
        let destination = Destination::queue(name).unwrap();
        let state = QueueState {
            number: 1,
            destination,
            depth,
            in_flight: 0,
            consumers: 2,
            enqueued: 0,
            dequeued: 0,
            dead: 0,
            bytes: depth * 10,
            first_at: None,
        };
        QueueStatus { state, oldest_at: (depth > 0).then_some(4_000) }
    }

    #[test]
    fn the_largest_queues_have_gauges_and_no_more_than_fifty_whoever_names_them() {
        let registry = Registry::new();
        let gauges = Gauges::register(&registry).unwrap();
        let text = || prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let all = (0..200).map(|number| status(&format!("q{number}"), number)).collect();
        let overview = Overview { dead_letters: 7, journal: (30, 100), ..Overview::default() };
        gauges.show(&overview, all, 9_000);
        let told = text();
        assert_eq!(told.matches("vault_queue_messages{").count(), SHOWN);
        for line in [
            "vault_queue_messages{queue=\"q199\"} 199",
            "vault_queue_bytes{queue=\"q150\"} 1500",
            "vault_queue_oldest_seconds{queue=\"q199\"} 5",
            "vault_queue_consumers{queue=\"q199\"} 2",
            "vault_queues_dead_letters 7",
            "vault_queues_journal_bytes{what=\"used\"} 30",
            "vault_queues_journal_bytes{what=\"limit\"} 100",
        ] {
            assert!(told.contains(line), "{line}: {told}");
        }
        gauges.show(&overview, vec![status("q\"1", 1)], 9_000);
        let told = text();
        assert_eq!(told.matches("vault_queue_messages{").count(), 1, "who left is not told of: {told}");
        assert!(told.contains("vault_queue_messages{queue=\"q\\\"1\"} 1"), "{told}");
    }

    #[test]
    fn what_nobody_serves_is_told_and_what_somebody_serves_is_not() {
        let waiting = || [("orders", 3), ("empty", 0), (DEAD_LETTERS, 1)].into_iter();
        let only = |names: &[&str]| Served::Only(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(stranded(waiting(), &Served::All), None);
        assert_eq!(stranded(waiting(), &only(&["orders"])), None);
        let told = stranded(waiting(), &only(&[])).unwrap();
        assert!(told.starts_with("4 messages wait") && told.contains("(orders, ActiveMQ.DLQ)"), "{told}");
        let told = stranded(waiting(), &only(&["shop"])).unwrap();
        assert!(told.starts_with("3 messages wait") && told.contains("(orders)"), "{told}");
        let many: Vec<_> = (0..9).map(|number| format!("q{number}")).collect();
        let told = stranded(many.iter().map(|name| (&**name, 1)), &only(&[])).unwrap();
        assert!(told.contains("(q0, q1, q2 and 6 more)"), "{told}");
    }

    #[tokio::test]
    async fn a_journal_tells_what_it_holds_open_or_closed_and_one_that_is_not_there_holds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("queue.db");
        let nobody = Served::Only(BTreeSet::new());
        assert_eq!(left_behind(&file, &nobody).unwrap(), None);
        assert!(!file.exists(), "a look makes nothing");
        let queues = Queues::open(super::super::Settings::new(file.clone())).unwrap();
        let (session, deliveries) = queues.connect();
        let send = super::super::core::Send {
            destination: Destination::queue("orders").unwrap(),
            persistent: true,
            priority: 4,
            producer: None,
            again: false,
            message: super::super::message::Message {
                name: "m".into(),
                at: 1,
                expiration: 0,
                marks: None,
                origin: None,
                body: bytes::Bytes::from_static(b"x"),
            }
            .into(),
        };
        session.send(send, None).await.unwrap().await.unwrap();
        let told = left_behind(&file, &nobody).unwrap().unwrap();
        assert!(told.starts_with("1 messages wait") && told.contains("(orders)"), "{told}");
        let (overview, all) = queues.overview(&nobody).await.unwrap();
        assert_eq!((overview.messages, overview.queues, overview.bytes > 0), (1, 1, true));
        assert!(all.iter().any(|queue| queue.state.destination.name() == "orders"));
        assert_eq!(overview.troubles, vec![told.clone()]);
        assert_eq!(overview.journal.0, overview.bytes);
        drop((session, deliveries));
        queues.close().await;
        assert_eq!(left_behind(&file, &nobody).unwrap(), Some(told));
        assert_eq!(left_behind(&file, &Served::All).unwrap(), None);
    }
}

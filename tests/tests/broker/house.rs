//! What the stories share: two vaults with a broker each and one virtual machine with clients, and
//! short words for what a story does with them. Promises nothing by itself.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::Context as _;
use harness::cluster::temporary_folder;
use harness::java_client::{
    Acknowledge, Connection, Consumer, JavaClient, Letter, Login, Received, Refusal, Session, Value,
};
use harness::vault_host::{Pair, PairPlan};
use harness::wait;
use tempfile::TempDir;

/// Far longer than anything takes, on a busy machine too.
pub(super) const SOON: Duration = Duration::from_secs(60);
/// How long nothing must come for nothing to be taken as the answer.
pub(super) const QUIET: Duration = Duration::from_millis(300);
/// Redelivered at once, once, and dead then.
pub(super) const ONCE: &str =
    "jms.redeliveryPolicy.maximumRedeliveries=1&jms.redeliveryPolicy.initialRedeliveryDelay=0";
pub(super) const OPEN: &str = "in_clear = true\nanonymous = true\n";

pub(super) struct House {
    // Ends before the vaults do.
    pub(super) java: JavaClient,
    pub(super) pair: Pair,
    _folder: TempDir,
}

static HOUSE: Mutex<Weak<House>> = Mutex::new(Weak::new());

impl House {
    pub(super) fn start(lines: &str) -> Self {
        Self::planned(PairPlan { broker: Some(lines.to_owned()), ..PairPlan::default() })
    }

    pub(super) fn planned(plan: PairPlan) -> Self {
        let folder = temporary_folder().unwrap();
        let pair = Pair::start(folder.path(), &plan).unwrap();
        let java = JavaClient::start(folder.path()).unwrap();
        Self { java, pair, _folder: folder }
    }

    /// The one that stories share which run at the same time.
    pub(super) fn shared() -> Arc<Self> {
        let mut known = HOUSE.lock().unwrap_or_else(PoisonError::into_inner);
        known.upgrade().unwrap_or_else(|| {
            let house = Arc::new(Self::start(OPEN));
            *known = Arc::downgrade(&house);
            house
        })
    }

    pub(super) fn uri(&self) -> String {
        format!("tcp://{}", self.pair.vaults[0].broker)
    }

    /// Megabytes that its first vault has in memory.
    pub(super) fn resident(&self) -> f64 {
        let pid = self.pair.vaults[0].program.as_ref().unwrap().pid().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    }

    /// How many clients its first vault counts.
    pub(super) fn clients(&self) -> anyhow::Result<u64> {
        let status = self.pair.vaults[0].command(&["--json", "status"])?;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        status["broker"]["clients"].as_u64().context("no number of clients")
    }

    /// What its first vault has logged.
    pub(super) fn log(&self) -> String {
        self.pair.vaults[0].program.as_ref().unwrap().log()
    }

    pub(super) fn connect(&self, options: &str) -> Connection {
        self.java.connect(&Login::to(&format!("{}?{options}", self.uri()))).unwrap()
    }

    pub(super) fn session(&self, mode: Acknowledge) -> Session {
        self.connect("").session(mode).unwrap()
    }
}

pub(super) fn put(session: &Session, queue: &str, texts: &[&str]) {
    for text in texts {
        session.send(queue, &Letter::text(text)).unwrap();
    }
}

pub(super) fn take(consumer: &Consumer<'_>, count: usize) -> Vec<Received> {
    (0..count).map(|_| consumer.receive(SOON).unwrap().expect("nothing comes")).collect()
}

pub(super) fn texts(received: &[Received]) -> Vec<&str> {
    received.iter().filter_map(Received::text).collect()
}

/// What each says of itself: its text, is it redelivered, how often was it delivered.
pub(super) fn counted(received: &[Received]) -> Vec<(&str, bool, u32)> {
    received.iter().map(counts).collect()
}

pub(super) fn counts(received: &Received) -> (&str, bool, u32) {
    (received.text().unwrap_or(""), received.redelivered, received.delivery_count)
}

pub(super) fn waiting(session: &Session, queue: &str) -> Vec<String> {
    let seen = session.browse(queue, 1000).unwrap();
    texts(&seen).into_iter().map(str::to_owned).collect()
}

pub(super) fn refused<T: std::fmt::Debug>(asked: anyhow::Result<T>) -> Refusal {
    let error = asked.unwrap_err();
    Refusal::of(&error).unwrap_or_else(|| panic!("{error:#}")).clone()
}

/// Waits until a message is a dead letter; tells it as a browser sees it.
pub(super) fn dead(session: &Session, sent: &Received) -> Received {
    let dead = wait::until("it is a dead letter", SOON, || {
        let dead = session.browse("ActiveMQ.DLQ", 1000)?;
        dead.into_iter().find(|dead| dead.id == sent.id).context("not yet")
    });
    dead.unwrap()
}

/// Why a dead letter is one.
pub(super) fn cause(dead: &Received) -> &str {
    match dead.properties.get("dlqDeliveryFailureCause") {
        Some(Value::String(cause)) => cause,
        other => panic!("{other:?}"),
    }
}

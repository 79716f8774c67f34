//! Many messages over many connections, for measurements and for stories in which something is
//! killed under load: what is certain stands in a file, one line each.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use serde_json::json;

use super::{Login, PATIENCE, Refusal, Talk};

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Its lines: the producer, the message's number.
    Send,
    /// Its lines: the connection, the producer, the message's number, `true` if redelivered.
    Receive,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Load {
    /// Which way.
    pub kind: Kind,
    /// As [`super::Session`] takes it.
    pub destination: String,
    /// How many connections, each with a thread.
    pub connections: u32,
    /// How many messages over all of them; receivers end there.
    pub messages: u64,
    /// Each one's body, bytes.
    pub bytes: u32,
    /// Are they sent so that they survive a restart?
    pub persistent: bool,
    /// How many make a transaction; 0: none.
    pub batch: u32,
    /// Begins the names of the producers, which end with the place of the connection.
    pub name: String,
    /// Receivers end as well when nothing came for so long.
    pub idle: Duration,
    /// Where the lines go: sent messages that the broker has confirmed, received ones that were
    /// acknowledged.
    pub file: Option<PathBuf>,
}

impl Load {
    /// Over one connection, 1 KiB each, persistent, one by one, without a file.
    #[must_use]
    pub fn new(kind: Kind, destination: &str, messages: u64) -> Self {
        Self {
            kind,
            destination: destination.to_owned(),
            connections: 1,
            messages,
            bytes: 1024,
            persistent: true,
            batch: 0,
            name: "p".to_owned(),
            idle: Duration::from_secs(10),
            file: None,
        }
    }
}

/// How far a load is, or how it ended.
#[derive(Debug, Clone, Deserialize)]
pub struct Outcome {
    /// Have all connections ended?
    pub done: bool,
    /// So many were confirmed or acknowledged.
    pub messages: u64,
    /// From the first to the last of them.
    pub seconds: f64,
    /// What ended a connection before its time.
    pub errors: Vec<Refusal>,
}

/// One that goes on by itself.
#[derive(Debug)]
pub struct Run {
    talk: Arc<Talk>,
    number: u32,
}

impl Run {
    pub(super) fn begin(talk: &Arc<Talk>, login: &Login, load: &Load) -> anyhow::Result<Self> {
        let mut words = login.words();
        let more = json!({
            "kind": match load.kind { Kind::Send => "send", Kind::Receive => "receive" },
            "destination": load.destination,
            "connections": load.connections,
            "messages": load.messages,
            "bytes": load.bytes,
            "persistent": load.persistent,
            "batch": load.batch,
            "name": load.name,
            "idle": u64::try_from(load.idle.as_millis())?,
            "file": load.file,
        });
        if let (Some(all), serde_json::Value::Object(more)) = (words.as_object_mut(), more) {
            all.extend(more);
        }
        Ok(Self { talk: Arc::clone(talk), number: talk.ask("load", words)? })
    }

    /// How far it is.
    ///
    /// # Errors
    /// The client has ended.
    pub fn state(&self) -> anyhow::Result<Outcome> {
        self.talk.ask("load_state", json!({ "load": self.number }))
    }

    /// Waits until it is through.
    ///
    /// # Errors
    /// It is not in time, or the client has ended.
    pub fn wait(&self, within: Duration) -> anyhow::Result<Outcome> {
        self.talk.ask_within("load_wait", json!({ "load": self.number }), within)
    }

    /// Ends it after what each connection has in hand.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn stop(&self) -> anyhow::Result<Outcome> {
        self.talk.ask_within("load_stop", json!({ "load": self.number }), PATIENCE)
    }
}

/// The whole lines of a load's file, each as its words. The last one may be torn.
///
/// # Errors
/// The file cannot be read.
pub fn lines(file: &Path) -> anyhow::Result<Vec<Vec<String>>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    Ok(whole.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect())
}

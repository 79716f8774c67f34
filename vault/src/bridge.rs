//! The bridge: messages of one broker, each once, to another. Knows brokers as OpenWire shows them;
//! not who runs them.
//!
//! A [`direction`] is one way between two brokers, worked until the vault stops. Its rules are pure
//! ([`core`]), what it must not lose is in its [`journal`].

pub mod core;
mod counts;
pub mod direction;
pub mod journal;
pub mod pattern;
mod place;
pub mod trial;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use serde::Serialize;
use shared::shutdown::Shutdown;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use self::core::Limits;
use self::counts::Counts;
use self::direction::status::{Report, Status};
use self::direction::{Asked, Ears, Settings, Wish};
use self::journal::{JournalError, Left, Letters};
pub use self::place::Place;
use crate::openwire::Destination;

/// How long a broker may take for one answer, unless bytes move.
const PATIENCE: Duration = Duration::from_secs(30);

/// Wishes of operators that wait.
const MOST_ASKED: usize = 4;
/// Ends the names of journals.
const ENDING: &str = "db";

/// A direction as it is configured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its name; the same on both vaults.
    pub name: String,
    /// Where messages come from.
    pub from: Place,
    /// Where they go.
    pub to: Place,
    /// Which ones.
    pub destination: Destination,
    /// Messages under way from the source.
    pub prefetch: u16,
    /// What its journal may hold, in bytes.
    pub journal_bytes: u64,
    /// The vault that carries as long as it can.
    pub preferred: Option<String>,
}

/// Why a direction cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// No such direction.
    #[error("there is no bridge {0:?} here; vault bridge status shows them")]
    Unknown(String),
    /// No such message waits.
    #[error(
        "bridge {name}: no message waits under {sequence} in this vault's journal; vault bridge status shows the first"
    )]
    NoMessage {
        /// The direction.
        name: String,
        /// What was asked for.
        sequence: u64,
    },
    /// There is nothing to settle.
    #[error(
        "bridge {0}: nothing in this vault's journal waits for another source than the one that answers; vault bridge \
         status shows what each vault holds"
    )]
    NothingHeld(String),
    /// There is nothing to accept.
    #[error(
        "bridge {0}: no other target is refused by this vault; vault bridge status shows what each vault waits for"
    )]
    NoneRefused(String),
    /// Its journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It ends, or has ended.
    #[error("bridge {0} is stopping; ask again when vault has started")]
    Stopping(String),
    /// A metric is named twice: a fault of the program.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The folder of the journals.
    #[error("{folder}: {source}; give vault's state folder to vault's user")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// All directions of this vault. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Bridge {
    directions: Arc<BTreeMap<String, Handle>>,
    left: Arc<[Left]>,
    counts: Counts,
}

/// A direction that works.
#[derive(Debug)]
struct Handle {
    shown: watch::Receiver<Status>,
    asks: mpsc::Sender<Asked>,
    stand_back: watch::Sender<bool>,
    /// The other vault is the one that should carry.
    is_second: bool,
    file: PathBuf,
    journal_bytes: u64,
}

/// What is shown of them all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Overview {
    /// Each direction.
    pub directions: BTreeMap<String, Report>,
    /// Journals of bridges that are not configured any more, and that hold something.
    pub left: Vec<Left>,
}

impl Bridge {
    /// Starts them; they run until `shutdown`. Call inside a runtime.
    ///
    /// # Errors
    /// See [`BridgeError`]; none was started then.
    pub fn start(
        plans: &[Plan],
        vault: &str,
        state: &Path,
        registry: &Registry,
        shutdown: &Shutdown,
    ) -> Result<Self, BridgeError> {
        let folder = state.join("bridge");
        for Plan { name, from, to, .. } in plans {
            for option in from.uri.ignored.iter().chain(&to.uri.ignored) {
                tracing::warn!(bridge = %name, "bridge {name}: {option} has no effect here; take it out of the URI");
            }
        }
        let settings: Vec<Settings> = plans.iter().map(|plan| plan.settings(vault, &folder)).collect();
        if !settings.is_empty() {
            std::fs::create_dir_all(&folder)
                .map_err(|source| BridgeError::Folder { folder: folder.clone(), source })?;
        }
        let left = left_behind(&folder, plans);
        let start = |(plan, settings): (&Plan, Settings)| {
            let (status, shown) = watch::channel(Status::at(Instant::now()));
            let (asks, asked) = mpsc::channel(MOST_ASKED);
            let is_second = plan.preferred.as_ref().is_some_and(|preferred| preferred != vault);
            // Until it is known how the other one is, it goes first.
            let (stand_back, heard) = watch::channel(is_second);
            let handle = Handle {
                shown,
                asks,
                stand_back,
                is_second,
                file: settings.file.clone(),
                journal_bytes: plan.journal_bytes,
            };
            let ears = Ears { asked, stand_back: heard };
            tokio::spawn(direction::run(Arc::new(settings), status, ears, shutdown.clone()));
            (plan.name.clone(), handle)
        };
        let directions: BTreeMap<_, _> = plans.iter().zip(settings).map(start).collect();
        let counts = if directions.is_empty() { Counts::default() } else { Counts::register(registry)? };
        Ok(Self { directions: Arc::new(directions), left: left.into(), counts })
    }

    /// Is there none, and nothing left of one?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.directions.is_empty() && self.left.is_empty()
    }

    /// Each direction by its name, as it is now. Brings the metrics up to date.
    #[must_use]
    pub fn overview(&self) -> Overview {
        let now = (Instant::now(), direction::now());
        let report = |(name, handle): (&String, &Handle)| {
            let report = handle.shown.borrow().report(now.0, now.1, handle.journal_bytes);
            self.counts.show(name, &report);
            (name.clone(), report)
        };
        Overview { directions: self.directions.iter().map(report).collect(), left: self.left.to_vec() }
    }

    /// Asks of each direction whether the other vault is to carry it: its name, whether that one should as
    /// long as it can, and how it is here.
    pub fn stand_back(&self, mut is_to: impl FnMut(&str, bool, &Report) -> bool) {
        let now = (Instant::now(), direction::now());
        for (name, handle) in self.directions.iter() {
            let report = handle.shown.borrow().report(now.0, now.1, handle.journal_bytes);
            let stand_back = is_to(name, handle.is_second, &report);
            handle.stand_back.send_if_modified(|it| std::mem::replace(it, stand_back) != stand_back);
        }
    }

    /// Dead letters behind that sequence, at most so many.
    ///
    /// # Errors
    /// No such direction, or its journal.
    pub async fn dead_letters(&self, name: &str, after: u64, most: usize) -> Result<Letters, BridgeError> {
        let file = self.handle(name)?.file.clone();
        let read = tokio::task::spawn_blocking(move || journal::dead_letters(&file, after, most));
        match read.await {
            Ok(read) => Ok(read?),
            // It is never cancelled.
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Does that with all messages of a direction that it is about; tells how many there were.
    ///
    /// # Errors
    /// No such direction or message, nothing to settle or to accept, its journal, or vault stops.
    pub async fn wish(&self, name: &str, wish: Wish) -> Result<u64, BridgeError> {
        let (answer, answered) = oneshot::channel();
        let owned = || name.to_owned();
        let none = match wish {
            Wish::Bury { sequence, .. } => Some(BridgeError::NoMessage { name: owned(), sequence }),
            Wish::Settle { .. } => Some(BridgeError::NothingHeld(owned())),
            Wish::Accept => Some(BridgeError::NoneRefused(owned())),
            Wish::Revive | Wish::Purge(_) => None,
        };
        let stopping = || BridgeError::Stopping(owned());
        let asked = self.handle(name)?.asks.send(Asked { wish, answer }).await;
        asked.map_err(|_| stopping())?;
        let count = answered.await.map_err(|_| stopping())??;
        match none.filter(|_| count == 0) {
            Some(none) => Err(none),
            None => Ok(count),
        }
    }

    fn handle(&self, name: &str) -> Result<&Handle, BridgeError> {
        self.directions.get(name).ok_or_else(|| BridgeError::Unknown(name.to_owned()))
    }
}

impl Overview {
    /// What an operator should know of, by direction.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        let each = |(name, report): (&String, &Report)| Some(format!("{name}: {}", report.trouble()?));
        let left = self.left.iter().map(|left| {
            format!(
                "{}: no such bridge is configured, and its journal holds {} messages and {} dead letters; \
                 configure it as before until they have gone on",
                left.name, left.messages, left.dead
            )
        });
        self.directions.iter().filter_map(each).chain(left).collect()
    }
}

/// Journals of no direction that is planned, and that hold something.
fn left_behind(folder: &Path, plans: &[Plan]) -> Vec<Left> {
    let mut left = Vec::new();
    for file in std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let file = file.path();
        let is_journal = file.extension().is_some_and(|ending| ending == ENDING);
        let Some(name) = file.file_stem().and_then(|name| name.to_str()).filter(|_| is_journal) else {
            continue;
        };
        if plans.iter().any(|plan| plan.name == name) {
            continue;
        }
        match journal::left(&file, name) {
            Ok(found) if found.messages + found.dead > 0 => left.push(found),
            Ok(_) => {}
            Err(error) => tracing::warn!("bridge {name} is not configured any more: {error}"),
        }
    }
    left.sort_by(|one, other| one.name.cmp(&other.name));
    left
}

impl Plan {
    fn settings(&self, vault: &str, folder: &Path) -> Settings {
        Settings {
            name: self.name.clone(),
            vault: vault.to_owned(),
            file: folder.join(format!("{}.{ENDING}", self.name)),
            from: self.from.clone(),
            to: self.to.clone(),
            destination: self.destination.clone(),
            limits: Limits { journal_bytes: self.journal_bytes, ..Limits::default() },
            prefetch: self.prefetch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::core::Write;
    use crate::bridge::journal::Journal;
    use crate::openwire::{Message, MessageKind, ProducerId, Text};

    #[tokio::test]
    async fn a_journal_that_is_left_behind_is_told_of_as_long_as_it_holds_something() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bridge")).unwrap();
        let file = folder.path().join("bridge").join("old.db");
        let mut journal = Journal::open(&file, [1; 16], "a -> b").unwrap();
        let producer = ProducerId { connection: Text::shortened("p"), value: 1, session: 1 };
        let queue = Destination::queue(Text::shortened("orders"));
        let message = Message::new(MessageKind::Plain, producer.message(1), queue);
        journal.write(vec![Write::Batch(1, vec![Arc::new(message)])], 0).unwrap();
        let start =
            || Bridge::start(&[], "vault-a", folder.path(), &Registry::new(), &Shutdown::new()).unwrap();
        let troubles = start().overview().troubles();
        assert!(troubles.len() == 1 && troubles[0].starts_with("old: no such bridge"), "{troubles:?}");
        let unknown = start().wish("old", Wish::Purge(None)).await.unwrap_err();
        assert!(unknown.to_string().starts_with("there is no bridge \"old\""), "{unknown}");
        journal.write(vec![Write::Drop(1)], 0).unwrap();
        assert!(start().is_empty());
    }
}

//! One direction of the bridge at work: joins the rules ([`super::core`]), the journal, and the two
//! connections. Decides nothing that the rules decide. It never ends by itself: whatever fails is
//! told in its [`Status`] and the log, and tried again.

mod badge;
mod source;
mod stand;
pub mod status;
mod target;
mod tries;
mod work;

use std::any::Any;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use shared::retry::Backoff;
use shared::shutdown::Shutdown;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};

use super::Place;
use super::core::Limits;
use super::journal::{self, Birth, JournalError};
use super::pattern::OWN_QUEUES;
use crate::openwire::{Destination, Text};
use status::{LastError, State, Status};
use work::{Direction, End};

/// What lasted so long had not failed at once.
const STEADY: Duration = Duration::from_secs(10);

/// One direction's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name: in the lock's client id, in its queue of receipts and in the log. Both vaults of a
    /// pair give the same direction the same name.
    pub name: String,
    /// This vault's name.
    pub vault: String,
    /// The journal's file, in a folder of its own kind.
    pub file: PathBuf,
    /// Where messages come from.
    pub from: Place,
    /// Where they go.
    pub to: Place,
    /// Which ones: a queue, or a topic, or a pattern (`orders.>`).
    pub destination: Destination,
    /// Bounds and times.
    pub limits: Limits,
    /// Messages that may be under way from the source.
    pub prefetch: u16,
}

impl Settings {
    /// From where to where it leads.
    fn ends(&self) -> String {
        format!("{} -> {}", self.from.name, self.to.name)
    }

    /// Where this vault's badge lies at either broker.
    fn badge(&self) -> Destination {
        Destination::queue(Text::shortened(&format!("{OWN_QUEUES}badge.{}.{}", self.name, self.vault)))
    }

    /// The queue of this vault's receipts at the source.
    #[must_use]
    pub fn receipts(&self) -> String {
        format!("{OWN_QUEUES}receipts.{}.{}", self.name, self.vault)
    }
}

/// What an operator wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// To have all dead letters wait for the target again.
    Revive,
    /// To have them gone: all, or those up to this sequence.
    Purge(Option<u64>),
    /// To have the message that waits under this sequence made one.
    Bury {
        /// Which message.
        sequence: u64,
        /// The operator's words.
        why: String,
    },
    /// To have what waits for a source that is away be ours, or that source's.
    Settle {
        /// Is it ours?
        taken: bool,
    },
    /// To have the target that is refused take the place of the one that is away.
    Accept,
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Revive => write!(f, "dead letters go on again"),
            Self::Purge(None) => write!(f, "dead letters are given up"),
            Self::Purge(Some(through)) => write!(f, "dead letters up to {through} are given up"),
            Self::Bury { sequence, why } => write!(f, "message {sequence} becomes a dead letter ({why:?})"),
            Self::Settle { taken: true } => write!(f, "what is in doubt is sent on"),
            Self::Settle { taken: false } => write!(f, "what is in doubt is forgotten"),
            Self::Accept => write!(f, "the target that was refused takes the place of the old one"),
        }
    }
}

/// A wish, and who hears how many messages it was about.
#[derive(Debug)]
pub struct Asked {
    /// What.
    pub wish: Wish,
    /// The answer.
    pub answer: oneshot::Sender<Result<u64, JournalError>>,
}

/// What a direction is told while it works.
#[derive(Debug)]
pub struct Ears {
    /// Wishes of operators.
    pub asked: mpsc::Receiver<Asked>,
    /// Is the other vault to carry, as long as this is true?
    pub stand_back: watch::Receiver<bool>,
}

/// Carries messages until `shutdown`; call inside a runtime.
pub async fn run(settings: Arc<Settings>, status: watch::Sender<Status>, mut ears: Ears, shutdown: Shutdown) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    loop {
        let begun = Instant::now();
        let end = tokio::select! {
            // A fault of the program in one direction ends neither that for good nor another.
            end = AssertUnwindSafe(carry(&settings, &status, &mut ears)).catch_unwind() => {
                end.unwrap_or_else(|panic| End::Fell(panic_words(&*panic)))
            }
            () = shutdown.cancelled() => return,
        };
        let asked = match end {
            End::Asked(asked) => Some(asked),
            failed @ (End::Failed(_) | End::Fell(_)) => {
                fail(&settings.name, &status, &failed);
                if begun.elapsed() >= STEADY {
                    backoff.reset();
                }
                tokio::select! {
                    () = sleep(backoff.next(random())) => None,
                    asked = ears.asked.recv() => asked,
                    () = shutdown.cancelled() => return,
                }
            }
        };
        // Nobody works with the journal now.
        if let Some(asked) = asked {
            fulfil(&settings, asked).await;
        }
    }
}

/// Until the journal fails, or must be left alone for a while.
async fn carry(settings: &Arc<Settings>, status: &watch::Sender<Status>, ears: &mut Ears) -> End {
    match Direction::open(settings, status, ears).await {
        Ok(mut direction) => {
            let end = direction.work(ears).await;
            direction.close().await;
            end
        }
        Err(error) => End::Failed(error),
    }
}

fn fail(name: &str, status: &watch::Sender<Status>, end: &End) {
    let what = match end {
        End::Failed(error) => error.to_string(),
        End::Fell(why) => format!("a fault of this program: {why}; please report it"),
        End::Asked(_) => return,
    };
    tracing::warn!(bridge = %name, "bridge {name}: {what}; it begins anew by itself");
    status.send_modify(|status| {
        status.turn(State::Stopped, Instant::now());
        status.journal = Some(what.clone());
        status.last_error = Some(LastError { at: now() / 1000, what });
    });
}

async fn fulfil(settings: &Settings, Asked { wish, answer }: Asked) {
    let file = settings.file.clone();
    let asked = wish.clone();
    let done = tokio::task::spawn_blocking(move || match asked {
        Wish::Revive => journal::revive(&file, now()),
        Wish::Purge(through) => journal::purge(&file, through),
        Wish::Bury { sequence, why } => {
            let why = format!("an operator took it out of the way, so the target may have got it: {why}");
            journal::bury(&file, sequence, why).map(u64::from)
        }
        // Of what brokers said, and none is asked now.
        Wish::Settle { .. } | Wish::Accept => Err(JournalError::Ended),
    });
    if let Ok(done) = done.await {
        if let Ok(count) = &done {
            let name = &settings.name;
            tracing::info!(bridge = %name, "bridge {name}: {wish}, as an operator asked: {count} of them");
        }
        // Whoever asked may be gone.
        let _gone = answer.send(done);
    }
}

/// What a panic said.
fn panic_words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned())
}

pub(super) fn random() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX / 2)
}

/// A new journal's identity.
fn fresh() -> Birth {
    let mut birth = Birth::default();
    birth.chunks_mut(4).for_each(|part| part.copy_from_slice(&random().to_be_bytes()));
    birth
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "messages expire by the calendar")]
pub(super) fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.ok().and_then(|since| i64::try_from(since.as_millis()).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests;

//! Senders that find no room: counted, and told of in the log when a spell of it begins, when the first
//! is refused, and when it is over. A spell ends once none was held for a while, so that one whose room
//! comes and goes fills no log. Decides nothing about who is held.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{IntCounterVec, Registry, opts};
use tokio::time::Instant;

use crate::openwire::Destination;
use crate::queue::Lack;

/// There must have been room for so long.
const CALM: Duration = Duration::from_secs(10);
/// So much of a queue's name is told, in characters.
const TOLD: usize = 200;

/// The spell there is, and the counters of all.
#[derive(Debug)]
pub(super) struct Spell {
    held: IntCounterVec,
    refused: IntCounterVec,
    now: Mutex<Option<Seen>>,
}

/// What was seen since it began.
#[derive(Debug)]
struct Seen {
    began: Instant,
    last: Instant,
    held: u64,
    refused: u64,
}

impl Spell {
    /// Registers its counters.
    ///
    /// # Errors
    /// They are registered already.
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| -> Result<IntCounterVec, prometheus::Error> {
            let made = IntCounterVec::new(opts!(name, help), &["full"])?;
            registry.register(Box::new(made.clone()))?;
            // From the start there is something to compare with.
            for lack in [Lack::Journal, Lack::Disk, Lack::Memory] {
                made.with_label_values(&[lack.word()]).inc_by(0);
            }
            Ok(made)
        };
        Ok(Self {
            held: counter(
                "vault_broker_sends_held_total",
                "Messages that waited for room, by what was full",
            )?,
            refused: counter("vault_broker_sends_refused_total", "Messages refused for want of room")?,
            now: Mutex::default(),
        })
    }

    /// A message waits for room.
    pub(super) fn held(&self, lack: Lack, user: &str, to: &Destination) {
        self.held.with_label_values(&[lack.word()]).inc();
        if self.note_held(Instant::now()) {
            tracing::warn!(
                "broker: {} is full, and senders are held: {}, and whoever comes then; {}",
                lack.named(),
                told(user, to),
                lack.remedy()
            );
        }
    }

    /// No room came for it in time.
    pub(super) fn refused(&self, lack: Lack, user: &str, to: &Destination) {
        self.refused.with_label_values(&[lack.word()]).inc();
        if self.note_refused(Instant::now()) {
            tracing::warn!(
                "broker: {} is still full, and messages are refused: {}, and whoever has waited as long",
                lack.named(),
                told(user, to)
            );
        }
    }

    /// Is it over?
    pub(super) fn look(&self, has_room: bool) {
        let now = Instant::now();
        if let Some(Seen { began, last, held, refused }) = self.over(has_room, now) {
            tracing::info!(
                "broker: there is room again: {held} messages were held and {refused} of them refused within {} s",
                last.duration_since(began).as_secs() + 1
            );
        }
    }

    /// Has it begun with this one?
    fn note_held(&self, now: Instant) -> bool {
        let mut seen = self.seen();
        let is_new = seen.is_none();
        let seen = seen.get_or_insert(Seen { began: now, last: now, held: 0, refused: 0 });
        (seen.held, seen.last) = (seen.held + 1, now);
        is_new
    }

    /// Is this one its first?
    fn note_refused(&self, now: Instant) -> bool {
        let mut seen = self.seen();
        let seen = seen.get_or_insert(Seen { began: now, last: now, held: 0, refused: 0 });
        (seen.refused, seen.last) = (seen.refused + 1, now);
        seen.refused == 1
    }

    fn over(&self, has_room: bool, now: Instant) -> Option<Seen> {
        self.seen().take_if(|seen| has_room && now.duration_since(seen.last) >= CALM)
    }

    fn seen(&self) -> MutexGuard<'_, Option<Seen>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who sends where, of which no character breaks a line.
fn told(user: &str, to: &Destination) -> String {
    let name: String = to.name.to_string().chars().take(TOLD).collect();
    let user = if user.is_empty() { "a client".to_owned() } else { user.escape_debug().to_string() };
    format!("{user}, who sends to {}", name.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openwire::Text;

    #[test]
    fn a_spell_is_told_of_once_however_often_room_comes_and_goes() {
        let spell = Spell::register(&Registry::new()).unwrap();
        let at = |began: Instant, seconds| began + Duration::from_secs(seconds);
        let began = Instant::now();
        assert!(spell.note_held(began), "the first is told");
        assert!(!spell.note_held(at(began, 5)));
        assert!(spell.note_refused(at(began, 30)), "and that one is refused");
        assert!(!spell.note_refused(at(began, 31)));
        assert!(spell.over(true, at(began, 32)).is_none(), "room has come for a moment");
        assert!(!spell.note_held(at(began, 33)));
        assert!(spell.over(false, at(began, 99)).is_none(), "nobody sends, and it is full");
        let seen = spell.over(true, at(began, 100)).unwrap();
        assert_eq!((seen.held, seen.refused), (3, 2));
        assert!(spell.over(true, at(began, 200)).is_none(), "told once");
        assert!(spell.note_held(at(began, 201)), "the next is another");
    }

    #[test]
    fn who_sends_where_is_told_on_one_line_of_bounded_length() {
        let name = format!("a\n{}", "x".repeat(9_000));
        let told = told("erp", &Destination::queue(Text::shortened(&name)));
        assert!(told.starts_with("erp, who sends to a\\nxx"), "{told}");
        assert!(told.len() < 300 && !told.contains('\n'));
    }
}

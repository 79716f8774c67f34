//! What a queue holds: messages, their places, and where they are sent to. Knows neither how they
//! wait nor where they are kept; bodies are opaque.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// Bits of a place that number a queue's messages; enough for 20 years at 50,000 a second.
const SEQUENCE_BITS: u32 = 45;
/// Bits of a place that tell the priority.
pub(super) const PRIORITY_BITS: u32 = 4;
/// Priorities of JMS, 0 to 9.
pub(super) const PRIORITIES: u8 = 10;
/// Queues that a place can tell apart.
pub(super) const MOST_QUEUES: usize = 1 << 14;
/// Longest name of a queue, in bytes.
const LONGEST_NAME: usize = 512;

/// What a message counts beside its body and its names, in bytes. On disk its row, its entry in the index of
/// expirations and the unfilled ends of pages take 32 to 92 of them, measured with 100,000 messages of 1 and 200
/// bytes in 1, 16 and 200 queues; in memory the message, its place in the window or in hands and what their
/// allocations round up take the most of it.
pub(super) const AROUND: usize = 256;

/// Longest reason of a dead letter that is kept, in bytes.
const LONGEST_WHY: usize = 1_024;
/// Longest name of a group or broker that is kept as it is, in bytes.
const LONGEST_MARK: usize = 128;
/// Brokers of a path that are remembered.
const LONGEST_PATH: usize = 64;

/// How ActiveMQ's client begins what it says of a message that it gives back unread, because it had
/// been given it before its connection broke.
///
/// Source: `ActiveMQMessageConsumer` and `ActiveMQSession` of ActiveMQ's client, 5.17 and 5.19.
const DUPLICATES: [&str; 2] = [
    "java.lang.Throwable: Suppressing duplicate delivery on connection",
    "java.lang.Throwable: Duplicate delivery to ",
];

/// Where dead letters go, as in ActiveMQ.
pub const DEAD_LETTERS: &str = "ActiveMQ.DLQ";

/// One priority of one queue; levels of a queue sort by urgency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u32);

impl Level {
    /// A priority above 9 counts as 9.
    #[must_use]
    pub fn new(queue: u16, priority: u8) -> Self {
        let urgency = u32::from(PRIORITIES - 1 - priority.min(PRIORITIES - 1));
        Self((u32::from(queue) << PRIORITY_BITS) | urgency)
    }

    /// Reads it back; `None` for what no [`Level::new`] gives.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        let level = Self(number);
        (usize::from(level.queue()) < MOST_QUEUES && level.index() < usize::from(PRIORITIES)).then_some(level)
    }

    /// For a column of a table.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }

    /// The number of its queue.
    #[must_use]
    pub fn queue(self) -> u16 {
        u16::try_from(self.0 >> PRIORITY_BITS).unwrap_or(u16::MAX)
    }

    /// Its place among the levels of its queue, the most urgent first.
    #[must_use]
    pub fn index(self) -> usize {
        (self.0 & ((1 << PRIORITY_BITS) - 1)) as usize
    }

    /// JMS's priority.
    #[must_use]
    pub fn priority(self) -> u8 {
        (PRIORITIES - 1).saturating_sub(u8::try_from(self.index()).unwrap_or(0))
    }

    /// The place of a message with that number.
    #[must_use]
    pub fn place(self, sequence: u64) -> Id {
        Id((u64::from(self.0) << SEQUENCE_BITS) | (sequence & ((1 << SEQUENCE_BITS) - 1)))
    }

    /// The places of this level: from, and up to but without.
    #[must_use]
    pub fn places(self) -> (Id, Id) {
        (Id(u64::from(self.0) << SEQUENCE_BITS), Id((u64::from(self.0) + 1) << SEQUENCE_BITS))
    }
}

/// A message's place: queue, urgency and number in one. Places of a queue sort as its messages are
/// dispatched. None is given twice, not even after a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(u64);

impl Id {
    /// As it travels (`brokerSequenceId`) and lies in the journal.
    #[must_use]
    pub fn number(self) -> i64 {
        self.0.cast_signed()
    }

    /// What a client or the journal says; a place that nobody has is found nowhere.
    #[must_use]
    pub fn from_number(number: i64) -> Self {
        Self(number.cast_unsigned())
    }

    /// Its level.
    #[must_use]
    pub fn level(self) -> Level {
        Level(u32::try_from(self.0 >> SEQUENCE_BITS).unwrap_or(u32::MAX))
    }

    /// Its number.
    #[must_use]
    pub fn sequence(self) -> u64 {
        self.0 & ((1 << SEQUENCE_BITS) - 1)
    }

    /// The places of a queue: from, and up to but without.
    #[must_use]
    pub fn places_of(queue: u16) -> (Self, Self) {
        let shift = SEQUENCE_BITS + PRIORITY_BITS;
        (Self(u64::from(queue) << shift), Self((u64::from(queue) + 1) << shift))
    }

    /// The next place.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The place before, if there is one.
    #[must_use]
    pub fn before(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }
}

/// Why a message became a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// Its time was over before anybody took it.
    Expired,
    /// A consumer gave it up after its redeliveries, and perhaps says why.
    Poison(Option<Arc<str>>),
}

impl Cause {
    /// A consumer gave it up; of a long reason the beginning is kept.
    #[must_use]
    pub fn poison(why: Option<&str>) -> Self {
        let end = |why: &str| (0..=LONGEST_WHY.min(why.len())).rev().find(|end| why.is_char_boundary(*end));
        Self::Poison(why.map(|why| Arc::from(&why[..end(why).unwrap_or(0)])))
    }

    /// One word, for tables and operators.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Poison(_) => "poison",
        }
    }

    /// What the consumer said.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Poison(why) => why.as_deref(),
            Self::Expired => None,
        }
    }

    /// Did its consumer have it already, and perhaps work on it?
    #[must_use]
    pub fn is_duplicate(&self) -> bool {
        self.why().is_some_and(|why| DUPLICATES.iter().any(|begin| why.starts_with(begin)))
    }

    /// Reads [`Cause::word`] and [`Cause::why`] back.
    #[must_use]
    pub fn from_words(word: &str, why: Option<&str>) -> Option<Self> {
        match word {
            "expired" => Some(Self::Expired),
            "poison" => Some(Self::poison(why)),
            _ => None,
        }
    }
}

/// Where a dead letter was before, and why it is not there any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its queue.
    pub queue: String,
    /// What happened.
    pub cause: Cause,
}

impl Origin {
    /// What it counts, in bytes, beside its message.
    #[must_use]
    pub fn size(&self) -> usize {
        self.queue.len() + self.cause.word().len() + self.cause.why().map_or(0, str::len)
    }
}

/// By what consumers are chosen for a message; most have none of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// JMS's group (`JMSXGroupID`): its messages go to one consumer.
    pub group: Option<Arc<str>>,
    /// Is it the last one of its group (`JMSXGroupSeq` below 0)?
    pub closes: bool,
    /// The brokers that it has passed.
    pub path: Vec<Box<str>>,
}

impl Marks {
    /// Those of a message; `None` if it has none.
    #[must_use]
    pub fn new<'a>(
        group: Option<&str>,
        sequence: i32,
        path: impl IntoIterator<Item = &'a str>,
    ) -> Option<Arc<Self>> {
        let group: Option<Arc<str>> =
            group.filter(|group| !group.is_empty()).map(|group| Self::shortened(group).into());
        let path = path.into_iter().take(LONGEST_PATH).map(|broker| Self::shortened(broker).into());
        let path: Vec<Box<str>> = path.collect();
        let closes = group.is_some() && sequence < 0;
        (group.is_some() || !path.is_empty()).then(|| Arc::new(Self { group, closes, path }))
    }

    /// The path as it lies in the journal, if there is one.
    #[must_use]
    pub fn path_text(&self) -> Option<String> {
        (!self.path.is_empty()).then(|| serde_json::json!(self.path).to_string())
    }

    /// What they count, in bytes: as much as they take in the journal.
    fn size(&self) -> usize {
        let path = self.path_text().map_or(0, |path| path.len());
        self.group.as_ref().map_or(0, |group| group.len()) + path
    }

    /// Names are only compared: of a long one its digest is kept.
    pub(super) fn shortened(name: &str) -> Cow<'_, str> {
        if name.len() <= LONGEST_MARK {
            return name.into();
        }
        blake3::hash(name.as_bytes()).to_hex().to_string().into()
    }
}

/// One message, as its sender gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// JMS's message id, as text.
    pub name: Box<str>,
    /// When it came, in ms since 1970.
    pub at: u64,
    /// When its time is over, in ms since 1970; 0 is never.
    pub expiration: u64,
    /// By what consumers are chosen.
    pub marks: Option<Arc<Marks>>,
    /// Set on dead letters.
    pub origin: Option<Origin>,
    /// The whole marshalled message.
    pub body: Bytes,
}

impl Message {
    /// What it counts against every limit, on disk and in memory, in bytes: its body, the names that stand beside it
    /// too, how it died, and [`AROUND`]. Never less than its body.
    #[must_use]
    pub fn size(&self) -> usize {
        let marks = self.marks.as_ref().map_or(0, |marks| marks.size());
        self.body.len() + self.name.len() + marks + self.origin.as_ref().map_or(0, Origin::size) + AROUND
    }
}

/// A message with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Where it stands.
    pub id: Id,
    /// Is it kept over restarts?
    pub persistent: bool,
    /// The message.
    pub message: Arc<Message>,
}

/// A queue's name and kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// Created at first use, kept over restarts.
    Queue(Box<str>),
    /// Lives as long as the connection that made it, in memory only.
    Temporary(Box<str>),
}

/// Why a text names no queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or too much.
    #[error("a queue's name has 1 to {LONGEST_NAME} bytes; choose another")]
    Length,
    /// Line ends and the like would forge logs and tables.
    #[error("a queue's name has no control characters; choose another")]
    Control,
    /// What nobody sees makes two names look like one.
    #[error(
        "a queue's name has no blanks at its ends, none but spaces within, and no characters without a shape; choose another"
    )]
    Unseen,
    /// Bytes of which names that differ would become one.
    #[error("a queue's name is text, and this is none (no UTF-8); choose another")]
    NoText,
    /// ActiveMQ reads these as patterns and lists.
    #[error("a queue's name has no \"*\", \">\" or \",\": patterns and lists of queues are not served")]
    Pattern,
}

impl Destination {
    /// A queue of that name.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn queue(name: &str) -> Result<Self, NameError> {
        if name.is_empty() || name.len() > LONGEST_NAME {
            return Err(NameError::Length);
        }
        if name.chars().any(char::is_control) {
            return Err(NameError::Control);
        }
        if name.contains(['*', '>', ',']) {
            return Err(NameError::Pattern);
        }
        if name.trim() != name || name.chars().any(is_unseen) {
            return Err(NameError::Unseen);
        }
        if name.contains(char::REPLACEMENT_CHARACTER) {
            return Err(NameError::NoText);
        }
        Ok(Self::Queue(name.into()))
    }

    /// A temporary queue of that name, which its client made up.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn temporary(name: &str) -> Result<Self, NameError> {
        match Self::queue(name)? {
            Self::Queue(name) | Self::Temporary(name) => Ok(Self::Temporary(name)),
        }
    }

    /// Its name alone.
    #[must_use]
    pub fn name(&self) -> &str {
        let (Self::Queue(name) | Self::Temporary(name)) = self;
        name
    }

    /// Does it end with its connection?
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Temporary(_))
    }
}

/// Unicode's blanks without the space, and its format characters (general category Cf, Unicode 16).
fn is_unseen(letter: char) -> bool {
    let blank = letter.is_whitespace() && letter != ' ';
    let format = matches!(
        letter,
        '\u{ad}'
            | '\u{600}'..='\u{605}'
            | '\u{61c}'
            | '\u{6dd}'
            | '\u{70f}'
            | '\u{890}'..='\u{891}'
            | '\u{8e2}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{110bd}'
            | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0001}'..='\u{e007f}'
    );
    blank || format
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(name) => write!(f, "queue {name}"),
            Self::Temporary(name) => write!(f, "temporary queue {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::proptest;

    proptest! {
        #[test]
        fn places_sort_by_queue_then_urgency_then_number(
            one in (0_u16..1 << 14, 0_u8..10, 0_u64..1 << 45), other in (0_u16..1 << 14, 0_u8..10, 0_u64..1 << 45)
        ) {
            let place = |(queue, priority, sequence)| Level::new(queue, priority).place(sequence);
            let key = |(queue, priority, sequence): (u16, u8, u64)| (queue, 9 - priority, sequence);
            assert_eq!(place(one).cmp(&place(other)), key(one).cmp(&key(other)));
            let id = place(one);
            assert_eq!((id.level().queue(), id.level().priority(), id.sequence()), one);
            assert_eq!(Id::from_number(id.number()), id);
            assert!(id.number() >= 0, "SQLite's row numbers are signed");
            assert_eq!(Level::from_number(id.level().number()), Some(id.level()));
            let (from, to) = id.level().places();
            assert!(from <= id && id < to);
            let (from, to) = Id::places_of(one.0);
            assert!(from <= id && id < to);
        }
    }

    #[test]
    fn of_a_long_reason_the_beginning_is_kept() {
        let long = "ä".repeat(1_000);
        let cause = Cause::poison(Some(&long));
        assert_eq!(cause.why().map(str::len), Some(1_024));
        assert_eq!(Cause::from_words(cause.word(), cause.why()), Some(cause));
        let odd = format!("x{long}");
        assert_eq!(Cause::poison(Some(&odd)).why().map(str::len), Some(1_023), "no letter is cut in half");
    }

    #[test]
    fn names_that_forge_lines_or_mean_more_than_one_queue_are_refused() {
        for (name, refused) in [
            ("", NameError::Length),
            (&"x".repeat(513), NameError::Length),
            ("a\nb", NameError::Control),
            ("orders.>", NameError::Pattern),
            ("a,b", NameError::Pattern),
            (" ", NameError::Unseen),
            ("orders ", NameError::Unseen),
            ("a\u{a0}b", NameError::Unseen),
            ("orders\u{202e}", NameError::Unseen),
            ("\u{feff}orders", NameError::Unseen),
            ("\u{fffd}", NameError::NoText),
        ] {
            assert_eq!(Destination::queue(name), Err(refused), "{name:?}");
            assert_eq!(Destination::temporary(name), Err(refused), "{name:?}");
        }
        for name in ["Bestellungen.Köln", "new orders", "注文"] {
            assert_eq!(Destination::queue(name).unwrap().name(), name);
        }
    }
}

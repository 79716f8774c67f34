//! Whether senders find room, as the thread tells it: what is full, in words that say what ends it. Knows no
//! sender.

/// What senders and operators see of the thread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gate {
    /// Senders of non-persistent messages are held.
    pub memory: bool,
    /// Senders of persistent messages are held: the journal has as much as it may.
    pub journal: bool,
    /// The same: the journal's disk has no room but for consuming.
    pub disk: bool,
    /// Why the journal could not be written or read last; `None` once it can.
    pub trouble: Option<String>,
    /// Bytes that the journal holds.
    pub stored_bytes: u64,
    /// Bytes of non-persistent messages.
    pub resident_bytes: usize,
}

impl Gate {
    /// Is it open and shut alike? Nobody is woken by a figure.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.memory, self.journal, self.disk, &self.trouble)
            == (other.memory, other.journal, other.disk, &other.trouble)
    }

    /// What senders of persistent messages, or of others, are held for.
    #[must_use]
    pub fn lack(&self, persistent: bool) -> Option<Lack> {
        match persistent {
            true if self.journal => Some(Lack::Journal),
            true if self.disk => Some(Lack::Disk),
            false if self.memory => Some(Lack::Memory),
            _ => None,
        }
    }

    /// Is there room for one more? Holding what a commit would free helps nobody: transactions have
    /// a bound of their own.
    pub(super) fn admits(&self, persistent: bool, in_transaction: bool) -> bool {
        (!persistent && in_transaction) || self.lack(persistent).is_none()
    }
}

/// What is full when senders are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// The journal has as much as it may.
    Journal,
    /// The journal's disk.
    Disk,
    /// The memory for non-persistent messages.
    Memory,
}

impl Lack {
    /// In one word, as metrics have it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Journal => "journal",
            Self::Disk => "disk",
            Self::Memory => "memory",
        }
    }

    /// As people read it.
    #[must_use]
    pub fn named(self) -> &'static str {
        match self {
            Self::Journal => "the journal",
            Self::Disk => "the journal's disk",
            Self::Memory => "the memory for non-persistent messages",
        }
    }

    /// What lets senders go on.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Journal | Self::Memory => "consume or purge messages, or raise the limit",
            Self::Disk => "consume or purge messages, or make room on that disk",
        }
    }
}

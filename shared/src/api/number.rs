//! The bodies of the API's calls about numbers. Types alone; what becomes of a number is the
//! vault's.

use serde::{Deserialize, Serialize};

use super::Problem;

/// Response header: the life of the vault process that answers, 32 hex digits.
pub const VAULT_LIFE: &str = "vault-life";
/// Request header: the life that this key was first sent to, 32 hex digits.
pub const VAULT_TICKET: &str = "vault-ticket";
/// Request header: the key in doubt in whose place this one is taken.
pub const VAULT_SUPERSEDES: &str = "vault-supersedes";
/// Response header of an answer about numbers that may be stale: the entry of the ledger up to which
/// it is final.
pub const VAULT_FINAL: &str = "vault-final";
/// Longest key of a number, in bytes of visible ASCII.
pub const MAX_NUMBER_KEY: usize = 256;
/// Most keys of one batch.
pub const MAX_BATCH: usize = 10_000;

/// What became of a number. It is never deleted and never given again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NumberState {
    /// Given to a key, not used yet.
    Reserved,
    /// Used by the document whose hash stands beside it.
    Confirmed,
    /// Spoiled; the reason stands beside it.
    Void,
    /// Given to a key that may have been answered otherwise by a vault that lost its disk: the
    /// key is refused; whoever was told this number may confirm it.
    Doubtful,
}

/// One number of a series, as reserve, confirm, void and lookup answer it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Number {
    /// The series' name within its owner.
    pub series: String,
    /// The period that it is counted in, where the series is counted by year or month.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub period: Option<String>,
    /// From 1 upwards, without holes.
    pub number: u64,
    /// How it reads, where the series has a pattern.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub text: Option<String>,
    /// The idempotency key that reserved it.
    pub key: String,
    /// What became of it.
    pub state: NumberState,
    /// Reserved, and neither confirmed nor voided within the series' `expires_after`. Nothing else
    /// changes by it: the number stays the key's.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub expired: bool,
    /// In a list that may be stale: this vault gave it alone, and it is not in the ledger yet.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub alone: bool,
    /// In a list that may be stale: what is said of it last is not known to be in both journals.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub in_doubt: bool,
    /// The caller's hash of the document that uses it, once confirmed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub document_hash: Option<String>,
    /// Why it is void.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// Hash of the ledger's last entry about this number, 64 hex digits.
    pub entry_hash: String,
}

impl Number {
    /// A number that was just reserved: without text, period or anything else said of it.
    #[must_use]
    pub fn reserved(series: String, number: u64, key: String, entry_hash: String) -> Self {
        Self {
            series,
            period: None,
            number,
            text: None,
            key,
            state: NumberState::Reserved,
            expired: false,
            alone: false,
            in_doubt: false,
            document_hash: None,
            reason: None,
            entry_hash,
        }
    }
}

/// Body of `POST /v1/series/{series}/numbers/{number}/confirm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirm {
    /// Any text up to 128 bytes that identifies the document, usually its SHA-256.
    pub document_hash: String,
}

/// Body of `POST /v1/series/{series}/numbers/{number}/void`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Void {
    /// Why the number is spoiled, for the auditor; 1 to 512 bytes.
    pub reason: String,
}

/// Answer of `POST /v1/numbers/re-seed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reseeded {
    /// How many entries of the ledger are carried over to the other vault.
    pub entries: u64,
}

/// Body of `POST /v1/numbers/take-over`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeOver {
    /// Do records go on without the other vault, which is off for sure?
    #[serde(default)]
    pub alone: bool,
}

/// Body of `POST /v1/numbers/token`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenFor {
    /// The name of the vault that may use it.
    pub vault: String,
}

/// Answer of `POST /v1/numbers/token`, body of `POST /v1/numbers/token/open`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenText {
    /// 32 hex digits, in groups. It works once.
    pub token: String,
}

/// Answer of `POST /v1/numbers/take-over` and `POST /v1/numbers/yield`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// The ledger's epoch now.
    pub epoch: u64,
    /// Of a vault that yielded: at most so many writes of records, names and leases that it had
    /// answered alone give way as soon as the two vaults meet.
    #[serde(default)]
    pub given_up: u64,
}

/// A write of a record, a name or a lease that a vault answered alone and that gave way to the other
/// vault's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Its place in the list of them.
    pub place: u64,
    /// Whose.
    pub owner: String,
    /// `record`, `name` or `lease`.
    pub kind: String,
    /// Its name within owner and kind.
    pub name: String,
    /// The version that the writer was told.
    pub version: u64,
    /// What was written, as it stood in the ledger; nothing where the record was removed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub text: Option<String>,
    /// When, by the vault's clock; milliseconds since 1970.
    pub at: i64,
}

/// Body of `POST /v1/numbers/dropped`: all up to here was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LookedAt {
    /// The place of the last of them.
    pub place: u64,
}

/// Answer of `POST /v1/numbers/dropped`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// How many were not looked at yet.
    pub left: u64,
}

/// Answer of `GET /v1/life`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifeAnswer {
    /// The life of the vault process that answers, 32 hex digits.
    pub life: String,
    /// `true`: at a moment during this call both vaults were together, and each knew whatever the
    /// other had given alone. `false`: that could not be made sure.
    #[serde(default)]
    pub together: bool,
}

/// Body of `POST /v1/series/{series}/numbers/batch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// 1 to [`MAX_BATCH`] keys; each gets its own number.
    pub keys: Vec<String>,
    /// For each key the life that it was first sent to, if it has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tickets: Option<Vec<Option<String>>>,
}

/// Answer to [`Batch`], in the order of its keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchAnswer {
    /// One for each key.
    pub items: Vec<BatchItem>,
}

/// What became of one key of a batch: a number, or the problem that it would have met alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchItem {
    /// The key.
    pub key: String,
    /// Its number.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub number: Option<Number>,
    /// Why it has none now.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<Problem>,
}

/// How available a series is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SeriesKind {
    /// Numbers only while both vaults are together, in order.
    Strict,
    /// Each vault may also give from a range of its own.
    Available,
}

/// A series: what an operator has said of it, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Series {
    /// Whose.
    pub owner: String,
    /// Its name within its owner.
    pub series: String,
    /// Follows from `range`.
    pub kind: SeriesKind,
    /// Numbers set aside for each vault; 0: strict.
    pub range: u64,
    /// How its numbers read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pattern: Option<String>,
    /// After how many seconds a reservation is flagged.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expires_after: Option<u64>,
    /// How far it is counted: once, or once for each period.
    pub counts: Vec<Count>,
}

/// How far a series, or one period of it, is counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Which period.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub period: Option<String>,
    /// The highest number given; 0: none.
    pub last: u64,
    /// Reservations that were neither confirmed nor voided yet.
    pub open: u64,
    /// Those of them that are older than `expires_after`.
    pub expired: u64,
    /// Numbers that the vault which answers gave alone, and that are not in the ledger yet: none of
    /// them is counted in `last` and `open`.
    #[serde(skip_serializing_if = "is_none_at_all", default)]
    pub alone: u64,
    /// Numbers set aside for one vault, not all of them given.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub ranges: Vec<Span>,
    /// Numbers that nobody gives any more, since a vault that held them lost its journal and may
    /// have given them. The first [`MAX_SPANS`] spans.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub unaccounted: Vec<Span>,
}

fn is_none_at_all(count: &u64) -> bool {
    *count == 0
}

/// Most spans of a kind that one answer names.
pub const MAX_SPANS: usize = 100;

/// Numbers one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The first.
    pub from: u64,
    /// The last.
    pub to: u64,
    /// The vault that they are, or were, set aside for.
    pub vault: String,
}

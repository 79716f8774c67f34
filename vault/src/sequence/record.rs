//! Records: named values with versions on the numbers' ledger, for several servers that write one
//! value. What a wish does to a record, given what the ledger says of it: an answer, a refusal, or
//! an entry to be made. Pure; knows neither the pair nor the disk nor HTTP.
//!
//! - Whoever writes says which version it has seen ([`Expect`]); of several that have seen the
//!   same one, exactly one writes the next. A version is never given twice, also not after the
//!   record was removed and written anew.
//! - A write carries a key: repeated with the same key and value it is answered what it was
//!   answered first, so whoever heard nothing may ask again.
//! - File names and leases are records too, each kind with names of its own ([`Kind`]).
//! - Reads and writes are linearizable: a write is answered when it is final; whatever is answered
//!   without an entry is answered only once the other vault has said, after it was looked up, that
//!   this one still is the owner ([`front`]). No number series can hold records up: a record is
//!   written together only, or by an owner that goes on alone by an operator's word.

pub(super) mod desk;
pub mod front;
pub mod lease;
pub mod name;

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::entry::{Act, Draft};
use super::reason::{Reason, Told};
use lease::{Claim, Lease, Leases, Tenancy};
pub use name::{Kind, RecordName};

/// Longest value, in bytes of UTF-8.
pub const MAX_VALUE: usize = 64 << 10;
/// Most records, names and leases that one owner may have at a time.
pub const MAX_RECORDS: u64 = 1_000_000;

/// Which version a writer has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// There is no such record.
    Absent,
    /// There is one, whichever version it has: a blind write.
    Any,
    /// This one is the present version.
    Version(u64),
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// At most [`MAX_VALUE`] bytes.
    pub value: String,
    /// Is it JSON, as its writer says and as was looked at?
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub json: bool,
}

/// What stands in the ledger of a version that was put.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// What was put.
    #[serde(flatten)]
    pub content: Content,
    /// The writer's certificate.
    pub by: String,
    /// The writer's idempotency key.
    pub key: String,
}

/// What a caller wants done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wish {
    /// A new version.
    Put {
        /// What it shall say.
        written: Written,
        /// If this is so.
        expect: Expect,
    },
    /// The record shall be gone.
    Remove {
        /// If this is so.
        expect: Expect,
    },
    /// Something about a lease.
    Lease(Claim),
}

/// One version of a record, as the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Its name, within owner and kind.
    pub name: String,
    /// From 1 upwards without holes.
    pub version: u64,
    /// The entry's place in the ledger.
    pub index: u64,
    /// The entry's label: milliseconds since 1970.
    pub at: i64,
    /// The entry's text; `None`: with this version the record is gone.
    pub text: Option<String>,
}

impl Held {
    /// What a record or a file's name says in this version.
    #[must_use]
    pub fn written(&self) -> Option<Written> {
        serde_json::from_str(self.text.as_ref()?).ok()
    }

    /// Who holds a lease in this version.
    #[must_use]
    pub fn tenancy(&self) -> Option<Tenancy> {
        serde_json::from_str(self.text.as_ref()?).ok()
    }
}

/// What the ledger says that matters to one wish.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Context {
    /// The record's last version; `None`: there never was one.
    pub held: Option<Held>,
    /// The version that the wish's key wrote before.
    pub repeated: Option<Held>,
    /// How many records the owner has.
    pub records: u64,
}

impl Wish {
    /// Does it make a lease last, or last longer?
    pub(super) fn renews(&self) -> bool {
        matches!(self, Wish::Lease(Claim::Acquire { .. } | Claim::Renew { .. }))
    }

    /// Its idempotency key, if it has one.
    pub(super) fn key(&self) -> Option<&str> {
        match self {
            Wish::Put { written, .. } => Some(&written.key),
            Wish::Remove { .. } | Wish::Lease(_) => None,
        }
    }
}

/// What became of a wish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The version that it made or found.
    pub version: u64,
    /// `false` where this very call made no entry.
    pub fresh: bool,
    /// Of a lease that is held: how it stands.
    pub lease: Option<Lease>,
}

/// Why a wish cannot be granted, whatever the pair's state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Refused {
    /// Somebody else wrote first, or the writer has seen another record.
    #[error("{}; read it again, and write what follows from that", stands(*.present))]
    Differs {
        /// The present version; `None`: there is no such record.
        present: Option<u64>,
    },
    /// There is none.
    #[error("there is no such record")]
    Absent,
    /// The same key wrote something else.
    #[error("this idempotency key has written another value to this record; take a new key")]
    KeyReused,
    /// The owner has too many.
    #[error(
        "{owner} has {MAX_RECORDS} records, names and leases, which is the most; remove some that are needed no more"
    )]
    Full {
        /// Whose.
        owner: String,
    },
    /// Versions have an end.
    #[error("this record has no version left; take another name")]
    Exhausted,
    /// Another holder has the lease.
    #[error("{by} holds this lease, for another {left} ms unless it is renewed")]
    Held {
        /// The holder's certificate.
        by: String,
        /// The holder's epoch.
        epoch: u64,
        /// In milliseconds.
        left: u64,
    },
    /// The caller does not hold the lease, or holds it no more.
    #[error("this lease is not held by that token in that epoch; stop the work it was for, and acquire it")]
    Lost,
}

fn stands(version: Option<u64>) -> String {
    match version {
        Some(version) => format!("the record is in version {version}"),
        None => "there is no such record".to_owned(),
    }
}

/// Why a record cannot be read or written now. Crosses the link when a wish was forwarded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordError {
    /// The ledger's own rules say no.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The pair is not together; it passes by itself.
    #[error(
        "records need both vaults: {0}; this call wrote nothing; try again, or read with stale=true what may be old"
    )]
    Apart(String),
    /// etcd is the ledger, and is not there; it passes by itself.
    #[error("{0}; this call wrote nothing; try again, or read with stale=true what may be old")]
    NoLedger(String),
    /// The pair is closed until an operator acts.
    #[error("records are closed: {0}")]
    Closed(String),
    /// It may have been written.
    #[error("it is not known yet whether this was written; repeat it with the same key")]
    InDoubt,
    /// Too many wait already.
    #[error("too many requests for records wait already")]
    Busy,
    /// The journal cannot be read.
    #[error("the journal cannot be read; the operator finds the cause in the log")]
    Unreadable,
}

impl From<Reason> for RecordError {
    fn from(reason: Reason) -> Self {
        Told::from(reason).into()
    }
}

impl From<Told> for RecordError {
    fn from(told: Told) -> Self {
        let text = told.to_string();
        match told.reason {
            reason if reason.needs_operator() => Self::Closed(text),
            Reason::NoQuorum | Reason::NotBegun | Reason::Behind => Self::NoLedger(text),
            _ => Self::Apart(text),
        }
    }
}

/// What becomes of a wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The ledger holds the answer already.
    Answer(Done),
    /// No.
    Refuse(Refused),
    /// This must become final first: an entry with this text, or the record's end.
    Make(Done, Option<String>),
    /// An earlier wish of the same round touches the same record: ask again after it.
    Wait,
}

/// Decides one round of wishes: they become final together. A record is touched once a round.
#[derive(Debug, Default)]
pub struct Round {
    touched: HashSet<RecordName>,
    /// Records more, by owner.
    more: HashMap<String, u64>,
}

impl Round {
    /// Does an earlier wish of this round touch that record? Then all others wait, whatever they are.
    #[must_use]
    pub fn touches(&self, name: &RecordName) -> bool {
        self.touched.contains(name)
    }

    /// What becomes of `wish` at an owner who may enter it.
    pub fn decide(
        &mut self,
        name: &RecordName,
        wish: &Wish,
        context: &Context,
        leases: &mut Leases,
        now: Instant,
    ) -> Verdict {
        if self.touches(name) {
            return Verdict::Wait;
        }
        let verdict = match wish {
            Wish::Put { written, expect } => put(written, *expect, context),
            Wish::Remove { expect } => remove(*expect, context),
            Wish::Lease(claim) => leases.decide(name, claim, context, now),
        };
        let Verdict::Make(done, text) = &verdict else { return verdict };
        if done.version > i64::MAX as u64 {
            return Verdict::Refuse(Refused::Exhausted);
        }
        if text.is_some() && current(context).is_none() {
            let more = self.more.entry(name.owner.clone()).or_default();
            if context.records + *more >= MAX_RECORDS {
                return Verdict::Refuse(Refused::Full { owner: name.owner.clone() });
            }
            *more += 1;
        }
        self.touched.insert(name.clone());
        verdict
    }
}

/// The entry that a verdict asks for. `at` only labels it (milliseconds since 1970).
#[must_use]
pub fn draft(name: &RecordName, done: &Done, text: Option<String>, at: i64) -> Draft {
    Draft {
        owner: name.owner.clone(),
        series: name.kind.word().to_owned(),
        number: done.version,
        key: name.name.clone(),
        act: text.map_or(Act::Remove, Act::Put),
        at,
        carried: None,
    }
}

/// The present version, unless the record is gone.
fn current(context: &Context) -> Option<u64> {
    context.held.as_ref().filter(|held| held.text.is_some()).map(|held| held.version)
}

fn next(context: &Context) -> Done {
    let version = context.held.as_ref().map_or(0, |held| held.version) + 1;
    Done { version, fresh: true, lease: None }
}

fn as_expected(expect: Expect, context: &Context) -> Result<(), Refused> {
    let present = current(context);
    let is_so = match expect {
        Expect::Absent => present.is_none(),
        Expect::Any => present.is_some(),
        Expect::Version(version) => present == Some(version),
    };
    if is_so { Ok(()) } else { Err(Refused::Differs { present }) }
}

fn put(written: &Written, expect: Expect, context: &Context) -> Verdict {
    if let Some(before) = &context.repeated {
        let same = before.written().is_some_and(|before| before.content == written.content);
        let done = Done { version: before.version, fresh: false, lease: None };
        return if same { Verdict::Answer(done) } else { Verdict::Refuse(Refused::KeyReused) };
    }
    match as_expected(expect, context) {
        Ok(()) => Verdict::Make(next(context), Some(serde_json::to_string(written).unwrap_or_default())),
        Err(refused) => Verdict::Refuse(refused),
    }
}

/// A removal is safe to repeat without a key: whoever has seen the version before the record's end
/// sees its wish done.
fn remove(expect: Expect, context: &Context) -> Verdict {
    let Some(held) = &context.held else { return Verdict::Refuse(Refused::Absent) };
    if held.text.is_none() {
        let is_done = match expect {
            Expect::Any => true,
            Expect::Version(seen) => seen.checked_add(1) == Some(held.version),
            Expect::Absent => false,
        };
        let done = Done { version: held.version, fresh: false, lease: None };
        return if is_done {
            Verdict::Answer(done)
        } else {
            Verdict::Refuse(Refused::Differs { present: None })
        };
    }
    match as_expected(expect, context) {
        Ok(()) => Verdict::Make(next(context), None),
        Err(refused) => Verdict::Refuse(refused),
    }
}

#[cfg(test)]
mod tests;

//! When etcd becomes the ledger, once for ever: what the two vaults tell each other first, and
//! which of them begins. Pure.
//!
//! A vault that runs as one of a pair gives no number of its own accord but in a session with the
//! other, or from a range that was granted to its very life. So when each has said *in this life*
//! that it takes etcd for the ledger, both lives of the pair are over, and nothing is given any
//! more but through etcd. What they had given must then be in etcd before it counts: the vault
//! whose journal is longer brings it there, ends what ranges are open, and marks etcd's end as that
//! of the ledger itself. From then on no copy is written there, and no vault that has seen the
//! mark starts as one of a pair. The mark names both vaults and the very etcd; a vault begins no
//! second ledger while the other has one, and appends to none that is not theirs ([`misfit`]).
//!
//! Not covered, as in a pair: a vault whose process runs twice, or whose state folder was put back
//! from a copy together with everything that remembers it.

use serde::{Deserialize, Serialize};

use crate::sequence::database::Mark;
use crate::sequence::digest::Digest;
use crate::sequence::entry::{Life, Tail};
use crate::sequence::protocol::{Memory, Nonce};
use crate::sequence::reason::Reason;
use crate::sequence::witness::Witness;

/// What a vault that takes etcd for the ledger tells the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Its name.
    pub name: String,
    /// Its present life.
    pub life: Life,
    /// Its former life, of which nothing is missing.
    pub proven: Option<Life>,
    /// Where its journal ends.
    pub tail: Tail,
    /// So many entries it knows the ledger in etcd to have held.
    pub end: u64,
    /// Which etcd it reads, as etcd itself says.
    pub reads: Option<String>,
    /// Is that one the ledger, as it knows?
    pub begun: bool,
    /// Has its journal been level with the ledger in this life?
    #[serde(default)]
    pub level: bool,
    /// Its journal.
    pub journal: Nonce,
    /// The other's, as it knows it.
    pub knows: Option<Nonce>,
    /// Why its journal cannot be relied on.
    pub unfit: Option<String>,
}

/// One vault tells this, and is told the other's.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Greeting {
    /// It takes etcd for the ledger.
    Truth(Ready),
    /// It fills the empty etcd of this id again; so the other shall take that for the ledger.
    Refill(String),
}

/// What one of the two does.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// Brings its journal into etcd, and marks it.
    Begin,
    /// Waits until the other has.
    Follow,
}

/// Why a journal cannot be relied on, if so. `rows`: numbers given alone that are not in the chain.
#[must_use]
pub fn unfit(memory: &Memory, tail: Tail, witness: Option<Witness>, rows: bool) -> Option<String> {
    let is_old = |witness: &Witness| {
        witness.journal != memory.journal || witness.index > tail.index || witness.solo > memory.solo.index
    };
    if witness.as_ref().is_some_and(is_old) || !memory.whole {
        return Some("its journal is not the one it had, or an old copy of it".to_owned());
    }
    rows.then(|| "numbers that it gave alone are not in the ledger yet".to_owned())
}

/// Why this vault must not use an etcd that says this of itself. `known`: the ids under which this
/// vault and the other have used it.
#[must_use]
pub fn misfit(mark: Option<&Mark>, names: &[String; 2], known: [Option<&String>; 2]) -> Option<Reason> {
    let Some(mark) = mark else { return Some(Reason::LedgerShrunk) };
    let is_other = |known: &String| *known != mark.id;
    let fits = mark.vaults == sorted(names.clone()) && !known.into_iter().flatten().any(is_other);
    (!fits).then_some(Reason::OtherLedger)
}

/// Both vaults' names, as a mark has them.
#[must_use]
pub fn sorted(mut names: [String; 2]) -> [String; 2] {
    names.sort();
    names
}

/// What the operator does where it cannot begin.
const NEXT: &str = "start both with role = \"copy\", or without [sequence.database], until vault status says that they are together";

/// What this vault does. `ours`: the hash of its own chain where the other's journal ends.
///
/// # Errors
/// Why etcd cannot become the ledger yet; what the operator does follows from it.
pub fn plan(own: &Ready, peer: &Ready, ours: Option<Digest>) -> Result<Plan, String> {
    if peer.begun {
        return Err(format!(
            "this etcd is not the one that {} uses; put hosts and database in [sequence.database] right",
            peer.name
        ));
    }
    for (vault, other) in [(own, peer), (peer, own)] {
        if let Some(why) = &vault.unfit {
            return Err(format!("{}: {why}; {NEXT}", vault.name));
        }
        if vault.knows.is_some_and(|known| known != other.journal) {
            return Err(format!(
                "the journal of {} is not the one that {} knows; {NEXT}",
                other.name, vault.name
            ));
        }
    }
    if own.reads.is_none() || own.reads != peer.reads {
        return Err(format!(
            "{} has not read this etcd: it reaches none yet, or another; hosts and database in [sequence.database] must mean the same for both",
            peer.name
        ));
    }
    if (peer.tail.index, &own.name) > (own.tail.index, &peer.name) {
        return Ok(Plan::Follow);
    }
    if ours != Some(peer.tail.hash) {
        return Err(format!("the journals of {} and {} disagree; {NEXT}", own.name, peer.name));
    }
    Ok(Plan::Begin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(name: &str, index: u64) -> Ready {
        let hash = Digest([u8::try_from(index).unwrap(); 32]);
        let journal = Nonce::from(name.as_bytes()[0]);
        Ready {
            name: name.to_owned(),
            life: 1,
            proven: None,
            tail: Tail { index, hash },
            end: 0,
            reads: Some("1".to_owned()),
            begun: false,
            level: false,
            journal,
            knows: None,
            unfit: None,
        }
    }

    #[test]
    fn the_longer_journal_begins_and_of_two_equal_ones_exactly_one() {
        let hash = |index| Some(ready("x", index).tail.hash);
        let (a, b) = (ready("a", 3), ready("b", 5));
        assert_eq!(plan(&a, &b, None), Ok(Plan::Follow));
        assert_eq!(plan(&b, &a, hash(3)), Ok(Plan::Begin));
        let b = ready("b", 3);
        assert_eq!(plan(&a, &b, hash(3)), Ok(Plan::Begin));
        assert_eq!(plan(&b, &a, hash(3)), Ok(Plan::Follow));
    }

    #[test]
    fn nothing_begins_with_a_journal_that_cannot_be_relied_on() {
        let (a, b) = (ready("a", 5), ready("b", 3));
        assert!(plan(&a, &b, ready("x", 4).tail.hash.into()).unwrap_err().contains("disagree"));
        let knows = Ready { knows: Some(9), ..a.clone() };
        assert!(plan(&knows, &b, Some(b.tail.hash)).unwrap_err().contains("the journal of b is not"));
        let torn = Ready { unfit: Some("torn".to_owned()), ..b.clone() };
        assert!(plan(&a, &torn, Some(b.tail.hash)).unwrap_err().contains("b: torn"));
        assert!(plan(&torn, &a, None).unwrap_err().contains("b: torn"));
    }

    #[test]
    fn no_second_ledger_begins_nor_one_that_the_other_vault_does_not_reach() {
        let (a, b) = (ready("a", 5), ready("b", 3));
        let hash = Some(b.tail.hash);
        assert_eq!(plan(&a, &b, hash), Ok(Plan::Begin));
        let begun = Ready { begun: true, ..b.clone() };
        assert!(plan(&a, &begun, hash).unwrap_err().contains("not the one that b uses"));
        for reads in [None, Some("2".to_owned())] {
            let elsewhere = Ready { reads, ..b.clone() };
            assert!(plan(&a, &elsewhere, hash).unwrap_err().contains("b has not read this etcd"));
            assert!(plan(&Ready { reads: None, ..a.clone() }, &elsewhere, hash).is_err());
        }
    }

    #[test]
    fn a_ledger_of_other_vaults_or_in_another_etcd_is_not_used() {
        let names = |one: &str, two: &str| [one.to_owned(), two.to_owned()];
        let mark = Mark { since: 3, id: "1".to_owned(), vaults: names("a", "b") };
        let (same, other) = ("1".to_owned(), "2".to_owned());
        assert_eq!(misfit(Some(&mark), &names("b", "a"), [None, None]), None);
        assert_eq!(misfit(Some(&mark), &names("a", "b"), [Some(&same), Some(&same)]), None);
        assert_eq!(misfit(None, &names("a", "b"), [Some(&same), None]), Some(Reason::LedgerShrunk));
        let refused = Some(Reason::OtherLedger);
        assert_eq!(misfit(Some(&mark), &names("a", "c"), [None, None]), refused);
        assert_eq!(misfit(Some(&mark), &names("a", "b"), [Some(&other), None]), refused);
        assert_eq!(misfit(Some(&mark), &names("a", "b"), [Some(&same), Some(&other)]), refused);
    }

    #[test]
    fn an_old_copy_a_lost_journal_and_rows_given_alone_are_told() {
        let memory = Memory {
            journal: 5,
            epoch: 1,
            owns: true,
            alone: false,
            whole: true,
            solo: Tail::default(),
            peer_journal: None,
            peer_durable: 0,
            settled: 0,
        };
        let tail = ready("x", 3).tail;
        let seen = |journal, index, solo| Some(Witness { journal, index, solo });
        assert_eq!(unfit(&memory, tail, None, false), None);
        assert_eq!(unfit(&memory, tail, seen(5, 3, 0), false), None);
        for witness in [seen(6, 0, 0), seen(5, 4, 0), seen(5, 3, 1)] {
            assert!(unfit(&memory, tail, witness, false).unwrap().contains("old copy"));
        }
        assert!(unfit(&memory, tail, None, true).unwrap().contains("gave alone"));
    }
}

//! When etcd becomes the ledger, once for ever: what the two vaults tell each other first, and
//! which of them begins. Pure.
//!
//! A vault that runs as one of a pair gives no number of its own accord but in a session with the
//! other, or from a range that was granted to its very life. So when each has said *in this life*
//! that it takes etcd for the ledger, both lives of the pair are over, and nothing is given any
//! more but through etcd. What they had given must then be in etcd before it counts: the vault
//! whose journal is longer brings it there, ends what ranges are open, and marks etcd's end as that
//! of the ledger itself. From then on no copy is written there, and no vault that has seen the
//! mark starts as one of a pair.
//!
//! Not covered, as in a pair: a vault whose process runs twice, or whose state folder was put back
//! from a copy together with everything that remembers it.

use serde::{Deserialize, Serialize};

use crate::sequence::digest::Digest;
use crate::sequence::entry::{Life, Tail};
use crate::sequence::protocol::{Memory, Nonce};
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
    /// Where its journal ends, as it did when the pair's work ended.
    pub tail: Tail,
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

/// What this vault does. `ours`: the hash of its own chain where the other's journal ends.
///
/// # Errors
/// Why etcd cannot become the ledger yet; what the operator does follows from it.
pub fn plan(own: &Ready, peer: &Ready, ours: Option<Digest>) -> Result<Plan, String> {
    for (vault, other) in [(own, peer), (peer, own)] {
        if let Some(why) = &vault.unfit {
            return Err(format!("{}: {why}", vault.name));
        }
        if vault.knows.is_some_and(|known| known != other.journal) {
            return Err(format!("the journal of {} is not the one that {} knows", other.name, vault.name));
        }
    }
    if (peer.tail.index, &own.name) > (own.tail.index, &peer.name) {
        return Ok(Plan::Follow);
    }
    if ours != Some(peer.tail.hash) {
        return Err(format!("the journals of {} and {} disagree", own.name, peer.name));
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
        assert_eq!(plan(&a, &torn, Some(b.tail.hash)), Err("b: torn".to_owned()));
        assert_eq!(plan(&torn, &a, None), Err("b: torn".to_owned()));
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

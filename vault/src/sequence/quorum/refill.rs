//! An etcd that has lost everything, in the place of the one that was the ledger: at an operator's
//! word the longer journal's whole chain is written into it, and it is the ledger from then on, under
//! an identity of its own. So the lost one, should it come back, is another.
//!
//! Nothing may be missing then that was ever answered: both vaults must be there, and each must have
//! been level with the ledger in its present life. What it has answered since is in its journal, which
//! only a loss of power could have shortened, and that would have ended its life.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::begin::{Greeting, Ready, sorted};
use super::{ASKED, Quorum, within};
use crate::sequence::SequenceError;
use crate::sequence::database::open::Connection;
use crate::sequence::database::operator::Told;
use crate::sequence::database::{DatabaseError, Mark};
use crate::sequence::digest::Digest;
use crate::sequence::entry::{Entry, Tail};
use crate::sequence::reason::Reason;

/// An operator waits for this.
pub(super) type Asked = oneshot::Sender<Result<u64, SequenceError>>;

/// Why an empty etcd must not be filled from this vault's journal. `ours`: the hash of its chain where
/// the other's journal ends. Pure.
pub(super) fn hindrance(own: &Ready, peer: &Ready, ours: Option<Digest>) -> Option<String> {
    for vault in [own, peer] {
        if !vault.level {
            let name = &vault.name;
            return Some(format!(
                "{name} was started anew since etcd was lost, and its journal may lack what it answered last; if etcd's data cannot be had back, begin new series"
            ));
        }
    }
    if peer.tail.index > own.tail.index {
        return Some(format!("the journal of {} is the longer one: write the same there", peer.name));
    }
    let (has, known) = (own.tail.index, own.end.max(peer.end));
    if has < known {
        return Some(format!("the journal of {} has {has} of the {known} entries that there were", own.name));
    }
    (ours != Some(peer.tail.hash)).then(|| format!("the journals of {} and {} disagree", own.name, peer.name))
}

impl Quorum {
    /// Fills the empty etcd; the operator hears how many entries that takes once it is sure to begin.
    pub(super) async fn refill(&mut self, done: Asked) -> Result<(), DatabaseError> {
        let (connection, end, id) = match self.may_refill().await {
            Ok(found) => found,
            Err(why) => {
                // An operator who has gone looks at the status.
                let _gone = done.send(Err(SequenceError::NotRefilled(why)));
                return Ok(());
            }
        };
        let tail = self.core.tail();
        let _gone = done.send(Ok(tail.index));
        tracing::warn!("sequence: etcd is filled again with {} entries, at the operator's word", tail.index);
        let (mut connection, mut end) = (connection, end);
        while end.index < tail.index {
            let entries = self.door.read(end.index).map_err(|error| DatabaseError::Away {
                place: "this vault's journal".to_owned(),
                why: error.to_string(),
            })?;
            let Some(next) = entries.last().map(Entry::tail) else { break };
            self.meanwhile(within(connection.append(end, &entries))).await?;
            end = next;
        }
        let mark = Mark { since: tail.index, id, vaults: sorted(self.names.clone()) };
        self.meanwhile(within(connection.begin(end, mark))).await?;
        tracing::info!("sequence: etcd is the ledger again, after entry {}", end.index);
        Ok(())
    }

    /// The etcd to be filled, where what it holds ends, and which it is; or why it is left alone.
    async fn may_refill(&mut self) -> Result<(Connection, Tail, String), String> {
        if self.refusal != Some(Reason::LedgerShrunk) {
            return Err("etcd has not lost the ledger; vault status tells how things stand".to_owned());
        }
        let own = self.ready.borrow().clone();
        let peer = timeout(ASKED, self.ask_peer()).await.ok().flatten();
        let Some(peer) = peer else { return Err("the other vault is not connected".to_owned()) };
        let ours = self.door.tail_at(peer.tail.index).map_err(|error| error.to_string())?;
        if let Some(why) = hindrance(&own, &peer, ours.map(|tail| tail.hash)) {
            return Err(why);
        }
        let door = Arc::clone(&self.door);
        let found = self.meanwhile(empty(&door)).await?;
        let id = found.2.clone();
        let adopted = timeout(ASKED, self.greet(&Greeting::Refill(id.clone()))).await.ok().flatten();
        // And it has not moved since it was looked at.
        let adopts = |told: Ready| told.reads.as_ref() == Some(&id) && told.tail == peer.tail;
        if !adopted.is_some_and(adopts) {
            return Err(format!("{} does not take this etcd for an empty one; its log tells why", peer.name));
        }
        self.adopt(id)?;
        Ok(found)
    }

    /// Takes the empty etcd of this id for the one that will be the ledger.
    pub(super) fn adopt(&mut self, id: String) -> Result<(), String> {
        if self.refusal != Some(Reason::LedgerShrunk) {
            return Err("etcd has not lost the ledger, as this vault sees it".to_owned());
        }
        let noted = id.clone();
        self.door.remember(|note| note.ledger = Some(noted)).map_err(|error| error.to_string())?;
        (self.ledger, self.theirs) = (Some(id.clone()), Some(id.clone()));
        self.connection = None;
        self.ready.send_modify(|ready| ready.reads = Some(id));
        Ok(())
    }
}

/// Every member must answer, and all of one etcd that holds nothing, or a part of this journal that
/// an earlier attempt has left.
async fn empty(door: &Told) -> Result<(Connection, Tail, String), String> {
    let mut found: Option<(Connection, Tail, String)> = None;
    for host in &door.settings().hosts {
        let look = async {
            let mut connection = Connection::open(door.settings(), host).await?;
            let end = connection.tail().await?;
            let bare =
                connection.begun().is_none() && (end.index > 0 || connection.entries(0).await?.is_empty());
            Ok::<_, DatabaseError>((connection, end, bare))
        };
        let (mut connection, end, bare) = look.await.map_err(|error| error.to_string())?;
        let is_part = door.tail_at(end.index).map_err(|error| error.to_string())? == Some(end);
        if !bare || !is_part {
            return Err(format!("{} is not empty", connection.place()));
        }
        let made = async {
            let end = connection.prepare().await?;
            Ok::<_, DatabaseError>((end, connection.identity().await?))
        };
        let (end, id) = made.await.map_err(|error| error.to_string())?;
        if found.as_ref().is_some_and(|(_, _, other)| *other != id) {
            return Err("the members in sequence.database.hosts are not of one cluster".to_owned());
        }
        found = Some((connection, end, id));
    }
    found.ok_or_else(|| "there are no members".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(name: &str, index: u64, end: u64) -> Ready {
        let tail = Tail { index, hash: Digest([u8::try_from(index).unwrap(); 32]) };
        Ready {
            name: name.to_owned(),
            life: 1,
            proven: None,
            tail,
            end,
            reads: Some("1".to_owned()),
            begun: true,
            level: true,
            journal: 1,
            knows: None,
            unfit: None,
        }
    }

    #[test]
    fn an_empty_etcd_is_filled_only_from_a_journal_that_lacks_nothing_that_was_ever_answered() {
        let (a, b) = (ready("a", 5, 5), ready("b", 3, 5));
        let ours = |vault: &Ready| Some(vault.tail.hash);
        assert_eq!(hindrance(&a, &b, ours(&b)), None);
        let why = |own: &Ready, peer: &Ready, hash| hindrance(own, peer, hash).unwrap();
        assert!(why(&b, &a, None).contains("write the same there"));
        assert!(why(&a, &b, ours(&a)).contains("disagree"));
        assert!(why(&a, &b, None).contains("disagree"));
        assert!(why(&ready("a", 5, 6), &b, ours(&b)).contains("5 of the 6"));
        assert!(why(&a, &ready("b", 3, 7), ours(&b)).contains("5 of the 7"));
        let anew = Ready { level: false, ..a.clone() };
        assert!(why(&anew, &b, ours(&b)).contains("a was started anew"));
        assert!(
            why(&Ready { name: "b".to_owned(), ..a.clone() }, &anew, ours(&anew))
                .contains("a was started anew")
        );
    }
}

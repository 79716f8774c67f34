//! A replica's two records: the body is whole and one slot has rotted, so it is written anew from
//! the other, in place and without a key. Knows the order of looking and writing; `envelope` knows
//! what a whole slot is.
//!
//! The other vault may rewrap the same replica. So both slots are read again right before the
//! write, and after it until they agree: the slot with the higher generation is the one to copy.

use super::envelope::{Side, parse_slot};
use super::file_server::{FileServer, FileServerError};
use super::object::ObjectId;
use super::rewrap::first_bytes;
use super::sessions::Progress;
use super::{Inner, ReplicaState};

/// One write and a last look, and as much again for another vault that rewraps.
const LOOKS: usize = 4;

/// What a whole replica's two records are like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slots {
    /// Both are as written.
    Whole,
    /// One had rotted, and was written anew from the other.
    Mended,
    /// One has rotted, and cannot be written for this reason. The replica can be read.
    Rotten(String),
}

/// What looking at one replica as a whole came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Checkup {
    pub(super) state: ReplicaState,
    pub(super) slots: Slots,
}

impl From<ReplicaState> for Checkup {
    fn from(state: ReplicaState) -> Self {
        Self { state, slots: Slots::Whole }
    }
}

/// Writes the rotten slot that was found, if any, anew.
pub(super) fn mend(
    server: &dyn FileServer,
    progress: &Progress,
    id: &ObjectId,
    rotten: Option<Side>,
) -> Slots {
    if rotten.is_none() {
        return Slots::Whole;
    }
    match write_anew(server, progress, id) {
        // Another vault was writing it just then.
        Ok(false) => Slots::Whole,
        Ok(true) => {
            tracing::error!(
                server = server.name(),
                object = %id,
                "one of its two records had rotted; written anew from the other"
            );
            Slots::Mended
        }
        Err(error) => {
            tracing::error!(
                "one of two records has rotted, and is not written anew: {error}; the other is read"
            );
            Slots::Rotten(error.to_string())
        }
    }
}

/// True if something had to be written.
fn write_anew(server: &dyn FileServer, progress: &Progress, id: &ObjectId) -> Result<bool, FileServerError> {
    let mut wrote = false;
    for _ in 0..LOOKS {
        let slots = first_bytes(server, id)?;
        progress.note();
        match good_side(&slots, wrote) {
            Verdict::Agree => return Ok(wrote),
            Verdict::Copy(from) => server.write_slot(id, from.other(), from.of(&slots))?,
            Verdict::Neither => break,
        }
        progress.note();
        wrote = true;
    }
    let (server, object) = (server.name().to_owned(), id.to_string());
    let why = "its records do not stay as they are written".to_owned();
    Err(FileServerError::BadSource { server, object, why })
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Agree,
    Copy(Side),
    Neither,
}

/// From which slot to copy. Two whole ones of which one is older are a rewrapping under way, and
/// its own to finish, unless we may have put the older one back ourselves.
fn good_side(slots: &[u8], wrote: bool) -> Verdict {
    let generation = |side: Side| parse_slot(side.of(slots)).ok().map(|slot| slot.generation);
    match Side::BOTH.map(generation) {
        [None, None] => Verdict::Neither,
        [Some(_), None] => Verdict::Copy(Side::A),
        [None, Some(_)] => Verdict::Copy(Side::B),
        [Some(a), Some(b)] if wrote && a > b => Verdict::Copy(Side::A),
        [Some(a), Some(b)] if wrote && b > a => Verdict::Copy(Side::B),
        [Some(_), Some(_)] => Verdict::Agree,
    }
}

impl Inner {
    /// Counts what was found.
    pub(super) fn count_slots(&self, server: &str, slots: &Slots) {
        if *slots != Slots::Whole {
            self.metrics.slots_rotten.with_label_values(&[server]).inc();
        }
        if *slots == Slots::Mended {
            self.metrics.slots_mended.with_label_values(&[server]).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::envelope::{Record, SLOT, seal_slot};
    use super::super::object::{Metadata, OneOff};
    use super::*;

    fn slot(generation: u32) -> Vec<u8> {
        use age::secrecy::ExposeSecret;
        let key = age::x25519::Identity::generate();
        let text = String::new;
        let metadata = Metadata {
            owner: text(),
            key: text(),
            label: text(),
            media_type: text(),
            size: 0,
            created: text(),
            digest: text(),
        };
        let record = Record { metadata, identity: OneOff(key.to_string().expose_secret().to_owned()) };
        seal_slot(&record, [&key.to_public(), &key.to_public()], generation).unwrap()
    }

    #[test]
    fn the_whole_slot_is_copied_and_a_rewrapping_is_left_alone_until_something_was_written() {
        let (old, new, rotten) = (slot(1), slot(2), vec![0; SLOT]);
        let good = |a: &[u8], b: &[u8], wrote| good_side(&[a, b].concat(), wrote);
        assert_eq!(good(&old, &rotten, false), Verdict::Copy(Side::A));
        assert_eq!(good(&rotten, &new, true), Verdict::Copy(Side::B));
        assert_eq!(good(&rotten, &rotten, false), Verdict::Neither);
        assert_eq!(good(&old, &new, false), Verdict::Agree);
        assert_eq!(good(&old, &new, true), Verdict::Copy(Side::B), "never back to the older record");
        assert_eq!(good(&new, &old, true), Verdict::Copy(Side::A));
        assert_eq!(good(&new, &new, true), Verdict::Agree);
        assert_eq!(good(&old[..100], b"", false), Verdict::Neither);
    }
}

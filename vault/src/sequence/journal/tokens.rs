//! What became of the tokens that were made, as the entries about them and about lives tell. Reads
//! alone; whether a token holds is [`crate::sequence::standing`]'s.

use rusqlite::params;

use super::{Journal, JournalError, entry};
use crate::sequence::entry::{Act, Entry};

pub(super) const MIGRATION: &str =
    "CREATE INDEX entry_token ON entry (key, idx) WHERE act IN ('seal', 'life');";

/// A vault is not started anew more often than this before somebody looks.
const LIVES: usize = 1000;

impl Journal {
    /// What became of the token that was made last for that vault: was it used, or is it void, and
    /// when (milliseconds since 1970)? Nothing where there is none, or where it holds.
    ///
    /// # Errors
    /// SQLite's own.
    pub fn token_over(&self, vault: &str) -> Result<Option<(bool, i64)>, JournalError> {
        let sql = "SELECT * FROM entry WHERE key = ?1 AND act IN ('seal', 'life') ORDER BY idx DESC LIMIT ?2";
        let read = || -> rusqlite::Result<Vec<Entry>> {
            self.connection.prepare_cached(sql)?.query_map(params![vault, LIVES], entry)?.collect()
        };
        let newest_first = read().map_err(|source| self.sql(source))?;
        let mut after = newest_first.split(|entry| matches!(entry.act, Act::Seal(_)));
        let (lives, sealed) = (after.next().unwrap_or_default(), &newest_first);
        let Some(Act::Seal(life)) = sealed.get(lives.len()).map(|entry| &entry.act) else { return Ok(None) };
        Ok(lives.iter().rev().find_map(|entry| match entry.act {
            Act::Life(birth) if birth.life == *life => Some((true, entry.at)),
            Act::Life(birth) if birth.former.is_some() && !birth.proven => Some((false, entry.at)),
            _ => None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::entry::{Birth, Draft, Life, Tail};
    use crate::sequence::protocol::Write;
    use crate::sequence::standing::Standing;

    #[test]
    fn of_the_last_token_is_told_that_it_was_used_or_is_void_and_since_when() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&folder.path().join("journal.db"), 5).unwrap();
        let mut tail = Tail::default();
        let born = |life: Life, former, proven| Act::Life(Birth { life, former, proven });
        let mut say = |vault: &str, act: Act, at: i64| {
            let draft = Draft { key: vault.to_owned(), act, ..Standing::default().sealing(vault, 0, at) };
            let entry = Entry::append(tail, 1, 7, draft);
            tail = entry.tail();
            let memory = journal.memory().unwrap();
            journal.write(&Write { cut: None, entries: vec![entry], rows: Vec::new(), memory }).unwrap();
            ["a", "b"].map(|vault| journal.token_over(vault).unwrap())
        };
        assert_eq!(say("b", born(1, None, false), 1), [None, None], "there is no token");
        assert_eq!(say("b", Act::Seal(90), 2), [None, None], "it holds");
        assert_eq!(say("b", born(2, Some(1), true), 3), [None, None], "a life that is proven takes nothing");
        assert_eq!(say("b", born(3, Some(2), false), 4), [None, Some((false, 4))]);
        assert_eq!(say("b", born(4, Some(3), false), 5), [None, Some((false, 4))], "since the first");
        assert_eq!(say("a", born(5, None, false), 6), [None, Some((false, 4))]);
        assert_eq!(say("b", Act::Seal(91), 7), [None, None], "there is a new one");
        assert_eq!(say("b", born(91, Some(4), false), 8), [None, Some((true, 8))], "and it is used");
    }
}

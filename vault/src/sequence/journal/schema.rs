//! The journal's tables, as they have become.

/// The first is what was released first; each later one brings what is there to the next.
pub(super) const MIGRATIONS: &[&str] =
    &[FIRST, SECOND, super::records::MIGRATION, super::dropped::MIGRATION, super::tokens::MIGRATION];

/// A table of entries: of the chain, or of the rows given alone. Later ones have a column more.
macro_rules! rows {
    ($table:literal) => {
        rows!($table, "carried INTEGER NOT NULL,")
    };
    ($table:literal, $more:literal) => {
        concat!(
            "CREATE TABLE ",
            $table,
            " (
                idx INTEGER PRIMARY KEY,
                epoch INTEGER NOT NULL,
                life BLOB NOT NULL,",
            $more,
            "
                owner TEXT NOT NULL,
                series TEXT NOT NULL,
                number INTEGER NOT NULL,
                key TEXT NOT NULL,
                act TEXT NOT NULL,
                text TEXT NOT NULL,
                at INTEGER NOT NULL,
                previous BLOB NOT NULL,
                hash BLOB NOT NULL
            ) STRICT;
            "
        )
    };
}

/// The table of numbers as they stand. At first it found their keys too.
macro_rules! numbers {
    ($more:literal) => {
        concat!(
            "CREATE TABLE number (
                owner TEXT NOT NULL,
                series TEXT NOT NULL,
                number INTEGER NOT NULL,
                key TEXT NOT NULL,
                state TEXT NOT NULL,
                document_hash TEXT,
                reason TEXT,
                idx INTEGER NOT NULL,
                hash BLOB NOT NULL,
                PRIMARY KEY (owner, series, number)",
            $more,
            "
            ) STRICT, WITHOUT ROWID;
            "
        )
    };
}

const FIRST: &str = concat!(
    "
    CREATE TABLE memory (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        journal BLOB NOT NULL,
        epoch INTEGER NOT NULL,
        peer_journal BLOB,
        peer_durable INTEGER NOT NULL
    ) STRICT;
",
    rows!("entry", ""),
    numbers!(", UNIQUE (owner, series, key)"),
);

/// Ranges, lives, rows given alone; and keys are found by their hash.
const SECOND: &str = concat!(
    "
    ALTER TABLE memory RENAME TO memory_1;
    ALTER TABLE entry RENAME TO entry_1;
    ALTER TABLE number RENAME TO number_1;
    CREATE TABLE memory (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        journal BLOB NOT NULL,
        epoch INTEGER NOT NULL,
        owns INTEGER NOT NULL,
        alone INTEGER NOT NULL,
        whole INTEGER NOT NULL,
        solo INTEGER NOT NULL,
        solo_hash BLOB NOT NULL,
        peer_journal BLOB,
        peer_durable INTEGER NOT NULL,
        settled INTEGER NOT NULL,
        used_by BLOB,
        keyed INTEGER NOT NULL
    ) STRICT;
",
    rows!("entry"),
    "
    CREATE INDEX entry_carried ON entry (life, carried) WHERE carried > 0;
",
    rows!("solo"),
    "
    CREATE INDEX solo_key ON solo (owner, series, key);
    CREATE INDEX solo_number ON solo (owner, series, number);
    CREATE UNIQUE INDEX solo_given ON solo (owner, series, number) WHERE act = 'reserve';
    CREATE TABLE dropped (
        idx INTEGER NOT NULL,
        hash BLOB NOT NULL PRIMARY KEY,
        entry TEXT NOT NULL
    ) STRICT;
",
    numbers!(""),
    "
    CREATE INDEX number_reserved ON number (owner, series, number) WHERE state = 'reserved';
    CREATE INDEX entry_lost ON entry (owner, series, number) WHERE act = 'lost';
    CREATE TABLE definition (
        owner TEXT NOT NULL,
        series TEXT NOT NULL,
        text TEXT NOT NULL,
        PRIMARY KEY (owner, series)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE series (
        owner TEXT NOT NULL,
        series TEXT NOT NULL,
        text TEXT NOT NULL,
        PRIMARY KEY (owner, series)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE life (
        life BLOB PRIMARY KEY,
        vault TEXT NOT NULL,
        state TEXT NOT NULL,
        carried INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE key (
        hash INTEGER NOT NULL,
        idx INTEGER NOT NULL,
        PRIMARY KEY (hash, idx)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO memory
        SELECT id, journal, epoch, 0, 0, 1, 0, zeroblob(32), peer_journal, peer_durable, peer_durable, NULL, 0
        FROM memory_1;
    INSERT INTO entry
        SELECT idx, epoch, life, 0, owner, series, number, key, act, text, at, previous, hash FROM entry_1;
    INSERT INTO number SELECT * FROM number_1;
    DROP TABLE memory_1;
    DROP TABLE entry_1;
    DROP TABLE number_1;
"
);

#[cfg(test)]
mod tests {
    use super::super::Journal;
    use super::FIRST;
    use crate::sequence::book::SeriesName;
    use crate::sequence::entry::{Act, Tail, verified};
    use shared::api::NumberState;

    /// Two entries as the first release wrote them, with its hashes.
    const RELEASED: &str = "
        INSERT INTO memory VALUES (1, x'00000000000000000000000000000005', 1,
            x'00000000000000000000000000000006', 1);
        INSERT INTO entry VALUES (1, 1, x'00000000000000000000000000000007', 'erp', 'INV', 1, 'k1',
            'reserve', '', 1700000000000, zeroblob(32), x'e2ee4479697833d21379197fa504652717b2648763549e3da1a36d2481a143d7');
        INSERT INTO entry VALUES (2, 1, x'00000000000000000000000000000007', 'erp', 'INV', 1, 'k1',
            'confirm', 'd', 1700000000000, x'e2ee4479697833d21379197fa504652717b2648763549e3da1a36d2481a143d7', x'7ea0ad47c1716befede694fddc5613a358d8d95adec37b4a41c46744d822791d');
        INSERT INTO number VALUES ('erp', 'INV', 1, 'k1', 'confirmed', 'd', NULL, 2, x'7ea0ad47c1716befede694fddc5613a358d8d95adec37b4a41c46744d822791d');
    ";

    #[test]
    fn a_journal_of_the_first_release_is_taken_over_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("journal.db");
        let released = crate::sqlite::open(&file, &[FIRST]).unwrap();
        released.execute_batch(RELEASED).unwrap();
        drop(released);
        let journal = Journal::open(&file, 9).unwrap();
        let memory = journal.memory().unwrap();
        assert_eq!((memory.journal, memory.epoch, memory.peer_journal), (5, 1, Some(6)));
        assert_eq!((memory.peer_durable, memory.settled), (1, 1));
        let entries = journal.entries(0).unwrap();
        assert_eq!(verified(Tail::default(), &entries), Some(journal.tail().unwrap()));
        assert_eq!((entries.len(), &entries[0].act), (2, &Act::Reserve(None)));
        let name = SeriesName { owner: "erp".to_owned(), series: "INV".to_owned() };
        let known = journal.by_key(&name, "k1").unwrap().unwrap();
        assert_eq!((known.number.number, known.number.state), (1, NumberState::Confirmed));
        assert_eq!(journal.by_number(&name, 1).unwrap(), Some(known));
    }
}

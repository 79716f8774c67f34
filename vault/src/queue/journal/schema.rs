//! The journal's tables. A message's place is its row's number, so that a queue's messages lie in
//! the order they are dispatched, and neither storing nor deleting one touches an index.

/// The first is what was released first.
pub(super) const MIGRATIONS: &[&str] = &[TABLES, COUNTS];

const TABLES: &str = "
    CREATE TABLE life (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        -- Counts openings: places that were given in one life are not given in the next.
        number INTEGER NOT NULL
    ) STRICT;
    INSERT INTO life VALUES (1, 0);
    CREATE TABLE queue (
        number INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE
    ) STRICT;
    -- What a queue holds of one priority, so that nothing is counted at the start.
    CREATE TABLE level (
        level INTEGER PRIMARY KEY,
        -- Places below were given.
        next INTEGER NOT NULL,
        messages INTEGER NOT NULL,
        bytes INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE producer (
        slot INTEGER PRIMARY KEY,
        -- Whose it is, and what it calls itself.
        name TEXT NOT NULL,
        upto INTEGER NOT NULL,
        heard INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE message (
        place INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        expiration INTEGER NOT NULL,
        size INTEGER NOT NULL,
        name TEXT NOT NULL,
        -- By what consumers are chosen; in front of the body, so that they are read without it.
        message_group TEXT,
        closes_group INTEGER NOT NULL,
        path TEXT,
        -- Of a dead letter.
        origin TEXT,
        cause TEXT,
        why TEXT,
        -- A large body is in pieces.
        body BLOB
    ) STRICT;
    CREATE INDEX message_expiration ON message (expiration) WHERE expiration > 0;
    CREATE TABLE piece (
        place INTEGER NOT NULL,
        piece INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (place, piece)
    ) STRICT, WITHOUT ROWID;
";

/// Levels counted bodies alone before, and count all of a message since; see [`super::counts`]. `45` is the width of
/// a place's number, `256` what a message counts beside its names.
const COUNTS: &str = "
    UPDATE level SET bytes = (
        SELECT coalesce(sum(256 + min(max(size, 0), 1 << 30)
            + length(CAST(name AS BLOB))
            + coalesce(length(CAST(message_group AS BLOB)), 0)
            + coalesce(length(CAST(path AS BLOB)), 0)
            + coalesce(length(CAST(origin AS BLOB)), 0)
            + coalesce(length(CAST(cause AS BLOB)), 0)
            + coalesce(length(CAST(why AS BLOB)), 0)), 0)
        FROM message WHERE place >= level.level << 45 AND place < (level.level + 1) << 45
    );
";

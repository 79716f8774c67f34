-- What notes on file servers tell of objects that this catalog does not hold (yet): deletions and
-- undeletions so far, odd means deleted. It decides when the object is found.
CREATE TABLE tombstones (
    id       TEXT PRIMARY KEY,
    revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX objects_revised ON objects (id) WHERE revision > 0;

-- Replicas of which a round found one of the two records rotten and wrote it anew.
ALTER TABLE rounds ADD COLUMN mended INTEGER NOT NULL DEFAULT 0;

-- Long walks that were asked for and have not come to their end, with what was asked, as JSON.
CREATE TABLE tasks (
    name  TEXT PRIMARY KEY,
    asked TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE objects (
    id         TEXT PRIMARY KEY,
    owner      TEXT NOT NULL,
    key        TEXT NOT NULL,
    label      TEXT NOT NULL,
    media_type TEXT NOT NULL,
    size       INTEGER NOT NULL,
    created    TEXT NOT NULL,
    digest     TEXT NOT NULL,
    -- 0 pending, 1 dropped, 2 stored, 3 deleted: the larger wins.
    state      INTEGER NOT NULL,
    origin     TEXT NOT NULL,
    -- The one-off age identity; NULL once deleted.
    identity   TEXT
) WITHOUT ROWID;
CREATE INDEX objects_by_key ON objects (owner, key, id);
CREATE INDEX objects_by_owner ON objects (owner, state, id);
CREATE INDEX objects_pending ON objects (origin, id) WHERE state = 0;

CREATE TABLE replicas (
    id       TEXT NOT NULL REFERENCES objects (id),
    server   TEXT NOT NULL,
    -- stored | owed | damaged | removal_owed
    state    TEXT NOT NULL,
    -- Unix seconds; for reports and turns only.
    since    INTEGER NOT NULL,
    -- 0: derived from the peer's word, 1: seen by this vault.
    observed INTEGER NOT NULL,
    -- How often paying this debt has failed: those that never failed go first, so that what
    -- cannot be paid does not stand before what can.
    tried    INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (id, server)
) WITHOUT ROWID;
CREATE INDEX replicas_owed ON replicas (tried, since) WHERE state <> 'stored';
CREATE INDEX replicas_by_server ON replicas (server, state);

-- One row an object: its latest change. The peer is told each object's present state.
CREATE TABLE changes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id  TEXT NOT NULL UNIQUE
);

CREATE TABLE places (
    server TEXT PRIMARY KEY,
    place  TEXT NOT NULL
) WITHOUT ROWID;

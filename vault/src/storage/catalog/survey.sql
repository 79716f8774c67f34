CREATE INDEX objects_purged ON objects (id) WHERE state = 4;

-- The last inventory written to each file server; confirmed once it is known to be whole there.
CREATE TABLE generations (
    server     TEXT PRIMARY KEY,
    generation INTEGER NOT NULL,
    confirmed  INTEGER NOT NULL,
    change     INTEGER NOT NULL,
    -- Unix seconds.
    at         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- How far each round over all objects is: comparing, scrubbing. Times are Unix seconds.
CREATE TABLE rounds (
    name     TEXT PRIMARY KEY,
    running  INTEGER NOT NULL,
    position TEXT,
    begun    INTEGER NOT NULL,
    finished INTEGER,
    checked  INTEGER NOT NULL,
    damaged  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

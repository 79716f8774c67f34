-- The time this vault did not see pass: switched off, asleep, or the clock was set. Unix seconds;
-- without an end, the last moment at which it watched.
CREATE TABLE gaps (
    began INTEGER PRIMARY KEY,
    ended INTEGER
) STRICT;

-- One row once an upload was begun here or a walk took something in: a catalog without it holds only
-- what was found by the way or told.
CREATE TABLE used (one INTEGER PRIMARY KEY CHECK (one = 1)) STRICT;
INSERT INTO used SELECT 1 WHERE EXISTS (SELECT 1 FROM objects);

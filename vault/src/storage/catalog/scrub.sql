-- What a round could not look at, where that was, and whether and since when it is to look there
-- again.
ALTER TABLE rounds ADD COLUMN skipped INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rounds ADD COLUMN left_out TEXT NOT NULL DEFAULT '[]';
ALTER TABLE rounds ADD COLUMN again INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rounds ADD COLUMN paused INTEGER;

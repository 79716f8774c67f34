-- Deletion with grace. State 3 is deleted and may be undeleted, 4 is purged for ever; what was
-- deleted before this had no grace.
UPDATE objects SET state = 4 WHERE state = 3;
-- Counts deletions and undeletions, so odd means deleted; between 2 and 3 the larger wins.
ALTER TABLE objects ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
-- Unix second by this vault's own clock at which it learnt of the deletion.
ALTER TABLE objects ADD COLUMN deleted INTEGER;
CREATE INDEX objects_deleted ON objects (deleted) WHERE state = 3;

-- Which keys a replica's record is sealed to, as far as this vault has seen; '': not looked at.
ALTER TABLE replicas ADD COLUMN seal TEXT NOT NULL DEFAULT '';
CREATE INDEX replicas_by_seal ON replicas (seal, id) WHERE state = 'stored';
-- The storage keys that both vaults had when they last met.
CREATE TABLE shared_keys (recipient TEXT PRIMARY KEY) WITHOUT ROWID;

-- How far a long walk over all objects is, so that it goes on after a restart.
CREATE TABLE walks (
    name  TEXT PRIMARY KEY,
    after TEXT NOT NULL
) WITHOUT ROWID;

//! Room on the journal's disk, and how much of it no new message gets: what is acknowledged must be written for
//! room to come back, and that takes some itself. Knows what the system and SQLite say of it; not what is
//! written.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

/// New messages leave so many bytes,
const RESERVE: u64 = 64 << 20;
/// or such a part of a small disk.
const PART: u64 = 8;
/// Such a part of the reserve is SQLite's log before it goes into the file itself: 16 MiB, so that a message
/// that is consumed soon never gets there;
const LOG: u64 = 4;
/// such a part is the most of it that stays when it has grown longer;
const KEPT: u64 = 2;
/// such a part of it may hold nothing in the file: what fills and empties all the time neither grows nor shrinks
/// it;
const UNUSED: u64 = 4;
/// and a write that is about much may take what the gate's own look was too late for, but not this part.
const LAST: u64 = 2;

/// What there was when it was looked at last.
#[derive(Debug)]
pub(super) struct Room {
    file: PathBuf,
    /// In bytes.
    reserve: u64,
    /// For new messages and the reserve, in bytes.
    left: u64,
}

impl Room {
    /// Where the system does not tell there is no end of it.
    pub(super) fn of(file: &Path) -> Self {
        let whole = space(file).map_or(u64::MAX, |(whole, _)| whole);
        Self { file: file.to_owned(), reserve: (whole / PART).min(RESERVE), left: u64::MAX }
    }

    /// Has SQLite's log in bounds that leave the reserve a reserve.
    ///
    /// # Errors
    /// SQLite's own.
    pub(super) fn bound_log(&self, connection: &Connection) -> rusqlite::Result<()> {
        let page: u64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let log = (self.reserve / LOG / page.max(1)).max(1);
        for (pragma, value) in [("wal_autocheckpoint", log), ("journal_size_limit", self.reserve / KEPT)] {
            connection.pragma_update(None, pragma, i64::try_from(value).unwrap_or(i64::MAX))?;
        }
        Ok(())
    }

    /// Looks how much there is: on the disk and in the file, without what the log will want of them.
    pub(super) fn look(&mut self, connection: &Connection) {
        self.left = match (self.inside(connection), space(&self.file)) {
            (Ok((unused, growth)), Some((_, free))) => free.saturating_add(unused).saturating_sub(growth),
            // What cannot be read now is told by whoever reads.
            _ => u64::MAX,
        };
    }

    /// Is it worth while to write the file anew without what holds nothing, and is there room for that? What it
    /// holds, at most so many bytes, stands in the log as well meanwhile. All in bytes.
    pub(super) fn may_shrink(&self, (used, unused): (u64, u64), most: u64) -> bool {
        let is_worth = unused > self.reserve / UNUSED && unused / UNUSED > used;
        // What is left counts what lies free in the file, where the log finds no room.
        is_worth && used <= most && self.left.saturating_sub(unused) >= used.saturating_mul(2)
    }

    /// Bytes of the file that hold something, and those that hold nothing.
    ///
    /// # Errors
    /// SQLite's own.
    pub(super) fn filled(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
        let [size, whole, unused] = ["page_size", "page_count", "freelist_count"].map(|name| {
            let sql = format!("PRAGMA {name}");
            connection.prepare_cached(&sql)?.query_row([], |row| row.get::<_, u64>(0))
        });
        let (size, whole, unused) = (size?, whole?, unused?);
        Ok((whole.saturating_sub(unused).saturating_mul(size), unused.saturating_mul(size)))
    }

    /// Bytes of the file that hold nothing, and those that it will grow by when the log goes into it.
    fn inside(&self, connection: &Connection) -> rusqlite::Result<(u64, u64)> {
        let (used, unused) = Self::filled(connection)?;
        let length = std::fs::metadata(&self.file).map_or(0, |about| about.len());
        Ok((unused, used.saturating_add(unused).saturating_sub(length)))
    }

    /// For new messages and the reserve, in bytes, as it was looked at last.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Is the reserve all that is left?
    pub(super) fn is_short(&self) -> bool {
        self.left < self.reserve
    }

    /// May so many bytes of new messages be written at once? They stand in the log first, and then in the file
    /// too.
    pub(super) fn fits(&self, bytes: u64) -> bool {
        bytes == 0 || self.left >= bytes.saturating_mul(2).saturating_add(self.reserve / LAST)
    }
}

/// Bytes of a file's disk: all, and those that this user may still write.
fn space(file: &Path) -> Option<(u64, u64)> {
    let space = rustix::fs::statvfs(file).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
    Some((bytes(space.f_blocks), bytes(space.f_bavail)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_must_leave_half_of_the_reserve_and_none_is_begun_within_it() {
        let mut room = Room { file: PathBuf::new(), reserve: 1_000, left: 1_000 };
        assert!(!room.is_short() && room.fits(250) && !room.fits(251));
        room.left = 999;
        assert!(room.is_short() && room.fits(200));
        room.left = 0;
        assert!(room.fits(0), "what stores nothing may always be written");
    }

    #[test]
    fn a_file_is_written_anew_when_it_is_all_but_empty_and_there_is_room_for_what_it_holds() {
        let room = |left| Room { file: PathBuf::new(), reserve: 400, left };
        assert!(room(1_000).may_shrink((10, 101), 10));
        for (left, filled, most) in
            [(1_000, (10, 100), 10), (1_000, (26, 101), 100), (1_000, (11, 101), 10), (120, (10, 101), 10)]
        {
            assert!(!room(left).may_shrink(filled, most), "{left} {filled:?} {most}");
        }
    }

    #[test]
    fn what_lies_free_in_the_file_is_room_and_what_the_log_will_take_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.db");
        let connection = crate::sqlite::open(&file, &["CREATE TABLE a (x BLOB) STRICT"]).unwrap();
        connection.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        let room = Room::of(&file);
        let after = |what: &str| {
            connection.execute_batch(what).unwrap();
            room.inside(&connection).unwrap()
        };
        let (unused, growth) = after("INSERT INTO a VALUES (zeroblob(1000000))");
        assert!(unused == 0 && growth > 900_000, "{unused} {growth}");
        let (unused, growth) = after("DELETE FROM a; PRAGMA wal_checkpoint(TRUNCATE)");
        assert!(unused > 900_000 && growth == 0, "{unused} {growth}");
    }
}

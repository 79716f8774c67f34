//! Whose fault is it that a replica, a folder or a note cannot be read, moved or written: its own, or
//! the whole place's? Over SFTP a bad sector, a broken directory and a disk that is gone all read "failure";
//! the marker tells them apart. Knows no replica's form.

use std::sync::Arc;

use super::super::FileServerError;
use super::place::Place;
use super::pool::Pool;
use super::trouble::{Failed, Kind};
use super::{begin, wrap};
use crate::storage::object::ObjectId;

/// See the module.
pub(super) struct Blame {
    pub(super) server: String,
    pub(super) address: String,
    pub(super) place: Arc<Place>,
    pub(super) control: Arc<Pool>,
}

impl Blame {
    /// Sorts what went wrong with one replica. Asks the server where that cannot be told otherwise.
    pub(super) fn of(&self, id: &ObjectId, failed: Failed) -> FileServerError {
        let (server, object) = (self.server.clone(), id.to_string());
        self.sort(&id.to_string(), failed, |source| FileServerError::Unreadable { server, object, source })
    }

    /// The same of one that was to be written or removed.
    pub(super) fn of_writing(&self, id: &ObjectId, failed: Failed) -> FileServerError {
        let (server, object) = (self.server.clone(), id.to_string());
        self.sort(&id.to_string(), failed, |source| FileServerError::Unwritable { server, object, source })
    }

    /// The same of a folder or a note.
    pub(super) fn of_part(&self, what: &str, failed: Failed) -> FileServerError {
        let (server, object) = (self.server.clone(), what.to_owned());
        self.sort(what, failed, |source| FileServerError::Faulty { server, object, source })
    }

    fn sort(
        &self,
        object: &str,
        failed: Failed,
        own: impl FnOnce(std::io::Error) -> FileServerError,
    ) -> FileServerError {
        let failed = match failed {
            Failed::Trouble(trouble) if trouble.kind == Kind::Failure => {
                match begin(&self.control, |link| self.place.check(link)) {
                    Ok(((), lane)) => {
                        lane.give_back();
                        return own(trouble.into_io());
                    }
                    Err(failed) => failed,
                }
            }
            other => other,
        };
        match failed {
            Failed::Place(why) => self.place.not_ours(why),
            other => wrap(&self.server, &self.address, object, other),
        }
    }
}

//! Is this directory the place that the catalog knows, and whose fault is it that one file of it
//! cannot be read? Reads the marker; knows nothing of replicas.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::super::{FileServerError, layout};
use super::{lock, wrap};
use crate::storage::object::ObjectId;

/// See the module.
pub(super) struct Place {
    name: String,
    root: PathBuf,
    /// The place's id, once attached.
    attached: Mutex<Option<String>>,
}

impl Place {
    pub(super) fn new(name: &str, root: &Path) -> Self {
        Self { name: name.to_owned(), root: root.to_owned(), attached: Mutex::default() }
    }

    pub(super) fn not_ours(&self, why: &'static str) -> FileServerError {
        FileServerError::NotOurs { server: self.name.clone(), path: self.root.clone(), why }
    }

    /// From now on it is this place and no other.
    pub(super) fn attached(&self, place: &str) {
        *lock(&self.attached) = Some(place.to_owned());
    }

    /// The id on the marker; `None` where there is no marker.
    pub(super) fn read(&self) -> Result<Option<String>, FileServerError> {
        let mut text = String::new();
        let file = match File::open(self.root.join("marker")) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrap(&self.name, "marker")(error)),
        };
        match file.take(layout::MAX_MARKER).read_to_string(&mut text) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                return Err(self.not_ours("its marker is no marker of ours"));
            }
            Err(error) => return Err(wrap(&self.name, "marker")(error)),
        }
        let place = layout::parse_marker(&text, &self.name).map_err(|why| self.not_ours(why))?;
        Ok(Some(place.to_owned()))
    }

    /// Is it still the place that was attached? An unmounted directory looks empty, and an
    /// empty one must not be believed.
    pub(super) fn check(&self) -> Result<(), FileServerError> {
        let attached = lock(&self.attached).clone();
        match (self.read()?, attached) {
            (Some(found), Some(attached)) if found == attached => Ok(()),
            (None, _) => Err(self.not_ours("its marker is missing: not mounted?")),
            (Some(_), Some(_)) => Err(self.not_ours("it is another place than at start")),
            (Some(_), None) => Err(self.not_ours("it was not attached")),
        }
    }

    /// Sorts what went wrong with one replica: its own trouble where the marker can still be read,
    /// the whole place's otherwise.
    pub(super) fn blame(&self, id: &ObjectId, error: std::io::Error) -> FileServerError {
        let (server, object) = (self.name.clone(), id.to_string());
        self.sort(&id.to_string(), error, |source| FileServerError::Unreadable { server, object, source })
    }

    /// The same of one that was to be written or removed.
    pub(super) fn blame_write(&self, id: &ObjectId, error: std::io::Error) -> FileServerError {
        let (server, object) = (self.name.clone(), id.to_string());
        self.sort(&id.to_string(), error, |source| FileServerError::Unwritable { server, object, source })
    }

    /// The same of a folder or a note.
    pub(super) fn fault(&self, object: String, error: std::io::Error) -> FileServerError {
        let server = self.name.clone();
        self.sort(&object.clone(), error, |source| FileServerError::Faulty { server, object, source })
    }

    fn sort(
        &self,
        object: &str,
        error: std::io::Error,
        own: impl FnOnce(std::io::Error) -> FileServerError,
    ) -> FileServerError {
        if !is_of_one_file(&error) {
            return wrap(&self.name, object)(error);
        }
        match self.check() {
            Ok(()) => own(error),
            Err(FileServerError::Away { .. }) => wrap(&self.name, object)(error),
            Err(error) => error,
        }
    }
}

/// May one file alone have this trouble? Not what tells of a network, or of this process.
pub(super) fn is_of_one_file(error: &std::io::Error) -> bool {
    let trouble = error.raw_os_error();
    trouble.is_some_and(|code| {
        [libc::EIO, libc::EBADMSG, libc::EUCLEAN, libc::EISDIR, libc::ENOTDIR, libc::ELOOP, libc::ENXIO]
            .contains(&code)
    })
}

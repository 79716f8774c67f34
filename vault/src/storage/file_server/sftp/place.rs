//! Is this folder on the server the place that the catalog knows? Reads and writes its marker;
//! knows nothing of replicas.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::super::{FileServerError, layout};
use super::link::{Flushed, Link};
use super::moment;
use super::trouble::{Failed, Kind, Trouble};
use super::writer::{self, Unwritten};
use crate::storage::random_hex;

/// A marker that was seen on a session is believed for so long: an exchanged place must not
/// be taken for the old one, and three round trips a request are too many.
const BELIEVED: Duration = Duration::from_secs(5);

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

    /// As [`super::FileServer::attach`]; also says whether the claim could be flushed.
    pub(super) fn attach(
        &self,
        link: &mut Link,
        expected: Option<&str>,
        may_claim: bool,
        own: &str,
    ) -> Result<(String, Flushed), Failed> {
        let mut flushed = Flushed::Yes;
        let recognised = layout::recognise(self.read(link)?, expected, may_claim);
        let found = match recognised.map_err(Failed::Place)? {
            Some(found) => found,
            None => {
                flushed = self.claim(link, own)?;
                self.read(link)?.ok_or(Failed::Place("its marker vanished"))?
            }
        };
        *self.attached.lock().unwrap_or_else(PoisonError::into_inner) = Some(found.clone());
        // A backup may have left it out. Where it cannot be made, whoever writes is told why.
        match link.make_folder(&layout::temporaries(&self.root)) {
            Err(trouble) if trouble.spoils_session() => Err(Failed::Trouble(trouble)),
            _ => Ok((found, flushed)),
        }
    }

    /// As [`Self::check`], unless it was seen on this session a moment ago.
    pub(super) fn see(&self, link: &mut Link) -> Result<(), Failed> {
        let now = moment();
        match link.place_seen {
            Some(seen) if now.saturating_duration_since(seen) < BELIEVED => Ok(()),
            _ => self.check(link),
        }
    }

    /// Is it still the place that was attached? An unmounted folder looks empty, and an
    /// empty one must not be believed.
    pub(super) fn check(&self, link: &mut Link) -> Result<(), Failed> {
        link.place_seen = None;
        let attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (self.read(link)?, attached) {
            (Some(found), Some(attached)) if found == attached => {
                link.place_seen = Some(moment());
                Ok(())
            }
            (None, _) => Err(Failed::Place("its marker is missing: not mounted?")),
            (Some(_), Some(_)) => Err(Failed::Place("it is another place than at start")),
            (Some(_), None) => Err(Failed::Place("it was not attached")),
        }
    }

    /// The id on the marker; `None` where there is no marker.
    pub(super) fn read(&self, link: &mut Link) -> Result<Option<String>, Failed> {
        let mut file = match link.open(&self.root.join("marker")) {
            Ok(file) => file,
            Err(trouble) if trouble.kind == Kind::Missing => return Ok(None),
            Err(trouble) => return Err(Failed::Trouble(trouble)),
        };
        let mut bytes = Vec::new();
        let read = file.by_ref().take(layout::MAX_MARKER).read_to_end(&mut bytes);
        read.map_err(|error| Failed::Trouble(link.told(&error)))?;
        link.close(file).map_err(Failed::Trouble)?;
        let text = String::from_utf8(bytes).map_err(|_| Failed::Place("its marker is no marker of ours"))?;
        let place = layout::parse_marker(&text, &self.name).map_err(Failed::Place)?;
        Ok(Some(place.to_owned()))
    }

    /// Writes a marker unless one is there. Whoever renames first has claimed the place; the
    /// peer may be just as far. On a server whose RENAME overwrites the last one has, and the
    /// other notices at its next look.
    fn claim(&self, link: &mut Link, own: &str) -> Result<Flushed, Trouble> {
        // A missing root is an operator's slip, not a place to be made.
        link.stat(&self.root)?;
        link.make_folder(&self.root.join("tmp"))?;
        link.make_folder(&self.root.join("quarantine"))?;
        let temporary = self.root.join("tmp").join(format!("{own}~{}", random_hex()));
        let text = layout::marker(&self.name, &random_hex());
        let mut left = text.as_bytes();
        let mut file = link.create(&temporary)?;
        let wrote = writer::write(link, &mut file, super::writer::SHORT, |piece| left.read(piece));
        if let Err(unwritten) = wrote {
            link.cut();
            return Err(match unwritten {
                Unwritten::Trouble(trouble) => trouble,
                Unwritten::Source(error) => Trouble::new(Kind::Lost, error.to_string()),
            });
        }
        let mut flushed = link.flush(&mut file)?;
        link.close(file)?;
        match link.rename(&temporary, &self.root.join("marker")) {
            Err(trouble) if matches!(trouble.kind, Kind::Exists | Kind::Failure) => {
                link.unlink(&temporary)?
            }
            other => other?,
        }
        for folder in std::iter::once(self.root.as_path()).chain(self.root.parent()) {
            // What lies above the root may be nobody's business here.
            match link.flush_folder(folder) {
                Ok(Flushed::Unknown) if folder == self.root => flushed = Flushed::Unknown,
                Err(trouble) if trouble.spoils_session() => return Err(trouble),
                _ => {}
            }
        }
        Ok(flushed)
    }
}

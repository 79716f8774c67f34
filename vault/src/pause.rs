//! An operator's pause that outlives restarts: a file that is there as long as something is paused,
//! with the reason in it. Knows neither what is paused nor who asked for it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Where one pause is kept.
#[derive(Debug, Clone)]
pub struct Pause {
    file: PathBuf,
}

impl Pause {
    /// Kept in that folder under `name`, which must be fit for a file's name. Touches no disk.
    #[must_use]
    pub fn new(folder: &Path, name: &str) -> Self {
        Self { file: folder.join(format!("{name}.paused")) }
    }

    /// The file, for errors.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Why it is paused, if it is. What cannot be read is a pause all the same.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match fs::read(&self.file) {
            Ok(reason) => Some(String::from_utf8_lossy(&reason).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(format!("paused; {} cannot be read: {error}", self.file.display())),
        }
    }

    /// Durable when it returns.
    ///
    /// # Errors
    /// The system's.
    pub fn set(&self, why: &str) -> io::Result<()> {
        let folder = self.file.parent().unwrap_or(&self.file);
        fs::create_dir_all(folder)?;
        let new = self.file.with_extension("new");
        fs::write(&new, why)?;
        File::open(&new)?.sync_all()?;
        fs::rename(&new, &self.file)?;
        File::open(folder)?.sync_all()
    }

    /// It is paused no more, durably; well also where it was not.
    ///
    /// # Errors
    /// The system's.
    pub fn lift(&self) -> io::Result<()> {
        match fs::remove_file(&self.file) {
            Ok(()) => File::open(self.file.parent().unwrap_or(&self.file))?.sync_all(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_there_until_it_is_lifted() {
        let folder = tempfile::tempdir().unwrap();
        let pause = Pause::new(&folder.path().join("worker"), "storage.scrub");
        assert_eq!(pause.reason(), None);
        pause.lift().unwrap();
        pause.set("paused by ops").unwrap();
        let again = Pause::new(&folder.path().join("worker"), "storage.scrub");
        assert_eq!(again.reason().as_deref(), Some("paused by ops"));
        again.lift().unwrap();
        assert_eq!(pause.reason(), None);
    }
}

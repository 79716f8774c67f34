//! Chooses the implementer; alone names them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Firewall;
use super::nftables::Kernel;
use super::rehearsal::{Nobody, Rehearsal};
use super::settings::DEFAULT_SOCKET;

/// As many as the kernel's sets hold by default.
const MOST_REHEARSED: usize = 1_048_576;

/// `firewall = "…"` in `edge.toml`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// Bans reach the kernel through the helper.
    #[default]
    Kernel,
    /// They are kept in memory as the kernel would, for a trial.
    Rehearsal,
    /// Only edge itself refuses who is banned.
    None,
}

/// What is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Which one.
    pub kind: Kind,
    /// Where the helper listens.
    pub socket: PathBuf,
    /// How long the helper may take to answer.
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { kind: Kind::default(), socket: DEFAULT_SOCKET.into(), timeout: Duration::from_secs(1) }
    }
}

impl Settings {
    /// What `edge check` says of a socket where no helper can ever be met. The usual folder is made by
    /// the helper's unit when that starts, and edge does without until then.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let usual = self.socket.as_path() == Path::new(DEFAULT_SOCKET);
        let folder = self.socket.parent().filter(|folder| !folder.is_dir())?;
        (self.kind == Kind::Kernel && !usual).then(|| {
            format!(
                "bans.firewall_socket: {}: there is no folder {}; write the `socket` of firewall.toml here, or create it",
                self.socket.display(),
                folder.display()
            )
        })
    }
}

/// Never fails: a helper that is away is tried again, and [`Firewall::state`] says so.
#[must_use]
pub fn open(settings: &Settings) -> Box<dyn Firewall> {
    match settings.kind {
        Kind::Kernel => Box::new(Kernel::new(settings.socket.clone(), settings.timeout)),
        Kind::Rehearsal => Box::new(Rehearsal::new(Box::new(clock()), MOST_REHEARSED)),
        Kind::None => Box::new(Nobody),
    }
}

#[expect(clippy::disallowed_methods, reason = "a rehearsal's bans end by real time")]
fn clock() -> impl Fn() -> Duration + Send {
    let start = Instant::now();
    move || start.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_in_a_folder_that_is_not_there_is_a_fault_but_for_the_usual_one() {
        let at = |socket: &str| Settings { socket: socket.into(), ..Settings::default() };
        let told = at("/nope/firewall.sock").fault().unwrap();
        assert!(told.contains("there is no folder /nope"), "{told}");
        assert_eq!(Settings { kind: Kind::None, ..at("/nope/firewall.sock") }.fault(), None);
        assert_eq!(Settings::default().fault(), None, "its unit makes the folder");
        assert_eq!(at("/tmp/firewall.sock").fault(), None, "the helper may come later");
    }
}

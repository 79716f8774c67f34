//! What every Java program of the harness has in common: how much memory it gets, how fast it is
//! to be up, where Debian keeps its libraries, and certificates in the form that Java reads.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::browser::Pair;
use crate::program::run;

/// Opens every key store of the harness.
pub const STORE_PASSWORD: &str = "not-in-the-log";
/// Where Debian's Java libraries lie.
const LIBRARIES: &str = "/usr/share/java";

/// How a virtual machine runs.
#[derive(Debug, Clone, Copy)]
pub struct Jvm {
    /// Its heap at most, in MiB.
    pub heap: u32,
    /// Up soon and with few threads, but slower in the long run: for stories, not for measurements.
    pub quick: bool,
}

impl Jvm {
    /// For a story.
    #[must_use]
    pub fn quick(heap: u32) -> Self {
        Self { heap, quick: true }
    }

    /// As an operator would run it, for a measurement.
    #[must_use]
    pub fn full(heap: u32) -> Self {
        Self { heap, quick: false }
    }

    /// Its arguments; what it writes aside goes to `temporary`.
    #[must_use]
    pub fn arguments(self, temporary: &Path) -> Vec<OsString> {
        let mut words = vec![format!("-Xmx{}m", self.heap), "-XX:-UsePerfData".to_owned()];
        if self.quick {
            words.extend(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"].map(str::to_owned));
        }
        words.push(format!("-Djava.io.tmpdir={}", temporary.display()));
        words.into_iter().map(Into::into).collect()
    }
}

/// `java`, or another program of the same kit.
#[must_use]
pub fn tool(name: &str) -> PathBuf {
    Path::new("/usr/bin").join(name)
}

/// Debian's libraries of these names as a class path, with `more` behind them.
///
/// # Errors
/// One is not installed.
pub fn class_path(libraries: &[&str], more: &[&Path]) -> anyhow::Result<OsString> {
    let mut files: Vec<PathBuf> = Vec::new();
    for name in libraries {
        let file = Path::new(LIBRARIES).join(format!("{name}.jar"));
        anyhow::ensure!(file.is_file(), "no {}: install the package activemq", file.display());
        files.push(file);
    }
    files.extend(more.iter().map(|file| (*file).to_owned()));
    Ok(std::env::join_paths(files)?)
}

/// A certificate and its key as a PKCS #12 store beside them, opened by [`STORE_PASSWORD`].
///
/// # Errors
/// What openssl says.
pub fn key_store(pair: &Pair) -> anyhow::Result<PathBuf> {
    let store = pair.certificate.with_extension("p12");
    let mut words: Vec<OsString> = ["pkcs12", "-export", "-name", "own", "-passout"].map(Into::into).into();
    words.push(format!("pass:{STORE_PASSWORD}").into());
    for (word, file) in [("-in", &pair.certificate), ("-inkey", &pair.key), ("-out", &store)] {
        words.extend([word.into(), file.into()]);
    }
    run(Path::new("openssl"), &words)?.well()?;
    Ok(store)
}

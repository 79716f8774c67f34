//! Compiles `tests/java` into the folder of everything built, once for each state of its text.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context;
use sha2::{Digest as _, Sha256};

use crate::program::run;
use crate::{binaries, jvm};

/// What the client needs of Debian's Java libraries.
const LIBRARIES: &[&str] = &[
    "activemq-client",
    "geronimo-jms_1.1_spec",
    "geronimo-j2ee-management-1.1-spec",
    "hawtbuf",
    "slf4j-api",
    "slf4j-nop",
    "jackson-annotations",
    "jackson-core",
    "jackson-databind",
];

/// Where Java finds the client and all that it needs.
pub(super) fn class_path() -> anyhow::Result<OsString> {
    jvm::class_path(LIBRARIES, &[&classes()?])
}

fn classes() -> anyhow::Result<PathBuf> {
    let sources = sources()?;
    let mut digest = Sha256::new();
    for source in &sources {
        digest.update(std::fs::read(source).with_context(|| format!("{}", source.display()))?);
    }
    let state: String = digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let above = binaries::target()?.join("java");
    let classes = above.join(state);
    if classes.is_dir() {
        return Ok(classes);
    }
    std::fs::create_dir_all(&above)?;
    // What lies at its place is whole: another test may want it at the same time.
    let temporary = tempfile::Builder::new().prefix("javac-").tempdir_in(&above)?;
    let fresh = temporary.path().join("classes");
    let mut words: Vec<OsString> = vec!["-Xlint:all".into(), "-Werror".into(), "-cp".into()];
    words.extend([jvm::class_path(LIBRARIES, &[])?, "-d".into(), fresh.clone().into()]);
    words.extend(sources.into_iter().map(PathBuf::into_os_string));
    run(&jvm::tool("javac"), &words)?.well()?;
    match std::fs::rename(&fresh, &classes) {
        Err(_) if classes.is_dir() => Ok(classes),
        renamed => renamed.map(|()| classes).with_context(|| format!("{}", fresh.display())),
    }
}

fn sources() -> anyhow::Result<Vec<PathBuf>> {
    let folder = binaries::tree().join("tests/java");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension() == Some(Path::new("java").as_os_str()));
    files.sort();
    Ok(files)
}

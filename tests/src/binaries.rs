//! Where the built programs lie: beside the running test or driver, or in the folder that
//! `EDGE_VAULT_BINARIES` names. Builds nothing.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// Names the folder that holds `edge`, `vault` and `examples/invoices`.
pub const FOLDER_VARIABLE: &str = "EDGE_VAULT_BINARIES";

/// One of the workspace's programs: `edge`, `vault`, `quickstart`, `examples/invoices`.
///
/// # Errors
/// It is not built; the text says how to.
pub fn find(name: &str) -> anyhow::Result<PathBuf> {
    let folder = folder()?;
    let file = folder.join(name);
    anyhow::ensure!(
        file.is_file(),
        "{} is not built; run: cargo build --workspace --bins --examples",
        file.display()
    );
    Ok(file)
}

/// The vault that was built with `--features without-fsync`, which `tests/run` puts into
/// `target/control`; the durability stories must find it out.
///
/// # Errors
/// It is not built; the text says how to.
pub fn find_without_fsync() -> anyhow::Result<PathBuf> {
    let file = target()?.join("control/vault");
    anyhow::ensure!(
        file.is_file(),
        "{} is not built; tests/run builds it (cargo build --workspace --bins --features \
         vault/without-fsync, then copies it there)",
        file.display()
    );
    Ok(file)
}

/// The top of the source tree.
#[must_use]
pub fn tree() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// The folder that everything is built into.
///
/// # Errors
/// This program lies in none.
pub fn target() -> anyhow::Result<PathBuf> {
    let folder = folder()?;
    folder.parent().map(Path::to_owned).context("the programs' folder has no parent")
}

fn folder() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os(FOLDER_VARIABLE) {
        return Ok(PathBuf::from(named));
    }
    let own = std::env::current_exe().context("this program's own path")?;
    // target/debug/deps/edge-1234 for a test, target/release/quickstart for the driver.
    own.ancestors()
        .skip(1)
        .find(|folder| folder.file_name().is_some_and(|name| name != "deps" && name != "examples"))
        .map(Path::to_owned)
        .with_context(|| format!("{}: no folder of built programs above it", own.display()))
}

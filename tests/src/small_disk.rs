//! A disk that is full on demand: the first vault's state lies on a small one of its own, which only
//! it sees. Knows no vault's inside.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::vault_host::{NAMES, Vault};

/// In front of a pair's vaults (see [`crate::vault_host::PairPlan::wrapper`]): an ext4 of 32 MiB for the
/// first one's state, which stays when the vault ends and is there again when it is restarted.
#[must_use]
pub fn wrapper(folder: &Path) -> Vec<OsString> {
    if !folder.ends_with(NAMES[0]) {
        return Vec::new();
    }
    let mount = "cd \"$0\" && if mkdir disk 2>/dev/null; then truncate -s 32M disk.image \
        && mkfs.ext4 -q -m 0 disk.image && mount -o loop disk.image disk && cp -a state/. disk/ && chmod 700 disk; \
        else mount -o loop disk.image disk; fi && mount --bind disk state && cd / && exec \"$@\"";
    let mut words: Vec<OsString> = ["unshare", "--mount", "sh", "-c", mount].map(Into::into).to_vec();
    words.push(folder.into());
    words
}

/// That disk, seen from outside, for as long as the vault runs.
#[derive(Debug)]
pub struct SmallDisk {
    ballast: PathBuf,
}

impl SmallDisk {
    /// The disk of a vault that runs behind [`wrapper`].
    ///
    /// # Errors
    /// It does not run.
    pub fn of(vault: &Vault) -> anyhow::Result<Self> {
        let pid = vault.program.as_ref().and_then(|program| program.pid()).context("it does not run")?;
        let state = vault.folder.join("state");
        let seen = format!("/proc/{pid}/root{}", state.display());
        Ok(Self { ballast: Path::new(&seen).join("ballast") })
    }

    /// Takes all of its room.
    ///
    /// # Errors
    /// There is no such disk any more.
    pub fn fill(&self) -> anyhow::Result<()> {
        let mut ballast = std::fs::File::create(&self.ballast)?;
        while ballast.write_all(&[0; 4096]).is_ok() {}
        Ok(())
    }

    /// Gives it back.
    ///
    /// # Errors
    /// It was not taken.
    pub fn make_room(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(&self.ballast)?)
    }
}

//! Where a vault notes what it gives alone so that this outlives the process and not its machine: a
//! folder in memory. Knows which one it is, and what is lost where there is none; writes nothing.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Nothing outlives the process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "api.control_socket lies on {on}, not on a tmpfs ({}): once this vault is killed (kill -9), the rest of the ranges set aside for it is unaccounted, and nobody gets those numbers any more; put it below /run",
    .folder.display()
)]
pub struct NoRunFolder {
    folder: PathBuf,
    on: &'static str,
}

/// The folder that the service manager has made (`RUNTIME_DIRECTORY`, see systemd.exec(5)), or that of
/// the control socket.
///
/// # Errors
/// The socket's lies on a disk, where a file proves nothing once the machine has gone down.
pub fn run_folder(made: Option<OsString>, socket: &Path) -> Result<PathBuf, NoRunFolder> {
    if let Some(made) = made {
        return Ok(made.into());
    }
    let folder = socket.parent().unwrap_or(Path::new("/")).to_owned();
    let kind = rustix::fs::statfs(&folder).ok().map(|found| found.f_type);
    let on = match kind {
        Some(libc::TMPFS_MAGIC) => return Ok(folder),
        Some(libc::EXT4_SUPER_MAGIC) => "ext4",
        Some(libc::XFS_SUPER_MAGIC) => "xfs",
        Some(libc::BTRFS_SUPER_MAGIC) => "btrfs",
        Some(libc::OVERLAYFS_SUPER_MAGIC) => "an overlay",
        Some(libc::NFS_SUPER_MAGIC) => "nfs",
        Some(_) => "another file system",
        None => "a folder that cannot be looked at",
    };
    Err(NoRunFolder { folder, on })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_folder_in_memory_outlives_a_killed_vault_and_no_machine() {
        let made = run_folder(Some("/run/vault".into()), Path::new("/var/lib/vault/control.sock"));
        assert_eq!(made, Ok(PathBuf::from("/run/vault")));
        let in_memory = run_folder(None, Path::new("/dev/shm/control.sock"));
        assert_eq!(in_memory, Ok(PathBuf::from("/dev/shm")));
        let told = run_folder(None, Path::new("/proc/control.sock")).unwrap_err().to_string();
        assert!(told.contains("not on a tmpfs (/proc)") && told.contains("put it below /run"), "{told}");
    }
}

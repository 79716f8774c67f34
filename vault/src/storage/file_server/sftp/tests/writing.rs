//! Promises about an SFTP server that does not take what is written: which trouble it is, and that the
//! rest goes on.

use super::*;

#[test]
fn a_disk_that_went_read_only_is_read_on_and_written_again_when_it_can_be() {
    let sshd = Sshd::start_on_small_disk(24);
    let server = attached(&sshd);
    let (id, bytes) = object(b"written before");
    server.put(&id, &mut in_memory(bytes.clone())).unwrap();
    let others = [object(b"short"), object(&noise(2 << 20))];
    sshd.remount("ro");
    for (other, more) in &others {
        let refused = server.put(other, &mut in_memory(more.clone())).unwrap_err();
        assert!(matches!(refused, FileServerError::Unwritable { .. }), "{refused}");
        assert!(refused.to_string().contains("read-only"), "{refused}");
    }
    let refused = server.remove(&id).unwrap_err();
    assert!(matches!(refused, FileServerError::Unwritable { .. }), "{refused}");
    assert_eq!(whole(&server, &id), bytes);
    // As at the vault's next start.
    sftp(&sshd).attach(None, false).unwrap();
    sshd.remount("rw");
    for (other, more) in &others {
        assert_eq!(server.put(other, &mut in_memory(more.clone())).unwrap(), Put::Written);
    }
}

#[test]
fn an_sftp_server_restored_without_its_folder_of_temporary_files_comes_back() {
    let sshd = Sshd::start();
    contract::makes_its_folder_of_temporary_files_again(&sftp(&sshd), &sshd.place());
}

//! Two vaults whose files differ, or that are apart: both say so until it is over.

use harness::cluster::temporary_folder;
use harness::vault_host::{Pair, Vault};
use harness::{plain, wait};

use crate::{SOON, job, last, pair};

const SECTION: &str =
    "[[schedule]]\nname = \"yearly\"\ncron = \"@yearly\"\nkind = \"message\"\nqueue = \"q\"\n";

fn says(vault: &Vault, words: &str) {
    wait::until(&format!("{} says {words:?}", vault.name), SOON, || {
        let ready = plain::expect_ok(vault.admin, "/readyz?verbose")?;
        anyhow::ensure!(ready.contains(words), "{ready}");
        Ok(())
    })
    .unwrap();
}

/// The file gets the section, and its vault starts again.
fn add(pair: &mut Pair, at: usize) {
    let vault = &mut pair.vaults[at];
    let text = std::fs::read_to_string(&vault.config).unwrap();
    std::fs::write(&vault.config, format!("{text}\n{SECTION}")).unwrap();
    let program = vault.program().unwrap();
    program.terminate().unwrap();
    program.restart().unwrap();
    pair.wait_ready().unwrap();
}

#[test]
fn what_the_vaults_files_say_differently_both_tell_until_it_is_alike() {
    let folder = temporary_folder().unwrap();
    let mut pair = pair(folder.path(), String::new());
    add(&mut pair, 0);
    says(&pair.vaults[0], "[[schedule]] yearly is not in vault-b's");
    says(&pair.vaults[1], "[[schedule]] yearly is in vault-a's alone");
    for vault in &mut pair.vaults {
        let told = format!("{:#}", vault.command(&["status"]).unwrap_err());
        assert!(told.contains("the two vaults' files differ: [[schedule]] yearly"), "{told}");
        let log = vault.program().unwrap().log();
        assert!(log.contains("pair: the two vaults' files differ"), "{log}");
    }
    add(&mut pair, 1);
    says(&pair.vaults[0], "[+] configuration: as vault-b's");
    says(&pair.vaults[1], "[+] configuration: as vault-a's");
}

#[test]
fn a_run_that_is_asked_for_while_the_vaults_are_apart_is_shown_until_it_begins() {
    let folder = temporary_folder().unwrap();
    let mut pair = pair(folder.path(), SECTION.to_owned());
    pair.vaults[0].program().unwrap().kill().unwrap();
    let other = &pair.vaults[1];
    other.command(&["worker", "run", "yearly"]).unwrap();
    wait::until("it is shown, and why it waits", SOON, || {
        let job = job(other, "yearly")?;
        anyhow::ensure!(job["asked"].is_string() && job["trouble"].is_string(), "{job}");
        Ok(())
    })
    .unwrap();
    let told = other.command(&["worker", "status"]).unwrap();
    assert!(told.contains("job yearly: next ") && told.contains("ASKED FOR at "), "{told}");
    says(other, "yearly was asked for, and has not begun");
    pair.vaults[0].program().unwrap().restart().unwrap();
    pair.wait_ready().unwrap();
    let other = &pair.vaults[1];
    wait::until("it has run", SOON, || last(other, "yearly")).unwrap();
    assert!(job(other, "yearly").unwrap()["asked"].is_null());
}

//! The copy's own stories: a pair of vaults with a database that ends, freezes, falls behind, is not
//! the right one, or is written by the other vault from now on.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use harness::cluster::temporary_folder;
use harness::database_server::{self, DatabaseServer};
use harness::vault_host::{Pair, PairPlan, Vault, files_below};
use harness::{plain, wait};
use vault::sequence::entry::Tail;

use crate::{SOON, entries, open, settings};

/// A pair whose ledger has a copy on these servers.
pub(crate) fn house(folder: &Path, servers: &[&DatabaseServer]) -> Pair {
    let first = servers[0];
    let hosts: Vec<_> = servers.iter().map(|server| format!("\"{}\"", server.address)).collect();
    // Each server has an authority of its own here: all of them in one file.
    let authorities: String =
        servers.iter().map(|server| std::fs::read_to_string(&server.authority).unwrap()).collect();
    let authority = folder.join("authorities.crt");
    std::fs::write(&authority, authorities).unwrap();
    let storage = format!(
        "[sequence.database]\nkind = \"postgres\"\nhosts = [{}]\npassword_file = \"{}\"\nauthority_file = \"{}\"\n",
        hosts.join(", "),
        first.password_file.display(),
        authority.display(),
    );
    Pair::start(folder, &PairPlan { storage, ..PairPlan::default() }).unwrap()
}

pub(crate) fn reserve(pair: &Pair, key: usize) -> Duration {
    let path = "/v1/series/INV/numbers?owner=erp";
    let call = pair.vaults[0].control(path).method("POST").key(format!("k{key}"));
    let (answer, took) = wait::timed(|| call.send().unwrap());
    answer.expect(&[201]).unwrap();
    took
}

/// A record that is new.
fn put(vault: &Vault, name: &str) -> Duration {
    let path = format!("/v1/records/{name}?owner=erp");
    let call = vault.control(&path).method("PUT").header("If-None-Match", "*").key(name).body("v");
    let (answer, took) = wait::timed(|| call.send().unwrap());
    answer.expect(&[201]).unwrap();
    took
}

pub(crate) fn held(server: &DatabaseServer) -> u64 {
    server.sql("vault", "SELECT idx FROM vault_ledger").unwrap().parse().unwrap()
}

/// Waits until the first vault's copy is current, and is the journal.
pub(crate) fn is_current(pair: &Pair, server: &DatabaseServer) {
    is_current_by(&pair.vaults[0], server);
}

/// The same of the copy that this vault writes.
fn is_current_by(vault: &Vault, server: &DatabaseServer) {
    let admin = vault.admin;
    wait::until("the copy is current", SOON, || {
        let text = vault.control("/v1/status").send()?.json()?;
        let numbers = &text["numbers"];
        let copy = &numbers["database"];
        anyhow::ensure!(copy["phase"] == "current" && copy["holds"] == numbers["final_entries"], "{copy}");
        anyhow::ensure!(plain::metric(admin, "vault_database_current")? == 1.0, "the metric lags");
        Ok(())
    })
    .unwrap();
    let reserves =
        server.sql("vault", "SELECT count(*) = max(number) FROM vault_entry WHERE act = 'reserve'");
    assert_eq!(reserves.unwrap(), "t");
    assert_eq!(server.sql("vault", "SELECT count(*) FROM vault_entry").unwrap(), held(server).to_string());
}

#[test]
fn numbers_go_on_while_the_database_is_away_or_frozen_and_it_catches_up_by_itself() {
    let folder = temporary_folder().unwrap();
    let mut server = DatabaseServer::start(database_server::Kind::Postgres, folder.path(), "server").unwrap();
    let pair = house(folder.path(), &[&server]);
    reserve(&pair, 0);
    is_current(&pair, &server);
    // The reply has waited for the copy.
    for key in 1..6 {
        reserve(&pair, key);
        let copied =
            server.sql("vault", &format!("SELECT number FROM vault_entry WHERE entry_key = 'k{key}'"));
        assert_ne!(copied.unwrap(), "");
    }

    put(&pair.vaults[0], "copied");
    is_current(&pair, &server);
    assert_eq!(server.sql("vault", "SELECT count(*) FROM vault_entry WHERE act = 'put'").unwrap(), "1");

    server.freeze().unwrap();
    // Records need no copy: whoever writes one waits for nothing.
    let took = put(&pair.vaults[0], "lot");
    assert!(took < Duration::from_millis(800), "{took:?}");
    let first = reserve(&pair, 6);
    assert!(first > Duration::from_millis(800) && first < Duration::from_secs(3), "{first:?}");
    // It is behind now: nobody waits for it.
    for key in 7..12 {
        let took = reserve(&pair, key);
        assert!(took < Duration::from_millis(800), "{took:?}");
    }
    server.thaw().unwrap();
    is_current(&pair, &server);

    server.kill().unwrap();
    for key in 12..20 {
        reserve(&pair, key);
    }
    let told = pair.vaults[0].command(&["database", "status"]).unwrap();
    assert!(told.contains("AWAY"), "{told}");
    let told = pair.vaults[0].command(&["check"]).unwrap();
    let line = format!("database {}: WARNING: no connection", server.address);
    assert!(
        told.contains(&line) && told.contains("numbers do not wait for it") && told.contains("fine"),
        "{told}"
    );
    server.restart().unwrap();
    let told = pair.vaults[0].command(&["check"]).unwrap();
    assert!(told.contains(&format!("database {}: primary, holds", server.address)), "{told}");
    is_current(&pair, &server);
    reserve(&pair, 20);
    assert_eq!(server.sql("vault", "SELECT max(number) FROM vault_entry").unwrap(), "21");
    // No password in any log.
    for vault in &pair.vaults {
        let logs = files_below(&vault.folder).unwrap();
        for log in logs.iter().filter(|file| file.extension().is_some_and(|end| end == "log")) {
            assert!(!std::fs::read_to_string(log).unwrap().contains(database_server::PASSWORD));
        }
    }
}

#[test]
fn a_database_that_holds_what_the_ledger_does_not_is_never_written_to() {
    let folder = temporary_folder().unwrap();
    let server = DatabaseServer::start(database_server::Kind::Postgres, folder.path(), "server").unwrap();
    let stranger = entries(Tail::default(), 40);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut ledger = open(&settings(&[&server])).await.unwrap();
        ledger.prepare().await.unwrap();
        ledger.append(Tail::default(), &stranger).await.unwrap();
    });
    let pair = house(folder.path(), &[&server]);
    for key in 0..5 {
        reserve(&pair, key);
    }
    wait::until("the alarm", SOON, || {
        anyhow::ensure!(plain::metric(pair.vaults[0].admin, "vault_database_refused")? == 1.0);
        Ok(())
    })
    .unwrap();
    assert_eq!(held(&server), 40);
    let told = pair.vaults[0].control("/v1/database").send().unwrap().text();
    assert!(told.contains("this ledger"), "{told}");
    // Its owner empties it, and says so.
    server.sql("vault", "DROP TABLE vault_entry, vault_ledger").unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(server.sql("vault", "SELECT to_regclass('vault_entry') IS NULL").unwrap(), "t");
    pair.vaults[0].command(&["database", "rejoin"]).unwrap();
    is_current(&pair, &server);
}

#[test]
fn who_follows_is_written_down_also_while_the_database_is_refused() {
    let folder = temporary_folder().unwrap();
    let first = DatabaseServer::start(database_server::Kind::Postgres, folder.path(), "first").unwrap();
    let stranger = entries(Tail::default(), 40);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut ledger = open(&settings(&[&first])).await.unwrap();
        ledger.prepare().await.unwrap();
        ledger.append(Tail::default(), &stranger).await.unwrap();
    });
    let mut second = first.standby(folder.path(), "second").unwrap();
    second.kill().unwrap();
    let pair = house(folder.path(), &[&first, &second]);
    let vault = &pair.vaults[0];
    reserve(&pair, 0);
    wait::until("it is refused", SOON, || {
        anyhow::ensure!(plain::metric(vault.admin, "vault_database_refused")? == 1.0);
        Ok(())
    })
    .unwrap();
    second.restart().unwrap();
    wait::until("it is seen as a standby", SOON, || {
        let files = files_below(&vault.folder)?;
        let note = files.iter().find(|file| file.extension().is_some_and(|end| end == "database"));
        let text = std::fs::read_to_string(note.context("there is no note")?)?;
        let note: serde_json::Value = serde_json::from_str(&text)?;
        anyhow::ensure!(note["refused"].is_string(), "{note}");
        anyhow::ensure!(note["standbys"] == serde_json::json!([second.address.to_string()]), "{note}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn the_vault_that_is_made_the_owner_writes_the_copy_on_and_the_other_only_watches_it() {
    let folder = temporary_folder().unwrap();
    let server = DatabaseServer::start(database_server::Kind::Postgres, folder.path(), "server").unwrap();
    let mut pair = house(folder.path(), &[&server]);
    for key in 0..5 {
        reserve(&pair, key);
    }
    is_current(&pair, &server);
    let phase = |vault: &Vault| {
        let status = vault.control("/v1/status").send()?.json()?;
        anyhow::Ok(status["numbers"]["database"]["phase"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(phase(&pair.vaults[1]).unwrap(), "watched");

    pair.vaults[0].program().unwrap().kill().unwrap();
    let before = held(&server);
    pair.vaults[1].command(&["number", "take-over", "--alone"]).unwrap();
    put(&pair.vaults[1], "lot");
    is_current_by(&pair.vaults[1], &server);
    // What stands in one journal alone is not final, and is not copied.
    assert_eq!(held(&server), before);

    pair.vaults[0].program().unwrap().restart().unwrap();
    pair.wait_ready().unwrap();
    pair.vaults[0].wait_together().unwrap();
    for key in 5..8 {
        reserve(&pair, key);
        let copied = format!("SELECT number FROM vault_entry WHERE entry_key = 'k{key}'");
        assert_ne!(server.sql("vault", &copied).unwrap(), "", "the reply has not waited");
    }
    is_current_by(&pair.vaults[1], &server);
    wait::until("the former owner watches", SOON, || {
        let phase = phase(&pair.vaults[0])?;
        anyhow::ensure!(phase == "watched", "{phase}");
        Ok(())
    })
    .unwrap();
    assert_eq!(
        server.sql("vault", "SELECT max(number) FROM vault_entry WHERE act = 'reserve'").unwrap(),
        "8"
    );
}

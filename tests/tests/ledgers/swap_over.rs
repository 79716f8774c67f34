//! Swap-over: the copy's primary is lost, and an operator has a standby promoted, which may lack
//! rows; or somebody else has promoted one. Who was a primary stays out until it follows.

use std::time::Duration;

use harness::cluster::temporary_folder;
use harness::database_server::{self, DatabaseServer};
use harness::vault_host::Vault;
use harness::{plain, wait};

use crate::SOON;
use crate::copy::{held, house, is_current, reserve};

/// Whom a standby is fed from, in its own words.
fn feed_from(standby: &DatabaseServer, primary: &str) {
    standby.sql("postgres", &format!("ALTER SYSTEM SET primary_conninfo = '{primary}'")).unwrap();
    standby.sql("postgres", "SELECT pg_reload_conf()").unwrap();
}

fn has_everything(standby: &DatabaseServer, primary: &DatabaseServer) {
    wait::until("the standby has everything", SOON, || {
        anyhow::ensure!(held(standby) == held(primary));
        Ok(())
    })
    .unwrap();
}

/// Waits until the vault says this of what is gone of the database's redundancy.
fn wait_thin(vault: &Vault, words: &str) {
    wait::until("what is gone of the redundancy is told", SOON, || {
        let status = vault.control("/v1/status").send()?.json()?;
        let thin = status["numbers"]["database"]["thin"].to_string();
        anyhow::ensure!(thin.contains(words), "{thin}");
        Ok(())
    })
    .unwrap();
}

/// The standby has what there is, and is cut off: what follows is lost on it.
fn starve(standby: &DatabaseServer, primary: &DatabaseServer) {
    has_everything(standby, primary);
    feed_from(standby, "");
    wait::until("the standby is fed by nobody", SOON, || {
        anyhow::ensure!(standby.sql("postgres", "SELECT count(*) FROM pg_stat_wal_receiver")? == "0");
        Ok(())
    })
    .unwrap();
}

#[test]
fn take_over_promotes_the_standby_and_replays_what_it_lost_and_the_old_primary_stays_out() {
    let folder = temporary_folder().unwrap();
    let mut first = DatabaseServer::start(database_server::Kind::Postgres, folder.path(), "first").unwrap();
    let second = first.standby(folder.path(), "second").unwrap();
    let pair = house(folder.path(), &[&first, &second]);
    let vault = &pair.vaults[0];
    for key in 0..5 {
        reserve(&pair, key);
    }
    is_current(&pair, &first);
    let told = vault.command(&["database", "status"]).unwrap();
    assert!(told.contains("primary, written to") && told.contains("standby"), "{told}");

    starve(&second, &first);
    for key in 5..12 {
        reserve(&pair, key);
    }
    is_current(&pair, &first);
    let lost = held(&first) - held(&second);
    assert!(lost >= 7, "{lost}");
    first.kill().unwrap();
    reserve(&pair, 12);
    let dead = first.address.to_string();
    let told = format!("{:#}", vault.command(&["database", "take-over", "--host", &dead]).unwrap_err());
    assert!(told.contains("is not taken: ") && told.contains("see that the server answers"), "{told}");
    let words = &told[told.find("is not taken").unwrap()..];
    assert!(!words.contains(&dead) && !words.contains("again"), "said once: {told}");
    let way_on = format!("vault database take-over --host {}", second.address);
    wait::until("the way on is told", SOON, || {
        let told = vault.control("/v1/database").send()?.text();
        anyhow::ensure!(told.contains(&way_on), "{told}");
        Ok(())
    })
    .unwrap();

    let told = vault.command(&["database", "take-over", "--host", &second.address.to_string()]).unwrap();
    assert!(told.contains("is promoted") && told.contains("were replayed"), "{told}");
    let source = format!("--source-server='host=127.0.0.1 port={} user=postgres", second.address.port());
    assert!(told.contains(&source), "{told}");
    assert!(told.contains("pg_rewind") && told.contains(&format!("{} is fenced", first.address)), "{told}");
    is_current(&pair, &second);
    let replayed = held(&second);
    reserve(&pair, 13);
    assert!(held(&second) > replayed);

    // The old one comes back and takes writes: an alarm, and nothing is written to it.
    first.restart().unwrap();
    let stale = held(&first);
    // Also while there is always something to copy.
    let mut keys = 100..;
    wait::until("the alarm", SOON, || {
        reserve(&pair, keys.next().unwrap());
        anyhow::ensure!(plain::metric(vault.admin, "vault_database_writable_servers")? == 2.0);
        Ok(())
    })
    .unwrap();
    let told = vault.control("/v1/database").send().unwrap().text();
    assert!(told.contains("each without the other"), "{told}");
    assert!(told.contains(&format!("{} is fenced here", first.address)), "{told}");
    assert!(!told.contains("fence --host"), "that was done: {told}");
    let refused = vault.command(&["database", "rejoin", "--host", &first.address.to_string()]).unwrap_err();
    assert!(format!("{refused:#}").contains("branched off"), "{refused:#}");
    reserve(&pair, 14);
    assert_eq!(held(&first), stale);
    is_current(&pair, &second);

    // Wound back to the new history it is taken at once, and has what is written from then on.
    first.kill().unwrap();
    first.follow(&second).unwrap();
    let host = first.address.to_string();
    let told = wait::until("the old one is taken back", Duration::from_secs(20), || {
        vault.command(&["database", "rejoin", "--host", &host])
    });
    assert!(told.unwrap().contains("is a standby"));
    reserve(&pair, 15);
    has_everything(&first, &second);
}

#[test]
fn a_standby_promoted_with_losses_waits_for_the_operator_and_then_has_everything() {
    let folder = temporary_folder().unwrap();
    let mut first = DatabaseServer::start(database_server::Kind::Postgres, folder.path(), "first").unwrap();
    let second = first.standby(folder.path(), "second").unwrap();
    let pair = house(folder.path(), &[&first, &second]);
    let vault = &pair.vaults[0];
    reserve(&pair, 0);
    is_current(&pair, &first);
    starve(&second, &first);
    for key in 1..6 {
        reserve(&pair, key);
    }
    is_current(&pair, &first);
    // It is written down now and then how far the copy went.
    std::thread::sleep(Duration::from_secs(6));
    first.kill().unwrap();
    let before = held(&second);
    second.sql("postgres", "SELECT pg_promote(true, 30)").unwrap();
    wait::until("it is refused", SOON, || {
        anyhow::ensure!(plain::metric(vault.admin, "vault_database_refused")? == 1.0);
        Ok(())
    })
    .unwrap();
    reserve(&pair, 6);
    assert_eq!(held(&second), before);
    vault.command(&["database", "take-over", "--host", &second.address.to_string()]).unwrap();
    is_current(&pair, &second);
    reserve(&pair, 7);
    assert_eq!(second.sql("vault", "SELECT max(number) FROM vault_entry").unwrap(), "8");
}

#[test]
fn a_standby_that_is_merely_away_is_not_fenced_by_a_take_over_and_serves_when_it_is_back() {
    let folder = temporary_folder().unwrap();
    let mut first = DatabaseServer::start(database_server::Kind::Postgres, folder.path(), "first").unwrap();
    let mut second = first.standby(folder.path(), "second").unwrap();
    let mut third = first.standby(folder.path(), "third").unwrap();
    let mut pair = house(folder.path(), &[&first, &second, &third]);
    for key in 0..5 {
        reserve(&pair, key);
    }
    is_current(&pair, &first);
    // It was seen as a standby; that is known after a restart, too.
    third.kill().unwrap();
    pair.vaults[0].program().unwrap().kill().unwrap();
    pair.vaults[0].program().unwrap().restart().unwrap();
    pair.wait_ready().unwrap();
    pair.vaults[0].wait_together().unwrap();
    reserve(&pair, 5);
    is_current(&pair, &first);
    first.kill().unwrap();

    let vault = &pair.vaults[0];
    let told = vault.command(&["database", "take-over", "--host", &second.address.to_string()]).unwrap();
    assert!(told.contains(&format!("{} is fenced", first.address)), "{told}");
    assert!(!told.contains(&format!("{} is fenced", third.address)), "{told}");
    assert!(told.contains(&format!("{} is away and was a standby", third.address)), "{told}");
    assert!(told.contains(&format!("vault database rejoin --host {}", third.address)), "{told}");
    assert!(!told.contains(&format!("fence --host {}", third.address)), "{told}");
    is_current(&pair, &second);
    let told = vault.command(&["database", "status"]).unwrap();
    assert_eq!(told.matches("fenced").count(), 1, "{told}");
    // Nobody is left to take over from this one, and the vault is not well.
    wait_thin(vault, "no standby of the database answers");
    let told = format!("{:#}", vault.command(&["status"]).unwrap_err());
    assert!(told.contains(&format!("{} is away", third.address)), "{told}");

    // It is back, and does what the operator was told: it follows the new primary.
    third.restart().unwrap();
    let primary = format!(
        "host=127.0.0.1 port={} user=postgres password={}",
        second.address.port(),
        database_server::PASSWORD
    );
    feed_from(&third, &primary);
    let host = third.address.to_string();
    let told = wait::until("it has the new history", SOON, || {
        vault.command(&["database", "rejoin", "--host", &host])
    });
    assert!(told.unwrap().contains("is a standby"));
    reserve(&pair, 6);
    has_everything(&third, &second);
    wait_thin(vault, "null");

    // Now it is the one that is meant when the next primary is lost.
    second.kill().unwrap();
    // It must be named: nothing is promoted by a command that was cut short.
    let told = format!("{:#}", vault.command(&["database", "take-over"]).unwrap_err());
    assert!(told.contains(&format!("vault database take-over --host {host};")), "{told}");
    assert_eq!(third.sql("postgres", "SELECT pg_is_in_recovery()").unwrap(), "t");
    let told = vault.command(&["database", "take-over", "--host", &host]).unwrap();
    assert!(told.contains(&format!("{host} is promoted")), "{told}");
    assert!(told.contains(&format!("{} is fenced", second.address)), "{told}");
    reserve(&pair, 7);
    is_current(&pair, &third);
}

#[test]
fn a_promoted_server_that_cannot_be_caught_up_yet_is_told_with_what_is_left_to_do() {
    let folder = temporary_folder().unwrap();
    let mut first = DatabaseServer::start(database_server::Kind::Postgres, folder.path(), "first").unwrap();
    let second = first.standby(folder.path(), "second").unwrap();
    let mut pair = house(folder.path(), &[&first, &second]);
    reserve(&pair, 0);
    is_current(&pair, &first);
    starve(&second, &first);
    for key in 1..4 {
        reserve(&pair, key);
    }
    // It waits for a standby that nobody has.
    second.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'nobody'").unwrap();
    second.sql("postgres", "SELECT pg_reload_conf()").unwrap();
    first.kill().unwrap();
    let words = ["database", "take-over", "--host", &second.address.to_string()];
    let told = format!("{:#}", pair.vaults[0].command(&words).unwrap_err());
    assert!(told.contains("does not have every entry yet"), "{told}");
    assert!(told.contains(&format!("rejoin --host {}", first.address)), "{told}");
    // The other vault names the owner, and what comes first when that one is lost, too.
    let told = format!("{:#}", pair.vaults[1].command(&words).unwrap_err());
    assert!(told.contains("write the same on its owner vault-a"), "{told}");
    pair.vaults[0].program().unwrap().kill().unwrap();
    wait::until("the owner is away", SOON, || {
        let told = format!("{:#}", pair.vaults[1].command(&words).unwrap_err());
        anyhow::ensure!(
            told.contains("vault-a is away: if that one is lost, first here: vault number take-over"),
            "{told}"
        );
        Ok(())
    })
    .unwrap();
    pair.vaults[0].program().unwrap().restart().unwrap();
    pair.wait_ready().unwrap();
    pair.vaults[0].wait_together().unwrap();
    second.sql("postgres", "ALTER SYSTEM RESET synchronous_standby_names").unwrap();
    second.sql("postgres", "SELECT pg_reload_conf()").unwrap();
    is_current(&pair, &second);
    reserve(&pair, 4);
    assert_eq!(second.sql("vault", "SELECT max(number) FROM vault_entry").unwrap(), "5");
}

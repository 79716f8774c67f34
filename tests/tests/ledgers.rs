//! One contract for every place that the ledger is kept in: SQLite, PostgreSQL, MariaDB, etcd,
//! each a real server over TLS. Then the copy's own story: a pair of vaults with a database that
//! ends, freezes, falls behind, is promoted with losses, or is not the right one.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::path::Path;
use std::time::Duration;

use harness::cluster::temporary_folder;
use harness::database_server::{self, DatabaseServer};
use harness::vault_host::{Pair, PairPlan, Vault, files_below};
use harness::{plain, wait};
use vault::sequence::database::open::{Connection, check};
use vault::sequence::database::sqlite::Sqlite;
use vault::sequence::database::{DatabaseError, Kind, Role, Settings};
use vault::sequence::entry::{Act, BATCH, Draft, Entry, Tail, verified};
use vault::sequence::record::{MAX_VALUE, name::MAX_NAME};

const SOON: Duration = Duration::from_secs(60);

/// `count` reserves after `tail`, of keys and texts that need their encoding.
fn entries(tail: Tail, count: usize) -> Vec<Entry> {
    let mut end = tail;
    let made = (0..count).map(|_| {
        let number = end.index + 1;
        let draft = Draft {
            owner: "erp".to_owned(),
            series: "Zürich ✂".to_owned(),
            number,
            key: format!("schlüssel-🗝-{number}"),
            act: Act::Reserve(Some(u128::MAX)),
            at: -1,
            carried: None,
        };
        let entry = Entry::append(end, 1, 7, draft);
        end = entry.tail();
        entry
    });
    made.collect()
}

fn settings(servers: &[&DatabaseServer]) -> Settings {
    let first = servers[0];
    Settings {
        kind: match first.kind {
            database_server::Kind::Postgres => Kind::Postgres,
            database_server::Kind::Mariadb => Kind::Mariadb,
            database_server::Kind::Etcd => Kind::Etcd,
        },
        role: Role::Copy,
        hosts: servers.iter().map(|server| ("127.0.0.1".to_owned(), server.address.port())).collect(),
        database: "vault".to_owned(),
        user: "vault".to_owned(),
        // etcd runs without accounts here.
        password_file: (first.kind != database_server::Kind::Etcd).then(|| first.password_file.clone()),
        authority_file: Some(first.authority.clone()),
        wait: Duration::from_secs(1),
    }
}

async fn open(settings: &Settings) -> Result<Connection, DatabaseError> {
    Connection::open(settings, &settings.hosts[0]).await
}

/// What every ledger keeps to. `connect` gives another connection to the same one.
async fn contract(connect: impl AsyncFn() -> Connection) {
    let mut ledger = connect().await;
    assert_eq!(ledger.prepare().await.unwrap(), Tail::default());
    assert_eq!(ledger.entries(0).await.unwrap(), []);

    // A whole batch, then one entry with the largest number and a text with everything in it.
    let batch = entries(Tail::default(), BATCH);
    ledger.append(Tail::default(), &batch).await.unwrap();
    let end = batch[BATCH - 1].tail();
    let odd = Draft {
        owner: "erp".to_owned(),
        series: "INV".to_owned(),
        number: i64::MAX as u64,
        key: "k".to_owned(),
        act: Act::Reserve(None),
        at: i64::MAX,
        carried: Some((u128::MAX, i64::MAX as u64)),
    };
    let odd = Entry::append(end, u64::try_from(i64::MAX).unwrap(), 9, odd);
    ledger.append(end, std::slice::from_ref(&odd)).await.unwrap();
    let spoiled = Draft {
        owner: "erp".to_owned(),
        series: "INV".to_owned(),
        number: i64::MAX as u64,
        key: "k".to_owned(),
        act: Act::Void("zerrissen ✂ 'quoted' \\ \0 \u{10FFFF}".to_owned()),
        at: 0,
        carried: None,
    };
    let spoiled = Entry::append(odd.tail(), 1, 9, spoiled);
    ledger.append(odd.tail(), std::slice::from_ref(&spoiled)).await.unwrap();

    // Another connection sees the same, in order and unaltered.
    let mut other = connect().await;
    assert_eq!(other.prepare().await.unwrap(), spoiled.tail());
    assert_eq!(other.entries(0).await.unwrap(), batch);
    assert_eq!(other.entries(BATCH as u64).await.unwrap(), [odd.clone(), spoiled.clone()]);
    assert_eq!(other.entries(BATCH as u64 - 1).await.unwrap()[0], batch[BATCH - 1]);
    let look = other.look().await.unwrap();
    assert_eq!(look.holds, Some(spoiled.tail()), "{look:?}");

    // Whoever does not know the end writes nothing, neither a part nor over what is there.
    for (after, wrong) in [
        (Tail::default(), entries(Tail::default(), 3)),
        (end, entries(end, 2)),
        (Tail { hash: end.hash, ..spoiled.tail() }, entries(spoiled.tail(), 2)),
    ] {
        let error = ledger.append(after, &wrong).await.unwrap_err();
        assert!(matches!(error, DatabaseError::Moved { found, .. } if found == spoiled.index), "{error}");
    }
    assert_eq!(other.tail().await.unwrap(), spoiled.tail());

    // Records at their longest, of letters that grow most where they are written as JSON.
    let value = |number, letter: char| Draft {
        owner: "erp".to_owned(),
        series: "record".to_owned(),
        number,
        key: "n".repeat(MAX_NAME),
        act: Act::Put(letter.to_string().repeat(MAX_VALUE)),
        at: 0,
        carried: None,
    };
    let mut end = spoiled.tail();
    let removed = Draft { act: Act::Remove, ..value(4, 'x') };
    let records: Vec<Entry> = [value(1, '\u{1}'), value(2, '\u{1}'), value(3, '"'), removed]
        .map(|draft| {
            let entry = Entry::append(end, 1, 9, draft);
            end = entry.tail();
            entry
        })
        .into();
    ledger.append(spoiled.tail(), &records).await.unwrap();
    assert_eq!(other.entries(spoiled.index).await.unwrap(), records);

    // Two writers, time and again: exactly one is first.
    for turn in 0..20 {
        let (left, right) = (entries(end, 3), entries(end, 2));
        let (one, two) = tokio::join!(ledger.append(end, &left), other.append(end, &right));
        let won = match (&one, &two) {
            (Ok(()), Err(DatabaseError::Moved { .. })) => &left,
            (Err(DatabaseError::Moved { .. }), Ok(())) => &right,
            both => panic!("turn {turn}: {both:?}"),
        };
        assert_eq!(&ledger.entries(end.index).await.unwrap(), won);
        end = won.last().unwrap().tail();
        assert_eq!(other.tail().await.unwrap(), end);
    }
}

/// Everything that it holds, verified.
async fn whole(ledger: &mut Connection) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    loop {
        let more = ledger.entries(all.len() as u64).await.unwrap();
        if more.is_empty() {
            break;
        }
        all.extend(more);
    }
    assert_eq!(verified(Tail::default(), &all), Some(ledger.tail().await.unwrap()));
    all
}

/// Killed in the middle of writing, again and again: each batch is there whole or not at all, and
/// whatever was acknowledged is there.
async fn outlives_kills(server: &mut DatabaseServer, settings: &Settings) {
    for _ in 0..3 {
        let mut ledger = open(settings).await.unwrap();
        let mut end = ledger.prepare().await.unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let writing = tokio::spawn(async move {
            let mut sizes = [BATCH, 1, 37].into_iter().cycle();
            loop {
                let batch = entries(end, sizes.next().unwrap());
                match ledger.append(end, &batch).await {
                    Ok(()) => end = batch.last().unwrap().tail(),
                    Err(error) => return (end, batch.last().unwrap().tail(), error),
                }
                let _ = tell.send(());
            }
        });
        // It is in full swing.
        for _ in 0..10 {
            told.recv_timeout(SOON).unwrap();
        }
        server.kill().unwrap();
        let (acknowledged, under_way, error) = writing.await.unwrap();
        assert!(!error.needs_operator() && !matches!(error, DatabaseError::Moved { .. }), "{error}");
        server.restart().unwrap();
        let mut ledger = open(settings).await.unwrap();
        let found = ledger.prepare().await.unwrap();
        assert!(found == acknowledged || found == under_way, "{found:?} {acknowledged:?} {under_way:?}");
        whole(&mut ledger).await;
    }
}

/// A server that stands still is given up; what was under way is found out afterwards.
async fn outlives_a_freeze(server: &DatabaseServer, settings: &Settings) {
    let mut ledger = open(settings).await.unwrap();
    let before = ledger.prepare().await.unwrap();
    let batch = entries(before, 5);
    server.freeze().unwrap();
    let start = tokio::time::Instant::now();
    let error = ledger.append(before, &batch).await.unwrap_err();
    assert!(matches!(error, DatabaseError::Late { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    drop(ledger);
    server.thaw().unwrap();
    let mut ledger = open(settings).await.unwrap();
    let after = ledger.prepare().await.unwrap();
    // Either way another append after what is there now succeeds, or is told that it moved.
    match ledger.append(after, &entries(after, 1)).await {
        Ok(()) => {}
        Err(DatabaseError::Moved { found, .. }) => assert_eq!(found, batch[4].index),
        Err(error) => panic!("{error}"),
    }
    whole(&mut ledger).await;
}

async fn server_contract(kind: database_server::Kind) {
    let folder = temporary_folder().unwrap();
    let mut server = DatabaseServer::start(kind, folder.path(), "server").unwrap();
    let settings = settings(&[&server]);
    contract(async || open(&settings).await.unwrap()).await;
    outlives_a_freeze(&server, &settings).await;
    outlives_kills(&mut server, &settings).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_keeps_the_contract() {
    let folder = temporary_folder().unwrap();
    let file = folder.path().join("journal.db");
    contract(async || Connection::of(Sqlite::open(&file, 5).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_keeps_the_contract() {
    server_contract(database_server::Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_keeps_the_contract() {
    server_contract(database_server::Kind::Mariadb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_keeps_the_contract() {
    server_contract(database_server::Kind::Etcd).await;
}

/// What the operator is told at the start; the tables are as they were.
async fn fault(settings: &Settings) -> String {
    let error = check(settings, true).await.unwrap_err();
    assert!(error.needs_operator(), "{error}");
    let told = error.to_string();
    assert!(!told.contains(database_server::PASSWORD), "{told}");
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_that_is_not_fit_is_a_fault_at_the_start_and_stays_as_it_was() {
    let folder = temporary_folder().unwrap();
    let server = DatabaseServer::start(database_server::Kind::Postgres, folder.path(), "server").unwrap();
    let good = settings(&[&server]);
    let with = |database: &str| Settings { database: database.to_owned(), ..good.clone() };
    let tables = |database: &str| {
        server.sql(database, "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'vault%'").unwrap()
    };

    assert!(fault(&with("none")).await.contains("CREATE DATABASE"));
    let ascii = "CREATE DATABASE ascii OWNER vault ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0";
    server.sql("postgres", ascii).unwrap();
    assert!(fault(&with("ascii")).await.contains("ENCODING 'UTF8'"));
    assert_eq!(tables("ascii"), "0");
    server.sql("postgres", "CREATE DATABASE foreign_one").unwrap();
    assert!(fault(&with("foreign_one")).await.contains("OWNER TO vault"));
    assert_eq!(tables("foreign_one"), "0");
    server.sql("postgres", "CREATE DATABASE still OWNER vault").unwrap();
    server.sql("postgres", "ALTER DATABASE still SET default_transaction_read_only = on").unwrap();
    assert!(fault(&with("still")).await.contains("read-only"));
    assert_eq!(tables("still"), "0");
    let wrong = folder.path().join("wrong");
    std::fs::write(&wrong, "guessed").unwrap();
    let told = fault(&Settings { password_file: Some(wrong), ..good.clone() }).await;
    assert!(told.contains("password_file"), "{told}");
    // Another authority's server is not spoken to, and a server in clear is not either.
    let other = DatabaseServer::start(database_server::Kind::Etcd, folder.path(), "etcd").unwrap();
    let stranger = Settings { authority_file: Some(other.authority.clone()), ..good.clone() };
    let error = open(&stranger).await.err().unwrap();
    assert!(error.to_string().contains("certificate"), "{error}");

    check(&good, true).await.unwrap();
    assert_eq!(tables("vault"), "2");
    server.sql("vault", "REVOKE INSERT ON vault_entry FROM vault").unwrap();
    assert!(fault(&good).await.contains("GRANT SELECT, INSERT ON vault_entry TO vault"));
    server.sql("vault", "GRANT INSERT ON vault_entry TO vault").unwrap();
    server.sql("vault", "UPDATE vault_ledger SET version = 2").unwrap();
    assert!(fault(&good).await.contains("layout is version 2"));
    server.sql("vault", "DROP TABLE vault_ledger").unwrap();
    assert!(fault(&good).await.contains("vault_ledger is missing"));
    assert_eq!(tables("vault"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mariadb_that_is_not_fit_is_a_fault_at_the_start_and_stays_as_it_was() {
    let folder = temporary_folder().unwrap();
    let server = DatabaseServer::start(database_server::Kind::Mariadb, folder.path(), "server").unwrap();
    let good = settings(&[&server]);
    let with = |database: &str| Settings { database: database.to_owned(), ..good.clone() };
    server
        .sql(
            "mysql",
            "CREATE DATABASE latin CHARACTER SET latin1; CREATE DATABASE plain CHARACTER SET utf8mb4",
        )
        .unwrap();
    server
        .sql(
            "mysql",
            "GRANT ALL ON latin.* TO vault@'127.0.0.1'; GRANT SELECT ON plain.* TO vault@'127.0.0.1'",
        )
        .unwrap();
    assert!(fault(&with("latin")).await.contains("CHARACTER SET utf8mb4"));
    assert!(fault(&with("plain")).await.contains("GRANT SELECT, INSERT, UPDATE, CREATE ON plain.*"));
    for database in ["latin", "plain"] {
        assert_eq!(server.sql(database, "SHOW TABLES").unwrap(), "");
    }
    check(&good, true).await.unwrap();
    server.sql("vault", "UPDATE vault_ledger SET version = 2").unwrap();
    assert!(fault(&good).await.contains("layout is version 2"));
}

/// A pair whose ledger has a copy on these servers.
fn house(folder: &Path, servers: &[&DatabaseServer]) -> Pair {
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

fn reserve(pair: &Pair, key: usize) -> Duration {
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

fn held(server: &DatabaseServer) -> u64 {
    server.sql("vault", "SELECT idx FROM vault_ledger").unwrap().parse().unwrap()
}

/// Waits until the first vault's copy is current, and is the journal.
fn is_current(pair: &Pair, server: &DatabaseServer) {
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
    server.restart().unwrap();
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

    // The standby is cut off; what follows is lost on it.
    wait::until("the standby has it", SOON, || {
        anyhow::ensure!(held(&second) == held(&first));
        Ok(())
    })
    .unwrap();
    second.sql("postgres", "ALTER SYSTEM SET primary_conninfo = ''").unwrap();
    second.sql("postgres", "SELECT pg_reload_conf()").unwrap();
    wait::until("the standby is fed by nobody", SOON, || {
        anyhow::ensure!(second.sql("postgres", "SELECT count(*) FROM pg_stat_wal_receiver")? == "0");
        Ok(())
    })
    .unwrap();
    for key in 5..12 {
        reserve(&pair, key);
    }
    is_current(&pair, &first);
    let lost = held(&first) - held(&second);
    assert!(lost >= 7, "{lost}");
    first.kill().unwrap();
    reserve(&pair, 12);

    let told = vault.command(&["database", "take-over", "--host", &second.address.to_string()]).unwrap();
    assert!(told.contains("is promoted") && told.contains("were replayed"), "{told}");
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
    wait::until("the old one has it", SOON, || {
        anyhow::ensure!(held(&first) == held(&second));
        Ok(())
    })
    .unwrap();
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
    wait::until("the standby has it", SOON, || {
        anyhow::ensure!(held(&second) == held(&first));
        Ok(())
    })
    .unwrap();
    second.sql("postgres", "ALTER SYSTEM SET primary_conninfo = ''").unwrap();
    second.sql("postgres", "SELECT pg_reload_conf()").unwrap();
    wait::until("the standby is fed by nobody", SOON, || {
        anyhow::ensure!(second.sql("postgres", "SELECT count(*) FROM pg_stat_wal_receiver")? == "0");
        Ok(())
    })
    .unwrap();
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

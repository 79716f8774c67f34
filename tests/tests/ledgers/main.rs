//! One contract for every place that the ledger is kept in: SQLite, PostgreSQL, MariaDB, etcd,
//! each a real server over TLS. Then the copy's own stories, and those of its servers' swap-over.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

mod copy;
mod swap_over;

use std::time::Duration;

use harness::cluster::temporary_folder;
use harness::database_server::{self, DatabaseServer};
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

//! The whole promise, driven from outside: one line a step, `ok` or `FAIL`. A step that fails
//! does not hide the later ones unless they need what it left behind.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use harness::cluster::{Cluster, OWNER};
use harness::curl::{self, Outcome};
use harness::program::Ran;
use harness::{binaries, plain, wait};
use shared::api::{File, Page};

use crate::accounts::{agrees_with, is_unbroken, read_series, totals};
use crate::content::{MARKER, document};
use crate::load::{Book, INVOICES, Load, SERIES, doors, invoice_of, number_of};

/// What one address may have in flight, and how many are sent at once.
const LIMIT: usize = 50;
const CROWD: usize = 60;
/// How long the application holds each request of a crowd: long enough that all of them are
/// in flight together on a slow machine.
const HOLD: &str = "/slow?ms=4000";
/// How soon a vault must have noticed that the other is away, or back.
const NOTICE: Duration = Duration::from_secs(60);

/// Prints the steps and keeps the score.
#[derive(Debug, Default)]
struct Report {
    failed: usize,
}

impl Report {
    /// Prints `ok` with the step's own words, or `FAIL` with what went wrong.
    fn step(&mut self, what: &str, result: anyhow::Result<String>) -> bool {
        match &result {
            Ok(seen) => println!("ok   {what}: {seen}"),
            Err(error) => {
                self.failed += 1;
                println!("FAIL {what}: {error:#}");
            }
        }
        result.is_ok()
    }
}

/// Runs all steps; `true` when every one held.
///
/// # Errors
/// The cluster does not even start.
pub(crate) fn run() -> anyhow::Result<bool> {
    let mut report = Report::default();
    let (cluster, took) = wait::timed(Cluster::start);
    let mut cluster = cluster.context("starting two vaults, one edge and the application")?;
    println!("ok   two vaults, one edge and the invoice application started in {:.1} s", took.as_secs_f64());
    limits(&cluster, &mut report);
    documents(&cluster, &mut report);
    let book = killing(&mut cluster, &mut report)?;
    accounts(&cluster, &book, &mut report);
    report.step("vault status and edge status", statuses(&cluster));
    if report.failed > 0 {
        let [first, second] = &cluster.pair.vaults;
        for program in [Some(&cluster.edge.program), first.program.as_ref(), second.program.as_ref()] {
            eprint!("{}", program.map(|program| program.log_tail(15)).unwrap_or_default());
        }
    }
    let folder = cluster.folder().to_owned();
    report.step(
        "stopping",
        cluster.stop().and_then(|()| {
            anyhow::ensure!(!folder.exists(), "{} is still there", folder.display());
            Ok("every program ended by itself, the temporary folder is removed".to_owned())
        }),
    );
    println!("{}", if report.failed == 0 { "all of it holds" } else { "it does not hold" });
    Ok(report.failed == 0)
}

fn limits(cluster: &Cluster, report: &mut Report) {
    let other = IpAddr::from([127, 0, 0, 2]);
    let http1 = cluster.edge.call(HOLD).http1();
    let http2 = cluster.edge.call(HOLD).http2();
    let step = format!("{CROWD} requests at once from one address");
    report.step(&step, http1.crowd(CROWD).and_then(|outcomes| split(&outcomes)));
    let step = format!("{CROWD} streams of one HTTP/2 connection");
    report.step(&step, http2.crowd(CROWD).and_then(|outcomes| split(&outcomes)));
    let both = std::thread::scope(|scope| {
        let first = scope.spawn(|| http1.crowd(CROWD));
        let second = scope.spawn(|| http1.clone().from(other).crowd(CROWD));
        [first.join(), second.join()].map(|joined| {
            joined.unwrap_or_else(|_| anyhow::bail!("a caller's thread died")).and_then(|all| split(&all))
        })
    });
    let [first, second] = both;
    report.step(
        "two addresses at once, each with its own 50",
        first.and_then(|first| Ok(format!("127.0.0.1 {first}; 127.0.0.2 {}", second?))),
    );
}

/// 50 × 200 and 10 × 429 with `Retry-After`, or not.
fn split(outcomes: &[Outcome]) -> anyhow::Result<String> {
    let (answered, refused) = (curl::count(outcomes, 200), curl::count(outcomes, 429));
    anyhow::ensure!(
        answered == LIMIT && refused == CROWD - LIMIT,
        "{answered} answered, {refused} refused with 429, {} other: {outcomes:?}",
        outcomes.len() - answered - refused
    );
    let silent = outcomes.iter().filter(|one| one.status == 429 && one.retry_after.is_empty()).count();
    anyhow::ensure!(silent == 0, "{silent} of the 429 carry no Retry-After");
    Ok(format!("{answered} answered, {refused} refused with 429"))
}

fn documents(cluster: &Cluster, report: &mut Report) {
    let body = document(0, 200_000);
    let post = || {
        cluster.edge.call("/invoices").key("quickstart-first").body(body.clone()).send()?.expect(&[200, 201])
    };
    let written = post().and_then(|answer| invoice_of(&answer));
    let Ok(invoice) = &written else {
        report.step("an invoice: document uploaded, number drawn", written.map(|_| String::new()));
        return;
    };
    report.step(
        "an invoice: document uploaded, number drawn",
        Ok(format!("number {}, file {}…", invoice.number, invoice.file.get(..12).unwrap_or_default())),
    );
    report.step(
        "the same call again",
        post().and_then(|answer| {
            let again = invoice_of(&answer)?;
            anyhow::ensure!(
                (again.number, &again.file) == (invoice.number, &invoice.file),
                "another invoice: {again:?}"
            );
            Ok("the same number and the same file".to_owned())
        }),
    );
    report.step("both file servers hold a replica", replicas(cluster, &invoice.file, body.len()));
    report.step(
        "downloaded again through edge",
        download(cluster, &invoice.file, &body).map(|()| "byte-identical, whole and by range".to_owned()),
    );
}

fn replicas(cluster: &Cluster, id: &str, size: usize) -> anyhow::Result<String> {
    let found = wait::until("two replicas", NOTICE, || {
        let found = cluster.pair.replicas_of(id)?;
        anyhow::ensure!(found.len() == 2, "{} of 2: {found:?}", found.len());
        Ok(found)
    })?;
    let contents: Vec<_> = found.iter().map(std::fs::read).collect::<Result<_, _>>()?;
    anyhow::ensure!(contents.windows(2).all(|pair| pair.first() == pair.last()), "the two replicas differ");
    let telling = cluster.pair.replicas_with(MARKER)?;
    anyhow::ensure!(telling.is_empty(), "the plaintext shows in {telling:?}");
    let stored = contents.first().map_or(0, Vec::len);
    Ok(format!("{size} bytes stored as {stored}, the same on both, none of the plaintext in them"))
}

fn download(cluster: &Cluster, id: &str, body: &[u8]) -> anyhow::Result<()> {
    let path = format!("/files/{id}");
    let whole = cluster.edge.call(&path).send()?.expect(&[200])?;
    anyhow::ensure!(
        whole.body == body,
        "{} bytes came, other than the {} stored",
        whole.body.len(),
        body.len()
    );
    let path = format!("/v1/files/{id}");
    let part = cluster.handler(&path).header("Range", "bytes=100000-100999").send()?.expect(&[206])?;
    anyhow::ensure!(Some(part.body.as_slice()) == body.get(100_000..101_000), "the range is another one");
    Ok(())
}

/// Kills each vault in turn while eight callers are at work, and brings it back.
fn killing(cluster: &mut Cluster, report: &mut Report) -> anyhow::Result<Book> {
    let tap = doors(cluster);
    let load = Load::new(&tap);
    std::thread::scope(|scope| {
        let load = &load;
        for caller in 0..3 {
            scope.spawn(move || load.upload_files(caller));
            scope.spawn(move || load.draw_numbers(caller));
        }
        for caller in 0..2 {
            scope.spawn(move || load.write_invoices(caller));
        }
        for victim in [1, 0] {
            if let Err(error) = kill_and_bring_back(cluster, load, victim, report) {
                let name = cluster.pair.vaults[victim].name;
                report.step(&format!("{name} killed and brought back"), Err(error));
            }
        }
        load.stop();
    });
    Ok(load.book())
}

fn kill_and_bring_back(
    cluster: &mut Cluster,
    load: &Load<'_>,
    victim: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let name = cluster.pair.vaults[victim].name;
    let survivor = 1 - victim;
    load.wait_for("uploads under way", 6, |book| book.files.len())?;
    load.wait_for("numbers under way", 6, |book| book.numbers.len())?;
    cluster.pair.vaults[victim].program()?.kill()?;
    let before = load.book();
    let refused = refusal(cluster, &format!("while-{name}-is-away"));
    report.step(
        &format!("{name} killed with -9 in the middle of uploads and number requests; numbers wait"),
        refused,
    );
    let uploaded = load.wait_for("uploads go on", 10, |book| book.files.len());
    report.step(
        "uploads go on through the other vault",
        uploaded.map(|count| format!("{} more acknowledged", count - before.files.len())),
    );
    let book = load.book();
    report.step(
        "every file acknowledged so far is still there",
        all_readable(cluster, &book).map(|count| format!("{count} downloaded, byte-identical")),
    );
    cluster.pair.vaults[victim].program()?.restart()?;
    let (ready, took) = wait::timed(|| cluster.pair.wait_ready());
    report.step(
        &format!("{name} started again"),
        ready.map(|()| format!("both vaults ready after {:.1} s", took.as_secs_f64())),
    );
    let caught_up = catches_up(cluster, victim, survivor, &book);
    report.step(&format!("{name} catches up"), caught_up);
    let numbers = load.wait_for("numbers go on", 6, |book| book.numbers.len());
    let invoices = load.wait_for("invoices go on", 2, |book| book.invoices.len());
    report.step(
        "numbers go on",
        numbers.and_then(|numbers| Ok(format!("{numbers} given, {} invoices written", invoices?))),
    );
    Ok(())
}

/// A number asked for now is refused: 503, when to come again, and why.
fn refusal(cluster: &Cluster, key: &str) -> anyhow::Result<String> {
    let path = format!("/v1/series/{SERIES}-REFUSED/numbers");
    let call = cluster.handler(&path).key(key).method("POST").within(Duration::from_secs(15));
    let answer = wait::until("a number is refused", NOTICE, || call.send()?.expect(&[503]))?;
    let retry_after = answer.header("retry-after").context("no Retry-After")?;
    Ok(format!("503 {}, Retry-After: {retry_after}, {}", answer.word("code")?, answer.word("detail")?))
}

fn all_readable(cluster: &Cluster, book: &Book) -> anyhow::Result<usize> {
    for (id, stored) in &book.files {
        let path = format!("/v1/files/{id}");
        let answer = wait::until(&format!("file {id} of {}", stored.key), NOTICE, || {
            cluster.handler(&path).send()?.expect(&[200])
        })?;
        anyhow::ensure!(
            answer.body == document(stored.document, stored.size),
            "file {id} of {}: {} bytes, other than those stored",
            stored.key,
            answer.body.len()
        );
    }
    Ok(book.files.len())
}

/// The vault that came back lists every file, also those it slept through, as the other does.
fn catches_up(cluster: &Cluster, victim: usize, survivor: usize, book: &Book) -> anyhow::Result<String> {
    wait::until("the catalogs merge", NOTICE, || {
        let known = list_files(cluster, victim)?;
        let missing = book.files.keys().filter(|id| !known.contains(*id)).count();
        anyhow::ensure!(missing == 0, "{missing} of {} files unknown there", book.files.len());
        Ok(())
    })?;
    let elsewhere = list_files(cluster, survivor)?;
    anyhow::ensure!(book.files.keys().all(|id| elsewhere.contains(id)), "the other vault lacks some");
    Ok(format!("it lists all {} files, those it slept through too", book.files.len()))
}

fn list_files(cluster: &Cluster, vault: usize) -> anyhow::Result<Vec<String>> {
    let vault = &cluster.pair.vaults[vault];
    let mut ids = Vec::new();
    let mut after = String::new();
    loop {
        let path = format!("/v1/files?owner={OWNER}&limit=200&after={after}");
        let answer = vault.call(&cluster.holder, &path).send()?.expect(&[200])?;
        let page: Page<File> = serde_json::from_slice(&answer.body).context("a page of files")?;
        ids.extend(page.items.into_iter().map(|file| file.id));
        match page.next {
            Some(next) => after = next,
            None => return Ok(ids),
        }
    }
}

fn accounts(cluster: &Cluster, book: &Book, report: &mut Report) {
    report.step("every answer kept to the contract", kept_to_contract(book));
    report.step(
        "every acknowledged file, read once more",
        all_readable(cluster, book).map(|count| format!("{count} byte-identical")),
    );
    report.step(
        "file servers",
        cluster.pair.replicas_with(MARKER).and_then(|telling| {
            anyhow::ensure!(telling.is_empty(), "the plaintext shows in {telling:?}");
            Ok("nothing on them shows any plaintext".to_owned())
        }),
    );
    report.step(&format!("series {SERIES}"), series_holds(cluster, book));
    report.step("calls that were never answered, repeated", repeated(cluster, book));
    report.step(&format!("series {INVOICES}"), invoices_hold(cluster, book));
}

fn kept_to_contract(book: &Book) -> anyhow::Result<String> {
    anyhow::ensure!(
        book.broken.is_empty(),
        "{} did not, first: {:?}",
        book.broken.len(),
        book.broken.first()
    );
    Ok(format!(
        "{} files, {} numbers, {} invoices acknowledged",
        book.files.len(),
        book.numbers.len(),
        book.invoices.len()
    ))
}

fn series_holds(cluster: &Cluster, book: &Book) -> anyhow::Result<String> {
    let rows = read_series(SERIES, |path| cluster.handler(path))?;
    is_unbroken(&rows)?;
    let unanswered = agrees_with(&rows, book)?;
    let totals = totals(&rows);
    Ok(format!(
        "1 to {} without a hole, none twice: {} confirmed, {} void with a reason, {} reserved; \
         {unanswered} belong to calls cut off before their answer",
        rows.len(),
        totals.confirmed,
        totals.void,
        totals.reserved
    ))
}

/// Whoever lost the answer asks again with the same key and gets the number that is his.
fn repeated(cluster: &Cluster, book: &Book) -> anyhow::Result<String> {
    let before = read_series(SERIES, |path| cluster.handler(path))?;
    let path = format!("/v1/series/{SERIES}/numbers");
    let ask = |key: &str| -> anyhow::Result<u64> {
        let answer = cluster.handler(&path).key(key).method("POST").send()?.expect(&[200, 201])?;
        number_of(&answer)
    };
    let lost: Vec<_> = book
        .asked
        .iter()
        .filter(|key| key.starts_with("number-") && !book.numbers.contains_key(*key))
        .collect();
    for key in &lost {
        let number = ask(key)?;
        if let Some(row) = before.iter().find(|row| row.key == **key) {
            anyhow::ensure!(row.number == number, "{key} had number {}, now gets {number}", row.number);
        }
    }
    for (key, given) in book.numbers.iter().take(20) {
        let number = ask(key)?;
        anyhow::ensure!(number == given.number, "{key} was given {}, now gets {number}", given.number);
    }
    let after = read_series(SERIES, |path| cluster.handler(path))?;
    is_unbroken(&after)?;
    Ok(format!("{} keys, each with its one number; still no hole", lost.len() + book.numbers.len().min(20)))
}

fn invoices_hold(cluster: &Cluster, book: &Book) -> anyhow::Result<String> {
    let rows = read_series(INVOICES, |path| cluster.handler(path))?;
    is_unbroken(&rows)?;
    for (key, invoice) in &book.invoices {
        let place = usize::try_from(invoice.number)?.checked_sub(1).context("numbers start at 1")?;
        let row = rows.get(place).with_context(|| format!("{key}: invoice {} is lost", invoice.number))?;
        anyhow::ensure!(
            row.key.starts_with(key.as_str()),
            "invoice {} of {key} belongs to {}",
            row.number,
            row.key
        );
        anyhow::ensure!(row.document_hash.is_some(), "invoice {} of {key} is not confirmed", row.number);
    }
    Ok(format!(
        "1 to {} without a hole; {} invoices, each with its own number",
        rows.len(),
        book.invoices.len() + 1
    ))
}

fn statuses(cluster: &Cluster) -> anyhow::Result<String> {
    let [first, second] = &cluster.pair.vaults;
    for vault in [first, second] {
        vault.command(&["status"])?;
        plain::expect_ok(vault.admin, "/metrics")?;
    }
    let edge: Ran = harness::program::run(
        &binaries::find("edge")?,
        &["status".as_ref(), "--config".as_ref(), cluster.edge.config.as_os_str()],
    )?;
    edge.well()?;
    Ok("both vaults and edge answer their operator".to_owned())
}

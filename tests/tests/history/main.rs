//! Numbers and records under a nemesis: two real vaults in network namespaces of their own, the
//! database servers that hold the ledger's copy, callers that ask either vault, faults of every kind
//! by a seed, and a checker that judges the whole history of calls and what lies on the disks at the
//! end. `HISTORY_SEEDS` sets how many runs there are, `HISTORY_SECONDS` how long each is troubled,
//! `HISTORY_SEED` picks one, `HISTORY_LEDGER` the database: `journals` (none), `postgres`,
//! `postgres-sync`, `mariadb`, `etcd-truth` (the ledger itself), `etcd`; of ten neighbouring seeds
//! the last takes the last, the others one of the first five each. A failure prints its seed and
//! what befell the pair.
//!
//! The controls run the same checker on what is known to be wrong. It must find it.

mod answers;
mod callers;
mod check;
mod controls;
mod databases;
mod denials;
mod dice;
mod door;
mod history;
mod leases;
#[cfg(test)]
mod made;
mod nemesis;
mod network;
mod own_journals;
mod postgres;
mod proof;
mod register;
mod vaults;
mod wounds;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use harness::cluster::temporary_folder;

use crate::callers::Callers;
use crate::check::Fault;
use crate::databases::{Databases, Ledger};
use crate::dice::Dice;
use crate::history::{History, Outcome, Story};
use crate::nemesis::Nemesis;
use crate::network::{Network, Place};
use crate::vaults::{OWNER, Vaults};

/// The series in which only both vaults together give numbers.
const STRICT: &str = "INV";
/// The series in which each may go on alone.
const AVAILABLE: &str = "TKT";
/// What is set aside for each vault: enough for any window, little enough to be used up.
const RANGE: u64 = 400;
/// What callers bid for.
const RECORDS: [&str; 3] = ["lot-1", "lot-2", "lot-3"];
/// How many ask at once, and how long each rests between two calls at most.
const CALLERS: usize = 8;
const REST: Duration = Duration::from_millis(120);
/// How many runs go on at once.
const AT_ONCE: u64 = 5;
/// A history in which fewer were answered shows nothing.
const LEAST: usize = 200;
/// So many faults of a kind are shown.
const SHOWN: usize = 6;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// One run. Whatever is wrong comes back as an error that says it all.
fn run(seed: u64, seconds: u64) -> anyhow::Result<String> {
    let folder = temporary_folder()?;
    let ledger = Ledger::of(seed)?;
    let network = Network::build(ledger.servers())?;
    let mut databases = Databases::start(ledger, folder.path(), &network)?;
    let mut vaults = Vaults::start(folder.path(), &network, &databases.config())?;
    define(&vaults)?;
    let history = History::new(&[STRICT]).apart(ledger.is_truth()).range(RANGE);
    let callers = Callers::new(vaults.addresses(), &[STRICT, AVAILABLE], &RECORDS, &history);
    let stop = AtomicBool::new(false);
    let (log, struck, done) = std::thread::scope(|scope| {
        let asked =
            scope.spawn(|| network.inside(Place::Callers, || callers.ask(seed, CALLERS, REST, &stop)));
        let dice = Dice::new(seed, 1_000);
        let mut nemesis = Nemesis {
            vaults: &mut vaults,
            databases: &mut databases,
            network: &network,
            history: &history,
            dice,
            log: Vec::new(),
            struck: Vec::new(),
        };
        let troubled = nemesis.trouble(seed, seconds);
        let Nemesis { log, struck, .. } = nemesis;
        stop.store(true, Ordering::Relaxed);
        let pending = asked.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let settle = || network.inside(Place::Callers, || callers.settle(pending?))?;
        (log, struck, troubled.and_then(|()| settle()))
    });
    let story = history.story();
    let done = done.and_then(|()| vaults.wait_still(&databases));
    let done = done.and_then(|()| proof::prove(&mut vaults, &databases, &network));
    let faults = check::faults(&story);
    let proved = done.as_deref().unwrap_or("not proved");
    let report = format!("{ledger:?}: {}; {proved}; {}", report(&story), counted(&struck));
    let told = story.calls.iter().filter(|call| call.line().is_some()).count();
    let done = done.and_then(|_| {
        anyhow::ensure!(told >= LEAST, "only {told} numbers were answered: that shows nothing");
        Ok(())
    });
    if let (Ok(()), []) = (&done, faults.as_slice()) {
        return Ok(report);
    }
    let kept = folder.keep();
    let faults: Vec<_> = some_of_each(&faults).iter().map(ToString::to_string).collect();
    anyhow::bail!(
        "{report}\n{}\n{}\n{}\nlogs and journals are kept in {}",
        log.join("\n"),
        faults.join("\n"),
        done.err().map_or_else(String::new, |error| format!("not settled: {error:#}")),
        kept.display()
    )
}

/// Defines the series that goes on alone.
fn define(vaults: &Vaults) -> anyhow::Result<()> {
    let defined = vaults.each[0]
        .control(&format!("/v1/series/{AVAILABLE}?owner={OWNER}"))
        .method("PUT")
        .header("Content-Type", "application/json")
        .body(format!(r#"{{"range":{RANGE}}}"#))
        .send()?;
    defined.expect(&[200, 201, 204]).map(drop).context("defining the available series")
}

/// The first of those that break the same promise.
fn some_of_each(faults: &[Fault]) -> Vec<&Fault> {
    let mut shown = BTreeMap::new();
    let mut is_shown = |fault: &Fault| {
        let count = shown.entry(fault.promise).or_insert(0);
        *count += 1;
        *count <= SHOWN
    };
    faults.iter().filter(|fault| is_shown(fault)).collect()
}

/// How much a history has to say.
fn report(story: &Story) -> String {
    let count =
        |wanted: fn(&Outcome) -> bool| story.calls.iter().filter(|call| wanted(&call.outcome)).count();
    let alone = story.calls.iter().filter(|call| {
        let within = |window: &history::Window| window.from <= call.invoked && call.ended <= window.to;
        call.line().is_some_and(|(series, _)| series == AVAILABLE) && story.windows.iter().any(within)
    });
    let unaccounted = story.ending.values().flat_map(|ending| &ending.unaccounted);
    let unaccounted: u64 = unaccounted.map(|(from, to)| to.saturating_sub(*from) + 1).sum();
    format!(
        "{} calls, {} numbers, {} versions, {} leases, {} told there is none, {} refused, {} unknown, {} available ones in {} windows, {unaccounted} unaccounted after {} lives",
        story.calls.len(),
        count(|outcome| matches!(outcome, Outcome::Number(_))),
        count(|outcome| matches!(outcome, Outcome::Version { .. })),
        count(|outcome| matches!(outcome, Outcome::Held { .. })),
        count(|outcome| matches!(outcome, Outcome::Nothing)),
        count(|outcome| matches!(outcome, Outcome::Refused { .. })),
        count(|outcome| matches!(outcome, Outcome::Unknown(_))),
        alone.count(),
        story.windows.len(),
        story.unknown_ends,
    )
}

/// How often each kind of fault and wound struck.
fn counted(struck: &[String]) -> String {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    struck.iter().for_each(|what| *kinds.entry(what).or_default() += 1);
    let kinds: Vec<_> = kinds.into_iter().map(|(what, count)| format!("{count} {what}")).collect();
    format!("{} faults: {}", struck.len(), kinds.join(", "))
}

#[test]
fn numbers_and_records_keep_their_promises_whatever_befalls_the_pair() {
    let seconds = from_environment("HISTORY_SECONDS").unwrap_or(60);
    let seeds: Vec<_> = match from_environment("HISTORY_SEED") {
        Some(seed) => vec![seed],
        None => (0..from_environment("HISTORY_SEEDS").unwrap_or(5)).collect(),
    };
    let mut failed = Vec::new();
    for some in seeds.chunks(usize::try_from(AT_ONCE).unwrap_or(1)) {
        std::thread::scope(|scope| {
            let runs: Vec<_> = some.iter().map(|seed| (seed, scope.spawn(|| run(*seed, seconds)))).collect();
            for (seed, run) in runs {
                match run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
                    Ok(report) => eprintln!("seed {seed}: {report}"),
                    Err(error) => failed.push(format!("seed {seed}: {error:#}")),
                }
            }
        });
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

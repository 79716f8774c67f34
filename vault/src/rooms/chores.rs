//! The rooms' own upkeep as chores of the worker: who is asked how often, and how what it came to is
//! said. Decides nothing; what is due is the rooms' matter.
//!
//! Probes, small repairs, copies, the watch and the rounds go their own ways: a slow one keeps the
//! others from nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use shared::shutdown::Shutdown;

use crate::api::admin::{Health, Readiness};
use crate::pair::Pair;
use crate::storage::{Compared, Round, Storage, StorageError, Turn};
use crate::worker::upkeep::{self, Chore, MakeDue, Turned, Upkeep};

/// How often the two vaults' key files are compared.
const COMPARE_KEYS: Duration = Duration::from_secs(5);
const KEYS: &str = "pair.keys";

/// Begins all of it; it goes on until `shutdown`.
pub(super) fn start(
    upkeep: &Upkeep,
    storage: &Storage,
    pair: &Pair,
    readiness: &Readiness,
    shutdown: &Shutdown,
) {
    let chores =
        [probe(storage), tend(storage), repair(storage), watch(storage), sync(storage), scrub(storage)];
    for chore in chores {
        upkeep.keep(chore, shutdown);
    }
    upkeep.keep(keys(storage, pair, readiness), shutdown);
    // Two who have just met compare at once.
    let (upkeep, mut up, shutdown) = (upkeep.clone(), pair.up(), shutdown.clone());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = up.changed() => if changed.is_err() { return },
            }
            upkeep.nudge(KEYS);
        }
    });
}

/// A turn of storage's.
fn turn<F>(storage: &Storage, turn: impl Fn(Storage) -> F + Send + Sync + 'static) -> upkeep::Turn
where
    F: Future<Output = Result<Turned, StorageError>> + Send + 'static,
{
    let storage = storage.clone();
    Arc::new(move || {
        let turn = turn(storage.clone());
        Box::pin(async move { turn.await.map_err(|error| format!("{error}; the next turn tries again")) })
    })
}

fn probe(storage: &Storage) -> Chore {
    let turn = turn(storage, |storage| async move {
        storage.probe_turn().await;
        Ok(Turned::Idle(None))
    });
    Chore { name: "storage.probe", every: storage.retry_every(), make_due: None, turn }
}

fn tend(storage: &Storage) -> Chore {
    let turn = turn(storage, |storage| async move {
        let Turn { settled, purged, .. } = storage.tend_turn().await?;
        if settled + purged == 0 {
            return Ok(Turned::Idle(None));
        }
        Ok(Turned::Done(format!("{settled} old intents settled, {purged} deleted files purged")))
    });
    Chore { name: "storage.tend", every: storage.retry_every(), make_due: None, turn }
}

fn repair(storage: &Storage) -> Chore {
    let so_far = Arc::new(Mutex::new(Turn::default()));
    let room = storage.clone();
    let turn: upkeep::Turn = Arc::new(move || {
        let (storage, so_far) = (room.clone(), Arc::clone(&so_far));
        Box::pin(async move {
            let turn =
                storage.pay_turn().await.map_err(|error| format!("{error}; the next turn tries again"))?;
            let mut sum = so_far.lock().unwrap_or_else(PoisonError::into_inner);
            sum.copied += turn.copied;
            sum.removed += turn.removed;
            sum.failed += turn.failed;
            if turn.more {
                return Ok(Turned::More);
            }
            let Turn { copied, removed, failed, .. } = std::mem::take(&mut *sum);
            match (copied + removed, failed) {
                (0, 0) => Ok(Turned::Idle(None)),
                (_, 0) => Ok(Turned::Done(format!("{copied} replicas copied, {removed} removed"))),
                (_, failed) => Err(format!(
                    "{failed} actions failed and stay owed, as the log says; {copied} replicas copied, {removed} removed"
                )),
            }
        })
    });
    Chore { name: "storage.repair", every: storage.retry_every(), make_due: None, turn }
}

fn watch(storage: &Storage) -> Chore {
    let turn = turn(storage, |storage| async move {
        storage.watch_turn().await?;
        Ok(Turned::Idle(None))
    });
    Chore { name: "storage.watch", every: storage.retry_every(), make_due: None, turn }
}

fn sync(storage: &Storage) -> Chore {
    let due = storage.clone();
    let make_due: MakeDue = Arc::new(move || {
        let storage = due.clone();
        Box::pin(async move { storage.request_sync().await.map_err(|error| error.to_string()) })
    });
    let room = storage.clone();
    let turn: upkeep::Turn = Arc::new(move || {
        let storage = room.clone();
        Box::pin(async move {
            let failed = |error: StorageError| format!("{error}; compared again at a later turn");
            match storage.compare_turn().await.map_err(failed)? {
                Compared::NotDue => {
                    let (next, _) = storage.rounds_due().await.map_err(failed)?;
                    Ok(Turned::Idle(next.and_then(second)))
                }
                Compared::Whole => {
                    let progress = storage.sync_progress();
                    Ok(Turned::Done(format!("{} objects, {} differences", progress.passed, progress.done)))
                }
                Compared::Partly => {
                    Err("not everything could be listed; compared again when it can, or later".to_owned())
                }
            }
        })
    });
    Chore { name: "storage.sync", every: storage.retry_every(), make_due: Some(make_due), turn }
}

fn scrub(storage: &Storage) -> Chore {
    let due = storage.clone();
    let make_due: MakeDue = Arc::new(move || {
        let storage = due.clone();
        Box::pin(async move { storage.scrub().await.map_err(|error| error.to_string()) })
    });
    let turn = turn(storage, |storage| async move {
        let before = storage.scrub_round().await?;
        if storage.scrub_turn().await? {
            return Ok(Turned::More);
        }
        let round = storage.scrub_round().await?;
        if round == before {
            return Ok(Turned::Idle(storage.rounds_due().await?.1.and_then(second)));
        }
        let Round { checked, damaged, mended, skipped, .. } = round;
        Ok(Turned::Done(format!(
            "{checked} replicas read, {damaged} damaged, {mended} mended, {skipped} left out"
        )))
    });
    Chore { name: "storage.scrub", every: storage.retry_every(), make_due: Some(make_due), turn }
}

/// Two vaults with different storage keys read each other's files only as long as their catalogs
/// live: said as long as it is so, because it is found out otherwise on the worst day. And a new
/// key seals only once both have it.
fn keys(storage: &Storage, pair: &Pair, readiness: &Readiness) -> Chore {
    let (storage, readiness, up) = (storage.clone(), readiness.clone(), pair.up());
    let told = Arc::new(Mutex::new(None));
    let turn: upkeep::Turn = Arc::new(move || {
        let (storage, readiness, told) = (storage.clone(), readiness.clone(), Arc::clone(&told));
        let is_up = *up.borrow();
        let turn: BoxFuture<'static, _> = Box::pin(async move {
            // Asked again soon where the other one did not answer.
            let compared = storage.compare_keys().await;
            let trouble = storage.key_trouble();
            match &trouble {
                Some(what) => readiness.report("storage key", Health::Degraded, what.clone()),
                None if storage.keys_compared() => {
                    readiness.report("storage key", Health::Good, "the same on both vaults");
                }
                None => {}
            }
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(what) = trouble.clone().filter(|_| trouble != *told) {
                tracing::error!("files: {what}");
            }
            told.clone_from(&trouble);
            match (compared, trouble) {
                (Err(error), _) => Err(format!("{error}; the key in use stays")),
                (Ok(()), Some(trouble)) => Err(trouble),
                (Ok(()), None) if is_up && storage.keys_compared() => {
                    Ok(Turned::Done("the same on both vaults".to_owned()))
                }
                (Ok(()), None) => Ok(Turned::Idle(None)),
            }
        });
        turn
    });
    Chore { name: KEYS, every: COMPARE_KEYS, make_due: None, turn }
}

fn second(at: i64) -> Option<Timestamp> {
    Timestamp::from_second(at).ok()
}

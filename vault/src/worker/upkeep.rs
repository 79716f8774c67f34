//! The vault's own upkeep as jobs: what each vault does for itself, again and again. Knows when a turn
//! is made and what became of it; what a turn does is handed in by whoever joins the rooms.
//!
//! A chore looks every few seconds whether there is something to do, so that a file server that comes
//! back is healed at once. Where there was, that was a run. Nothing of it is entered in the ledger:
//! the rooms keep what must outlive a restart, and this vault its pauses.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use shared::shutdown::Shutdown;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

use super::metrics::Metrics;
use super::standing::{Last, Running, RunsOn, Standing, between, tell_failure};
use super::timestamp;
use crate::pause::Pause;

/// A turn that takes longer is no mere look whether there is something to do.
const LONG: Duration = Duration::from_secs(2);

/// What a turn came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turned {
    /// There was nothing to do, and will be nothing before this time, where that is known.
    Idle(Option<Timestamp>),
    /// Something was done, and there is more at once.
    More,
    /// Something was done, and has come to its end with this result.
    Done(String),
}

/// Makes one turn. What went wrong is said for the operator.
pub type Turn = Arc<dyn Fn() -> BoxFuture<'static, Result<Turned, String>> + Send + Sync>;

/// Makes it due, whatever its period says.
pub type MakeDue = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// A job of every vault.
pub struct Chore {
    /// With a full stop, which jobs of the configuration do not have.
    pub name: &'static str,
    /// How often it looks whether there is something to do.
    pub every: Duration,
    /// What an operator's wish needs beside a turn.
    pub make_due: Option<MakeDue>,
    /// Its work.
    pub turn: Turn,
}

/// All chores of this vault. Clones are the same.
#[derive(Clone)]
pub struct Upkeep(Arc<Inner>);

struct Inner {
    own: String,
    folder: PathBuf,
    metrics: Metrics,
    keepers: Mutex<Vec<Arc<Keeper>>>,
}

/// One chore at work.
pub(super) struct Keeper {
    chore: Chore,
    own: String,
    metrics: Metrics,
    pause: Pause,
    wake: Notify,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    asked: bool,
    paused: Option<String>,
    /// How often it was paused.
    pauses: u64,
    began: Option<Timestamp>,
    next: Option<Timestamp>,
    last: Option<Last>,
    failures: u32,
}

impl Upkeep {
    /// Without chores. `own`: this vault's name; pauses are kept in `state`.
    #[must_use]
    pub fn new(own: &str, state: &Path, metrics: &Metrics) -> Self {
        let (folder, metrics) = (state.join("worker"), metrics.clone());
        Self(Arc::new(Inner { own: own.to_owned(), folder, metrics, keepers: Mutex::default() }))
    }

    /// Does it from now on, one turn at a time, until `shutdown`.
    pub fn keep(&self, chore: Chore, shutdown: &Shutdown) {
        let pause = Pause::new(&self.0.folder, chore.name);
        let seen = Seen { paused: pause.reason(), ..Seen::default() };
        if let Some(why) = &seen.paused {
            tracing::warn!("worker: job {0} is {why}; vault worker resume {0} lets it go on", chore.name);
        }
        let (own, metrics) = (self.0.own.clone(), self.0.metrics.clone());
        let keeper =
            Arc::new(Keeper { chore, own, metrics, pause, wake: Notify::new(), seen: Mutex::new(seen) });
        self.keepers().push(Arc::clone(&keeper));
        tokio::spawn(keeper.keep(shutdown.clone()));
    }

    /// A turn of that chore is made at once, unless it is paused: something has happened.
    pub fn nudge(&self, name: &str) {
        if let Some(keeper) = self.find(name) {
            keeper.wake.notify_one();
        }
    }

    /// How each stands.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        self.keepers().iter().map(|keeper| keeper.standing()).collect()
    }

    pub(super) fn find(&self, name: &str) -> Option<Arc<Keeper>> {
        self.keepers().iter().find(|keeper| keeper.chore.name == name).cloned()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.keepers().iter().map(|keeper| keeper.chore.name.to_owned()).collect()
    }

    fn keepers(&self) -> MutexGuard<'_, Vec<Arc<Keeper>>> {
        self.0.keepers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper {
    /// Does it now, whatever its period or a pause says; or tells since when it is under way.
    pub(super) fn ask(&self) -> Result<(), Timestamp> {
        let mut seen = self.seen();
        match seen.began.filter(|began| between(*began, timestamp()) >= LONG) {
            Some(began) => Err(began),
            None => {
                seen.asked = true;
                self.wake.notify_one();
                Ok(())
            }
        }
    }

    /// It begins no more, over restarts too; what is under way, asked for or not, ends with its turn.
    pub(super) fn pause(&self, why: &str) -> io::Result<()> {
        let mut seen = self.seen();
        seen.paused = Some(why.to_owned());
        seen.pauses += 1;
        drop(seen);
        self.pause.set(why)
    }

    pub(super) fn resume(&self) -> io::Result<()> {
        self.pause.lift()?;
        self.seen().paused = None;
        self.wake.notify_one();
        Ok(())
    }

    /// Where its pause is kept.
    pub(super) fn mark(&self) -> &Path {
        self.pause.file()
    }

    fn standing(&self) -> Standing {
        let seen = self.seen();
        let running = |began| Running { by: self.own.clone(), began, at: None };
        Standing {
            name: self.chore.name.to_owned(),
            runs_on: RunsOn::Each,
            next: seen.next.filter(|_| seen.paused.is_none()),
            paused: seen.paused.clone(),
            running: seen.began.map(running),
            last: seen.last.clone(),
            failures: seen.failures,
            skipped: 0,
            ahead: None,
            asked: None,
            late_since: None,
            trouble: None,
        }
    }

    async fn keep(self: Arc<Self>, shutdown: Shutdown) {
        let mut ticks = interval(self.chore.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.wake.notified() => {}
                _now = ticks.tick() => {}
            }
            let asked = std::mem::take(&mut self.seen().asked);
            if asked || !self.is_paused() {
                self.run(asked, &shutdown).await;
            }
        }
    }

    /// Turns, until there is nothing more to do at once.
    async fn run(&self, asked: bool, shutdown: &Shutdown) {
        let began = timestamp();
        self.seen().began = Some(began);
        let due = match &self.chore.make_due {
            Some(make_due) if asked => make_due().await,
            _ => Ok(()),
        };
        let turned = match due {
            Ok(()) => self.turns(asked, shutdown).await,
            Err(fault) => Err(fault),
        };
        let mut seen = self.seen();
        seen.began = None;
        let ended = timestamp();
        let (fault, result) = match turned {
            Ok(Turned::Idle(next)) => {
                seen.next = next;
                return;
            }
            // It goes on with its next turn.
            Ok(Turned::More) => return,
            Ok(Turned::Done(result)) => (None, Some(result)),
            Err(fault) => (Some(fault), None),
        };
        seen.failures = if fault.is_some() { seen.failures.saturating_add(1) } else { 0 };
        self.metrics.ran(self.chore.name, fault.is_none(), between(began, ended));
        let said = seen.last.as_ref().and_then(|last| last.fault.as_ref());
        if let Some(fault) = &fault {
            tell_failure(self.chore.name, seen.failures, fault, said == Some(fault));
        }
        let run = Running { by: self.own.clone(), began, at: None };
        seen.last = Some(Last { run, ended, fault, result });
    }

    async fn turns(&self, asked: bool, shutdown: &Shutdown) -> Result<Turned, String> {
        let pauses = self.seen().pauses;
        loop {
            let turned = (self.chore.turn)().await;
            let is_free = if asked { self.seen().pauses == pauses } else { !self.is_paused() };
            let goes_on = !shutdown.is_cancelled() && is_free;
            match turned {
                Ok(Turned::More) if goes_on => {}
                turned => return turned,
            }
        }
    }

    fn is_paused(&self) -> bool {
        self.seen().paused.is_some()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use prometheus::Registry;
    use tokio::time::{sleep, timeout};

    use super::*;

    /// An hour: what happens sooner was asked for.
    const SELDOM: Duration = Duration::from_secs(3600);

    struct Story {
        upkeep: Upkeep,
        turns: Arc<Mutex<VecDeque<Result<Turned, String>>>>,
        shutdown: Shutdown,
    }

    impl Story {
        /// A chore that answers in turn, and has nothing to do from then on.
        fn start(folder: &Path, answers: &[Result<Turned, String>]) -> Self {
            let metrics = Metrics::register(&Registry::new()).unwrap();
            let upkeep = Upkeep::new("vault-a", folder, &metrics);
            let turns = Arc::new(Mutex::new(VecDeque::from(answers.to_vec())));
            let (left, due) = (Arc::clone(&turns), Arc::clone(&turns));
            let turn: Turn = Arc::new(move || {
                let next = left.lock().unwrap().pop_front().unwrap_or(Ok(Turned::Idle(None)));
                Box::pin(async move { next })
            });
            let make_due: MakeDue = Arc::new(move || {
                due.lock().unwrap().push_back(Ok(Turned::Done("as asked".to_owned())));
                Box::pin(std::future::ready(Ok(())))
            });
            let shutdown = Shutdown::new();
            let chore = Chore { name: "storage.scrub", every: SELDOM, make_due: Some(make_due), turn };
            upkeep.keep(chore, &shutdown);
            Self { upkeep, turns, shutdown }
        }

        async fn until(&self, what: impl Fn(&Standing) -> bool) -> Standing {
            let looking = async {
                loop {
                    let standing = self.upkeep.standings().remove(0);
                    if what(&standing) {
                        return standing;
                    }
                    sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(Duration::from_secs(20), looking).await.unwrap()
        }

        fn keeper(&self) -> Arc<Keeper> {
            self.upkeep.find("storage.scrub").unwrap()
        }
    }

    fn done(result: &str) -> Result<Turned, String> {
        Ok(Turned::Done(result.to_owned()))
    }

    fn result(standing: &Standing) -> Option<&str> {
        standing.last.as_ref()?.result.as_deref()
    }

    #[tokio::test]
    async fn turns_follow_each_other_while_there_is_more_and_the_last_one_tells_the_result() {
        let folder = tempfile::tempdir().unwrap();
        let more = || Ok(Turned::More);
        let story = Story::start(folder.path(), &[more(), more(), done("3 checked")]);
        let standing = story.until(|standing| standing.last.is_some()).await;
        assert_eq!((result(&standing), standing.failures), (Some("3 checked"), 0));
        assert_eq!(standing.running, None);
        assert!(story.turns.lock().unwrap().is_empty());
        story.shutdown.cancel();
    }

    #[tokio::test]
    async fn failures_in_a_row_are_counted_until_one_run_is_well() {
        let folder = tempfile::tempdir().unwrap();
        let story = Story::start(folder.path(), &[Err("away".to_owned()), Err("still away".to_owned())]);
        let standing = story.until(|standing| standing.failures == 1).await;
        assert_eq!(standing.last.unwrap().fault.unwrap(), "away");
        story.keeper().ask().unwrap();
        story.until(|standing| standing.failures == 2).await;
        story.keeper().ask().unwrap();
        let standing = story.until(|standing| standing.failures == 0).await;
        assert_eq!(result(&standing), Some("as asked"));
    }

    #[tokio::test]
    async fn a_paused_chore_does_only_what_is_asked_for_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let story = Story::start(folder.path(), &[]);
        story.keeper().pause("paused by ops").unwrap();
        story.shutdown.cancel();
        let story = Story::start(folder.path(), &[done("by itself")]);
        assert_eq!(story.upkeep.standings()[0].paused.as_deref(), Some("paused by ops"));
        story.keeper().ask().unwrap();
        // What it would have done by itself was still there: nothing had taken it.
        let standing = story.until(|standing| standing.last.is_some()).await;
        assert_eq!(result(&standing), Some("by itself"));
        story.keeper().resume().unwrap();
        let standing = story.until(|standing| result(standing) == Some("as asked")).await;
        assert_eq!(standing.paused, None);
        assert!(!story.keeper().mark().exists());
    }
}

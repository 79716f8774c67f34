//! The one coordinator of the ledger: a thread that owns the core and the journal. It takes
//! events in, carries out what the core asks, and answers callers when their entries are final.
//! Wishes that wait while a round is under way share the next one (group commit).

mod chores;
mod company;
mod metrics;
mod operator;
mod silence;
mod upkeep;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shared::api::Number;
use shared::shutdown::Shutdown;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::alone::{self, Alone, Sight, Waits};
use super::apart::{self, GoesOn};
use super::book::{Known, Refused, Round, SeriesName, Verdict, Wish};
use super::chores::Chores;
use super::database::replies::{Replies, Reply};
use super::definition::Definition;
use super::entry::{Act, BATCH, Draft, Entry, Life, Tail};
use super::journal::{Journal, JournalError};
use super::keeper::Keeper;
use super::mirror::Mirror;
use super::protocol::{Core, Input, Message, Output, Reason};
use super::reason::Told;
use super::record::desk::{self, Desk};
use super::{Done, HangUp, Outcome, SequenceError, Tell};
pub(super) use metrics::Metrics;
use operator::Seal;
pub(super) use silence::Silence;

/// Most wishes waiting for their round; further ones are refused as busy.
pub(super) const WAITING: usize = 4096;
/// How often the thread looks at its deadlines when nothing happens.
const TICK: Duration = Duration::from_millis(500);

/// What the thread takes in.
pub(super) enum Work {
    Up,
    Down(oneshot::Sender<()>),
    Told(Bytes),
    /// The owner has not answered what callers here asked.
    Unanswered,
    Wish(Waiting),
    Record(desk::Waiting),
    Sure(desk::Sure),
    Reseed(oneshot::Sender<Result<u64, SequenceError>>),
    /// The other vault fills the empty etcd of this id again; tells whether this one will use it.
    Adopt(String, oneshot::Sender<()>),
    /// This vault shall be the owner; with `true`, without the other.
    TakeOver(bool, oneshot::Sender<Result<u64, SequenceError>>),
    /// A token is to be made for the vault of that name, which begins this life.
    Seal(String, Life, oneshot::Sender<Result<u64, SequenceError>>),
    /// A token has been brought that begins this life.
    Open(Life, oneshot::Sender<Result<u64, SequenceError>>),
    /// Of two owners the other is right.
    Yield(oneshot::Sender<Result<[u64; 2], SequenceError>>),
    /// What gave way was looked at, up to this place.
    LookedAt(u64, oneshot::Sender<Result<u64, SequenceError>>),
}

pub(super) struct Waiting {
    pub(super) name: SeriesName,
    pub(super) wish: Wish,
    pub(super) answer: oneshot::Sender<Result<Outcome, SequenceError>>,
}

/// What the thread shows the outside after each step.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) life: Life,
    /// Does this vault enter wishes itself, or does the other?
    pub(super) leads: bool,
    pub(super) refusal: Option<Reason>,
    /// What is known of that beyond, where etcd is the ledger.
    pub(super) why: Option<Arc<str>>,
    pub(super) tail: Tail,
    pub(super) final_index: u64,
    /// Records may be answered up to this index, if this vault is sure to be the owner.
    pub(super) entered_index: u64,
    pub(super) complete: bool,
    pub(super) epoch: u64,
    /// What a token for this vault begins, and one for the other; of those that nobody has used.
    pub(super) sealed: [Option<Life>; 2],
    /// What goes on while the two are apart.
    pub(super) apart: GoesOn,
    pub(super) definitions: Arc<HashMap<SeriesName, Definition>>,
    /// Writes that were answered, gave way, and were not looked at yet.
    pub(super) dropped: u64,
}

impl Seen {
    /// Why nothing is entered now, as callers are told.
    pub(super) fn told(&self) -> Option<Told> {
        self.refusal.map(|reason| Told { reason, why: self.why.clone() })
    }
}

/// The thread's own state.
pub(super) struct Coordinator {
    pub(super) core: Core,
    pub(super) journal: Journal,
    /// The two vaults' names: this one's and the other's.
    pub(super) names: [String; 2],
    pub(super) alone: Alone,
    pub(super) mirror: Mirror,
    /// A token that is being made.
    pub(super) seal: Option<Seal>,
    /// The life of this vault's own token that was used last.
    pub(super) used: Option<Life>,
    pub(super) chores: Chores,
    /// Is there more to be looked at before callers' wishes may be entered?
    pub(super) settling: bool,
    pub(super) queue: mpsc::Receiver<Work>,
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) under_way: Vec<Waiting>,
    /// Of how many of them the keys have been looked for.
    pub(super) looked_at: usize,
    /// How many were in the last round.
    pub(super) company: usize,
    /// The entries that were made for them.
    pub(super) made: Vec<Entry>,
    pub(super) records: Desk,
    pub(super) silence: Silence,
    /// When a disk that refused is tried again.
    pub(super) disk_due: Option<Instant>,
    pub(super) witness: Keeper,
    /// What the log last heard of the refusal.
    pub(super) said: Option<Reason>,
    pub(super) seen: watch::Sender<Seen>,
    pub(super) metrics: Metrics,
    /// What is final is answered through these.
    pub(super) replies: Replies,
    pub(super) tell: Tell,
    pub(super) hang_up: HangUp,
}

impl Coordinator {
    pub(super) async fn run(mut self, shutdown: Shutdown) {
        let mut witness_due = Instant::now();
        if !self.journal.has_begun() {
            self.feed(Input::WriteFailed);
        }
        loop {
            self.await_peer();
            let work = tokio::select! {
                () = shutdown.cancelled() => break,
                work = timeout(if self.settling { Duration::ZERO } else { TICK }, self.queue.recv()) => work,
            };
            match work {
                Ok(Some(work)) => self.take(work),
                Ok(None) => break,
                Err(_) => {}
            }
            self.take_more();
            self.gather();
            if let Some(question) = self.records.question() {
                self.feed(Input::Ask(question));
            }
            self.settle_on();
            self.rounds();
            self.watch_silence();
            self.try_disk();
            if Instant::now() >= witness_due {
                self.keep_witness();
                witness_due = Instant::now() + TICK;
            }
        }
        self.mirror.end();
    }

    fn take_more(&mut self) {
        while self.waiting.len() < WAITING
            && let Ok(work) = self.queue.try_recv()
        {
            self.take(work);
        }
    }

    /// Has written down how far the journal goes, outside of it.
    fn keep_witness(&mut self) {
        if let Some(seen) = self.core.witness() {
            self.witness.keep(seen);
        }
    }

    fn take(&mut self, work: Work) {
        match work {
            Work::Up => self.connected(),
            Work::Down(noted) => {
                self.disconnected();
                drop(noted);
            }
            Work::Unanswered => self.owner_is_silent(),
            Work::Told(body) => match Message::decode(&body) {
                Ok(message) => {
                    self.heard();
                    self.feed(Input::Received(message));
                }
                Err(error) => {
                    tracing::error!(
                        "sequence: the other vault says what this one does not understand: {error}; no session"
                    );
                    (self.hang_up)();
                }
            },
            Work::Wish(waiting) if self.waiting.len() >= WAITING => {
                answer(waiting, Err(SequenceError::Busy));
            }
            Work::Wish(waiting) => self.waiting.push_back(waiting),
            Work::Record(waiting) => self.records.take(waiting),
            Work::Sure(reader) => self.records.take_reader(reader),
            Work::Reseed(done) => {
                let outcome = self.reseed();
                // An operator who has gone asks again and is told that there is nothing to do.
                let _gone = done.send(outcome);
            }
            // etcd is not the ledger here.
            Work::Adopt(_, done) => drop(done),
            Work::TakeOver(alone, done) => {
                let outcome = self.take_over(alone);
                // An operator who has gone looks at the status.
                let _gone = done.send(outcome);
            }
            Work::Yield(done) => {
                let outcome = self.give_way();
                // As above.
                let _gone = done.send(outcome);
            }
            Work::Seal(vault, life, done) => self.seal(Seal { vault, life, sealed: false, done }),
            Work::Open(life, done) => {
                let outcome = self.open(life);
                // As above.
                let _gone = done.send(outcome);
            }
            Work::LookedAt(upto, done) => {
                let outcome = self.looked_at(upto);
                // As above.
                let _gone = done.send(outcome);
            }
        }
    }

    /// Steps the core until it asks for nothing more.
    fn feed(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for output in self.core.step(input) {
                if let Some(next) = self.carry_out(output) {
                    inputs.push_back(next);
                }
            }
        }
        self.show();
    }

    fn carry_out(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Send(message) => {
                match message.encode() {
                    // An unheard message ends the connection, and Down follows.
                    Ok(body) => drop((self.tell)(Bytes::from(body))),
                    Err(error) => tracing::error!("sequence: a message cannot be written: {error}"),
                }
                None
            }
            Output::Write(write) => {
                Some(match self.journal.write(&write) {
                    Ok(()) => {
                        // The life stands in the journal with its first write.
                        self.mirror.begin();
                        if write.cut.is_some() {
                            self.tell_dropped();
                        }
                        if self.core.leads() {
                            self.chores.wrote(&write.entries, self.journal.standing());
                        }
                        // Whoever is answered next reads by it.
                        if write.entries.iter().any(|entry| matches!(entry.act, Act::Define(_))) {
                            let now = self.journal.standing().shown_definitions();
                            self.seen.send_modify(|seen| seen.definitions = now);
                        }
                        if !self.under_way.is_empty() && !write.entries.is_empty() {
                            self.made = write.entries;
                        }
                        Input::Written
                    }
                    Err(error) if error.contradicts() => {
                        tracing::error!("sequence: {error}");
                        Input::CutRefused
                    }
                    Err(error) => {
                        tracing::error!(
                            "sequence: {error}; numbering waits until the journal can be written"
                        );
                        Input::WriteFailed
                    }
                })
            }
            Output::Load(after) => {
                self.loaded(self.journal.entries(after)).map(|entries| Input::Loaded(after, entries))
            }
            Output::LoadSolo(after) => {
                self.loaded(self.journal.rows(after)).map(|rows| Input::SoloLoaded(after, rows))
            }
            Output::Adopt(rows) => self.adopt(&rows),
            Output::Settle => self.settle(),
            Output::Given => {
                self.mirror.note(self.core.life(), self.core.solo());
                self.answer_given();
                None
            }
            Output::Stands(question) => {
                self.records.stands(question, self.core.entered_index());
                None
            }
            Output::Final => {
                self.conclude();
                None
            }
            Output::InDoubt => {
                for waiting in self.under_way.drain(..) {
                    answer(waiting, Err(SequenceError::InDoubt));
                }
                self.records.doubt();
                self.sealed(Err(SequenceError::InDoubt));
                None
            }
            Output::HangUp => {
                (self.hang_up)();
                None
            }
        }
    }

    /// What was read, unless it cannot be: then the journals are compared again later.
    fn loaded<T>(&self, read: Result<T, JournalError>) -> Option<T> {
        match read {
            Ok(read) => Some(read),
            Err(error) => {
                tracing::error!("sequence: {error}; comparing journals again later");
                (self.hang_up)();
                None
            }
        }
    }

    /// The round is final: everybody in it hears what the ledger says now.
    fn conclude(&mut self) {
        self.sealed(Ok(self.core.final_index()));
        let of_record = |entry: &Entry| matches!(entry.act, Act::Put(_) | Act::Remove);
        let mut made = std::mem::take(&mut self.made).into_iter().filter(|entry| !of_record(entry));
        let mut replies: Vec<Reply> = Vec::with_capacity(self.under_way.len());
        let mut reserved = 0;
        for waiting in std::mem::take(&mut self.under_way) {
            let outcome = match (&waiting.wish, made.next()) {
                (_, Some(entry)) if gives(&waiting, &entry) => {
                    reserved += 1;
                    replies.push(Box::new(move || answer(waiting, Ok(given(entry)))));
                    continue;
                }
                (Wish::Define(_), _) => {
                    let now = self.journal.standing().definition(&waiting.name).cloned().unwrap_or_default();
                    self.metrics.entries.with_label_values(&["define"]).inc();
                    Ok(Outcome::Defined(now))
                }
                (wish, _) => {
                    let context = self.journal.context(&waiting.name, wish);
                    self.done(wish, context.map(|context| context.known))
                }
            };
            replies.push(Box::new(move || answer(waiting, outcome)));
        }
        self.metrics.entries.with_label_values(&["reserve"]).inc_by(reserved);
        let at_once = self.replies.hold(self.core.final_index(), replies);
        if !at_once.is_empty() {
            // Here it would take longer, and the next round would wait for it.
            tokio::spawn(async move { at_once.into_iter().for_each(|reply| reply()) });
        }
        let counts = self.records.conclude(Instant::now().into_std());
        for (act, count) in ["put", "remove"].into_iter().zip(counts) {
            self.metrics.entries.with_label_values(&[act]).inc_by(count);
        }
    }

    /// What this vault gave alone is durable.
    fn answer_given(&mut self) {
        for waiting in std::mem::take(&mut self.under_way) {
            let known = self.journal.own(&waiting.name, &waiting.wish);
            let outcome = self.done(&waiting.wish, known);
            answer(waiting, outcome);
        }
    }

    fn done(
        &self,
        wish: &Wish,
        known: Result<Option<Known>, JournalError>,
    ) -> Result<Outcome, SequenceError> {
        let outcome = match known {
            Ok(known) => {
                let done = known.map(|known| Done { number: known.number, fresh: true });
                done.map(Outcome::Number).ok_or(SequenceError::InDoubt)
            }
            Err(error) => {
                tracing::error!("sequence: {error}");
                Err(SequenceError::Unreadable)
            }
        };
        let act = match wish {
            Wish::Reserve { .. } => "reserve",
            Wish::Supersede { .. } => "supersede",
            Wish::Confirm { .. } => "confirm",
            Wish::Void { .. } => "void",
            Wish::Define(_) => "define",
        };
        self.metrics.entries.with_label_values(&[act]).inc();
        outcome
    }

    /// Proposes what waits, round after round, as long as rounds end at once.
    fn rounds(&mut self) {
        while self.chores_due() || !self.waiting.is_empty() || self.records.waits() {
            let may_propose = self.core.may_propose();
            let together = self.core.refusal().is_none();
            if together && !may_propose && self.core.leads() {
                // A round is under way; what waits shares the next one.
                return self.look_ahead();
            }
            if self.chores_due() && may_propose && together && self.do_chores() {
                return;
            }
            if self.waiting.is_empty() && !self.records.waits() {
                return;
            }
            let goes_on = if !together && self.core.may_give_alone() {
                let drafts = self.record_drafts(may_propose);
                if !drafts.is_empty() {
                    self.feed(Input::Propose(drafts));
                }
                self.core.may_give_alone() && self.round_alone()
            } else {
                self.round(may_propose && together)
            };
            if !goes_on {
                return;
            }
        }
    }

    /// What records want entered in this round; half of it is left to numbers.
    fn record_drafts(&mut self, may_propose: bool) -> Vec<Draft> {
        if may_propose {
            return self.records.round(&self.journal, BATCH / 2, Instant::now().into_std(), label());
        }
        self.records.refuse(&self.core.refusal().unwrap_or(Reason::Syncing).into());
        Vec::new()
    }

    /// Decides up to [`BATCH`] waiting wishes while this vault is apart. `false` when rows are
    /// under way.
    fn round_alone(&mut self) -> bool {
        let mut drafts = Vec::new();
        let mut later = VecDeque::new();
        let at = label();
        self.alone.begin();
        while drafts.len() < BATCH
            && let Some(waiting) = self.waiting.pop_front()
        {
            if waiting.answer.is_closed() {
                continue;
            }
            let sight = self.journal.context(&waiting.name, &waiting.wish).and_then(|context| {
                Ok(Sight { chain: context.known, own: self.journal.own(&waiting.name, &waiting.wish)? })
            });
            let sight = match sight {
                Ok(sight) => sight,
                Err(error) => {
                    tracing::error!("sequence: {error}");
                    answer(waiting, Err(SequenceError::Unreadable));
                    continue;
                }
            };
            let place = alone::Place {
                vault: &self.names[0],
                life: self.core.life(),
                standing: self.journal.standing(),
                last: self.core.final_index(),
                met: self.core.has_met(),
                known: self.core.is_known(),
            };
            match self.alone.decide(place, &waiting.name, &waiting.wish, sight, at) {
                Ok(Verdict::Answer(known)) => answer(waiting, Ok(held(known))),
                Ok(Verdict::Refuse(refused)) => answer(waiting, Err(refused.into())),
                Ok(Verdict::Make(draft)) => {
                    drafts.push(draft);
                    self.under_way.push(waiting);
                }
                Ok(Verdict::Wait) | Err(Waits::Round) => later.push_back(waiting),
                Err(Waits::InDoubt) => answer(waiting, Err(SequenceError::InDoubt)),
                Err(why) => {
                    let reason = self.core.refusal().unwrap_or(Reason::Syncing);
                    answer(waiting, Err(SequenceError::waits(reason, why)));
                }
            }
        }
        later.append(&mut self.waiting);
        self.waiting = later;
        if drafts.is_empty() {
            return true;
        }
        self.feed(Input::Give(drafts));
        self.core.may_give_alone()
    }

    /// Decides up to [`BATCH`] waiting wishes. `false` when a round is under way now.
    fn round(&mut self, may_propose: bool) -> bool {
        let mut round = Round::default();
        let mut drafts = self.record_drafts(may_propose);
        let mut later = VecDeque::new();
        let at = label();
        self.looked_at = 0;
        // Without it each wish is looked up by itself, and hears what is wrong.
        let at_once = self.journal.at_once();
        while drafts.len() < BATCH
            && let Some(waiting) = self.waiting.pop_front()
        {
            if waiting.answer.is_closed() {
                continue;
            }
            let context = match self.journal.context(&waiting.name, &waiting.wish) {
                Ok(context) => context,
                Err(error) => {
                    tracing::error!("sequence: {error}");
                    answer(waiting, Err(SequenceError::Unreadable));
                    continue;
                }
            };
            // Whatever is said of a number that is not final tells the number.
            if context.known.as_ref().is_some_and(|known| known.index > self.core.final_index()) {
                answer(waiting, Err(SequenceError::InDoubt));
                continue;
            }
            match round.decide(&waiting.name, &waiting.wish, context, self.journal.standing(), at) {
                Verdict::Answer(known) => answer(waiting, Ok(held(known))),
                // What was given alone stands in the chain, and of which lives all is known, only when
                // a session has come so far.
                Verdict::Refuse(Refused::Unknown { .. } | Refused::KeyLost) if !may_propose => {
                    answer(waiting, Err(self.core.refusal().unwrap_or(Reason::Syncing).into()));
                }
                Verdict::Refuse(refused) => answer(waiting, Err(refused.into())),
                Verdict::Make(draft) if may_propose => {
                    drafts.push(draft);
                    self.under_way.push(waiting);
                }
                Verdict::Make(_) => {
                    let reason = self.core.refusal().unwrap_or(Reason::Syncing);
                    answer(waiting, Err(reason.into()));
                }
                Verdict::Wait => later.push_back(waiting),
            }
        }
        drop(at_once);
        later.append(&mut self.waiting);
        self.waiting = later;
        if drafts.is_empty() {
            return true;
        }
        self.company = drafts.len();
        self.feed(Input::Propose(drafts));
        self.core.may_propose()
    }

    /// Shows the outside where things stand, and tells the log when that changes.
    fn show(&mut self) {
        let refusal = self.core.refusal();
        // Trying again passes through `Syncing` and mostly comes back to the same reason.
        if refusal != Some(Reason::Syncing) && refusal != self.said {
            self.said = refusal;
            match refusal {
                None => tracing::info!("sequence: both vaults are together; numbers are given"),
                Some(reason) if reason.needs_operator() => {
                    tracing::error!("sequence: numbering is closed: {reason}");
                }
                Some(reason) if apart::gives(&self.core, self.journal.standing()) => {
                    tracing::warn!("sequence: only numbers of available series are given, alone: {reason}");
                }
                Some(reason) => tracing::warn!("sequence: no new numbers: {reason}"),
            }
        }
        let sure = match refusal {
            _ if self.core.goes_on_alone() => Ok(()),
            Some(reason) => Err(reason),
            None if self.core.leads() => Ok(()),
            None => Err(Reason::Syncing),
        };
        self.records.follow(sure.map_err(Reason::into), Instant::now().into_std());
        let unused = |life: &Life| self.used != Some(*life);
        let sealed = self.names.each_ref().map(|name| self.journal.standing().sealed(name).filter(unused));
        self.tell_void(sealed);
        self.seen.send_modify(|seen| {
            seen.refusal = refusal;
            seen.leads = self.core.leads();
            seen.tail = self.core.tail();
            seen.final_index = self.core.final_index();
            seen.entered_index = self.core.entered_index();
            seen.complete = self.core.is_complete();
            seen.epoch = self.core.epoch();
            seen.life = self.core.life();
            seen.sealed = sealed;
            seen.apart = GoesOn::of(&self.core, self.used);
            seen.definitions = self.journal.standing().shown_definitions();
        });
        self.metrics.together.set(i64::from(refusal.is_none()));
    }
}

/// Does this entry give whoever waits his number?
pub(super) fn gives(waiting: &Waiting, made: &Entry) -> bool {
    let (Wish::Reserve { key, .. }, Act::Reserve(_)) = (&waiting.wish, &made.act) else { return false };
    *key == made.key && waiting.name.series == made.series && waiting.name.owner == made.owner
}

/// The number that this entry has just given.
pub(super) fn given(made: Entry) -> Outcome {
    let Entry { series, number, key, hash, .. } = made;
    let number = Number::reserved(series, number, key, hash.to_string());
    Outcome::Number(Done { number, fresh: true })
}

/// A number that an earlier call has got.
pub(super) fn held(known: Known) -> Outcome {
    Outcome::Number(Done { number: known.number, fresh: false })
}

pub(super) fn answer(waiting: Waiting, outcome: Result<Outcome, SequenceError>) {
    // A caller that has gone repeats its key and hears the same.
    let _gone = waiting.answer.send(outcome);
}

/// The entries' time label, milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "a label for auditors; nothing is decided by it")]
pub(super) fn label() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

//! The thread that reads every line and event, and what it does between them. Owns the clock of
//! the ban rooms; decides nothing itself.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;

use super::active::Active;
use super::ban_store::{Change, Lease, Restored, StoredBan, WouldBan};
use super::detector::{Clock, Detector, Finding, Line, OWN};
use super::enforce::{Decided, Enforcement, Owed};
use super::protected;
use super::reload::Fresh;
use super::tail::Tail;
use crate::access_log::queue::Receiver;
use crate::access_log::{self, Entry};
use crate::admission::Rates;
use crate::ban::jail::{ADOPTED, Alarm, Excuse, OPERATOR, Ruling, Sentence};
use crate::ban::words::{Answer, Question, Summary};
use crate::ban::{Action, shown};
use crate::client::Client;
use crate::firewall::State;
use crate::listen::wall_clock;

/// Bytes of a file read before bans are made.
const BLOCK: usize = 256 * 1024;
/// Between two looks at what no event tells: files, ended bans, the kernel, the gauges.
const LOOK: Duration = Duration::from_secs(1);
/// Between two readings of this host's own addresses.
const ADDRESSES: Duration = Duration::from_secs(30);
/// Between two comparisons with the kernel that nothing gave reason for.
const COMPARE: Duration = Duration::from_secs(60);
/// And of how many bans at most: it takes some ten milliseconds.
const MOST_COMPARED: usize = 50_000;
/// Between two savings of the positions in files.
const POSITIONS: Duration = Duration::from_secs(2);

/// Two ends of one ban that are no further apart are the same: the kernel counts on its own.
const SAME_END: Duration = Duration::from_secs(5);

/// Questions that wait; apart from the events, so that a flood never locks the operator out.
#[derive(Default)]
pub(super) struct Questions {
    waiting: Mutex<VecDeque<(Question, SyncSender<Answer>)>>,
}

/// Operators ask one thing at a time.
const MAX_QUESTIONS: usize = 64;

impl Questions {
    /// Hands in a question; `None` where too many wait.
    pub(super) fn ask(&self, question: Question) -> Option<mpsc::Receiver<Answer>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MAX_QUESTIONS {
            return None;
        }
        let (sender, receiver) = sync_channel(1);
        waiting.push_back((question, sender));
        Some(receiver)
    }

    fn next(&self) -> Option<(Question, SyncSender<Answer>)> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// Flags between the engine and whoever wakes it.
#[derive(Default)]
pub(super) struct Flags {
    /// A followed file has changed.
    pub(super) files: AtomicBool,
    /// End.
    pub(super) stop: AtomicBool,
    /// Other settings, to be taken over.
    pub(super) fresh: Mutex<Option<Box<Fresh>>>,
}

/// The engine's state.
pub(super) struct Engine {
    pub(super) detector: Detector,
    pub(super) enforcement: Enforcement,
    pub(super) rates: Arc<Rates>,
    pub(super) tail: Option<Tail>,
    /// As configured; this host's own addresses come to it.
    pub(super) never: Vec<IpNet>,
    /// As it was last read.
    pub(super) never_now: Vec<IpNet>,
    pub(super) leases: Vec<Lease>,
    pub(super) max_bans: usize,
    pub(super) active: Active,
    pub(super) status: Arc<Mutex<Summary>>,
    pub(super) line: Vec<u8>,
    pub(super) found: Vec<Finding>,
    pub(super) due: Vec<Decided>,
    pub(super) looked: Schedule,
}

/// When which look was last taken.
#[derive(Default)]
pub(super) struct Schedule {
    look: Option<Instant>,
    addresses: Option<Instant>,
    positions: Option<Instant>,
    compared: Option<Instant>,
}

/// Has `period` passed since? Then it begins anew.
fn due(last: &mut Option<Instant>, period: Duration, now: Instant) -> bool {
    let due = last.is_none_or(|last| now.saturating_duration_since(last) >= period);
    if due {
        *last = Some(now);
    }
    due
}

#[expect(clippy::disallowed_methods, reason = "the corridor's own schedule")]
fn instant() -> Instant {
    Instant::now()
}

impl Engine {
    /// Takes over what the last run left, and what the kernel holds.
    pub(super) fn restore(&mut self, restored: Restored) {
        let now = wall_clock();
        let mut standing = Vec::new();
        for stored in restored.bans {
            let StoredBan { network, since, until, offences, times, throttle, .. } = stored;
            let jail = self.jail_index(&stored.jail);
            let action = if throttle { Action::Throttle } else { Action::Ban };
            let sentence = Sentence { network, jail, since, until, offences, times, action };
            if self.detector.jails.restore(sentence, now) {
                if !stored.reason.is_empty() {
                    self.enforcement.reasons.insert(network, stored.reason);
                }
                standing.push(sentence);
            }
        }
        for sentence in &standing {
            self.enforcement.refuse(sentence);
        }
        self.detector.jails.suspend(restored.off.filter(|until| *until > now));
        self.leases = restored.leases;
        self.apply_leases(now);
        tracing::info!("bans: {} are in force from before", standing.len());
    }

    fn jail_index(&self, name: &str) -> u16 {
        let known = self.enforcement.jails.iter().position(|jail| jail == name);
        match (name, known.and_then(|index| u16::try_from(index).ok())) {
            (_, Some(index)) => index,
            ("kernel", None) => ADOPTED,
            _ => OPERATOR,
        }
    }

    /// Runs until it is told to stop.
    pub(super) fn run(&mut self, events: &mut Receiver<Arc<Entry>>, flags: &Flags, questions: &Questions) {
        // The first round waits for nothing: what was written while edge was away is there already, and
        // the kernel waits for what was restored.
        let (mut more, mut heard) = (true, Vec::new());
        // Whoever follows if this process is killed reads on from here at the latest.
        self.save_positions();
        while !flags.stop.load(Ordering::Acquire) {
            let wait = if more { Duration::ZERO } else { self.patience() };
            if !events.take(&mut heard, wait) {
                break;
            }
            let now = wall_clock();
            // Enforced before files are read on: what a client does here and now comes first.
            self.hear(&mut heard, now);
            more = flags.files.swap(false, Ordering::AcqRel) && self.read_files(now);
            if more {
                flags.files.store(true, Ordering::Release);
            }
            self.enforce(now);
            let fresh = flags.fresh.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(fresh) = fresh {
                self.take_over(*fresh, wall_clock());
                flags.files.store(true, Ordering::Release);
                more = true;
            }
            while let Some((question, sender)) = questions.next() {
                // Whoever asked may have left.
                let _ = sender.try_send(self.answer(question, wall_clock()));
            }
            self.look(now);
        }
        // What was handed over before the end still counts: its bans stand in the file for the next run.
        events.end(&mut heard);
        self.hear(&mut heard, wall_clock());
        self.save_positions();
        if let Some(store) = self.enforcement.store.take() {
            store.close();
        }
    }

    fn patience(&self) -> Duration {
        LOOK.min(
            self.detector
                .jails
                .next_expiry()
                .map_or(LOOK, |at| at.saturating_sub(wall_clock()).max(Duration::from_millis(5))),
        )
    }

    /// Events of edge's own, and the bans that they came to.
    fn hear(&mut self, heard: &mut Vec<Arc<Entry>>, now: Duration) {
        for entry in heard.drain(..) {
            self.own(&entry, now);
        }
        self.enforce(now);
    }

    /// One event of edge's own.
    fn own(&mut self, entry: &Entry, now: Duration) {
        self.active.seen(Client::new(entry.client).key(), now);
        self.line.clear();
        if entry.spared && !self.detector.jails.counts_refusal(entry.client) {
            // To be refused as a visitor is no offence; what it asked for may be one.
            access_log::event_line(&Entry { status: 0, ..entry.clone() }, &mut self.line);
        } else {
            access_log::event_line(entry, &mut self.line);
        }
        let at = entry.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(now);
        let (client, cross_site) = (Some(entry.client), entry.cross_site);
        let line = Line { source: OWN, text: &self.line, at: Some(at), client, cross_site };
        self.enforcement.counters.lines.inc();
        let active = self.active.count(now);
        self.detector.read(line, Clock::Now(now), active, &mut self.found);
        self.rule(now);
    }

    fn read_files(&mut self, now: Duration) -> bool {
        let Some(mut tail) = self.tail.take() else { return false };
        let active = self.active.count(now);
        let more = tail.read(BLOCK, &mut |source, _: &Path, text| {
            self.enforcement.counters.lines.inc();
            let line = Line { source, text, at: None, client: None, cross_site: false };
            self.detector.read(line, Clock::Now(now), active, &mut self.found);
            if !self.found.is_empty() {
                self.rule(now);
            }
        });
        self.tail = Some(tail);
        more
    }

    /// Collects what the jails have ruled.
    fn rule(&mut self, now: Duration) {
        for finding in std::mem::take(&mut self.found) {
            let jail = self.enforcement.jails.get(finding.jail).map_or("unknown", String::as_str);
            match finding.ruling {
                Ruling::Protected | Ruling::Allowed | Ruling::TooOld => {}
                Ruling::Counted(_) | Ruling::Already(_) | Ruling::AlreadyVisitor(_) => {
                    self.enforcement.counters.offences.with_label_values(&[jail]).inc();
                }
                Ruling::Sentenced(sentence) => {
                    self.enforcement.counters.offences.with_label_values(&[jail]).inc();
                    let evidence = self.detector.jails.evidence(&sentence);
                    self.due.push(Decided { sentence, evidence });
                }
                Ruling::Visitor(visit) => {
                    self.enforcement.counters.offences.with_label_values(&[jail]).inc();
                    self.enforcement.slow_down(&visit, now);
                }
                Ruling::Excused(sentence, excuse) => self.excused(&sentence, excuse, now),
            }
        }
    }

    fn excused(&mut self, sentence: &Sentence, excuse: Excuse, now: Duration) {
        let reason = match excuse {
            Excuse::LogOnly => "log_only",
            Excuse::Brake => "brake",
            Excuse::Off => "off",
            Excuse::Pentest => "pentest",
        };
        self.enforcement.counters.excused.with_label_values(&[reason]).inc();
        let evidence = self.detector.jails.evidence(sentence);
        let jail = self.enforcement.name(sentence.jail).to_owned();
        let seen = self.enforcement.counters.excused.with_label_values(&[reason]).get();
        // The first ones and then some: a scan must not fill the disk with words about itself.
        if seen <= 20 || seen.is_multiple_of(1000) {
            tracing::info!("bans: {} would be banned by {jail}, but: {reason}", shown(sentence.network));
        }
        if excuse == Excuse::Pentest
            && let Some(lease) = self.leases.iter().find(|lease| {
                lease.ended.is_none() && lease.until > now && lease.network.contains(&sentence.network.addr())
            })
        {
            let line = evidence.into_iter().next_back().unwrap_or_default();
            let would = WouldBan { lease: lease.id, network: sentence.network, jail, at: now, line };
            self.enforcement.save(Change::WouldBan(would));
        }
    }

    /// Makes what was decided hold.
    pub(super) fn enforce(&mut self, now: Duration) {
        if !self.due.is_empty() {
            let decided = std::mem::take(&mut self.due);
            for network in self.enforcement.ban(decided, now) {
                // This one alone: what else is banned around it holds.
                let withdrawn = self.detector.jails.withdraw(network);
                self.enforcement.forgive(&withdrawn, now);
            }
        }
        let mut evicted = self.detector.jails.evicted();
        // Who left and was banned anew since is not to be let in.
        evicted.retain(|sentence| self.detector.jails.standing(sentence.network).is_none());
        if !evicted.is_empty() {
            self.enforcement.counters.evicted.inc_by(evicted.len() as u64);
            self.enforcement.end(&evicted, now);
        }
    }

    /// Lets in as anybody whose visit is over before its time.
    pub(super) fn let_visitors_go(&mut self) {
        for network in self.detector.jails.departed() {
            self.enforcement.banned.lift_visitor(network);
        }
    }

    /// What no event tells.
    pub(super) fn look(&mut self, now: Duration) {
        let ended = self.detector.jails.expire(now);
        self.let_visitors_go();
        if !ended.is_empty() {
            self.enforcement.end(&ended, now);
        }
        let instant = instant();
        if !due(&mut self.looked.look, LOOK, instant) {
            return;
        }
        if due(&mut self.looked.addresses, ADDRESSES, instant) {
            let never = protected::never_banned(&self.never, &self.never_now);
            // Every ban and every count is looked at, so only for news.
            if never != self.never_now {
                self.never_now = never;
                let freed = self.detector.jails.set_never(self.never_now.clone());
                self.enforcement.forgive(&freed, now);
            }
        }
        if let Some(tail) = &mut self.tail {
            tail.look();
        }
        if due(&mut self.looked.positions, POSITIONS, instant) {
            self.save_positions();
        }
        self.end_leases(now);
        self.enforcement.banned.purge(now.as_secs());
        // Somebody may have emptied the kernel's sets by hand.
        let again =
            due(&mut self.looked.compared, COMPARE, instant) && self.detector.jails.len() <= MOST_COMPARED;
        self.ask_kernel(again, now);
        if let Some(store) = &self.enforcement.store
            && store.needs_resync()
        {
            self.enforcement.save_all(&self.detector.jails);
        }
        self.tell_alarms();
        self.report();
    }

    /// Notices before the next ban needs it that the kernel has left, or is back; then it gets what
    /// it lacks.
    fn ask_kernel(&mut self, again: bool, now: Duration) {
        let state = self.enforcement.firewall.state();
        let there = state.takes_bans();
        if there && (again || !self.enforcement.in_step) {
            self.compare_with_kernel(now);
        }
        // Where it refuses what it was given, that stands.
        if !there || self.enforcement.in_step {
            self.enforcement.note(state);
        }
    }

    pub(super) fn save_positions(&self) {
        if let Some(tail) = &self.tail {
            self.enforcement.save(Change::Positions(tail.positions()));
        }
    }

    /// Bans of the kernel that nobody here knows are taken over; what it lacks it gets.
    pub(super) fn compare_with_kernel(&mut self, now: Duration) {
        let held = match self.enforcement.firewall.list() {
            Ok(held) => held,
            Err(error) => return self.enforcement.note(error.state()),
        };
        let mut known = HashMap::with_capacity(held.len());
        let (mut adopted, mut over) = (0, Vec::new());
        for ban in &held {
            if self.is_over(ban.network, now) {
                over.push(ban.network);
                continue;
            }
            known.insert(ban.network, now + ban.remaining);
            if self.banned_here(ban.network) {
                continue;
            }
            let until = now + ban.remaining;
            let sentence = Sentence {
                network: ban.network,
                jail: ADOPTED,
                since: now,
                until,
                offences: 0,
                times: 1,
                action: Action::Ban,
            };
            if self.detector.jails.restore(sentence, now) {
                self.enforcement.banned.ban(ban.network, until.as_secs());
                self.enforcement.save(Change::Ban(self.enforcement.stored(&sentence), Vec::new()));
                adopted += 1;
            } else {
                // Nobody may ban it any more: it was named in `never`, or is under test.
                known.remove(&ban.network);
                over.push(ban.network);
            }
        }
        if !self.enforcement.let_in(&over) {
            return;
        }
        self.enforcement.owed = Owed::default();
        let missing: Vec<Sentence> = self
            .detector
            .jails
            .active()
            .filter(|sentence| sentence.action == Action::Ban)
            .filter(|sentence| {
                known.get(&sentence.network).is_none_or(|until| until.abs_diff(sentence.until) > SAME_END)
            })
            .collect();
        self.enforcement.in_step = true;
        let protected = self.enforcement.ban_in_kernel(missing.iter(), now);
        for network in protected {
            let withdrawn = self.detector.jails.withdraw(network);
            self.enforcement.forgive(&withdrawn, now);
        }
        if self.enforcement.in_step {
            self.lift_limits(now);
        }
        if self.enforcement.in_step && (adopted > 0 || !over.is_empty() || !missing.is_empty()) {
            tracing::info!(
                "bans: the kernel held {}, {adopted} of them new to edge and {} over; {} were given back to it",
                held.len(),
                over.len(),
                missing.len()
            );
        }
    }

    fn banned_here(&self, network: IpNet) -> bool {
        self.detector.jails.standing(network).is_some_and(|ban| ban.action == Action::Ban)
    }

    /// Does the kernel hold a ban that ended here: lifted while it was out of reach, or, before a
    /// restart, known to be over?
    fn is_over(&self, network: IpNet, now: Duration) -> bool {
        !self.banned_here(network)
            && (self.enforcement.owed.holds(network)
                || self.detector.jails.history(network).is_some_and(|history| history.last_end <= now))
    }

    pub(super) fn tell_alarms(&mut self) {
        for alarm in self.detector.jails.alarms() {
            match alarm {
                Alarm::Brake { jail, bans_in_minute, active_clients } => {
                    let jail = self.enforcement.jails.get(jail).cloned().unwrap_or_default();
                    tracing::error!(
                        "bans: jail {jail} banned {bans_in_minute} within a minute, of {active_clients} \
                         active clients: it only logs from here on; look at `edge bans list`, then mend its \
                         filter or `edge bans release {jail}`"
                    );
                }
                Alarm::BrakeReleased { jail } => {
                    let jail = self.enforcement.jails.get(jail).cloned().unwrap_or_default();
                    tracing::warn!("bans: jail {jail} bans again");
                }
                Alarm::NearlyFull { active, max } => tracing::error!(
                    "bans: {active} of at most {max} are in force; when it is full the soonest to end goes \
                     first; raise bans.max_bans or shorten ban_time"
                ),
                Alarm::OffendersFull { tracked } => tracing::warn!(
                    "bans: {tracked} offenders are being counted, and that is all there is room for: those \
                     not seen for longest are forgotten"
                ),
                Alarm::ManyVisitors { throttled, active_clients } => tracing::warn!(
                    "bans: {throttled} visitors of foreign pages were throttled within a minute, of {active_clients} \
                     active clients: no further ones are until a minute holds fewer; the access log names who asks"
                ),
                Alarm::ClockSetBack { by } => {
                    tracing::warn!("bans: the clock was set back by {by:?}; each keeps what remained of it");
                    self.enforcement.set_anew(&self.detector.jails);
                }
                Alarm::Evicted { count } => {
                    tracing::error!("bans: {count} ended early because there is no more room for them");
                }
            }
        }
    }

    /// Brings gauges and status up to date.
    fn report(&mut self) {
        let counters = &self.enforcement.counters;
        counters.active.set(i64::try_from(self.detector.jails.len()).unwrap_or(i64::MAX));
        counters.kernel.set(i64::from(self.enforcement.kernel_works()));
        counters.drift.set(i64::from(self.enforcement.kernel() == State::Changed));
        let braked = self.detector.jails.braked();
        for (index, jail) in self.enforcement.jails.iter().enumerate() {
            counters.braked.with_label_values(&[jail]).set(i64::from(braked.contains(&index)));
        }
        let figures = self.detector.figures();
        for (counter, now) in
            [(&counters.too_long, figures.too_long), (&counters.backtracked, figures.backtrack_limit)]
        {
            counter.inc_by(now.saturating_sub(counter.get()));
        }
        let failing = self.enforcement.unkept();
        counters.unsaved.set(i64::from(failing.is_some()));
        let summary = self.summary(failing);
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = summary;
    }

    /// Lifts the limits of networks under test, here and in the kernel.
    pub(super) fn apply_leases(&mut self, now: Duration) {
        let open: Vec<(IpNet, Duration)> = self.open_leases(now).collect();
        self.rates.set_exempt(open.iter().map(|(network, _)| *network).collect());
        let ended = self.detector.jails.set_leases(open);
        self.enforcement.forgive(&ended, now);
        self.lift_limits(now);
    }

    fn lift_limits(&mut self, now: Duration) {
        let lifted: Vec<crate::firewall::Ban> = self
            .open_leases(now)
            .map(|(network, until)| crate::firewall::Ban { network, remaining: until - now })
            .collect();
        if !lifted.is_empty()
            && let Err(error) = self.enforcement.firewall.lift(&lifted)
        {
            tracing::warn!(
                "bans: the kernel's limits still hold for the penetration test: {error}; tried again"
            );
        }
    }

    fn open_leases(&self, now: Duration) -> impl Iterator<Item = (IpNet, Duration)> + '_ {
        self.leases
            .iter()
            .filter(move |lease| lease.ended.is_none() && lease.until > now)
            .map(|lease| (lease.network, lease.until))
    }

    fn end_leases(&mut self, now: Duration) {
        let mut over = Vec::new();
        for lease in &mut self.leases {
            if lease.ended.is_none() && lease.until <= now {
                lease.ended = Some(lease.until);
                over.push(lease.clone());
            }
        }
        for lease in over {
            tracing::warn!(
                "bans: the penetration test {:?} from {} is over by time; bans hold for it again",
                lease.ticket,
                shown(lease.network)
            );
            self.enforcement.save(Change::Lease(lease));
            self.apply_leases(now);
        }
    }
}

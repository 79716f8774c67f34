//! One step: a ban stands in the table that requests are looked up in, in the kernel and in the
//! file of bans, and the client's live connections are closed, before the next line is read.
//! Ending it undoes all of it. Must not know why somebody is banned.

use std::collections::{HashMap, HashSet};
use std::mem::discriminant;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::ban_store::{BanStore, Change, StoredBan};
use super::figures::Counters;
use crate::admission::Banned;
use crate::ban::jail::{ADOPTED, Jails, Lifted, OPERATOR, RETIRED, Sentence, Visit};
use crate::ban::words::CROSS_SITE;
use crate::ban::{Action, shown};
use crate::firewall::{Ban, Firewall, Reason, Refusal, State};
use crate::listen::live::Connections;

/// Bans told one by one in the log; further ones of the same step are summed up.
const TOLD: usize = 20;

/// Networks that the kernel still has to let in, one by one; beyond it, all that edge does not ban.
const MOST_OWED: usize = 65_536;

/// The helper refuses what is longer (`longest_ban`, 30 days unless written otherwise): a longer ban
/// holds so long in the kernel and to its end in edge.
const IN_KERNEL: Duration = Duration::from_secs(30 * 86_400);

/// One ban as it was decided.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) sentence: Sentence,
    /// The lines that led to it.
    pub(super) evidence: Vec<Box<[u8]>>,
}

/// The places where a ban holds.
pub(super) struct Enforcement {
    pub(super) banned: Arc<Banned>,
    pub(super) connections: Arc<Connections>,
    pub(super) firewall: Box<dyn Firewall>,
    /// How it stands with it, as it was told last; `None` before anybody asked.
    pub(super) kernel: Option<State>,
    pub(super) store: Option<BanStore>,
    pub(super) counters: Counters,
    /// By index.
    pub(super) jails: Vec<String>,
    /// What operators said of their own bans.
    pub(super) reasons: HashMap<IpNet, String>,
    /// Does the kernel hold what it shall? False until it was compared.
    pub(super) in_step: bool,
    /// What the kernel could not be told.
    pub(super) owed: Owed,
}

/// Bans that ended while the kernel was out of reach: it may hold them still, and they must not be
/// taken over from it.
#[derive(Debug, Default)]
pub(super) struct Owed {
    networks: HashSet<IpNet>,
    /// There were too many to remember: whatever only the kernel holds is over.
    all: bool,
}

impl Owed {
    fn note(&mut self, networks: &[IpNet]) {
        self.networks.extend(networks);
        if self.networks.len() > MOST_OWED {
            *self = Self { networks: HashSet::new(), all: true };
        }
    }

    /// Did this network's ban end?
    pub(super) fn holds(&self, network: IpNet) -> bool {
        self.all || self.networks.contains(&network)
    }
}

impl Enforcement {
    /// Makes these bans hold. Returns the networks that the firewall's own list protects: they hold
    /// nowhere then.
    pub(super) fn ban(&mut self, decided: Vec<Decided>, now: Duration) -> Vec<IpNet> {
        for Decided { sentence, .. } in &decided {
            self.refuse(sentence);
        }
        // Usually the kernel comes first, which is a matter of microseconds; one that hangs must not keep
        // live connections open.
        if !self.in_step {
            self.cut(&decided);
        }
        let protected = self.ban_in_kernel(decided.iter().map(|one| &one.sentence), now);
        for (index, Decided { sentence, evidence }) in decided.into_iter().enumerate() {
            if protected.contains(&sentence.network) {
                self.banned.lift(sentence.network);
                tracing::error!(
                    "bans: {}: the firewall's own list protects it, so it is not banned; name it in bans.never too",
                    shown(sentence.network)
                );
                continue;
            }
            if sentence.action == Action::Ban {
                self.connections.cut(sentence.network);
            }
            let jail = self.name(sentence.jail).to_owned();
            self.counters.bans.with_label_values(&[&jail]).inc();
            if index < TOLD {
                tell(&sentence, &jail);
            } else if index == TOLD {
                tracing::info!("bans: more at once than are told one by one; `edge bans list` shows them");
            }
            let stored = self.stored(&sentence);
            self.save(Change::Ban(stored, evidence));
        }
        protected
    }

    /// Closes the live connections of those that are banned.
    fn cut(&self, decided: &[Decided]) {
        for Decided { sentence, .. } in decided {
            if sentence.action == Action::Ban {
                self.connections.cut(sentence.network);
            }
        }
    }

    /// Ends these bans everywhere; they count on as earlier ones. The kernel needs no word where
    /// their time is over. `false`: it could not be told, see [`Self::let_in`].
    pub(super) fn end(&mut self, sentences: &[Sentence], now: Duration) -> bool {
        self.undo(sentences, false, now)
    }

    /// The same of bans that count no more as earlier ones, as the jails have forgotten them.
    pub(super) fn forgive(&mut self, lifted: &Lifted, now: Duration) -> bool {
        for network in &lifted.forgotten {
            self.save(Change::End { network: *network, at: now, forgiven: true });
        }
        self.undo(&lifted.ended, true, now)
    }

    fn undo(&mut self, sentences: &[Sentence], forgiven: bool, now: Duration) -> bool {
        let mut early = Vec::new();
        for sentence in sentences {
            self.banned.lift(sentence.network);
            self.reasons.remove(&sentence.network);
            if sentence.until > now {
                early.push(sentence.network);
            }
            self.save(Change::End { network: sentence.network, at: now, forgiven });
        }
        self.let_in(&early)
    }

    /// Ends these in the kernel; one that it does not hold is fine. What it cannot be told now, it is
    /// told when it is compared next.
    pub(super) fn let_in(&mut self, networks: &[IpNet]) -> bool {
        if networks.is_empty() {
            return true;
        }
        let Err(error) = self.firewall.unban(networks) else { return true };
        let state = error.state();
        // Without rules it drops nobody, and with them it gets what edge bans then.
        let drops_nobody = state == State::NoRules;
        self.in_step = false;
        self.owed.note(networks);
        self.note(state);
        if !drops_nobody {
            tracing::warn!("bans: {} ended, but not in the kernel: {error}; tried again", networks.len());
        }
        drops_nobody
    }

    /// All times have changed: takes what the jails know in place of all that stood.
    pub(super) fn set_anew(&mut self, jails: &Jails) {
        self.banned.clear();
        for sentence in jails.active() {
            self.refuse(&sentence);
        }
        for visit in jails.visitors() {
            self.banned.throttle_visitor(visit.network, visit.until.as_secs());
        }
        self.save_all(jails);
        // The kernel counts remaining time, which has not changed.
    }

    /// Writes the file of bans anew: those in force, and those that make the next ones longer.
    pub(super) fn save_all(&self, jails: &Jails) {
        self.save(Change::Replace(jails.known().map(|sentence| self.stored(&sentence)).collect()));
    }

    /// Slows a visitor down: requests alone, no connection, kernel or file hears of it.
    pub(super) fn slow_down(&self, visit: &Visit, now: Duration) {
        let Visit { network, jail, until, offences } = *visit;
        self.banned.throttle_visitor(network, until.as_secs());
        self.counters.visitors.inc();
        let seen = self.counters.visitors.get();
        // As many as an advertisement has viewers: the first ones and then some.
        if seen <= 20 || seen.is_multiple_of(1000) {
            tracing::info!(
                "bans: {} throttled for {:?} by {} ({offences} offences); {CROSS_SITE}",
                shown(network),
                Duration::from_secs(until.saturating_sub(now).as_secs()),
                self.name(jail),
            );
        }
    }

    /// Enters it into the table that requests are looked up in.
    pub(super) fn refuse(&self, sentence: &Sentence) {
        let until = sentence.until.as_secs();
        match sentence.action {
            Action::Ban => self.banned.ban(sentence.network, until),
            Action::Throttle => self.banned.throttle(sentence.network, until),
            Action::Log => {}
        }
    }

    /// Tells the kernel. What it does not take now, it gets when it is compared next.
    pub(super) fn ban_in_kernel<'s>(
        &mut self,
        sentences: impl Iterator<Item = &'s Sentence>,
        now: Duration,
    ) -> Vec<IpNet> {
        let bans: Vec<Ban> = sentences
            .filter(|sentence| sentence.action == Action::Ban && sentence.until > now)
            .map(|sentence| Ban {
                network: sentence.network,
                remaining: (sentence.until - now).min(IN_KERNEL),
            })
            .collect();
        if bans.is_empty() {
            return Vec::new();
        }
        match self.firewall.ban(&bans) {
            Ok(refused) => {
                let mut others = refused.iter().filter(|one| one.reason != Reason::Protected);
                if let Some(Refusal { network, reason }) = others.next() {
                    let more = others.count();
                    tracing::error!(
                        "bans: {} (and {more} more at once): not in the kernel: it {reason}; edge holds it alone",
                        shown(*network)
                    );
                }
                let protected = refused.iter().filter(|one| one.reason == Reason::Protected);
                protected.map(|one| one.network).collect()
            }
            Err(error) => {
                self.note(error.state());
                Vec::new()
            }
        }
    }

    /// How it stands with the kernel, at most about a second old.
    pub(super) fn kernel(&self) -> State {
        self.kernel.clone().unwrap_or_else(|| State::Absent("not asked yet".to_owned()))
    }

    /// Does the kernel hold what it shall?
    pub(super) fn kernel_works(&self) -> bool {
        self.in_step && self.kernel.as_ref().is_some_and(State::takes_bans)
    }

    /// Notes how it stands with the kernel. News are told, once.
    pub(super) fn note(&mut self, state: State) {
        if !state.takes_bans() {
            // Where no kernel is wanted, none is waited for.
            self.in_step = state == State::NotConfigured;
        }
        let before = self.kernel.as_ref().map(discriminant);
        let news = before != Some(discriminant(&state));
        match &state {
            _ if !news => {}
            State::NotConfigured => {}
            State::Works if before.is_none() => {}
            State::Works => tracing::info!("bans: kernel: {state} again"),
            _ => tracing::error!("bans: kernel: {state}"),
        }
        self.kernel = Some(state);
    }

    /// Queues a change for the file of bans.
    pub(super) fn save(&self, change: Change) {
        if let Some(store) = &self.store {
            store.save(change);
        }
    }

    /// Why bans may not survive a restart, for status.
    pub(super) fn unkept(&self) -> Option<String> {
        match &self.store {
            Some(store) => store.faults(),
            None => Some("the file of bans could not be opened: bans end with edge".to_owned()),
        }
    }

    /// As it lies in the file.
    pub(super) fn stored(&self, sentence: &Sentence) -> StoredBan {
        StoredBan {
            network: sentence.network,
            jail: self.name(sentence.jail).to_owned(),
            since: sentence.since,
            until: sentence.until,
            offences: sentence.offences,
            times: sentence.times,
            throttle: sentence.action == Action::Throttle,
            reason: self.reasons.get(&sentence.network).cloned().unwrap_or_default(),
        }
    }

    /// A jail's name; `operator` and `kernel` are no jails.
    pub(super) fn name(&self, jail: u16) -> &str {
        match jail {
            OPERATOR => "operator",
            ADOPTED => "kernel",
            RETIRED => "a jail of an earlier configuration",
            other => self.jails.get(usize::from(other)).map_or("unknown", String::as_str),
        }
    }
}

fn tell(sentence: &Sentence, jail: &str) {
    let Sentence { network, since, until, offences, times, action, .. } = sentence;
    let what = if *action == Action::Throttle { "throttled" } else { "banned" };
    tracing::info!(
        "bans: {} {what} for {:?} by {jail} ({offences} offences, {times} in a row)",
        shown(*network),
        Duration::from_secs(until.saturating_sub(*since).as_secs()),
    );
}

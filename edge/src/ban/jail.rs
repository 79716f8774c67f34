//! Counts offences and decides who is banned, for how long, and who never is. Pure.
//! Must not know what a line says, nor how a ban is enforced or kept on disk.
//!
//! `networks` compares sets of networks, `tally` counts, `brake` stops a jail that is wrong,
//! `book` holds the bans; here is the order in which they are asked. What is decided here and
//! stands nowhere else:
//!
//! - An offence counts by its own time, as long as it is no older than `find_time`. The
//!   `max_offences`-th one bans, and that jail's count of that network begins anew.
//! - A banned network's further offences change nothing: the ban is not extended, the next one is
//!   not longer. They are what was on its way. Only a throttled network can still earn a ban.
//! - A jail that bans networks bans the single address (or /64) where the network holds someone
//!   who may not be banned, and nobody where that holds one, too.
//! - What a page of another origin can make a browser do is counted apart and throttles at most, for
//!   `ban_time` and no more than ten minutes. Such a visitor has no ban: it presses no brake, no later
//!   ban is longer for it, and what it does without a page's help counts as anybody's. Nobody shall be
//!   able to ban others, nor to make a jail log-only, by a page that they visit.
//! - Each further ban within `forgiveness` after the last one's end is longer. All jails count
//!   together, an operator's bans and throttles as well. What an operator lifts is forgotten with
//!   its history: it was a mistake, and the next ban is a first one.
//! - Who is excused (log-only, brake, off, pentest) is told once for as long as its ban would have
//!   lasted, so that a scan makes a line and not a flood.
//! - Time comes from outside and may go back: up to ten seconds it stands still, and beyond that
//!   all that lasts keeps what remained of it.

mod book;
mod brake;
mod chunks;
mod judge;
mod networks;
mod record;
mod settings;
mod tally;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trial;
mod visitors;
mod words;

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

pub use words::{
    ADOPTED, Alarm, Counter, Excuse, History, Lifted, OPERATOR, Offence, RETIRED, Refused, Ruling, Sentence,
    Visit,
};

use super::{Action, JailSettings, Prefixes};
use book::Book;
use networks::{Networks, canonical, overlap};
use record::{Key, millis};
use settings::Jail;
use tally::{Offender, Tally};
use visitors::Visitors;

/// No ban is longer.
const TEN_YEARS: Duration = Duration::from_secs(10 * 366 * 24 * 3600);
/// So long is remembered who was banned, where no jail forgives later.
const A_DAY: Duration = Duration::from_secs(24 * 3600);
/// A clock that goes back by less stands still; beyond that it was set, in milliseconds.
const SLACK: u64 = 10_000;
/// So many offenders are counted over all jails.
const MAX_OFFENDERS: usize = 262_144;
/// So many bytes of lines are kept.
const MAX_LINES: usize = 16 << 20;
/// So many ended bans are handed out in one call, so that none takes long.
const ENDED_AT_ONCE: usize = 4096;
/// So many evicted bans wait to be asked for.
const MAX_EVICTED: usize = 65_536;
/// So many networks are forgotten in one call, so that none takes long.
const FORGOTTEN_AT_ONCE: usize = 4096;
/// So often is told that offenders are forgotten, in milliseconds.
const TOLD_AGAIN: u64 = 600_000;
/// So many alarms wait to be told; the oldest go first.
const MAX_ALARMS: usize = 256;
/// What one customer has at least: no ban is narrower.
const SINGLE: Prefixes = Prefixes { v4: 32, v6: 64 };

/// Every jail, whom they count and whom they have banned.
#[derive(Debug)]
pub struct Jails {
    settings: Vec<JailSettings>,
    jails: Vec<Jail>,
    never: Networks,
    book: Book,
    tally: Tally,
    visitors: Visitors,
    leases: Vec<(IpNet, Duration)>,
    suspended: Option<Duration>,
    /// The latest time seen, in milliseconds.
    clock: u64,
    evicted: Vec<Sentence>,
    alarms: Vec<Alarm>,
    nearly_full: bool,
    forgetful_since: Option<u64>,
}

impl Jails {
    /// `never` is whom no jail and no operator may ban (edge's own addresses, loopback, peers,
    /// vaults, proxies); what many share (multicast, link-local, the NAT64 prefix) is added.
    /// At `max_bans` the soonest to end makes room.
    #[must_use]
    pub fn new(jails: Vec<JailSettings>, never: Vec<IpNet>, max_bans: usize) -> Self {
        Self {
            jails: jails.iter().map(Jail::new).collect(),
            settings: jails,
            never: Networks::protecting(&never),
            book: Book::new(max_bans),
            tally: Tally::new(MAX_OFFENDERS, MAX_LINES),
            visitors: Visitors::default(),
            leases: Vec::new(),
            suspended: None,
            clock: 0,
            evicted: Vec::new(),
            alarms: Vec::new(),
            nearly_full: false,
            forgetful_since: None,
        }
    }

    /// As they were given; an offence's and a sentence's `jail` is a place in this.
    #[must_use]
    pub fn settings(&self) -> &[JailSettings] {
        &self.settings
    }

    /// Whom nobody may ban from now on. Bans that overlap it end at once and are forgotten.
    pub fn set_never(&mut self, never: Vec<IpNet>) -> Lifted {
        self.never = Networks::protecting(&never);
        let never = &self.never;
        self.tally.forget(|offender| never.overlaps(offender.key.network()));
        self.visitors.dismiss(|visit| never.overlaps(visit.network));
        self.book.pardon(|sentence| never.overlaps(sentence.network), |past| never.overlaps(past))
    }

    /// An operator's ban. An IPv6 network narrower than /64 is banned as its /64. It replaces the
    /// operator's last word on this network, and never shortens a jail's longer ban. Given while
    /// bans are off, too: who types it means it. Who asks has looked whether it is under a lease.
    ///
    /// # Errors
    /// What overlaps whom nobody may ban; wider than /24 or /48; no time, or over ten years.
    pub fn sentence(
        &mut self,
        network: IpNet,
        lasting: Duration,
        now: Duration,
    ) -> Result<Sentence, Refused> {
        let now = self.advance(now);
        let key = Key::new(network).ok_or(Refused::TooWide(network))?;
        let lasts = millis(lasting);
        if lasts == 0 {
            return Err(Refused::NoTime(network));
        }
        if lasting > TEN_YEARS {
            return Err(Refused::TooLong(network));
        }
        if self.never.overlaps(key.network()) {
            return Err(Refused::Protected(network));
        }
        let standing = self.book.standing(key, now);
        let longer = standing.filter(|ban| ban.action == Action::Ban && ban.jail != OPERATOR);
        let until = longer.map_or(0, |ban| millis(ban.until)).max(now.saturating_add(lasts));
        let sentence = Sentence {
            network: key.network(),
            jail: OPERATOR,
            since: Duration::from_millis(now),
            until: Duration::from_millis(until),
            offences: 0,
            times: standing.map_or_else(|| self.times(key, self.memory(), now), |ban| ban.times),
            action: Action::Ban,
        };
        self.enter(key, &sentence);
        Ok(sentence)
    }

    /// A ban from before a restart, with what remains of it. `true` if it is in force (or a longer
    /// one of this network is); an ended one only feeds the history, and one that may not be
    /// (protected, too wide, a jail's under a lease) is dropped. It lasts no longer than it was
    /// given for, even if the clock was wrong when it was given.
    pub fn restore(&mut self, sentence: Sentence, now: Duration) -> bool {
        let now = self.advance(now);
        let Some(key) = Key::new(sentence.network) else { return false };
        let network = key.network();
        if self.never.overlaps(network) || (sentence.jail != OPERATOR && self.leased(network, now)) {
            return false;
        }
        let whole = sentence.until.saturating_sub(sentence.since).min(TEN_YEARS);
        let action = if sentence.action == Action::Throttle { Action::Throttle } else { Action::Ban };
        let lifted = sentence.times == 0;
        let mut restored = Sentence { network, action, ..sentence };
        if lifted || millis(sentence.until) <= now {
            if millis(sentence.until).saturating_add(millis(self.memory())) > now {
                let until = Duration::from_millis(millis(sentence.until).min(now));
                self.book.remember(key, &Sentence { until, ..restored });
            }
            return false;
        }
        let remains = (millis(sentence.until) - now).min(millis(whole));
        restored.since = Duration::from_millis(millis(sentence.since).min(now));
        restored.until = Duration::from_millis(now.saturating_add(remains));
        if restored.until <= Duration::from_millis(now) {
            return false;
        }
        let rank = |ban: &Sentence| (ban.action == Action::Ban, ban.until);
        if self.book.standing(key, now).is_none_or(|standing| rank(&standing) < rank(&restored)) {
            self.enter(key, &restored);
        }
        true
    }

    /// What left early because the book was full, since the last call. At most 65,536 wait; what is
    /// beyond is only counted in [`Alarm::Evicted`].
    pub fn evicted(&mut self) -> Vec<Sentence> {
        std::mem::take(&mut self.evicted)
    }

    /// Ends every ban in force that overlaps `network`, and forgets what was counted and remembered
    /// of it. Visitors of it are let in as anybody, see [`Jails::departed`].
    pub fn lift(&mut self, network: IpNet) -> Lifted {
        let network = canonical(network);
        self.tally.pardon(network);
        self.visitors.dismiss(|visit| overlap(visit.network, network));
        self.book.pardon_overlapping(network)
    }

    /// Ends and forgets the ban in force of exactly this network: it could not be carried out. What
    /// else is known of it, and of wider and narrower ones, stays.
    pub fn withdraw(&mut self, network: IpNet) -> Lifted {
        let withdrawn = Key::new(network).and_then(|key| self.book.withdraw(key));
        Lifted { ended: withdrawn.into_iter().collect(), forgotten: Vec::new() }
    }

    /// The ban in force of exactly this network.
    #[must_use]
    pub fn standing(&self, network: IpNet) -> Option<Sentence> {
        self.book.standing(Key::new(network)?, self.clock)
    }

    /// Ends every ban in force, and forgets every count, every visitor and the history.
    pub fn clear(&mut self) -> Lifted {
        self.tally.forget(|_| true);
        self.visitors.dismiss(|_| true);
        self.book.pardon(|_| true, |_| true)
    }

    /// What has ended by `now`, in the order of its end; at most 4096 at a time, so call again
    /// while [`Jails::next_expiry`] is past.
    pub fn expire(&mut self, now: Duration) -> Vec<Sentence> {
        let now = self.advance(now);
        self.visitors.expire(now);
        let mut ended = Vec::new();
        while ended.len() < ENDED_AT_ONCE
            && let Some(sentence) = self.book.next_ended(now)
        {
            ended.push(sentence);
        }
        self.book.forget_before(now.saturating_sub(millis(self.memory())), FORGOTTEN_AT_ONCE);
        if self.book.len() < self.book.max() / 10 * 7 {
            self.nearly_full = false;
        }
        ended
    }

    /// When [`Jails::expire`] is to be called next: a ban or a visit ends then, or a brake releases itself.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Duration> {
        let brakes = self.jails.iter().filter_map(|jail| jail.pedal.releases_at());
        brakes.chain(self.book.soonest()).chain(self.visitors.soonest()).min().map(Duration::from_millis)
    }

    /// Every ban in force that this address falls under, by its own network and wider ones.
    #[must_use]
    pub fn covering(&self, address: IpAddr) -> Vec<Sentence> {
        self.book.covering(address.to_canonical(), self.clock).collect()
    }

    /// Every ban in force, in no order.
    pub fn active(&self) -> impl Iterator<Item = Sentence> + '_ {
        self.book.active(self.clock)
    }

    /// Every ban in force and every one that is remembered, in no order: what a file of bans has to
    /// hold.
    pub fn known(&self) -> impl Iterator<Item = Sentence> + '_ {
        self.book.known()
    }

    /// How many bans are held: those in force, and those that ended but were not yet returned by
    /// [`Jails::expire`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.book.len()
    }

    /// Whether there is no ban.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.book.len() == 0
    }

    /// Until then no jail bans, and detection goes on; `None` re-arms at once. Bans that are in
    /// force stay: [`Jails::clear`] ends them.
    pub fn suspend(&mut self, until: Option<Duration>) {
        self.suspended = until.filter(|until| millis(*until) > self.clock);
    }

    /// Until when no jail bans.
    #[must_use]
    pub fn suspended(&self) -> Option<Duration> {
        self.suspended
    }

    /// All networks that are leased to a penetration test, and until when, in place of those
    /// before. Jails' bans that overlap one end at once and are forgotten; an operator's stay.
    pub fn set_leases(&mut self, leases: Vec<(IpNet, Duration)>) -> Lifted {
        self.leases = leases.into_iter().map(|(network, until)| (canonical(network), until)).collect();
        let (leases, clock) = (&self.leases, self.clock);
        self.visitors.dismiss(|visit| leased(leases, visit.network, clock));
        let ended = |ban: &Sentence| ban.jail != OPERATOR && leased(leases, ban.network, clock);
        self.book.pardon(ended, |_| false)
    }

    /// What every jail has counted of this address and not yet punished.
    #[must_use]
    pub fn counters(&self, address: IpAddr) -> Vec<Counter> {
        let address = address.to_canonical();
        let single = SINGLE.network(address);
        let mut counters = Vec::new();
        for (place, jail) in self.jails.iter().enumerate() {
            let wide = jail.prefixes.network(address);
            let networks = [Some(wide), (wide != single).then_some(single)];
            for key in networks.into_iter().flatten().filter_map(Key::new) {
                for cross_site in [false, true] {
                    let offender =
                        Offender { jail: u16::try_from(place).unwrap_or(RETIRED), key, cross_site };
                    let (times, offences) = self.tally.counted(offender, self.clock, jail.measure.find_time);
                    if offences > 0 {
                        let (network, lines) = (key.network(), self.tally.lines(offender));
                        counters.push(Counter { jail: place, network, cross_site, offences, times, lines });
                    }
                }
            }
        }
        counters
    }

    /// The last lines that led to a sentence (also one that was excused), newest last; they are
    /// gone then. Take them at once: the network's next offence in this jail begins anew.
    pub fn evidence(&mut self, sentence: &Sentence) -> Vec<Box<[u8]>> {
        let Some(key) = Key::new(sentence.network) else { return Vec::new() };
        self.tally.take_lines(Offender { jail: sentence.jail, key, cross_site: false })
    }

    /// Every visitor that is let in slowly, in no order. No restart and no file keeps them.
    pub fn visitors(&self) -> impl ExactSizeIterator<Item = Visit> + '_ {
        self.visitors.all()
    }

    /// The visits that cover this address, each with the last lines that led to it.
    #[must_use]
    pub fn visits(&self, address: IpAddr) -> Vec<(Visit, Vec<Box<[u8]>>)> {
        let lines = |visit: &Visit| {
            let key = Key::new(visit.network)?;
            Some(self.tally.lines(Offender { jail: visit.jail, key, cross_site: true }))
        };
        let visits = self.visitors.covering(address.to_canonical(), self.clock);
        visits.map(|visit| (visit, lines(&visit).unwrap_or_default())).collect()
    }

    /// Whose visits ended before their time, since the last call: let them in as anybody.
    pub fn departed(&mut self) -> Vec<IpNet> {
        self.visitors.departed()
    }

    /// One more request of this visitor was refused for being one. Does that count as its own fault?
    /// One in ten does: ten times as many refusals ban it as anybody else, and no fewer.
    pub fn counts_refusal(&mut self, visitor: IpAddr) -> bool {
        self.visitors.counts_refusal(visitor.to_canonical())
    }

    /// What is remembered of exactly this network: for as long as the longest `forgiveness` of any
    /// jail (a day where none has one), of at most half as many networks as can be banned.
    /// `times` is 0 where a ban of an earlier run was lifted.
    #[must_use]
    pub fn history(&self, network: IpNet) -> Option<History> {
        self.book.history(Key::new(network)?)
    }

    /// What an operator should hear of, since the last call.
    pub fn alarms(&mut self) -> Vec<Alarm> {
        std::mem::take(&mut self.alarms)
    }

    /// Jails that are log-only now because they banned too many.
    #[must_use]
    pub fn braked(&self) -> Vec<usize> {
        let pulled = self.jails.iter().enumerate().filter(|(_, jail)| jail.pedal.is_pulled());
        pulled.map(|(place, _)| place).collect()
    }

    /// Lets a braked jail ban again; counts its bans of the minute anew. By itself that happens
    /// when for ten minutes no minute held more would-be bans than the brake allows.
    pub fn release_brake(&mut self, jail: usize) {
        if self.jails.get_mut(jail).is_some_and(|jail| jail.pedal.release()) {
            self.tell(Alarm::BrakeReleased { jail });
        }
    }
}

/// What the rooms behind the door share.
impl Jails {
    /// Follows the clock; returns the time that counts.
    fn advance(&mut self, now: Duration) -> u64 {
        let now = millis(now);
        if now.saturating_add(SLACK) < self.clock {
            self.set_back(self.clock - now);
        }
        self.clock = self.clock.max(now);
        let now = self.clock;
        self.suspended = self.suspended.filter(|until| millis(*until) > now);
        for jail in 0..self.jails.len() {
            let at = self.jails.get(jail).and_then(|jail| jail.pedal.releases_at());
            if at.is_some_and(|at| at <= now) {
                self.release_brake(jail);
            }
        }
        now
    }

    fn set_back(&mut self, by: u64) {
        self.clock -= by;
        self.book.set_back(by);
        self.visitors.set_back(by);
        self.tally.restart_all();
        for jail in &mut self.jails {
            jail.pedal.set_back(self.clock);
        }
        let by = Duration::from_millis(by);
        self.suspended = self.suspended.map(|until| until.saturating_sub(by));
        for (_, until) in &mut self.leases {
            *until = until.saturating_sub(by);
        }
        self.forgetful_since = None;
        self.tell(Alarm::ClockSetBack { by });
    }

    fn leased(&self, network: IpNet, now: u64) -> bool {
        leased(&self.leases, network, now)
    }

    /// Which ban of this network comes next, if it is forgiven after so long.
    fn times(&self, key: Key, forgiveness: Duration, now: u64) -> u16 {
        let last = self.book.history(key);
        let last = last.filter(|last| now < millis(last.last_end).saturating_add(millis(forgiveness)));
        last.map_or(1, |last| last.times.saturating_add(1))
    }

    /// How long ended bans are remembered.
    fn memory(&self) -> Duration {
        let forgiven = self.settings.iter().filter_map(|jail| jail.escalation.map(|by| by.forgiveness));
        forgiven.max().unwrap_or(A_DAY)
    }

    fn enter(&mut self, key: Key, sentence: &Sentence) {
        if let Some(evicted) = self.book.enter(key, sentence, self.clock) {
            if self.evicted.len() < MAX_EVICTED {
                self.evicted.push(evicted);
            }
            match self.alarms.iter_mut().find(|alarm| matches!(alarm, Alarm::Evicted { .. })) {
                Some(Alarm::Evicted { count }) => *count += 1,
                _ => self.tell(Alarm::Evicted { count: 1 }),
            }
        }
        let (active, max) = (self.book.len(), self.book.max());
        if !self.nearly_full && active.saturating_mul(5) >= max.saturating_mul(4) {
            self.nearly_full = true;
            self.tell(Alarm::NearlyFull { active, max });
        }
    }

    fn tell_forgetful(&mut self, now: u64) {
        if self.forgetful_since.is_none_or(|told| told.saturating_add(TOLD_AGAIN) <= now) {
            self.forgetful_since = Some(now);
            self.tell(Alarm::OffendersFull { tracked: MAX_OFFENDERS });
        }
    }

    fn tell(&mut self, alarm: Alarm) {
        if self.alarms.len() >= MAX_ALARMS {
            self.alarms.remove(0);
        }
        self.alarms.push(alarm);
    }
}

fn leased(leases: &[(IpNet, Duration)], network: IpNet, now: u64) -> bool {
    leases.iter().any(|(leased, until)| millis(*until) > now && overlap(*leased, network))
}

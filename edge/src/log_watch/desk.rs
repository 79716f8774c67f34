//! Answers the operators' questions on the engine's thread, where every ban is made and ended, so
//! that no answer is older than the last line read.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;

use super::ban_store::{Change, Lease, WouldBan};
use super::enforce::Decided;
use super::engine::Engine;
use super::tail::{FileState, Following, Tail, Watched};
use crate::ban::jail::{Lifted, Sentence, Visit};
use crate::ban::words::{
    Answer, BanLine, CounterLine, EvidenceLine, FileLine, JailLine, LeaseLine, Question, Receipt, Summary,
    VisitLine, WouldLine, clock, legible,
};
use crate::ban::{Action, JailSettings, Source, shown};
use crate::client::Client;
use crate::firewall::{State, bannable};

/// Longest time for which bans may be off.
const LONGEST_OFF: Duration = Duration::from_secs(7 * 86_400);
/// Longest penetration test.
const LONGEST_TEST: Duration = Duration::from_secs(30 * 86_400);
/// The kernel's bans are listed for one question up to so many: some ten milliseconds.
const MOST_LISTED: usize = 50_000;
/// An operator's words about a ban, and a ticket.
const MAX_WORDS: usize = 200;
/// Penetration tests under way at once.
const MAX_LEASES: usize = 32;

impl Engine {
    /// Answers one question or does what is ordered.
    pub(super) fn answer(&mut self, question: Question, now: Duration) -> Answer {
        let answer = self.answer_to(question, now);
        // Who asks shall find it done.
        self.let_visitors_go();
        answer
    }

    fn answer_to(&mut self, question: Question, now: Duration) -> Answer {
        match question {
            Question::List { limit } => self.list(limit),
            Question::Add { networks, seconds, reason } => {
                self.add(&networks, Duration::from_secs(seconds), &reason, now)
            }
            Question::Remove { networks } => self.remove(networks, now),
            Question::Clear => {
                let lifted = self.detector.jails.clear();
                self.ended(&lifted, &[], now)
            }
            Question::Off { seconds } => self.off(Duration::from_secs(seconds), now),
            Question::On => {
                self.detector.jails.suspend(None);
                self.enforcement.save(Change::Off(None));
                tracing::warn!("bans: armed again by an operator");
                Answer::Off { until: None }
            }
            Question::Release { jail } => self.release(&jail),
            Question::Why { address } => Answer::Why(Box::new(self.why(address, now))),
            Question::PentestStart { network, seconds, ticket } => {
                self.start_test(network, Duration::from_secs(seconds), &ticket, now)
            }
            Question::PentestStop { ticket } => self.stop_tests(ticket.as_deref(), now),
            Question::PentestStatus => {
                Answer::Leases { leases: self.leases.iter().map(lease_line).collect() }
            }
            Question::PentestReport { ticket } => self.test_report(ticket.as_deref()),
            Question::Summary => {
                let failing = self.enforcement.unkept();
                Answer::Summary(Box::new(self.summary(failing)))
            }
            Question::Jails => Answer::Jails { jails: self.jail_lines() },
        }
    }

    fn list(&self, limit: usize) -> Answer {
        let bans =
            self.detector.jails.active().take(limit).map(|sentence| self.ban_line(&sentence)).collect();
        Answer::Bans { total: self.detector.jails.len(), bans }
    }

    /// An operator's later word counts: a ban of his own is replaced, and its reason with it.
    fn add(&mut self, networks: &[IpNet], lasting: Duration, reason: &str, now: Duration) -> Answer {
        if reason.len() > MAX_WORDS || reason.chars().any(char::is_control) {
            return refused(format!(
                "the reason is longer than {MAX_WORDS} bytes or holds control characters"
            ));
        }
        let (mut given, mut notes, mut undone) = (Vec::new(), Vec::new(), Vec::new());
        for network in networks {
            match self.sentence(*network, lasting, now) {
                Ok((sentence, before)) => {
                    match reason {
                        "" => self.enforcement.reasons.remove(&sentence.network),
                        words => self.enforcement.reasons.insert(sentence.network, words.to_owned()),
                    };
                    self.due.push(Decided { sentence, evidence: Vec::new() });
                    given.push(sentence);
                    notes.extend(before);
                }
                Err(why) => undone.push(why),
            }
        }
        self.enforce(now);
        let holds = |sentence: &Sentence| self.detector.jails.standing(sentence.network).is_some();
        let (held, protected): (Vec<Sentence>, Vec<Sentence>) = given.into_iter().partition(holds);
        undone.extend(protected.iter().map(|sentence| {
            format!(
                "ban: {}: not banned: the firewall's own list protects it, or bans.max_bans is reached; edge's log says \
                 which",
                shown(sentence.network)
            )
        }));
        match (&undone[..], held.is_empty(), &self.enforcement.kernel) {
            ([why], true, _) => return refused(why),
            (_, false, Some(kernel)) if !kernel.takes_bans() && *kernel != State::NotConfigured => {
                notes.push(format!("kernel: {kernel}, until it takes them again"));
            }
            _ => {}
        }
        let bans = held.iter().map(|sentence| self.ban_line(sentence)).collect();
        Answer::Changed { done: "banned".to_owned(), bans, notes, undone }
    }

    /// One network's ban, and what stood before it.
    fn sentence(
        &mut self,
        network: IpNet,
        lasting: Duration,
        now: Duration,
    ) -> Result<(Sentence, Vec<String>), String> {
        let named = as_banned(network);
        let tested = |lease: &&Lease| {
            let open = lease.ended.is_none() && lease.until > now;
            open && (lease.network.contains(&named) || named.contains(&lease.network))
        };
        if let Some(Lease { network: from, ticket, until, .. }) = self.leases.iter().find(tested) {
            return Err(format!(
                "ban: {}: not banned: the penetration test {ticket:?} from {} is under way until {}; end it with \
                 `edge pentest stop --ticket {ticket:?}`, then ban",
                shown(named),
                shown(*from),
                clock(until.as_secs())
            ));
        }
        let before: Vec<Sentence> = (self.detector.jails.covering(named.addr()).into_iter())
            .filter(|ban| ban.network.contains(&named))
            .collect();
        let sentence = self.detector.jails.sentence(network, lasting, now).map_err(|why| why.to_string())?;
        let notes = before.iter().map(|ban| self.stood(ban, &sentence, now + lasting)).collect();
        Ok((sentence, notes))
    }

    /// What an operator should know of a ban that stood when he gave another, meant to end at `meant`.
    fn stood(&self, before: &Sentence, given: &Sentence, meant: Duration) -> String {
        let BanLine { network, jail, action, until, reason, .. } = self.ban_line(before);
        let what = if action == "throttle" { "throttled" } else { "banned" };
        let reason = if reason.is_empty() { reason } else { format!(", {reason:?}") };
        let told = format!("{what} until {} by {jail}{reason}", clock(until));
        if network != given.network {
            return format!("{}: is {told}, too, which holds for {}", shown(network), shown(given.network));
        }
        let longer = if given.until > meant { "; that is longer, so its end stands" } else { "" };
        format!("{}: was {told}{longer}", shown(network))
    }

    fn remove(&mut self, networks: Vec<IpNet>, now: Duration) -> Answer {
        let mut lifted = Lifted::default();
        for network in &networks {
            lifted.add(self.detector.jails.lift(*network));
        }
        // Whatever edge knows: the operator wants them let in.
        let named: Vec<IpNet> = networks.into_iter().map(as_banned).filter(|one| bannable(*one)).collect();
        for network in &named {
            self.enforcement.banned.lift(*network);
        }
        self.ended(&lifted, &named, now)
    }

    /// Ends them everywhere, and lets in those that were `named` even where edge knows of no ban.
    fn ended(&mut self, lifted: &Lifted, named: &[IpNet], now: Duration) -> Answer {
        let bans: Vec<BanLine> = lifted.ended.iter().map(|sentence| self.ban_line(sentence)).collect();
        let told = self.enforcement.forgive(lifted, now);
        let told = self.enforcement.let_in(named) && told;
        if !bans.is_empty() {
            tracing::warn!("bans: {} ended by an operator", bans.len());
        }
        let undone = if told { Vec::new() } else { vec![self.untold()] };
        Answer::Changed { done: "ended".to_owned(), bans, notes: Vec::new(), undone }
    }

    fn untold(&self) -> String {
        let why = match self.enforcement.kernel() {
            State::Absent(why) => why,
            _ => "the helper refused, edge's log says why".to_owned(),
        };
        format!(
            "bans: the kernel was not told that they ended: {why}; what it holds of them it goes on dropping until \
             the helper answers, edge tells it then; look at `systemctl status edge-firewall`, or write \
             firewall = \"none\" under [bans] on a host without it"
        )
    }

    fn off(&mut self, lasting: Duration, now: Duration) -> Answer {
        if lasting > LONGEST_OFF || lasting.is_zero() {
            return refused("bans may be off for 1s to 7d; switch bans.enabled off to be without them");
        }
        let until = now + lasting;
        self.detector.jails.suspend(Some(until));
        self.enforcement.save(Change::Off(Some(until)));
        tracing::warn!("bans: off for {lasting:?} by an operator; they arm themselves again");
        Answer::Off { until: Some(until.as_secs()) }
    }

    fn release(&mut self, jail: &str) -> Answer {
        match self.enforcement.jails.iter().position(|name| name == jail) {
            Some(index) => {
                let braked = self.detector.jails.braked().contains(&index);
                self.detector.jails.release_brake(index);
                let note = match braked {
                    true => format!("jail {jail} bans again"),
                    false => format!("jail {jail} had not stopped banning: nothing to release"),
                };
                tracing::warn!("bans: jail {jail} was released by an operator");
                let done = "released".to_owned();
                Answer::Changed { done, bans: Vec::new(), notes: vec![note], undone: Vec::new() }
            }
            None => refused(format!(
                "no jail is named {jail:?}; these are: {}",
                self.enforcement.jails.join(", ")
            )),
        }
    }

    fn why(&mut self, address: IpAddr, now: Duration) -> Receipt {
        let jails = &self.detector.jails;
        let covering = jails.covering(address);
        let bans: Vec<BanLine> = covering.iter().map(|sentence| self.ban_line(sentence)).collect();
        let lines = covering.iter().flat_map(|sentence| self.evidence(sentence.network)).collect();
        let visits = jails.visits(address).into_iter().map(|(visit, lines)| self.visit_line(&visit, &lines));
        let visits = visits.collect();
        let counters = jails
            .counters(address)
            .into_iter()
            .map(|counter| CounterLine {
                jail: self.enforcement.jails.get(counter.jail).cloned().unwrap_or_default(),
                offences: counter.offences,
                cross_site: counter.cross_site,
                max_offences: jails.settings().get(counter.jail).map_or(0, |jail| jail.max_offences),
                lines: counter.lines.iter().map(|line| legible(line)).collect(),
            })
            .collect();
        let own = crate::ban::Prefixes::default().network(address);
        let history = jails.history(own).filter(|history| history.times > 0);
        let history = history.map(|history| (history.times, history.last_end.as_secs()));
        let own_list = self.never_now.iter().find(|network| network.contains(&address));
        let protected = own_list.map(|network| {
            format!("{} is this host's own, a proxy's, a peer's, a vault's or in bans.never", shown(*network))
        });
        let few = self.detector.jails.len() <= MOST_LISTED;
        let state = self.enforcement.kernel();
        let kernel_state = match &state {
            State::Works if few => String::new(),
            State::Works => {
                format!("not asked: it holds more than {MOST_LISTED} bans, and they wait meanwhile")
            }
            other => other.to_string(),
        };
        let asked = few && state.takes_bans();
        let held = asked.then(|| self.enforcement.firewall.list().ok()).flatten();
        let kernel = held.map(|held| {
            let of_it = held.into_iter().filter(|ban| ban.network.contains(&address));
            of_it.map(|ban| (ban.network, ban.remaining.as_secs())).collect()
        });
        let pentest = self
            .leases
            .iter()
            .find(|lease| lease.ended.is_none() && lease.until > now && lease.network.contains(&address))
            .map(lease_line);
        let connections = self.enforcement.connections.of(Client::new(address));
        Receipt {
            address,
            protected,
            bans,
            lines,
            visits,
            counters,
            history,
            kernel,
            kernel_state,
            pentest,
            connections,
        }
    }

    fn evidence(&self, network: IpNet) -> Vec<EvidenceLine> {
        let Some(store) = &self.enforcement.store else { return Vec::new() };
        // What was made a moment ago shall be there.
        let _ = store.flush(Duration::from_millis(500));
        match store.evidence(network) {
            Ok(found) => found
                .into_iter()
                .map(|one| EvidenceLine { at: one.at.as_secs(), jail: one.jail, line: legible(&one.line) })
                .collect(),
            Err(error) => {
                tracing::warn!("bans: the lines that led to a ban cannot be read: {error}");
                Vec::new()
            }
        }
    }

    fn start_test(&mut self, network: IpNet, lasting: Duration, ticket: &str, now: Duration) -> Answer {
        let widest = match network {
            IpNet::V4(_) => 16,
            IpNet::V6(_) => 32,
        };
        if network.prefix_len() < widest {
            return refused(format!(
                "{network} is too wide for a penetration test; name a /{widest} or narrower"
            ));
        }
        if lasting.is_zero() || lasting > LONGEST_TEST {
            return refused("a penetration test may last 1s to 30d");
        }
        if ticket.is_empty() || ticket.len() > MAX_WORDS || ticket.chars().any(char::is_control) {
            return refused("--ticket says who ordered the test, in at most 200 bytes on one line");
        }
        let open = self.leases.iter().filter(|lease| lease.ended.is_none());
        if open.clone().count() >= MAX_LEASES {
            return refused(format!("{MAX_LEASES} penetration tests are under way; stop one first"));
        }
        if self.leases.iter().any(|lease| lease.ticket == ticket) {
            return refused(format!(
                "ticket {ticket:?} had its test already; use another ticket, or add a part number"
            ));
        }
        let lease = Lease {
            id: self.enforcement.store.as_ref().map_or(0, |store| store.lease_id()),
            network: network.trunc(),
            ticket: ticket.to_owned(),
            since: now,
            until: now + lasting,
            ended: None,
        };
        self.enforcement.save(Change::Lease(lease.clone()));
        self.leases.push(lease.clone());
        let lifted = self.detector.jails.lift(lease.network);
        self.enforcement.forgive(&lifted, now);
        self.apply_leases(now);
        tracing::warn!(
            "bans: penetration test {ticket:?} from {} began, for {lasting:?}; {} bans of it ended",
            shown(lease.network),
            lifted.ended.len()
        );
        Answer::Leases { leases: vec![lease_line(&lease)] }
    }

    fn stop_tests(&mut self, ticket: Option<&str>, now: Duration) -> Answer {
        let mut stopped = Vec::new();
        for lease in &mut self.leases {
            if lease.ended.is_none() && ticket.is_none_or(|ticket| lease.ticket == ticket) {
                lease.ended = Some(now);
                stopped.push(lease.clone());
            }
        }
        if stopped.is_empty() {
            return refused("no such penetration test is under way; `edge pentest status` shows all");
        }
        let networks: Vec<IpNet> = stopped.iter().map(|lease| lease.network).collect();
        if let Err(error) = self.enforcement.firewall.unlift(&networks) {
            tracing::warn!("bans: the kernel's limits stay lifted until the test's time is over: {error}");
        }
        self.apply_leases(now);
        let leases = stopped.iter().map(lease_line).collect();
        for lease in stopped {
            tracing::warn!("bans: penetration test {:?} was stopped by an operator", lease.ticket);
            self.enforcement.save(Change::Lease(lease));
        }
        Answer::Leases { leases }
    }

    fn test_report(&self, ticket: Option<&str>) -> Answer {
        let lease = match ticket {
            Some(ticket) => self.leases.iter().rfind(|lease| lease.ticket == ticket),
            None => self.leases.last(),
        };
        let Some(lease) = lease else {
            return refused("no such penetration test is known; `edge pentest status` shows all");
        };
        let Some(store) = &self.enforcement.store else {
            return refused("there is no file of bans (bans.store), so nothing was kept of the test");
        };
        let _ = store.flush(Duration::from_secs(1));
        match store.would_bans(lease.id) {
            Ok(would) => Answer::Report {
                lease: lease_line(lease),
                would: would.into_iter().map(would_line).collect(),
            },
            Err(error) => refused(error),
        }
    }

    /// How the engine does.
    pub(super) fn summary(&self, failing: Option<String>) -> Summary {
        Summary {
            bans: self.detector.jails.len(),
            visitors: self.detector.jails.visitors().len(),
            max_bans: self.max_bans,
            off_until: self.detector.jails.suspended().map(|until| until.as_secs()),
            pentests: self.leases.iter().filter(|lease| lease.ended.is_none()).count(),
            kernel: self.enforcement.kernel().to_string(),
            kernel_works: self.enforcement.kernel_works(),
            store: failing.unwrap_or_default(),
            braked: self
                .detector
                .jails
                .braked()
                .into_iter()
                .filter_map(|index| self.enforcement.jails.get(index).cloned())
                .collect(),
            lost: self.enforcement.counters.lost.get(),
            files: self.followed().into_iter().map(file_line).collect(),
        }
    }

    fn followed(&self) -> Vec<FileState> {
        self.tail.as_ref().map_or_else(Vec::new, Tail::files)
    }

    fn jail_lines(&self) -> Vec<JailLine> {
        let jails = &self.detector.jails;
        let mut in_force = vec![0_usize; jails.settings().len()];
        for ban in jails.active() {
            if let Some(count) = in_force.get_mut(usize::from(ban.jail)) {
                *count += 1;
            }
        }
        let (braked, followed) = (jails.braked(), self.followed());
        let counters = &self.enforcement.counters;
        let line = |(index, jail): (usize, &JailSettings)| JailLine {
            jail: jail.name.clone(),
            action: match jail.action {
                Action::Ban => "ban",
                Action::Throttle => "throttle",
                Action::Log => "log",
            }
            .to_owned(),
            offences: counters.offences.with_label_values(&[&jail.name]).get(),
            bans: counters.bans.with_label_values(&[&jail.name]).get(),
            in_force: in_force.get(index).copied().unwrap_or_default(),
            braked: braked.contains(&index),
            files: match &jail.source {
                Source::Edge => Vec::new(),
                Source::Files(named) => named.iter().flat_map(|name| files_of(name, &followed)).collect(),
            },
        };
        jails.settings().iter().enumerate().map(line).collect()
    }

    fn visit_line(&self, visit: &Visit, lines: &[Box<[u8]>]) -> VisitLine {
        VisitLine {
            network: visit.network,
            jail: self.enforcement.name(visit.jail).to_owned(),
            until: visit.until.as_secs(),
            offences: visit.offences,
            lines: lines.iter().map(|line| legible(line)).collect(),
        }
    }

    fn ban_line(&self, sentence: &Sentence) -> BanLine {
        BanLine {
            network: sentence.network,
            jail: self.enforcement.name(sentence.jail).to_owned(),
            action: if sentence.action == Action::Throttle { "throttle" } else { "ban" }.to_owned(),
            since: sentence.since.as_secs(),
            until: sentence.until.as_secs(),
            offences: sentence.offences,
            times: sentence.times,
            reason: self.enforcement.reasons.get(&sentence.network).cloned().unwrap_or_default(),
        }
    }
}

/// As it would be banned: an address alone, or an IPv6 customer's /64.
fn as_banned(network: IpNet) -> IpNet {
    let host = network.prefix_len() == network.max_prefix_len();
    if host { crate::ban::Prefixes::default().network(network.addr()) } else { network.trunc() }
}

fn file_line(file: FileState) -> FileLine {
    FileLine {
        path: file.path.display().to_string(),
        state: match file.following {
            Following::Followed => "followed".to_owned(),
            Following::Missing => "missing".to_owned(),
            Following::Unreadable(why) => why,
        },
        behind: file.behind,
    }
}

/// The files of one name of a configuration; where there are none yet, the name itself.
fn files_of(name: &Path, followed: &[FileState]) -> Vec<FileLine> {
    let watched = Watched { pattern: name.to_owned(), tag: 0 };
    let files = followed.iter().filter(|file| watched.covers(&file.path)).cloned();
    let found: Vec<FileLine> = files.map(file_line).collect();
    if found.is_empty() {
        let (path, state) = (name.display().to_string(), "no such file yet".to_owned());
        return vec![FileLine { path, state, behind: 0 }];
    }
    found
}

fn refused(why: impl std::fmt::Display) -> Answer {
    Answer::Refused { why: why.to_string() }
}

fn lease_line(lease: &Lease) -> LeaseLine {
    LeaseLine {
        network: lease.network,
        ticket: lease.ticket.clone(),
        since: lease.since.as_secs(),
        until: lease.until.as_secs(),
        ended: lease.ended.map(|at| at.as_secs()),
    }
}

fn would_line(would: WouldBan) -> WouldLine {
    WouldLine { at: would.at.as_secs(), network: would.network, jail: would.jail, line: legible(&would.line) }
}

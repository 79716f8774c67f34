//! Jails beside a plain model of them, through random days and one long seeded one. The model keeps
//! everything in vectors and asks in the same order; the two must say the same to every offence.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::{Alarm, Excuse, Jails, OPERATOR, Offence, Ruling, Sentence};
use crate::ban::{Action, Brake, CrossSite, Escalation, JailSettings, Prefixes, Source};

pub(super) const START: Duration = Duration::from_secs(1_800_000_000);

pub(super) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(super) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Three offences within a minute ban for ten.
pub(super) fn jail(name: &str) -> JailSettings {
    JailSettings {
        name: name.to_owned(),
        filter: name.to_owned(),
        source: Source::Edge,
        max_offences: 3,
        find_time: seconds(60),
        ban_time: seconds(600),
        escalation: None,
        allow: Vec::new(),
        prefixes: Prefixes::default(),
        action: Action::Ban,
        cross_site: CrossSite::Throttle,
        brake: None,
    }
}

pub(super) fn offence(jail: usize, address: IpAddr, at: Duration) -> Offence<'static> {
    Offence { jail, address, at, line: b"a line", cross_site: false }
}

fn court() -> Vec<JailSettings> {
    let escalation = Escalation { factor: 3.0, cap: seconds(3000), forgiveness: seconds(1500) };
    vec![
        JailSettings { escalation: Some(escalation), ..jail("escalates") },
        JailSettings {
            action: Action::Throttle,
            max_offences: 2,
            ban_time: seconds(300),
            ..jail("throttles")
        },
        JailSettings {
            prefixes: Prefixes { v4: 28, v6: 56 },
            allow: vec![net("203.0.113.3/32")],
            ..jail("wide")
        },
        JailSettings { action: Action::Log, max_offences: 1, ..jail("tells") },
        JailSettings { max_offences: 1, brake: Some(Brake { percent: 10.0, least: 2 }), ..jail("braked") },
    ]
}

fn never() -> Vec<IpNet> {
    vec![net("203.0.113.8/31"), net("2001:db8:0:3::1/128")]
}

/// What the jails promise, in the plainest words.
struct Model {
    settings: Vec<JailSettings>,
    never: Vec<IpNet>,
    held: Vec<Sentence>,
    past: Vec<(IpNet, u16, Duration)>,
    counts: Vec<(usize, IpNet, Duration)>,
    told: Vec<(usize, IpNet, Duration)>,
    presses: Vec<(Duration, IpNet)>,
    over: Option<Duration>,
    leases: Vec<(IpNet, Duration)>,
    off: Option<Duration>,
}

fn meet(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

impl Model {
    fn new() -> Self {
        Self {
            settings: court(),
            never: never(),
            held: Vec::new(),
            past: Vec::new(),
            counts: Vec::new(),
            told: Vec::new(),
            presses: Vec::new(),
            over: None,
            leases: Vec::new(),
            off: None,
        }
    }

    fn leased(&self, network: IpNet, now: Duration) -> bool {
        self.leases.iter().any(|(lease, until)| *until > now && meet(*lease, network))
    }

    fn tick(&mut self, now: Duration) {
        self.off = self.off.filter(|until| *until > now);
        if self.over.is_some_and(|over| over + seconds(600) <= now) {
            self.over = None;
            self.presses.clear();
        }
    }

    fn times(&self, network: IpNet, forgiveness: Duration, now: Duration) -> u16 {
        let held = self.held.iter().filter(|ban| ban.network == network).map(|ban| (ban.times, ban.until));
        let past = self.past.iter().filter(|past| past.0 == network).map(|past| (past.1, past.2));
        held.chain(past).find(|(_, end)| now < *end + forgiveness).map_or(1, |(times, _)| times + 1)
    }

    fn judge(&mut self, jail: usize, address: IpAddr, at: Duration, now: Duration, clients: usize) -> Ruling {
        self.tick(now);
        let settings = self.settings[jail].clone();
        let single = Prefixes::default().network(address);
        let wide = settings.prefixes.network(address);
        if self.never.iter().any(|never| meet(*never, single)) {
            return Ruling::Protected;
        }
        if settings.allow.iter().any(|allow| meet(*allow, single)) {
            return Ruling::Allowed;
        }
        let at = at.min(now);
        if at + settings.find_time < now {
            return Ruling::TooOld;
        }
        let standing = self.held.iter().filter(|ban| ban.until > now && ban.network.contains(&single.addr()));
        let enough = standing.filter(|ban| ban.action == Action::Ban || settings.action != Action::Ban);
        if let Some(ban) =
            enough.max_by_key(|ban| (ban.action == Action::Ban, ban.until, ban.network.prefix_len()))
        {
            return Ruling::Already(*ban);
        }
        let spares = self.never.iter().chain(&settings.allow).any(|spared| meet(*spared, wide));
        let network = if spares || self.leased(wide, now) { single } else { wide };
        self.counts
            .retain(|count| (count.0, count.1) != (jail, network) || count.2 + settings.find_time >= now);
        self.counts.push((jail, network, at));
        let counted = self.counts.iter().filter(|count| (count.0, count.1) == (jail, network)).count();
        let counted = u32::try_from(counted).unwrap();
        if counted < settings.max_offences {
            return Ruling::Counted(counted);
        }
        self.counts.retain(|count| (count.0, count.1) != (jail, network));
        let forgiveness = settings.escalation.map_or(seconds(1500), |escalation| escalation.forgiveness);
        let times = self.times(network, forgiveness, now);
        let lasting = match settings.escalation {
            Some(_) => {
                (settings.ban_time * 3_u32.saturating_pow(u32::from(times) - 1).min(100)).min(seconds(3000))
            }
            None => settings.ban_time,
        };
        let action = if settings.action == Action::Throttle { Action::Throttle } else { Action::Ban };
        let jail_number = u16::try_from(jail).unwrap();
        let sentence = Sentence {
            network,
            jail: jail_number,
            since: now,
            until: now + lasting,
            offences: counted,
            times,
            action,
        };
        let told = self.told.iter().any(|told| (told.0, told.1) == (jail, network) && told.2 > now);
        let excuse = if settings.action == Action::Log {
            Some(Excuse::LogOnly)
        } else if self.leased(network, now) {
            Some(Excuse::Pentest)
        } else if self.off.is_some() {
            Some(Excuse::Off)
        } else if self.over.is_some() && told {
            Some(Excuse::Brake)
        } else {
            settings.brake.is_some_and(|_| self.press(now, network, clients)).then_some(Excuse::Brake)
        };
        match excuse {
            None => {
                self.told.retain(|told| (told.0, told.1) != (jail, network));
                self.enter(sentence);
                Ruling::Sentenced(sentence)
            }
            Some(_) if told => Ruling::Counted(counted),
            Some(excuse) => {
                self.told.push((jail, network, sentence.until));
                Ruling::Excused(sentence, excuse)
            }
        }
    }

    /// Only the jail "braked" has one: 10 per cent, at least 2. Whether it holds this ban back. All
    /// of an IPv6 /48 counts once.
    fn press(&mut self, now: Duration, whom: IpNet, clients: usize) -> bool {
        let limit = (clients / 10).max(2);
        let wide = Prefixes { v4: 32, v6: 48 };
        let site = if whom.addr().is_ipv6() { wide.network(whom.addr()) } else { whom };
        self.presses.retain(|press| press.0 + seconds(60) > now);
        if !self.presses.iter().any(|press| press.1 == site) {
            self.presses.push((now, site));
            let beyond = self.presses.len().saturating_sub(limit + 1);
            self.presses.drain(..beyond);
            if self.presses.len() > limit {
                self.over = Some(now);
            }
        }
        self.over.is_some()
    }

    fn enter(&mut self, sentence: Sentence) {
        self.held.retain(|ban| ban.network != sentence.network);
        self.past.retain(|past| past.0 != sentence.network);
        self.held.push(sentence);
    }

    fn sentence(&mut self, network: IpNet, lasting: Duration, now: Duration) -> Option<Sentence> {
        self.tick(now);
        if self.never.iter().any(|never| meet(*never, network)) {
            return None;
        }
        let standing = self.held.iter().find(|ban| ban.network == network && ban.until > now).copied();
        let longer = standing.filter(|ban| ban.action == Action::Ban && ban.jail != OPERATOR);
        let until = longer.map_or(now + lasting, |ban| ban.until.max(now + lasting));
        let times = standing.map_or_else(|| self.times(network, seconds(1500), now), |ban| ban.times);
        let action = Action::Ban;
        let sentence = Sentence { network, jail: OPERATOR, since: now, until, offences: 0, times, action };
        self.enter(sentence);
        Some(sentence)
    }

    fn expire(&mut self, now: Duration) -> Vec<Sentence> {
        self.tick(now);
        let ended: Vec<_> = self.held.extract_if(.., |ban| ban.until <= now).collect();
        self.past.extend(ended.iter().map(|ban| (ban.network, ban.times, ban.until)));
        self.past.retain(|past| past.2 + seconds(1500) > now);
        ended
    }

    fn lift(&mut self, network: IpNet) -> Vec<Sentence> {
        self.counts.retain(|count| !meet(count.1, network));
        self.told.retain(|told| !meet(told.1, network));
        self.past.retain(|past| !meet(past.0, network));
        self.held.extract_if(.., |ban| meet(ban.network, network)).collect()
    }

    fn lease(&mut self, leases: Vec<(IpNet, Duration)>, now: Duration) -> Vec<Sentence> {
        self.leases = leases;
        let leased: Vec<_> = self.held.iter().map(|ban| self.leased(ban.network, now)).collect();
        let mut leased = leased.into_iter();
        self.held.extract_if(.., |ban| leased.next() == Some(true) && ban.jail != OPERATOR).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Offence { jail: usize, who: u32, age: u64, clients: usize },
    Wait(u64),
    Expire,
    Sentence(u32, u64),
    Lift(u32),
    Lease(u32, u64),
    Off(Option<u64>),
}

fn who(number: u32) -> IpAddr {
    match number {
        0..16 => IpAddr::V4(Ipv4Addr::from_bits(0xCB00_7100 + number)),
        16..20 => IpAddr::V6(Ipv4Addr::from_bits(0xCB00_7100 + number - 16).to_ipv6_mapped()),
        _ => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, u16::try_from(number % 6).unwrap(), 0, 0, 0, 9)),
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        24 => (0..5_usize, 0..26_u32, 0..80_u64, 0..60_usize).prop_map(|(jail, who, age, clients)| {
            // Half of them fresh; ages of 70 and more lie in the future.
            Step::Offence { jail, who, age: if age < 40 { 0 } else { age }, clients }
        }),
        6 => (1..400_u64).prop_map(Step::Wait),
        3 => Just(Step::Expire),
        1 => (0..26_u32, 1..2000_u64).prop_map(|(who, lasting)| Step::Sentence(who, lasting)),
        1 => (0..26_u32).prop_map(Step::Lift),
        1 => (0..26_u32, 0..1000_u64).prop_map(|(who, lasting)| Step::Lease(who, lasting)),
        1 => proptest::option::of(1..500_u64).prop_map(Step::Off),
    ]
}

fn sorted(mut bans: Vec<Sentence>) -> Vec<Sentence> {
    bans.sort_by_key(|ban| (ban.network, ban.until));
    bans
}

/// Two bans of different width may end together; which of them is named does not matter.
fn same(one: &Ruling, other: &Ruling) -> bool {
    match (one, other) {
        (Ruling::Already(one), Ruling::Already(other)) => {
            (one.until, one.action) == (other.until, other.action)
        }
        _ => one == other,
    }
}

/// Returns how often each ruling was made: counted, already, sentenced, excused, anything else.
fn run(steps: &[Step]) -> [usize; 5] {
    let mut made = [0; 5];
    let (mut jails, mut model) = (Jails::new(court(), never(), 10_000), Model::new());
    let mut now = START;
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Offence { jail, who: number_of, age, clients } => {
                let (address, at) =
                    (who(*number_of), if *age < 70 { now - seconds(*age) } else { now + seconds(*age) });
                let ruling = jails.judge(&offence(*jail, address, at), now, *clients);
                let plain = model.judge(*jail, address, at, now, *clients);
                assert!(same(&ruling, &plain), "step {number}, {step:?}: {ruling:?}, model {plain:?}");
                made[match ruling {
                    Ruling::Counted(_) => 0,
                    Ruling::Already(_) => 1,
                    Ruling::Sentenced(_) => 2,
                    Ruling::Excused(..) => 3,
                    _ => 4,
                }] += 1;
            }
            Step::Wait(milliseconds) => now += Duration::from_millis(milliseconds * 700),
            Step::Expire => assert_eq!(sorted(jails.expire(now)), sorted(model.expire(now)), "step {number}"),
            Step::Sentence(number_of, lasting) => {
                let network = Prefixes::default().network(who(*number_of));
                let given = jails.sentence(network, seconds(*lasting), now).ok();
                assert_eq!(given, model.sentence(network, seconds(*lasting), now), "step {number}");
            }
            Step::Lift(number_of) => {
                let network = Prefixes { v4: 30, v6: 62 }.network(who(*number_of));
                assert_eq!(sorted(jails.lift(network).ended), sorted(model.lift(network)), "step {number}");
            }
            Step::Lease(number_of, lasting) => {
                jails.advance(now);
                model.tick(now);
                let leases = vec![(IpNet::from(who(*number_of).to_canonical()), now + seconds(*lasting))];
                let ended = jails.set_leases(leases.clone());
                assert_eq!(sorted(ended.ended), sorted(model.lease(leases, now)), "step {number}");
            }
            Step::Off(lasting) => {
                jails.advance(now);
                jails.suspend(lasting.map(|lasting| now + seconds(lasting)));
                model.off = lasting.map(|lasting| now + seconds(lasting));
            }
        }
        assert_eq!(jails.len(), model.held.len(), "step {number}, {step:?}");
        let ours = never();
        assert!(jails.active().all(|ban| !ours.iter().any(|never| meet(*never, ban.network))));
        let first = jails.active().map(|ban| ban.until).min();
        assert!(first.is_none_or(|first| jails.next_expiry().is_some_and(|next| next <= first)));
    }
    let all = sorted(jails.expire(now + seconds(1_000_000)));
    assert_eq!(all, sorted(model.expire(now + seconds(1_000_000))));
    assert_eq!(jails.next_expiry(), None, "nothing waits once all has ended");
    made
}

proptest! {
    #[test]
    fn jails_rule_as_the_plain_model_does(steps in proptest::collection::vec(step(), 0..300)) {
        run(&steps);
    }

    #[test]
    fn no_clock_and_no_address_panics_or_bans_who_is_protected(
        steps in proptest::collection::vec((0..6_usize, any::<u32>(), any::<bool>(), any::<u64>(), any::<u64>()), 0..60),
    ) {
        let ours = [net("0.0.0.0/1"), net("2001:db8::/33")];
        let mut jails = Jails::new(court(), ours.to_vec(), 3);
        for (jail, address, v4, at, now) in steps {
            let v6 = (0x2001_0db8_u128 << 96) | (u128::from(address) << 64);
            let address = if v4 { IpAddr::V4(Ipv4Addr::from_bits(address)) } else { IpAddr::V6(Ipv6Addr::from_bits(v6)) };
            let (at, now) = (Duration::from_secs(at), Duration::from_secs(now));
            jails.judge(&offence(jail, address, at), now, 5);
            let given = jails.sentence(IpNet::from(address), at, now);
            jails.restore(Sentence { network: IpNet::from(address), jail: 0, since: at, until: now, offences: 1, times: 65_535, action: Action::Ban }, at);
            prop_assert!(jails.len() <= 3);
            prop_assert!(given.is_err() || !ours.iter().any(|never| never.contains(&address)));
            prop_assert!(jails.active().all(|ban| !ours.iter().any(|never| meet(*never, ban.network))));
            jails.expire(at);
        }
    }
}

#[test]
fn a_long_seeded_day_goes_as_in_the_model() {
    let config = proptest::test_runner::Config::default();
    let seed = proptest::test_runner::TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(config, seed);
    let days = proptest::collection::vec(step(), 20_000);
    let made = run(&days.new_tree(&mut runner).unwrap().current());
    assert!(made.iter().all(|often| *often > 100), "a day in which everything happens: {made:?}");
}

#[test]
fn alarms_and_evictions_stay_bounded_when_nobody_asks() {
    let settings = JailSettings { max_offences: 1, ..jail("quick") };
    let mut jails = Jails::new(vec![settings], Vec::new(), 10);
    for number in 0..70_000 {
        let address = IpAddr::V4(Ipv4Addr::from_bits(0x0B00_0000 + number));
        jails.judge(&offence(0, address, START), START, 0);
    }
    assert_eq!(jails.len(), 10);
    assert_eq!(jails.evicted().len(), super::MAX_EVICTED);
    let alarms = jails.alarms();
    assert!(alarms.contains(&Alarm::Evicted { count: 69_990 }), "{alarms:?}");
    assert!(alarms.contains(&Alarm::NearlyFull { active: 8, max: 10 }), "{alarms:?}");
    assert_eq!(alarms.len(), 2);
}

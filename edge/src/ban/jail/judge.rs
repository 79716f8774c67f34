//! One offence → a ruling: who is spared, who is counted, what the sentence is and what excuses it.
//! Knows the order in which that is asked; must not know how bans are held or counts kept.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::brake::Verdict;
use super::record::{Key, millis};
use super::settings::Jail;
use super::tally::Offender;
use super::visitors::{Arrival, LONGEST};
use super::{Alarm, Excuse, Jails, Offence, Ruling, SINGLE, Sentence, TEN_YEARS, Visit};
use crate::ban::{Action, CrossSite, JailSettings};

impl Jails {
    /// Decides one offence. `active_clients` is how many clients had requests in the last minute,
    /// for the brake. After it, [`Jails::evicted`] and [`Jails::alarms`] may hold something.
    pub fn judge(&mut self, offence: &Offence<'_>, now: Duration, active_clients: usize) -> Ruling {
        let now = self.advance(now);
        let (Some(jail), Some(settings), Ok(number)) =
            (self.jails.get(offence.jail), self.settings.get(offence.jail), u16::try_from(offence.jail))
        else {
            return Ruling::TooOld;
        };
        if offence.cross_site && settings.cross_site == CrossSite::Ignore {
            return Ruling::Allowed;
        }
        let acts = settings.action != Action::Log;
        let cross_site = offence.cross_site && acts && settings.cross_site == CrossSite::Throttle;
        let measure = jail.measure;
        let action = if cross_site { Action::Throttle } else { settings.action };
        let address = offence.address.to_canonical();
        let single = SINGLE.network(address);
        if self.never.overlaps(single) {
            return Ruling::Protected;
        }
        if jail.allow.overlaps(single) {
            return Ruling::Allowed;
        }
        let at = millis(offence.at).min(now);
        if at.saturating_add(measure.find_time) < now {
            return Ruling::TooOld;
        }
        if let Some(sentence) = self.in_the_way(address, action, now) {
            return Ruling::Already(sentence);
        }
        if cross_site && let Some(visit) = self.visitors.covering(address, now).next() {
            return Ruling::AlreadyVisitor(visit);
        }
        let Some(key) = Key::new(self.offender(jail, address)) else { return Ruling::Protected };
        let offender = Offender { jail: number, key, cross_site };
        let (offences, forgot) = self.tally.count(offender, at, now, measure, offence.line);
        if forgot {
            self.tell_forgetful(now);
        }
        if offences < measure.max_offences {
            return Ruling::Counted(offences);
        }
        if cross_site {
            return self.visit(offence.jail, offender, offences, active_clients);
        }
        let sentence = self.verdict(offence.jail, offender, offences, now);
        let excused_until = self.tally.excused_until(offender);
        match self.excuse(offence.jail, offender, &sentence, excused_until, active_clients) {
            None => {
                self.tally.restart(offender);
                self.enter(key, &sentence);
                Ruling::Sentenced(sentence)
            }
            Some(_) if excused_until > now => {
                self.tally.restart_excused(offender, excused_until);
                Ruling::Counted(offences)
            }
            Some(excuse) => {
                self.tally.restart_excused(offender, millis(sentence.until));
                Ruling::Excused(sentence, excuse)
            }
        }
    }

    /// A ban under which a jail of this action has nothing to add: the strictest, longest one.
    fn in_the_way(&self, address: IpAddr, action: Action, now: u64) -> Option<Sentence> {
        self.book
            .covering(address, now)
            .filter(|ban| ban.action == Action::Ban || action != Action::Ban)
            .max_by_key(|ban| (ban.action == Action::Ban, ban.until))
    }

    /// Who is counted and banned for this address: the jail's network, or the address alone where
    /// that holds somebody who may not be banned.
    fn offender(&self, jail: &Jail, address: IpAddr) -> IpNet {
        let wide = jail.prefixes.network(address);
        let single = SINGLE.network(address);
        let spares = self.never.overlaps(wide) || jail.allow.overlaps(wide) || self.leased(wide, self.clock);
        if wide != single && spares { single } else { wide }
    }

    /// What the jail would do now.
    fn verdict(&self, jail: usize, offender: Offender, offences: u32, now: u64) -> Sentence {
        let settings = self.settings.get(jail);
        let forgiveness = settings.and_then(|jail| jail.escalation).map(|escalation| escalation.forgiveness);
        let times = self.times(offender.key, forgiveness.unwrap_or_else(|| self.memory()), now);
        let lasting = settings.map_or(Duration::ZERO, |jail| lasting(jail, times));
        let throttles = settings.is_some_and(|jail| jail.action == Action::Throttle);
        Sentence {
            network: offender.key.network(),
            jail: offender.jail,
            since: Duration::from_millis(now),
            until: Duration::from_millis(now.saturating_add(millis(lasting).max(1))),
            offences,
            times,
            action: if throttles { Action::Throttle } else { Action::Ban },
        }
    }

    /// What becomes of a full count of what foreign pages may have asked for. Where no ban would be
    /// made, nobody is slowed down either, and the count stays full.
    fn visit(&mut self, jail: usize, offender: Offender, offences: u32, active_clients: usize) -> Ruling {
        let now = self.clock;
        let braked = self.jails.get(jail).is_none_or(|jail| jail.pedal.is_pulled());
        if braked || self.suspended.is_some() || self.leased(offender.key.network(), now) {
            return Ruling::Counted(offences);
        }
        let lasting = self.settings.get(jail).map_or(0, |jail| millis(jail.ban_time)).clamp(1, LONGEST);
        let until = Duration::from_millis(now.saturating_add(lasting));
        let visit = Visit { network: offender.key.network(), jail: offender.jail, until, offences };
        match self.visitors.enter(offender.key, &visit, now, active_clients) {
            Arrival::Taken => {
                self.tally.restart(offender);
                Ruling::Visitor(visit)
            }
            Arrival::TooMany { throttled, tell } => {
                if tell {
                    self.tell(Alarm::ManyVisitors { throttled, active_clients });
                }
                Ruling::Counted(offences)
            }
        }
    }

    /// Why the sentence is not carried out. The brake hears of it only where it would be, and not
    /// again of whom it was told already.
    fn excuse(
        &mut self,
        jail: usize,
        offender: Offender,
        sentence: &Sentence,
        excused_until: u64,
        active_clients: usize,
    ) -> Option<Excuse> {
        let now = self.clock;
        if self.settings.get(jail).is_none_or(|jail| jail.action == Action::Log) {
            return Some(Excuse::LogOnly);
        }
        if self.leased(sentence.network, now) {
            return Some(Excuse::Pentest);
        }
        if self.suspended.is_some() {
            return Some(Excuse::Off);
        }
        let pedal = &mut self.jails.get_mut(jail)?.pedal;
        if pedal.is_pulled() && excused_until > now {
            return Some(Excuse::Brake);
        }
        match pedal.press(now, offender.key, active_clients) {
            Verdict::Free => None,
            Verdict::Held => Some(Excuse::Brake),
            Verdict::Pulled(bans_in_minute) => {
                self.tell(Alarm::Brake { jail, bans_in_minute, active_clients });
                Some(Excuse::Brake)
            }
        }
    }
}

/// `ban_time` × `factor` for each ban before this one, within `cap`; the first is never capped.
fn lasting(settings: &JailSettings, times: u16) -> Duration {
    let first = settings.ban_time.min(TEN_YEARS);
    let Some(escalation) = settings.escalation.filter(|_| times > 1) else { return first };
    let factor = escalation.factor.max(1.0).powi(i32::from(times) - 1);
    let longer = Duration::try_from_secs_f64(first.as_secs_f64() * factor).unwrap_or(escalation.cap);
    longer.min(escalation.cap).max(first).min(TEN_YEARS)
}

#[cfg(test)]
mod tests {
    use super::super::trial::{START, address, jail, net, offence, seconds};
    use super::*;
    use crate::ban::jail::Counter;
    use crate::ban::{Brake, Escalation, Prefixes};

    fn court(settings: Vec<JailSettings>) -> Jails {
        Jails::new(settings, vec![net("192.0.2.1/32"), net("2001:db8:1::1/128")], 100)
    }

    fn judge(jails: &mut Jails, jail: usize, who: &str, at: Duration) -> Ruling {
        jails.judge(&offence(jail, address(who), at), at, 1000)
    }

    fn sentenced(ruling: &Ruling) -> Sentence {
        match ruling {
            Ruling::Sentenced(sentence) => *sentence,
            other => panic!("not sentenced: {other:?}"),
        }
    }

    #[test]
    fn third_offence_within_find_time_bans() {
        let mut jails = court(vec![jail("a")]);
        assert_eq!(judge(&mut jails, 0, "203.0.113.7", START), Ruling::Counted(1));
        assert_eq!(judge(&mut jails, 0, "203.0.113.7", START + seconds(30)), Ruling::Counted(2));
        let ban = sentenced(&judge(&mut jails, 0, "203.0.113.7", START + seconds(60)));
        assert_eq!((ban.offences, ban.until), (3, START + seconds(660)));
        let again = judge(&mut jails, 0, "203.0.113.7", START + seconds(61));
        assert_eq!(again, Ruling::Already(ban), "and no longer for it");
        assert_eq!(
            judge(&mut jails, 0, "203.0.113.7", START + seconds(660)),
            Ruling::Counted(1),
            "counted anew"
        );
    }

    #[test]
    fn offences_beyond_find_time_do_not_ban() {
        let mut jails = court(vec![jail("a")]);
        for minute in 0..100 {
            let ruling = judge(&mut jails, 0, "203.0.113.7", START + Duration::from_millis(minute * 30_001));
            assert!(matches!(ruling, Ruling::Counted(1 | 2)), "{ruling:?}");
        }
    }

    #[test]
    fn late_lines_count_by_their_own_time_and_future_ones_as_now() {
        let mut jails = court(vec![jail("a")]);
        let mut late =
            |age: u64| jails.judge(&offence(0, address("203.0.113.7"), START - seconds(age)), START, 0);
        assert_eq!(late(61), Ruling::TooOld);
        assert_eq!(late(60), Ruling::Counted(1));
        assert_eq!(late(30), Ruling::Counted(2));
        assert_eq!(
            judge(&mut jails, 0, "203.0.113.7", START + seconds(25)),
            Ruling::Counted(2),
            "one went old"
        );
        let mut early = |age: u64, now: u64| {
            jails.judge(&offence(0, address("203.0.113.9"), START + seconds(age)), START + seconds(now), 0)
        };
        assert_eq!(early(3600, 0), Ruling::Counted(1));
        assert_eq!(early(3600, 61), Ruling::Counted(1), "an hour ahead is not an hour longer");
    }

    #[test]
    fn one_customer_is_one_offender_however_it_is_written() {
        let mut jails = court(vec![jail("a")]);
        judge(&mut jails, 0, "203.0.113.7", START);
        judge(&mut jails, 0, "::ffff:203.0.113.7", START);
        let ban = sentenced(&judge(&mut jails, 0, "203.0.113.7", START));
        assert_eq!(ban.network, net("203.0.113.7/32"));
        judge(&mut jails, 0, "2001:db8::1", START);
        judge(&mut jails, 0, "2001:db8::2", START);
        let ban = sentenced(&judge(&mut jails, 0, "2001:db8::3", START));
        assert_eq!(ban.network, net("2001:db8::/64"));
    }

    #[test]
    fn neighbours_of_who_is_spared_are_banned_alone() {
        let wide = JailSettings {
            prefixes: Prefixes { v4: 24, v6: 48 },
            allow: vec![net("203.0.113.9/32")],
            max_offences: 1,
            ..jail("wide")
        };
        let mut jails = court(vec![wide]);
        assert_eq!(judge(&mut jails, 0, "192.0.2.1", START), Ruling::Protected);
        assert_eq!(judge(&mut jails, 0, "203.0.113.9", START), Ruling::Allowed);
        assert_eq!(judge(&mut jails, 0, "2001:db8:1::2", START), Ruling::Protected, "the same /64");
        let banned = |ruling: Ruling| sentenced(&ruling).network;
        assert_eq!(banned(judge(&mut jails, 0, "192.0.2.2", START)), net("192.0.2.2/32"));
        assert_eq!(banned(judge(&mut jails, 0, "203.0.113.8", START)), net("203.0.113.8/32"));
        assert_eq!(banned(judge(&mut jails, 0, "2001:db8:1:5::2", START)), net("2001:db8:1:5::/64"));
        assert_eq!(banned(judge(&mut jails, 0, "198.51.100.2", START)), net("198.51.100.0/24"));
    }

    #[test]
    fn who_returns_is_banned_longer_up_to_the_cap_until_forgiven() {
        let escalation = Escalation { factor: 4.0, cap: seconds(7200), forgiveness: seconds(86_400) };
        let settings = JailSettings { max_offences: 1, escalation: Some(escalation), ..jail("a") };
        let mut jails = court(vec![settings]);
        let mut now = START;
        for (times, lasting) in [(1, 600), (2, 2400), (3, 7200), (4, 7200)] {
            let ban = sentenced(&judge(&mut jails, 0, "203.0.113.7", now));
            assert_eq!((ban.times, ban.until - ban.since), (times, seconds(lasting)));
            now = ban.until + seconds(86_399);
            jails.expire(now);
        }
        let ban = sentenced(&judge(&mut jails, 0, "203.0.113.7", now + seconds(1)));
        assert_eq!(ban.times, 1, "a day without a ban");
    }

    #[test]
    fn escalation_is_finite_whatever_its_numbers() {
        for factor in [f64::NAN, f64::INFINITY, -3.0, 0.0, 1e300] {
            let escalation = Escalation { factor, cap: Duration::MAX, forgiveness: Duration::MAX };
            let settings = JailSettings { escalation: Some(escalation), ..jail("a") };
            for times in [1, 2, u16::MAX] {
                let lasting = lasting(&settings, times);
                assert!((seconds(600)..=TEN_YEARS).contains(&lasting), "{factor} {times}");
            }
        }
    }

    #[test]
    fn a_throttled_network_can_still_earn_a_ban() {
        let slow = JailSettings { action: Action::Throttle, max_offences: 1, ..jail("slow") };
        let mut jails = court(vec![slow, jail("a")]);
        let throttle = sentenced(&judge(&mut jails, 0, "203.0.113.7", START));
        assert_eq!(throttle.action, Action::Throttle);
        assert_eq!(judge(&mut jails, 0, "203.0.113.7", START), Ruling::Already(throttle));
        assert_eq!(judge(&mut jails, 1, "203.0.113.7", START), Ruling::Counted(1));
        judge(&mut jails, 1, "203.0.113.7", START);
        let ban = sentenced(&judge(&mut jails, 1, "203.0.113.7", START));
        assert_eq!((ban.action, ban.times, jails.len()), (Action::Ban, 2, 1));
        assert_eq!(judge(&mut jails, 0, "203.0.113.7", START), Ruling::Already(ban));
    }

    /// As [`judge`], where a foreign page may have asked.
    fn cross_site(jails: &mut Jails, jail: usize, who: &str, at: Duration) -> Ruling {
        let offence = Offence { cross_site: true, ..offence(jail, address(who), at) };
        jails.judge(&offence, at, 1000)
    }

    /// Who is throttled by it, until when.
    fn visitor(ruling: &Ruling) -> Visit {
        match ruling {
            Ruling::Visitor(visit) => *visit,
            other => panic!("no visitor: {other:?}"),
        }
    }

    #[test]
    fn what_foreign_pages_ask_for_throttles_and_never_counts_toward_a_ban() {
        let mut jails = court(vec![jail("a")]);
        let who = "203.0.113.7";
        for offences in 1..3 {
            assert_eq!(cross_site(&mut jails, 0, who, START), Ruling::Counted(offences));
            assert_eq!(judge(&mut jails, 0, who, START), Ruling::Counted(offences), "counted apart");
        }
        let told: Vec<_> = jails
            .counters(address(who))
            .iter()
            .map(|Counter { cross_site, offences, .. }| (*cross_site, *offences))
            .collect();
        assert_eq!(told, [(false, 2), (true, 2)]);
        let visit = visitor(&cross_site(&mut jails, 0, who, START));
        assert_eq!((visit.offences, visit.until), (3, START + seconds(600)));
        assert_eq!((jails.len(), jails.known().count(), jails.visitors().len()), (0, 0, 1), "it is no ban");
        let [(told, lines)] = &jails.visits(address(who))[..] else { panic!("not one visit") };
        assert_eq!((*told, lines.len()), (visit, 3));
        assert_eq!(cross_site(&mut jails, 0, who, START), Ruling::AlreadyVisitor(visit));
        // One more of its own, and it is banned at once, as if it had never been throttled.
        let ban = sentenced(&judge(&mut jails, 0, who, START));
        assert_eq!((ban.action, ban.offences, ban.times), (Action::Ban, 3, 1));
        assert_eq!(jails.evidence(&ban).len(), 3);
        assert_eq!(cross_site(&mut jails, 0, who, START), Ruling::Already(ban));
    }

    #[test]
    fn a_visit_leaves_the_record_of_earlier_bans_as_it_is() {
        let escalation = Escalation { factor: 4.0, cap: seconds(7200), forgiveness: seconds(3600) };
        let mut jails = court(vec![JailSettings { escalation: Some(escalation), ..jail("a") }]);
        let who = "203.0.113.7";
        let ban = |jails: &mut Jails, now| {
            for _ in 0..2 {
                judge(jails, 0, who, now);
            }
            sentenced(&judge(jails, 0, who, now))
        };
        let first = ban(&mut jails, START);
        // Visits in a row, up to the hour at which the ban is forgiven.
        let mut now = first.until;
        while now < first.until + seconds(3600) {
            jails.expire(now);
            for _ in 0..2 {
                cross_site(&mut jails, 0, who, now);
            }
            let visit = visitor(&cross_site(&mut jails, 0, who, now));
            assert_eq!(visit.until, now + seconds(600), "and no visit is longer for it");
            let history = jails.history(first.network).unwrap();
            assert_eq!((history.times, history.last_end), (1, first.until));
            now = visit.until;
        }
        jails.expire(now);
        assert_eq!(ban(&mut jails, now).times, 1, "it was forgiven in time");
    }

    #[test]
    fn a_visit_lasts_ten_minutes_at_most_however_long_the_jail_bans() {
        for (ban_time, lasting) in [(5, 5), (600, 600), (1_000_000, 600)] {
            let settings = JailSettings { max_offences: 1, ban_time: seconds(ban_time), ..jail("a") };
            let mut jails = court(vec![settings]);
            let visit = visitor(&cross_site(&mut jails, 0, "203.0.113.7", START));
            assert_eq!((visit.until, jails.next_expiry()), (START + seconds(lasting), Some(visit.until)));
            jails.expire(visit.until);
            assert_eq!((jails.departed(), jails.visitors().len()), (vec![], 0));
        }
    }

    #[test]
    fn foreign_pages_press_no_brake_and_a_pulled_one_spares_their_visitors() {
        for action in [Action::Ban, Action::Throttle] {
            let brake = Some(Brake { percent: 0.0, least: 2 });
            let mut jails = court(vec![JailSettings { max_offences: 1, brake, action, ..jail("a") }]);
            for last in 1..50 {
                visitor(&cross_site(&mut jails, 0, &format!("203.0.113.{last}"), START));
            }
            assert_eq!((jails.braked(), jails.alarms()), (vec![], vec![]));
            for last in 1..4 {
                judge(&mut jails, 0, &format!("198.51.100.{last}"), START);
            }
            assert_eq!(jails.braked(), [0]);
            assert_eq!(cross_site(&mut jails, 0, "203.0.113.99", START), Ruling::Counted(1));
        }
    }

    #[test]
    fn no_advertisement_throttles_more_than_a_share_of_all_clients_within_a_minute() {
        let mut jails = court(vec![JailSettings { max_offences: 1, ..jail("a") }]);
        let mut ask = |number: u32, at| {
            let who = std::net::Ipv4Addr::from_bits(0xCB00_0000 + number).to_string();
            matches!(cross_site(&mut jails, 0, &who, at), Ruling::Visitor(_))
        };
        assert_eq!((0..5000).filter(|number| ask(*number, START)).count(), 100);
        assert_eq!((5000..9000).filter(|number| ask(*number, START + seconds(59))).count(), 0);
        assert_eq!((0..9000).filter(|number| ask(*number, START + seconds(60))).count(), 100);
        let told = Alarm::ManyVisitors { throttled: 100, active_clients: 1000 };
        assert_eq!(jails.alarms(), [told.clone(), told], "once a minute");
    }

    #[test]
    fn bans_off_and_a_penetration_test_spare_visitors_too() {
        let mut jails = court(vec![JailSettings { max_offences: 1, ..jail("a") }]);
        jails.suspend(Some(START + seconds(60)));
        assert_eq!(cross_site(&mut jails, 0, "203.0.113.7", START), Ruling::Counted(1));
        jails.suspend(None);
        visitor(&cross_site(&mut jails, 0, "203.0.113.7", START));
        jails.set_leases(vec![(net("203.0.113.0/24"), START + seconds(60))]);
        assert_eq!((jails.departed(), jails.visitors().len()), (vec![net("203.0.113.7/32")], 0));
        assert_eq!(cross_site(&mut jails, 0, "203.0.113.7", START), Ruling::Counted(1));
    }

    #[test]
    fn what_becomes_of_foreign_pages_is_the_settings_choice() {
        let of = |cross_site, action| JailSettings { max_offences: 1, cross_site, action, ..jail("a") };
        let ruling = |settings| cross_site(&mut court(vec![settings]), 0, "203.0.113.7", START);
        for action in [Action::Ban, Action::Throttle] {
            visitor(&ruling(of(CrossSite::Throttle, action)));
            assert_eq!(sentenced(&ruling(of(CrossSite::Ban, action))).action, action);
        }
        for action in [Action::Ban, Action::Throttle, Action::Log] {
            assert_eq!(ruling(of(CrossSite::Ignore, action)), Ruling::Allowed);
        }
        let log = ruling(of(CrossSite::Throttle, Action::Log));
        assert!(matches!(log, Ruling::Excused(_, Excuse::LogOnly)), "{log:?}");
    }

    #[test]
    fn an_operators_ban_of_a_visitor_is_a_ban_after_a_restart_too() {
        let settings = || vec![JailSettings { max_offences: 1, ..jail("a") }];
        let mut before = court(settings());
        visitor(&cross_site(&mut before, 0, "203.0.113.7", START));
        let ban = before.sentence(net("203.0.113.7/32"), seconds(60), START).unwrap();
        assert_eq!((ban.times, before.known().collect::<Vec<_>>()), (1, vec![ban]));
        let mut after = court(settings());
        assert!(after.restore(ban, START) && after.covering(address("203.0.113.7")) == [ban]);
    }

    #[test]
    fn a_jail_that_is_not_there_rules_nothing() {
        let mut jails = court(vec![jail("a")]);
        assert_eq!(judge(&mut jails, 1, "203.0.113.7", START), Ruling::TooOld);
        assert_eq!(judge(&mut jails, usize::MAX, "203.0.113.7", START), Ruling::TooOld);
    }
}

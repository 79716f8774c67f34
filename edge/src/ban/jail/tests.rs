//! The promises of jails, one by one; [`super::trial`] plays them against a model.

use super::trial::{START, address, jail, net, offence, seconds};
use super::*;
use crate::ban::{Brake, Escalation};

fn one(settings: JailSettings) -> Jails {
    Jails::new(vec![settings], vec![net("192.0.2.1/32")], 100)
}

fn offend(jails: &mut Jails, times: usize, who: &str, now: Duration) -> Ruling {
    let mut last = Ruling::TooOld;
    for _ in 0..times {
        last = jails.judge(&offence(0, address(who), now), now, 1000);
    }
    last
}

#[test]
fn operators_bans_refuse_what_would_hurt() {
    let mut jails = one(jail("a"));
    let mut refused = |text: &str, lasting| jails.sentence(net(text), lasting, START).unwrap_err();
    assert_eq!(refused("192.0.2.0/24", seconds(60)), Refused::Protected(net("192.0.2.0/24")));
    assert_eq!(refused("fe80::1/128", seconds(60)), Refused::Protected(net("fe80::1/128")));
    assert_eq!(refused("203.0.0.0/16", seconds(60)), Refused::TooWide(net("203.0.0.0/16")));
    assert_eq!(refused("0.0.0.0/0", seconds(60)), Refused::TooWide(net("0.0.0.0/0")));
    assert_eq!(refused("203.0.113.7/32", Duration::MAX), Refused::TooLong(net("203.0.113.7/32")));
    assert_eq!(refused("203.0.113.7/32", Duration::ZERO), Refused::NoTime(net("203.0.113.7/32")));
    let text = refused("203.0.0.0/16", seconds(60)).to_string();
    let wanted = "ban: 203.0.0.0/16: not banned: too many addresses at once; write an IPv4 /24 to /32 or an IPv6 /48 to /64";
    assert_eq!(text, wanted);
}

#[test]
fn an_operators_ban_never_shortens_a_jails_and_replaces_its_own() {
    let mut jails = one(jail("a"));
    offend(&mut jails, 3, "203.0.113.7", START);
    let network = net("203.0.113.7/32");
    assert_eq!(jails.sentence(network, seconds(1), START).unwrap().until, START + seconds(600));
    assert_eq!(jails.sentence(network, seconds(900), START).unwrap().until, START + seconds(900));
    let shorter = jails.sentence(network, seconds(5), START).unwrap();
    assert_eq!((shorter.until, shorter.jail, shorter.times), (START + seconds(5), OPERATOR, 1));
    assert_eq!(jails.len(), 1);
}

#[test]
fn an_operators_wider_ban_stands_before_a_jails() {
    let mut jails = one(jail("a"));
    let wide = jails.sentence(net("203.0.113.0/24"), seconds(9000), START).unwrap();
    assert_eq!(offend(&mut jails, 5, "203.0.113.7", START), Ruling::Already(wide));
    assert_eq!(jails.covering(address("::ffff:203.0.113.9")), vec![wide]);
    assert_eq!(jails.covering(address("203.0.114.9")), vec![]);
}

#[test]
fn a_restored_ban_lasts_for_what_remained_of_it() {
    let mut first = one(jail("a"));
    let Ruling::Sentenced(ban) = offend(&mut first, 3, "203.0.113.7", START) else { panic!("not banned") };
    let mut jails = one(jail("a"));
    assert!(jails.restore(ban, START + seconds(200)));
    assert_eq!(jails.active().collect::<Vec<_>>(), vec![ban]);
    assert_eq!(jails.expire(START + seconds(599)), vec![]);
    assert_eq!(jails.expire(START + seconds(600)), vec![ban]);
    let mut late = one(jail("a"));
    assert!(!late.restore(ban, START + seconds(600)), "over");
    assert_eq!(late.history(ban.network).map(|past| past.times), Some(1));
    let mut wrong = one(jail("a"));
    assert!(wrong.restore(ban, START - seconds(100_000)), "given when the clock was ahead");
    assert_eq!(wrong.next_expiry(), Some(START - seconds(100_000) + seconds(600)));
}

#[test]
fn who_becomes_protected_is_free_at_once() {
    let mut jails = one(jail("a"));
    offend(&mut jails, 3, "203.0.113.7", START);
    offend(&mut jails, 2, "203.0.113.8", START);
    let freed = jails.set_never(vec![net("203.0.113.0/28")]).ended;
    assert_eq!(freed.iter().map(|ban| ban.network).collect::<Vec<_>>(), vec![net("203.0.113.7/32")]);
    assert_eq!((jails.len(), jails.counters(address("203.0.113.8"))), (0, vec![]));
    assert_eq!(offend(&mut jails, 9, "203.0.113.8", START), Ruling::Protected);
    assert!(!jails.restore(freed[0], START), "nor does it come back from disk");
}

#[test]
fn what_is_lifted_is_a_first_offender_again() {
    let escalation = Escalation { factor: 4.0, cap: seconds(90_000), forgiveness: seconds(90_000) };
    let mut jails = one(JailSettings { escalation: Some(escalation), ..jail("a") });
    for _ in 0..2 {
        let Ruling::Sentenced(ban) = offend(&mut jails, 3, "203.0.113.7", START) else {
            panic!("not banned")
        };
        assert_eq!((ban.times, ban.until), (1, START + seconds(600)));
        assert_eq!(jails.lift(net("203.0.113.0/24")).ended, vec![ban]);
    }
    assert_eq!(jails.history(net("203.0.113.7/32")), None);
}

#[test]
fn what_was_lifted_before_a_restart_is_over_and_no_earlier_ban() {
    let escalation = Escalation { factor: 4.0, cap: seconds(90_000), forgiveness: seconds(90_000) };
    let mut first = one(jail("a"));
    let Ruling::Sentenced(ban) = offend(&mut first, 3, "203.0.113.7", START) else { panic!("not banned") };
    let mut jails = one(JailSettings { escalation: Some(escalation), ..jail("a") });
    assert!(!jails.restore(Sentence { times: 0, ..ban }, START + seconds(1)), "over before its time");
    let past = jails.history(ban.network).unwrap();
    assert_eq!((past.times, past.last_end), (0, START + seconds(1)));
    let Ruling::Sentenced(again) = offend(&mut jails, 3, "203.0.113.7", START + seconds(2)) else {
        panic!("not banned")
    };
    assert_eq!(again.times, 1);
}

#[test]
fn a_lease_frees_a_jails_bans_and_leaves_an_operators() {
    let mut jails = one(jail("a"));
    offend(&mut jails, 3, "203.0.113.7", START);
    let meant = jails.sentence(net("203.0.113.8/32"), seconds(60), START).unwrap();
    let freed = jails.set_leases(vec![(net("203.0.113.0/24"), START + seconds(100))]).ended;
    assert_eq!(freed.len(), 1);
    assert_eq!(jails.active().collect::<Vec<_>>(), vec![meant]);
    assert!(matches!(offend(&mut jails, 3, "203.0.113.7", START), Ruling::Excused(_, Excuse::Pentest)));
    assert_eq!(offend(&mut jails, 3, "203.0.113.7", START), Ruling::Counted(3), "told once");
    let after = START + seconds(100);
    assert!(
        matches!(offend(&mut jails, 3, "203.0.113.7", after), Ruling::Sentenced(_)),
        "re-armed by itself"
    );
}

#[test]
fn off_ends_by_itself() {
    let mut jails = one(jail("a"));
    jails.suspend(Some(START + seconds(100)));
    assert!(matches!(offend(&mut jails, 3, "203.0.113.7", START), Ruling::Excused(_, Excuse::Off)));
    let after = START + seconds(100);
    assert!(matches!(offend(&mut jails, 3, "203.0.113.7", after), Ruling::Sentenced(_)));
    assert_eq!(jails.suspended(), None);
}

#[test]
fn a_brake_releases_itself_after_ten_quiet_minutes() {
    let brake = Some(Brake { percent: 0.0, least: 2 });
    let mut jails = one(JailSettings { max_offences: 1, brake, ..jail("a") });
    for who in ["203.0.113.1", "203.0.113.2"] {
        assert!(matches!(offend(&mut jails, 1, who, START), Ruling::Sentenced(_)));
    }
    assert!(matches!(offend(&mut jails, 1, "203.0.113.3", START), Ruling::Excused(_, Excuse::Brake)));
    assert_eq!(jails.alarms(), vec![Alarm::Brake { jail: 0, bans_in_minute: 3, active_clients: 1000 }]);
    assert_eq!(jails.braked(), vec![0]);
    let later = START + seconds(599);
    assert!(matches!(offend(&mut jails, 1, "203.0.113.4", later), Ruling::Excused(_, Excuse::Brake)));
    jails.expire(START + seconds(600));
    assert_eq!((jails.alarms(), jails.braked()), (vec![Alarm::BrakeReleased { jail: 0 }], vec![]));
    assert!(matches!(offend(&mut jails, 1, "203.0.113.3", later), Ruling::Sentenced(_)));
}

#[test]
fn a_clock_set_back_keeps_what_remains() {
    let mut jails = one(jail("a"));
    offend(&mut jails, 3, "203.0.113.7", START);
    offend(&mut jails, 2, "203.0.113.8", START);
    jails.suspend(Some(START + seconds(50)));
    let then = START - seconds(1_000_000);
    assert_eq!(jails.expire(then), vec![]);
    assert_eq!(jails.next_expiry(), Some(then + seconds(600)));
    assert_eq!(jails.suspended(), Some(then + seconds(50)));
    assert_eq!(jails.alarms(), vec![Alarm::ClockSetBack { by: seconds(1_000_000) }]);
    jails.suspend(None);
    assert_eq!(offend(&mut jails, 1, "203.0.113.8", then), Ruling::Counted(1), "counts begin anew");
    assert_eq!(jails.expire(then + seconds(600)).len(), 1);
    let mut small = one(jail("a"));
    offend(&mut small, 2, "203.0.113.7", START);
    assert!(matches!(offend(&mut small, 1, "203.0.113.7", START - seconds(5)), Ruling::Sentenced(_)));
}

#[test]
fn evidence_is_the_lines_that_led_to_it_and_is_handed_out_once() {
    let mut jails = one(jail("a"));
    for (second, line) in [(0, "old"), (100, "first"), (101, "second")] {
        let at = START + seconds(second);
        let offence = Offence {
            jail: 0,
            address: address("203.0.113.7"),
            at,
            line: line.as_bytes(),
            cross_site: false,
        };
        jails.judge(&offence, at, 0);
    }
    let counter = &jails.counters(address("203.0.113.7"))[0];
    assert_eq!(
        (counter.offences, counter.times.clone()),
        (2, vec![START + seconds(100), START + seconds(101)])
    );
    assert_eq!(counter.lines.len(), 2);
    let Ruling::Sentenced(ban) = offend(&mut jails, 1, "203.0.113.7", START + seconds(102)) else {
        panic!("not banned")
    };
    let lines: Vec<_> =
        jails.evidence(&ban).into_iter().map(|line| String::from_utf8(line.into()).unwrap()).collect();
    assert_eq!(lines, ["first", "second", "a line"]);
    assert!(jails.evidence(&ban).is_empty() && jails.counters(address("203.0.113.7")).is_empty());
}

#[test]
fn every_tenth_refusal_of_a_visitor_counts_and_of_nobody_else_any() {
    let mut jails = one(JailSettings { max_offences: 1, prefixes: Prefixes { v4: 24, v6: 64 }, ..jail("a") });
    let who = address("203.0.113.7");
    assert!((0..100).all(|_| !jails.counts_refusal(who)));
    let page = Offence { cross_site: true, ..offence(0, who, START) };
    assert!(matches!(jails.judge(&page, START, 1000), Ruling::Visitor(_)));
    let neighbour = address("::ffff:203.0.113.8");
    assert_eq!((0..3000).filter(|_| jails.counts_refusal(neighbour)).count(), 300);
    assert!((0..100).all(|_| !jails.counts_refusal(address("203.0.114.7"))));
}

#[test]
fn visitors_stay_with_other_settings_and_go_with_their_network() {
    let mut jails = Jails::new(vec![jail("gone"), jail("stays"), jail("allows")], Vec::new(), 100);
    let visit = |jails: &mut Jails, place, who| {
        (0..3).for_each(|_| {
            jails.judge(&Offence { cross_site: true, ..offence(place, address(who), START) }, START, 1000);
        });
    };
    for (place, who) in [(0, "203.0.113.1"), (1, "203.0.113.2"), (2, "203.0.113.3"), (1, "198.51.100.4")] {
        visit(&mut jails, place, who);
    }
    let allows = JailSettings { allow: vec![net("203.0.113.3/32")], ..jail("allows") };
    assert_eq!(jails.set_jails(vec![jail("stays"), allows]), Lifted::default());
    assert_eq!(jails.departed(), [net("203.0.113.3/32")]);
    let jail_of = |jails: &Jails, who| jails.visits(address(who)).first().map(|(visit, _)| visit.jail);
    assert_eq!(jail_of(&jails, "203.0.113.1"), Some(RETIRED));
    assert_eq!(jail_of(&jails, "203.0.113.2"), Some(0));
    assert_eq!(
        (0..10).filter(|_| jails.counts_refusal(address("203.0.113.1"))).count(),
        1,
        "spared as before"
    );
    assert_eq!(jails.lift(net("203.0.113.0/31")), Lifted::default());
    assert_eq!(jails.departed(), [net("203.0.113.1/32")]);
    jails.set_never(vec![net("203.0.113.0/24")]);
    assert_eq!(jails.departed(), [net("203.0.113.2/32")]);
    jails.clear();
    assert_eq!((jails.departed(), jails.visitors().len()), (vec![net("198.51.100.4/32")], 0));
}

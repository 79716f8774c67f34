//! The engine without its thread, over a kernel that can be out of reach: what holds where, after
//! all that can happen between the two.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ipnet::IpNet;
use prometheus::Registry;

use super::active;
use super::ban_store::{BanStore, Restored};
use super::enforce::{Enforcement, Owed};
use super::engine::{Engine, Schedule};
use super::figures::Counters;
use crate::admission::{Banned, Rate, Rates};
use crate::ban::words::{Answer, Question};
use crate::client::TrustedProxies;
use crate::firewall::{self, Ban, Figures, Firewall, FirewallError, Kind, Reason, Refusal, Settings, State};
use crate::listen::live::{Connections, Idle};
use crate::listen::wall_clock as epoch;
use crate::log_watch::detector::Detector;
use crate::metrics::Metrics;

const HOUR: Duration = Duration::from_secs(3600);

/// A dry run behind a helper that can leave, and whose own list protects one network.
struct Leaving {
    kernel: Box<dyn Firewall>,
    away: Arc<AtomicBool>,
    /// What it says where it is there.
    says: Arc<Mutex<State>>,
    protects: Option<IpNet>,
}

impl Leaving {
    fn here(&mut self) -> Result<&mut dyn Firewall, FirewallError> {
        if self.away.load(Ordering::Acquire) {
            return Err(FirewallError::Absent {
                socket: "gone".into(),
                source: std::io::ErrorKind::NotFound.into(),
            });
        }
        match *self.says.lock().unwrap() {
            State::NoRules => Err(FirewallError::NoRules),
            _ => Ok(&mut *self.kernel),
        }
    }
}

impl Firewall for Leaving {
    fn ban(&mut self, bans: &[Ban]) -> Result<Vec<Refusal>, FirewallError> {
        let protects = self.protects;
        let (refused, taken): (Vec<Ban>, Vec<Ban>) =
            bans.iter().partition(|ban| protects.is_some_and(|own| ban.network.contains(&own)));
        self.here()?.ban(&taken)?;
        Ok(refused.iter().map(|ban| Refusal { network: ban.network, reason: Reason::Protected }).collect())
    }
    fn unban(&mut self, networks: &[IpNet]) -> Result<(), FirewallError> {
        self.here()?.unban(networks)
    }
    fn list(&mut self) -> Result<Vec<Ban>, FirewallError> {
        self.here()?.list()
    }
    fn clear(&mut self) -> Result<(), FirewallError> {
        self.here()?.clear()
    }
    fn lift(&mut self, leases: &[Ban]) -> Result<Vec<Refusal>, FirewallError> {
        self.here()?.lift(leases)
    }
    fn unlift(&mut self, networks: &[IpNet]) -> Result<(), FirewallError> {
        self.here()?.unlift(networks)
    }
    fn figures(&mut self) -> Result<Figures, FirewallError> {
        self.here()?.figures()
    }
    fn state(&mut self) -> State {
        let says = self.says.lock().unwrap().clone();
        if self.away.load(Ordering::Acquire) { State::Absent("gone".to_owned()) } else { says }
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// An engine whose kernel holds `held` already, and the switch that takes its helper away.
fn engine(held: &[&str], never: &[&str], protects: Option<&str>) -> (Engine, Arc<AtomicBool>) {
    let (engine, away, _) = engine_whose_kernel_says(State::Works, held, never, protects);
    (engine, away)
}

fn engine_whose_kernel_says(
    state: State,
    held: &[&str],
    never: &[&str],
    protects: Option<&str>,
) -> (Engine, Arc<AtomicBool>, Arc<Mutex<State>>) {
    let never: Vec<IpNet> = never.iter().copied().map(net).collect();
    let mut kernel = firewall::open(&Settings { kind: Kind::Rehearsal, ..Settings::default() });
    let held: Vec<Ban> = held.iter().map(|text| Ban { network: net(text), remaining: HOUR }).collect();
    kernel.ban(&held).unwrap();
    let away = Arc::new(AtomicBool::new(false));
    let says = Arc::new(Mutex::new(state));
    let (its_away, its_says) = (Arc::clone(&away), Arc::clone(&says));
    let firewall = Box::new(Leaving { kernel, away: its_away, says: its_says, protects: protects.map(net) });
    let trusted = TrustedProxies::new(Vec::new());
    let engine = Engine {
        detector: Detector::new(&[], Vec::new(), never.clone(), 100).unwrap(),
        enforcement: Enforcement {
            banned: Banned::new(),
            connections: Connections::new(Idle::default(), 200, trusted, Metrics::new()),
            firewall,
            kernel: None,
            store: None,
            counters: Counters::new(&Registry::new(), &[]),
            jails: Vec::new(),
            reasons: HashMap::new(),
            in_step: false,
            owed: Owed::default(),
        },
        rates: Rates::new(None, &[], Rate::OFFENDER),
        tail: None,
        never: never.clone(),
        never_now: never,
        leases: Vec::new(),
        max_bans: 100,
        active: active::Active::default(),
        status: Arc::default(),
        line: Vec::new(),
        found: Vec::new(),
        due: Vec::new(),
        looked: Schedule::default(),
    };
    (engine, away, says)
}

fn ask(engine: &mut Engine, question: Question) -> Answer {
    engine.answer(question, epoch())
}

fn add(engine: &mut Engine, network: &str, lasting: Duration) -> Answer {
    add_for(engine, &[network], lasting, "", epoch())
}

fn add_for(engine: &mut Engine, who: &[&str], lasting: Duration, reason: &str, now: Duration) -> Answer {
    let networks = who.iter().copied().map(net).collect();
    engine.answer(Question::Add { networks, seconds: lasting.as_secs(), reason: reason.to_owned() }, now)
}

/// An answer's bans, as network and the how manieth it is; its notes; what was not done.
fn changed(answer: Answer) -> (Vec<(String, u16)>, Vec<String>, Vec<String>) {
    match answer {
        Answer::Changed { bans, notes, undone, .. } => {
            (bans.into_iter().map(|ban| (ban.network.to_string(), ban.times)).collect(), notes, undone)
        }
        other => panic!("{other:?}"),
    }
}

fn refused(answer: Answer) -> String {
    match answer {
        Answer::Refused { why } => why,
        other => panic!("{other:?}"),
    }
}

fn with_store(file: &Path) -> Engine {
    let (mut engine, _) = engine(&[], &[], None);
    let (store, restored) = BanStore::open(file, epoch()).unwrap();
    engine.enforcement.store = Some(store);
    engine.restore(restored);
    engine.compare_with_kernel(epoch());
    engine
}

fn closed(mut engine: Engine) {
    engine.enforcement.store.take().unwrap().close();
}

fn remove(engine: &mut Engine, network: &str) -> Answer {
    ask(engine, Question::Remove { networks: vec![net(network)] })
}

/// What the kernel holds, whether its helper is there or not.
fn kernel(engine: &mut Engine) -> Vec<(String, u64)> {
    let mut held: Vec<(String, u64)> = (engine.enforcement.firewall.list().unwrap().into_iter())
        .map(|ban| (ban.network.to_string(), ban.remaining.as_secs().div_ceil(10) * 10))
        .collect();
    held.sort();
    held
}

fn refused_at_the_door(engine: &Engine, address: &str) -> bool {
    engine.enforcement.banned.holds(address.parse().unwrap(), epoch().as_secs())
}

#[test]
fn a_ban_removed_while_the_helper_was_away_does_not_come_back() {
    let (mut engine, away) = engine(&[], &[], None);
    engine.compare_with_kernel(epoch());
    add(&mut engine, "203.0.113.7/32", HOUR);
    assert_eq!(kernel(&mut engine), [("203.0.113.7/32".to_owned(), 3600)]);
    away.store(true, Ordering::Release);
    remove(&mut engine, "203.0.113.7/32");
    assert!(!refused_at_the_door(&engine, "203.0.113.7"));
    away.store(false, Ordering::Release);
    engine.compare_with_kernel(epoch());
    assert_eq!(kernel(&mut engine), [], "the kernel lets it in, too");
    assert!(engine.detector.jails.is_empty() && !refused_at_the_door(&engine, "203.0.113.7"));
}

#[test]
fn a_ban_removed_and_made_anew_while_the_helper_was_away_holds() {
    let (mut engine, away) = engine(&[], &[], None);
    engine.compare_with_kernel(epoch());
    add(&mut engine, "203.0.113.7/32", HOUR);
    away.store(true, Ordering::Release);
    remove(&mut engine, "203.0.113.7/32");
    add(&mut engine, "203.0.113.7/32", 2 * HOUR);
    away.store(false, Ordering::Release);
    engine.compare_with_kernel(epoch());
    assert_eq!(kernel(&mut engine), [("203.0.113.7/32".to_owned(), 7200)], "and as long as it was made");
}

#[test]
fn what_the_kernel_alone_holds_is_taken_over_once() {
    let (mut engine, _) = engine(&["203.0.113.7/32"], &[], None);
    engine.compare_with_kernel(epoch());
    assert!(refused_at_the_door(&engine, "203.0.113.7"));
    remove(&mut engine, "203.0.113.7/32");
    engine.compare_with_kernel(epoch());
    assert_eq!(kernel(&mut engine), []);
    assert!(!refused_at_the_door(&engine, "203.0.113.7"));
}

#[test]
fn the_kernel_lets_in_whom_nobody_may_ban_any_more() {
    let (mut engine, _) = engine(&["203.0.113.7/32", "198.51.100.1/32"], &["203.0.113.0/24"], None);
    engine.compare_with_kernel(epoch());
    assert_eq!(kernel(&mut engine), [("198.51.100.1/32".to_owned(), 3600)]);
}

#[test]
fn what_an_operator_removes_leaves_the_kernel_even_where_edge_knows_no_ban() {
    let (mut engine, _) = engine(&[], &[], None);
    engine.compare_with_kernel(epoch());
    let stray = Ban { network: net("2001:db8::/64"), remaining: HOUR };
    engine.enforcement.firewall.ban(&[stray]).unwrap();
    remove(&mut engine, "2001:db8::7/128");
    assert_eq!(kernel(&mut engine), []);
}

#[test]
fn a_network_that_the_firewall_protects_takes_no_ban_around_it_away() {
    let (mut engine, _) = engine(&[], &[], Some("203.0.113.9/32"));
    engine.compare_with_kernel(epoch());
    add(&mut engine, "203.0.113.7/32", HOUR);
    add(&mut engine, "203.0.113.0/24", HOUR);
    assert!(refused_at_the_door(&engine, "203.0.113.7") && !refused_at_the_door(&engine, "203.0.113.8"));
    assert_eq!(engine.detector.jails.len(), 1, "the jails know it still, so that it can be removed");
    assert_eq!(kernel(&mut engine), [("203.0.113.7/32".to_owned(), 3600)]);
}

#[test]
fn a_helper_that_left_is_missed_before_anybody_is_banned() {
    let (mut engine, away) = engine(&[], &[], None);
    engine.compare_with_kernel(epoch());
    assert!(engine.enforcement.in_step);
    away.store(true, Ordering::Release);
    engine.look(epoch());
    assert!(!engine.enforcement.in_step);
}

#[test]
fn without_rules_status_and_metric_say_so_and_the_kernel_gets_its_bans_when_they_are_back() {
    let (mut engine, _, says) = engine_whose_kernel_says(State::NoRules, &[], &[], None);
    // Time for the next look is not waited for.
    let look = |engine: &mut Engine| {
        engine.looked = Schedule::default();
        engine.look(epoch());
        (engine.summary(None), engine.enforcement.counters.kernel.get())
    };
    let (told, up) = look(&mut engine);
    assert!(told.kernel.contains("no rules are loaded") && told.kernel.contains("edge firewall apply"));
    assert_eq!((told.kernel_works, up), (false, 0), "that the helper answers is not enough");
    add(&mut engine, "203.0.113.7/32", HOUR);
    assert!(refused_at_the_door(&engine, "203.0.113.7"));

    *says.lock().unwrap() = State::Works;
    let (told, up) = look(&mut engine);
    assert_eq!((told.kernel.as_str(), told.kernel_works, up), ("drops what is banned", true, 1));
    assert_eq!(kernel(&mut engine), [("203.0.113.7/32".to_owned(), 3600)]);

    // They go again, and the next ban is the first to notice.
    *says.lock().unwrap() = State::NoRules;
    add(&mut engine, "203.0.113.8/32", HOUR);
    let told = engine.summary(None);
    assert!(told.kernel.contains("no rules are loaded") && !told.kernel_works, "{}", told.kernel);
}

#[test]
fn rules_changed_by_hand_still_take_bans_and_are_told_in_status_and_metric() {
    let (mut engine, _, _) = engine_whose_kernel_says(State::Changed, &[], &[], None);
    engine.look(epoch());
    add(&mut engine, "203.0.113.7/32", HOUR);
    let told = engine.summary(None);
    assert!(told.kernel_works && told.kernel.contains("CHANGED BY HAND"), "{}", told.kernel);
    let counters = &engine.enforcement.counters;
    assert_eq!((counters.kernel.get(), counters.drift.get()), (1, 1));
    assert_eq!(kernel(&mut engine), [("203.0.113.7/32".to_owned(), 3600)]);
}

#[test]
fn where_no_kernel_is_wanted_none_is_compared_and_none_is_claimed() {
    let (mut engine, _, _) = engine_whose_kernel_says(State::NotConfigured, &["203.0.113.7/32"], &[], None);
    engine.look(epoch());
    assert!(!refused_at_the_door(&engine, "203.0.113.7"));
    assert!(engine.enforcement.in_step && !engine.enforcement.kernel_works());
}

#[test]
fn a_ban_lifted_before_a_restart_is_not_taken_over_from_the_kernel_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bans.db");
    let (mut before, away) = engine(&[], &[], None);
    before.enforcement.store = Some(BanStore::open(&file, epoch()).unwrap().0);
    before.compare_with_kernel(epoch());
    add(&mut before, "203.0.113.7/32", HOUR);
    away.store(true, Ordering::Release);
    remove(&mut before, "203.0.113.7/32");
    before.enforcement.store.take().unwrap().close();

    let (mut after, _) = engine(&["203.0.113.7/32", "203.0.113.8/32"], &[], None);
    let (_store, restored): (_, Restored) = BanStore::open(&file, epoch()).unwrap();
    after.restore(restored);
    after.compare_with_kernel(epoch());
    assert_eq!(kernel(&mut after), [("203.0.113.8/32".to_owned(), 3600)]);
    assert!(!refused_at_the_door(&after, "203.0.113.7") && refused_at_the_door(&after, "203.0.113.8"));
}

#[test]
fn what_an_operator_removed_is_no_earlier_ban_after_a_restart_either() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bans.db");
    let (stands, over, meant) = ("203.0.113.7/32", "203.0.113.8/32", "203.0.113.9/32");
    let mut engine = with_store(&file);
    let before = epoch() - HOUR;
    add_for(&mut engine, &[over, meant], Duration::from_secs(10), "", before);
    engine.look(epoch());
    add(&mut engine, stands, HOUR);
    assert_eq!(changed(remove(&mut engine, stands)).0, [(stands.to_owned(), 1)]);
    assert_eq!(changed(remove(&mut engine, over)).0, [], "it is over, and forgotten all the same");
    closed(engine);

    let mut engine = with_store(&file);
    let answer = add_for(&mut engine, &[stands, over, meant], HOUR, "", epoch());
    assert_eq!(changed(answer).0, [(stands.to_owned(), 1), (over.to_owned(), 1), (meant.to_owned(), 2)]);
    closed(engine);
}

#[test]
fn earlier_bans_are_kept_when_the_clock_is_set_back_and_the_file_written_anew() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bans.db");
    let (over, stands) = ("203.0.113.7/32", "203.0.113.8/32");
    let mut engine = with_store(&file);
    add_for(&mut engine, &[over], Duration::from_secs(10), "", epoch() - HOUR);
    engine.look(epoch());
    add(&mut engine, stands, HOUR);
    engine.looked = Schedule::default();
    let now = epoch() - HOUR;
    engine.look(now);
    assert!(engine.detector.jails.standing(net(stands)).is_some_and(|ban| ban.until <= now + HOUR));
    closed(engine);

    let mut engine = with_store(&file);
    assert_eq!(changed(add(&mut engine, over, HOUR)).0, [(over.to_owned(), 2)]);
    closed(engine);
}

#[test]
fn an_operators_later_word_counts_and_he_is_told_what_stood() {
    let (mut engine, _) = engine(&[], &[], None);
    engine.compare_with_kernel(epoch());
    let who = "203.0.113.7/32";
    let answer = add_for(&mut engine, &[who], 2 * HOUR, "scans", epoch());
    assert_eq!(changed(answer).1, [""; 0], "nothing stood");
    let now = epoch();
    let answer = add_for(&mut engine, &[who], HOUR, "", now);
    let Answer::Changed { bans, notes, .. } = answer else { panic!("{answer:?}") };
    assert_eq!((bans[0].until, bans[0].reason.as_str()), ((now + HOUR).as_secs(), ""), "nor the old reason");
    assert!(
        notes[0].starts_with("203.0.113.7: was banned until ")
            && notes[0].ends_with("by operator, \"scans\"")
    );
    assert_eq!(kernel(&mut engine), [(who.to_owned(), 3600)]);

    add(&mut engine, "203.0.113.0/24", 2 * HOUR);
    let notes = changed(add(&mut engine, who, Duration::from_secs(60))).1;
    let wider = notes.iter().find(|note| note.starts_with("203.0.113.0/24: is banned until ")).unwrap();
    assert!(wider.ends_with("by operator, too, which holds for 203.0.113.7"), "{wider}");
}

#[test]
fn nobody_bans_a_penetration_test_by_hand() {
    let (mut engine, _) = engine(&[], &[], None);
    engine.compare_with_kernel(epoch());
    let (network, ticket) = (net("203.0.113.0/28"), "PT-7".to_owned());
    ask(&mut engine, Question::PentestStart { network, seconds: 3600, ticket });
    for who in ["203.0.113.7/32", "203.0.113.0/24"] {
        let why = refused(add(&mut engine, who, HOUR));
        assert!(why.contains("not banned") && why.contains("`edge pentest stop --ticket \"PT-7\"`"), "{why}");
        assert!(!refused_at_the_door(&engine, "203.0.113.7"));
    }
    assert_eq!(changed(add(&mut engine, "203.0.113.16/32", HOUR)).0.len(), 1, "its neighbour");
    ask(&mut engine, Question::PentestStop { ticket: None });
    assert_eq!(changed(add(&mut engine, "203.0.113.7/32", HOUR)).0.len(), 1);
}

#[test]
fn of_several_networks_those_that_can_be_are_banned_and_the_others_named() {
    let (mut engine, _) = engine(&[], &["192.0.2.1/32"], Some("198.51.100.9/32"));
    engine.compare_with_kernel(epoch());
    let who = ["203.0.113.7/32", "192.0.2.0/24", "198.51.100.0/24", "2001:db8::7/128"];
    let (bans, _, undone) = changed(add_for(&mut engine, &who, HOUR, "", epoch()));
    assert_eq!(bans, [("203.0.113.7/32".to_owned(), 1), ("2001:db8::/64".to_owned(), 1)]);
    assert!(undone[0].contains("192.0.2.0/24") && undone[1].contains("198.51.100.0/24"), "{undone:?}");
    assert_eq!(kernel(&mut engine).len(), 2);
}

#[test]
fn an_order_that_the_kernel_did_not_hear_says_so() {
    let (mut engine, away) = engine(&[], &[], None);
    engine.compare_with_kernel(epoch());
    add_for(&mut engine, &["203.0.113.7/32", "203.0.113.8/32", "203.0.113.9/32"], HOUR, "", epoch());
    assert_eq!(changed(remove(&mut engine, "203.0.113.9/32")).2, [""; 0]);
    away.store(true, Ordering::Release);
    let (bans, _, undone) = changed(remove(&mut engine, "203.0.113.7/32"));
    assert_eq!(bans.len(), 1);
    assert!(undone[0].contains("the kernel was not told that they ended: helper on gone"), "{undone:?}");
    let (bans, _, undone) = changed(ask(&mut engine, Question::Clear));
    assert_eq!((bans.len(), undone.len()), (1, 1));
    let (bans, notes, undone) = changed(add(&mut engine, "203.0.113.10/32", HOUR));
    assert_eq!((bans.len(), undone.len()), (1, 0), "it holds in edge");
    assert!(notes[0].contains("kernel: out of reach: helper on gone"), "{notes:?}");
    away.store(false, Ordering::Release);
    engine.compare_with_kernel(epoch());
    assert_eq!(kernel(&mut engine), [("203.0.113.10/32".to_owned(), 3600)]);
}

#[test]
fn a_broken_disk_leaves_edge_without_the_file_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    // A file that SQLite cannot open as one: its log's place is taken by a folder.
    let file = folder.path().join("bans.db");
    drop(BanStore::open(&file, epoch()).unwrap());
    std::fs::create_dir(folder.path().join("bans.db-wal")).unwrap();
    let (store, restored) = super::open_store(&file).unwrap();
    assert!(store.is_none() && restored.bans.is_empty());
    let (engine, _) = engine(&[], &[], None);
    assert!(engine.enforcement.unkept().is_some());
    assert!(super::open_store(&folder.path().join("none/bans.db")).is_err(), "a mistake in the settings");
}

#[test]
fn a_ban_for_years_holds_in_the_kernel_as_long_as_the_helper_takes_it() {
    let (mut engine, _) = engine(&[], &[], None);
    engine.compare_with_kernel(epoch());
    add(&mut engine, "203.0.113.7/32", Duration::from_secs(3650 * 86_400));
    assert_eq!(kernel(&mut engine), [("203.0.113.7/32".to_owned(), 30 * 86_400)]);
    assert!(refused_at_the_door(&engine, "203.0.113.7"));
}

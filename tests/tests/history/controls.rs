//! What is known to be wrong, under the same checker: it must find the number that was given
//! twice. A control that passes shows that the checker checks nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::callers::Callers;
use crate::check::{Promise, faults};
use crate::door::Address;
use crate::history::{Act, History, Line, Outcome};
use crate::own_journals::OwnJournals;
use crate::postgres::Servers;

const SERIES: &str = "INV";

#[test]
fn control_two_journals_that_carry_on_alone_are_found_out() {
    let control = |cut: bool| {
        let pair = OwnJournals::start().unwrap();
        let history = History::new(&[]);
        let addresses = pair.sockets.map(|socket| Address { socket, tls: None });
        let callers = Callers::new(addresses, &[SERIES], &[], &history);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| callers.ask(1, 4, Duration::from_millis(20), &stop));
            std::thread::sleep(Duration::from_millis(700));
            pair.cut(cut);
            std::thread::sleep(Duration::from_millis(700));
            pair.cut(false);
            std::thread::sleep(Duration::from_millis(700));
            stop.store(true, Ordering::Relaxed);
        });
        callers.settle(Vec::new()).unwrap();
        let story = history.story();
        assert!(story.calls.iter().filter(|call| call.line().is_some()).count() > 20);
        faults(&story).into_iter().map(|fault| fault.promise).collect::<Vec<_>>()
    };
    let found = control(true);
    assert!(found.contains(&Promise::OneKey) && found.contains(&Promise::Kept), "{found:?}");
    // It is the cut that does it: the same servers, never parted, are blameless.
    assert_eq!(control(false), []);
}

#[test]
fn control_a_sequence_behind_a_synchronous_standby_is_found_out() {
    let mut servers = Servers::start().unwrap();
    servers.ask("primary", &format!("CREATE SEQUENCE {SERIES}")).unwrap();
    let history = History::new(&[SERIES]);
    let mut keys = 0;
    let mut draw = |servers: &Servers, place: usize| {
        keys += 1;
        let act = Act::Reserve { series: SERIES.to_owned(), key: format!("k{keys}"), ticket: None };
        let server = ["primary", "standby"][place];
        history.call(place, act, || {
            let drawn = servers.ask(server, &format!("SELECT nextval('{SERIES}')"));
            match drawn.and_then(|text| Ok(text.parse()?)) {
                Ok(number) => {
                    let (key, state) = (format!("k{keys}"), "reserved".to_owned());
                    Outcome::Number(Line { number, key, state, hash: None })
                }
                Err(error) => Outcome::Unknown(format!("{error:#}")),
            }
        })
    };
    // The first one writes ahead for 32 more; those after it write nothing.
    for _ in 0..33 {
        assert!(matches!(draw(&servers, 0), Outcome::Number(_)));
    }
    let receiver = servers.freeze_receiver().unwrap();
    // This one waits for the standby; those after it are answered at once.
    assert!(matches!(draw(&servers, 0), Outcome::Unknown(_)));
    for _ in 0..3 {
        assert!(matches!(draw(&servers, 0), Outcome::Number(_)));
    }
    assert_eq!(faults(&history.story()), [], "until here all is well");
    servers.kill_primary(receiver).unwrap();
    servers.promote().unwrap();
    for _ in 0..5 {
        assert!(matches!(draw(&servers, 1), Outcome::Number(_)));
    }
    let found: Vec<_> = faults(&history.story()).into_iter().map(|fault| fault.promise).collect();
    assert!(found.contains(&Promise::OneKey), "{found:?}");
}

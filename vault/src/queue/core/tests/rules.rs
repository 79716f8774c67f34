//! Single rules of the queues, where a history would not say which one is broken.

use std::sync::Arc;

use bytes::Bytes;

use crate::queue::core::{
    AckKind, Action, Core, Effect, Kept, Limits, PORTION, Page, Part, Refusal, Seen, Send,
};
use crate::queue::message::{AROUND, Destination, Id, Message, Placed};

pub(super) struct Bench {
    pub(super) core: Core,
    token: u64,
}

impl Bench {
    pub(super) fn new(limits: Limits) -> Self {
        Self::of(Core::new(limits, Kept::default()))
    }

    pub(super) fn of(core: Core) -> Self {
        Self { core, token: 0 }
    }

    fn send(&mut self, queue: &str, size: usize, transaction: Option<u64>) -> u64 {
        let destination = Destination::queue(queue).unwrap();
        self.post(destination, true, (size, 0), transaction)
    }

    fn send_as(&mut self, connection: u64, size: usize, transaction: u64) -> u64 {
        self.token += 1;
        let body = Bytes::from(vec![0; size]);
        let message = Message { name: "m".into(), at: 1, expiration: 0, marks: None, origin: None, body };
        let send = Send {
            destination: Destination::queue("a").unwrap(),
            persistent: true,
            priority: 4,
            producer: None,
            again: false,
            message: Arc::new(message),
        };
        self.core.send(self.token, connection, send, Some(transaction));
        self.token
    }

    /// A message of a size and an expiration.
    fn post(
        &mut self,
        destination: Destination,
        persistent: bool,
        (size, expiration): (usize, u64),
        transaction: Option<u64>,
    ) -> u64 {
        let body = Bytes::from(vec![0; size]);
        let message = Message { name: "m".into(), at: 1, expiration, marks: None, origin: None, body };
        self.post_as(destination, persistent, message, transaction)
    }

    pub(super) fn post_as(
        &mut self,
        destination: Destination,
        persistent: bool,
        message: Message,
        transaction: Option<u64>,
    ) -> u64 {
        self.token += 1;
        let send = Send {
            destination,
            persistent,
            priority: 4,
            producer: None,
            again: false,
            message: Arc::new(message),
        };
        self.core.send(self.token, 1, send, transaction);
        self.token
    }

    /// What is given away, as `(consumer, place)`.
    pub(super) fn given(&mut self) -> Vec<(u64, Id)> {
        self.core.committed(Part::All);
        self.core.dispatch(5);
        let effects = self.core.effects().into_iter();
        let given = effects.filter_map(|effect| match effect {
            Effect::Deliver { consumer, id, .. } => Some((consumer, id)),
            _ => None,
        });
        given.collect()
    }

    fn subscribe(&mut self, key: u64, queue: &str, prefetch: usize) -> Result<(), Refusal> {
        self.core.subscribe(1, key, &Destination::queue(queue).unwrap(), prefetch.into())
    }

    fn refused(&mut self, token: u64) -> Option<Refusal> {
        self.core.effects().into_iter().find_map(|effect| match effect {
            Effect::Answer(answered, Err(refusal)) if answered == token => Some(refusal),
            _ => None,
        })
    }
}

/// What a message with so large a body counts.
fn counted(body: usize) -> usize {
    body + "m".len() + AROUND
}

#[test]
fn queues_consumers_and_transactions_are_bounded() {
    let limits = Limits {
        queues: 3,
        consumers: 2,
        transactions: 2,
        transaction_messages: 2,
        uncommitted_bytes: 10_000,
        ..Limits::default()
    };
    let mut bench = Bench::new(limits);
    // That of dead letters is one of them.
    bench.subscribe(1, "a", 1).unwrap();
    bench.subscribe(2, "b", 1).unwrap();
    assert_eq!(bench.subscribe(3, "b", 1), Err(Refusal::TooManyConsumers { most: 2 }));
    let third = bench.send("c", 1, None);
    assert!(matches!(bench.refused(third), Some(Refusal::TooManyQueues { most: 3, .. })));
    bench.core.begin(1, 1).unwrap();
    bench.core.begin(1, 2).unwrap();
    bench.core.begin(1, 2).unwrap();
    assert_eq!(bench.core.begin(1, 3), Err(Refusal::TooManyTransactions { most: 2 }));
    let sent = [10, 10, 10].map(|size| bench.send("a", size, Some(1)));
    assert_eq!(bench.refused(sent[2]), Some(Refusal::TransactionTooBig));
    let sent = bench.send("a", 9_000, Some(2));
    assert_eq!(bench.refused(sent), Some(Refusal::TransactionTooBig));
    bench.core.rollback(1, 1).unwrap();
    let sent = bench.send("a", 100_000, Some(2));
    assert_eq!(bench.refused(sent), None, "one message may always be sent");
    bench.core.disconnect(1);
    assert_eq!(bench.core.memory_bytes(), 0);
}

#[test]
fn one_connection_leaves_as_much_for_the_others_as_it_has() {
    let mut bench = Bench::new(Limits { consumers: 100, queues: 100, ..Limits::default() });
    let temporary =
        |owner: u64, number: u64| Destination::temporary(&format!("ID:{owner}:{number}")).unwrap();
    for owner in 1..=3 {
        let made = (1..=100)
            .take_while(|number| bench.core.create_temporary(owner, &temporary(owner, *number)).is_ok());
        let made = made.count();
        let opens = |number: &u64| {
            let key = owner * 1_000 + number;
            bench.core.subscribe(owner, key, &Destination::queue("q").unwrap(), 1.into()).is_ok()
        };
        let opened = (1..=100).take_while(opens).count();
        let most = [50, 25, 13][usize::try_from(owner).unwrap() - 1];
        assert!(made + 2 >= most && made <= most && opened == most, "{owner}: {made}, {opened}");
    }
    let refused = bench.core.create_temporary(1, &temporary(1, 101)).unwrap_err();
    assert!(matches!(refused, Refusal::Share { what: "temporary queues", most: 100, .. }), "{refused}");
}

#[test]
fn a_consumer_that_never_acknowledges_holds_no_more_than_the_limit() {
    let mut bench = Bench::new(Limits { in_flight: 5, ..Limits::default() });
    bench.subscribe(1, "a", 1_000_000).unwrap();
    for _ in 0..20 {
        bench.send("a", 1, None);
    }
    let given = bench.given();
    assert_eq!(given.len(), 5);
    let range = (None, given[4].1);
    bench.core.passed_on(1, 5 * counted(1), 0);
    bench.core.acknowledge(1, range, AckKind::Delivered, None).unwrap();
    assert_eq!(bench.given(), [], "what it has only seen it still holds");
    bench.core.acknowledge(1, range, AckKind::Standard, None).unwrap();
    assert_eq!(bench.given().len(), 5);
}

#[test]
fn a_transaction_in_which_something_was_refused_is_rolled_back_at_its_commit() {
    let mut bench = Bench::new(Limits { transaction_messages: 1, ..Limits::default() });
    bench.subscribe(1, "a", 10).unwrap();
    bench.send("a", 10, None);
    let (_, id) = bench.given()[0];
    for refused_by in ["a send", "an acknowledgement"] {
        bench.core.begin(1, 7).unwrap();
        bench.send("b", 1, Some(7));
        let why = if refused_by == "a send" {
            bench.core.acknowledge(1, (None, id), AckKind::Standard, Some(7)).unwrap();
            bench.send("b", 1, Some(7));
            Refusal::TransactionTooBig
        } else {
            let stranger = (None, Id::from_number(1));
            bench.core.acknowledge(1, stranger, AckKind::Standard, Some(7)).unwrap_err()
        };
        bench.core.effects();
        bench.core.commit(99, 1, 7);
        assert_eq!(bench.refused(99), Some(why), "{refused_by}");
        bench.core.commit(100, 1, 7);
        assert_eq!(bench.refused(100), Some(Refusal::NoTransaction));
    }
    bench.core.acknowledge(1, (None, id), AckKind::Standard, None).unwrap();
    bench.subscribe(2, "b", 10).unwrap();
    assert_eq!(bench.given(), [], "nothing of it was sent");
}

#[test]
fn consumers_that_come_and_go_leave_nothing_behind() {
    let mut bench = Bench::new(Limits::default());
    bench.subscribe(1, "a", 10).unwrap();
    for key in 2..100 {
        bench.subscribe(key, "a", 10).unwrap();
        assert_eq!(bench.given(), []);
        bench.core.unsubscribe(key, Seen::Unknown);
    }
    let number = bench.core.find(&Destination::queue("a").unwrap()).unwrap();
    let line = &bench.core.lines[&number];
    assert_eq!((line.readers.len(), bench.core.consumers.len()), (1, 1));
}

#[test]
fn big_messages_wait_for_each_other_and_small_ones_for_nobody() {
    let mut bench = Bench::new(Limits { outgoing_bytes: 100_000, ..Limits::default() });
    for (key, queue) in [(1, "big"), (2, "big"), (3, "big"), (4, "big"), (5, "big"), (6, "small")] {
        bench.subscribe(key, queue, 10).unwrap();
    }
    (0..5).for_each(|_| {
        bench.send("big", 200_000, None);
    });
    bench.send("small", 10, None);
    let given: Vec<u64> = bench.given().into_iter().map(|(key, _)| key).collect();
    assert_eq!(given, [1, 2, 3, 4, 6], "a few may have one each, however large");
    bench.core.passed_on(3, counted(200_000), counted(200_000));
    let given: Vec<u64> = bench.given().into_iter().map(|(key, _)| key).collect();
    assert_eq!(given.len(), 1, "{given:?}");
    // A consumer that leaves makes room as well.
    bench.send("big", 90_000, None);
    assert_eq!(bench.given(), []);
    bench.core.unsubscribe(2, Seen::Nothing);
    assert_eq!(bench.given().len(), 1, "to one who has nothing under way");
}

#[test]
fn who_does_not_read_a_large_message_does_not_stop_others_from_reading_theirs() {
    let mut bench = Bench::new(Limits { outgoing_bytes: 100_000, ..Limits::default() });
    bench.subscribe(1, "slow", 10).unwrap();
    bench.send("slow", 200_000, None);
    assert_eq!(bench.given().len(), 1);
    bench.subscribe(2, "quick", 10).unwrap();
    for _ in 0..10 {
        bench.send("quick", 150_000, None);
        assert_eq!(bench.given().len(), 1);
        bench.core.passed_on(2, counted(150_000), counted(150_000));
    }
}

#[test]
fn all_consumers_together_hold_no_more_than_the_limit_and_each_has_its_least_share() {
    let limits = Limits { flights: 10, consumers: 5, in_flight: 100, ..Limits::default() };
    let mut bench = Bench::new(limits);
    bench.subscribe(1, "a", 100).unwrap();
    (0..30).for_each(|_| {
        bench.send("a", 1, None);
    });
    let first = bench.given();
    assert_eq!(first.len(), 10, "one may hold all");
    bench.subscribe(2, "a", 100).unwrap();
    assert_eq!(bench.given().len(), 2, "and the next one its share");
    bench.core.passed_on(1, 10 * counted(1), 0);
    bench.core.acknowledge(1, (None, first[8].1), AckKind::Standard, None).unwrap();
    let more = bench.given();
    assert_eq!(more.len(), 7, "as many as there is room for again");
    assert!([1, 2].map(|key| more.iter().filter(|(to, _)| *to == key).count()).iter().all(|got| *got >= 3));
}

#[test]
fn what_is_delivered_is_walked_once_however_often_it_is_said() {
    let mut bench = Bench::new(Limits::default());
    bench.subscribe(1, "a", 3).unwrap();
    (0..9).for_each(|_| {
        bench.send("a", 1, None);
    });
    let mut given = bench.given();
    for turn in 0..6 {
        bench.core.passed_on(1, 3 * counted(1), 0);
        bench.core.acknowledge(1, (None, given[turn].1), AckKind::Delivered, None).unwrap();
        let more = bench.given();
        assert_eq!(more.len(), 1, "each makes room for one");
        given.extend(more);
        // What was said before makes no more room.
        bench.core.acknowledge(1, (None, given[0].1), AckKind::Delivered, None).unwrap();
        assert_eq!(bench.given(), []);
    }
}

#[test]
fn a_window_holds_what_is_most_urgent_and_no_more() {
    let cached_bytes = 5 * counted(10);
    let limits = Limits { window_messages: 10, window_bytes: 1 << 20, cached_bytes, ..Limits::default() };
    let mut bench = Bench::new(limits);
    for _ in 0..100 {
        bench.send("a", 10, None);
    }
    assert_eq!(bench.given(), []);
    bench.subscribe(1, "a", 100).unwrap();
    let given = bench.core.effects();
    assert_eq!(given, []);
    bench.core.dispatch(5);
    let effects = bench.core.effects();
    let loads: Vec<_> = effects.iter().filter(|effect| matches!(effect, Effect::Load { .. })).collect();
    assert_eq!(
        (effects.len() - loads.len(), loads.len()),
        (5, 1),
        "there is room for 5 messages with all that is around them; then the disk"
    );
}

#[test]
fn what_was_for_a_temporary_queue_that_ended_reaches_no_other() {
    let mut bench = Bench::new(Limits::default());
    let [alice, bob] = ["alice", "bob"].map(|name| Destination::temporary(name).unwrap());
    bench.core.create_temporary(2, &alice).unwrap();
    for transaction in [7, 8] {
        bench.core.begin(1, transaction).unwrap();
        bench.post(alice.clone(), false, (10, 0), Some(transaction));
    }
    // One is staged when the queue ends, one is still open.
    bench.core.commit(98, 1, 7);
    let number = bench.core.find(&alice);
    bench.core.disconnect(2);
    bench.core.create_temporary(3, &bob).unwrap();
    assert_eq!(bench.core.find(&bob), number, "the number is given out again");
    bench.core.subscribe(3, 9, &bob, 10.into()).unwrap();
    bench.core.commit(99, 1, 8);
    assert_eq!(bench.given(), []);
    assert_eq!(bench.core.memory_bytes(), 0);
    bench.post(bob, false, (10, 0), None);
    assert_eq!(bench.given().len(), 1, "its own it gets");
}

#[test]
fn a_commit_that_would_overfill_the_memory_is_refused() {
    let mut bench = Bench::new(Limits { resident_bytes: 100, ..Limits::default() });
    let orders = Destination::queue("a").unwrap();
    let mut committed = Vec::new();
    for transaction in 1..=3 {
        bench.core.begin(1, transaction).unwrap();
        bench.post(orders.clone(), false, (120, 0), Some(transaction));
        bench.core.commit(1_000 + transaction, 1, transaction);
        bench.core.committed(Part::All);
        committed.push(bench.refused(1_000 + transaction));
    }
    let refused = Some(Refusal::MemoryFull);
    assert_eq!(committed, [None, refused.clone(), refused], "one may pass when there is nothing yet");
    assert_eq!(bench.core.memory_bytes(), counted(120));
}

#[test]
fn an_expired_backlog_is_buried_with_many_commits() {
    let mut bench = Bench::new(Limits { window_messages: 10_000, ..Limits::default() });
    let orders = Destination::queue("a").unwrap();
    for _ in 0..3_000 {
        bench.post(orders.clone(), true, (10, 2), None);
    }
    assert_eq!(bench.given(), []);
    bench.subscribe(1, "a", 10).unwrap();
    let mut buried = Vec::new();
    while buried.len() < 4 {
        bench.core.dispatch(5);
        buried.push(bench.core.owed());
        bench.core.committed(Part::All);
    }
    assert_eq!(buried, [1_024, 1_024, 952, 0]);
}

#[test]
fn nothing_is_moved_to_a_temporary_queue() {
    let mut bench = Bench::new(Limits::default());
    let reply = Destination::temporary("reply").unwrap();
    bench.core.create_temporary(1, &reply).unwrap();
    bench.core.act(99, &[], &[], &Action::Move(reply.clone()));
    assert_eq!(bench.refused(99), Some(Refusal::NotYours { destination: reply }));
}

#[test]
fn what_is_kept_on_disk_comes_before_what_was_sent_later_and_is_not_kept() {
    let mut bench = Bench::new(Limits { cached_bytes: 0, ..Limits::default() });
    let orders = Destination::queue("a").unwrap();
    bench.post(orders.clone(), true, (10, 0), None);
    assert_eq!(bench.given(), []);
    bench.post(orders, false, (10, 0), None);
    bench.subscribe(1, "a", 10).unwrap();
    bench.core.dispatch(5);
    let effects = bench.core.effects();
    assert!(matches!(effects[..], [Effect::Answer(..), Effect::Load { .. }]), "{effects:?}");
}

#[test]
fn bodies_that_are_read_are_kept_in_all_queues_together_as_the_limit_says() {
    let mut bench = Bench::new(Limits { cached_bytes: 0, ..Limits::default() });
    bench.send("a", 10, None);
    assert_eq!(bench.given(), []);
    bench.subscribe(1, "a", 10).unwrap();
    bench.core.dispatch(5);
    let load = bench.core.effects().into_iter().find_map(|effect| match effect {
        Effect::Load { level, after, .. } => Some((level, after)),
        _ => None,
    });
    let (level, after) = load.unwrap();
    let body = Bytes::from(vec![0; 10]);
    let message = Message { name: "m".into(), at: 1, expiration: 0, marks: None, origin: None, body };
    let placed = Placed { id: level.place(after + 1), persistent: true, message: Arc::new(message) };
    bench.core.loaded(level, Some(Page { placed: vec![placed], damaged: Vec::new() }));
    assert_eq!(bench.core.cached, 0, "it is read again when it is given away");
    assert_eq!(bench.given().len(), 1);
}

#[test]
fn an_open_transaction_holds_no_senders() {
    let mut bench = Bench::new(Limits::default());
    bench.core.begin(1, 7).unwrap();
    bench.post(Destination::queue("a").unwrap(), false, (1_000, 0), Some(7));
    assert_eq!((bench.core.memory_bytes(), bench.core.resident_bytes()), (counted(1_000), 0));
}

#[test]
fn one_connection_leaves_room_for_what_others_send_in_transactions() {
    let mut bench = Bench::new(Limits { uncommitted_bytes: 20 * counted(50), ..Limits::default() });
    for connection in 1..=6 {
        bench.core.begin(connection, 1).unwrap();
    }
    let mut sent = |connection| {
        let mut count = 0;
        loop {
            let token = bench.send_as(connection, 50, 1);
            match bench.refused(token) {
                None => count += 1,
                Some(refusal) => {
                    assert_eq!(refusal, Refusal::TransactionTooBig);
                    return count;
                }
            }
        }
    };
    assert_eq!([1, 2, 3, 4, 5].map(&mut sent), [5, 5, 5, 5, 0], "a quarter each");
    bench.core.rollback(1, 1).unwrap();
    let token = bench.send_as(6, 200, 1);
    assert_eq!(bench.refused(token), None);
    assert!((2..=6).all(|connection| bench.core.disconnect(connection)));
    assert_eq!(bench.core.memory_bytes(), 0);
}

#[test]
fn queues_that_nobody_uses_are_forgotten_and_those_in_use_are_not() {
    let mut bench = Bench::new(Limits { queues: 8, ..Limits::default() });
    let names = ["full", "read", "sent to", "staged", "held", "empty", "once"];
    for name in names {
        bench.subscribe(1, name, 10).unwrap();
        bench.core.unsubscribe(1, Seen::Nothing);
    }
    bench.send("full", 1, None);
    bench.subscribe(2, "read", 10).unwrap();
    bench.core.begin(1, 7).unwrap();
    bench.send("sent to", 1, Some(7));
    bench.send("held", 1, None);
    bench.subscribe(3, "held", 10).unwrap();
    let (_, held) = bench.given()[0];
    bench.core.begin(1, 8).unwrap();
    bench.core.acknowledge(3, (None, held), AckKind::Standard, Some(8)).unwrap();
    bench.core.unsubscribe(3, Seen::Nothing);
    bench.send("staged", 1, None);
    assert_eq!(bench.core.list().len(), 8);
    assert!(!bench.core.forget_unused(5) && bench.core.forget_unused(5), "in steps");
    assert_eq!(bench.core.list().len(), 8, "all were used since they were looked at last");
    while !bench.core.forget_unused(3) {}
    let left = |bench: &Bench| {
        let list = bench.core.list();
        list.iter().map(|queue| queue.destination.name().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(left(&bench), ["ActiveMQ.DLQ", "full", "held", "read", "sent to", "staged"]);
    for name in ["new", "newer", "newest"] {
        bench.subscribe(4, name, 10).unwrap();
        bench.core.unsubscribe(4, Seen::Nothing);
    }
    assert_eq!(left(&bench).len(), 8, "where there are too many, one that is not in use makes room at once");
    assert!(left(&bench).contains(&"newest".to_owned()));
    bench.core.committed(Part::All);
    assert!(bench.core.is_clean());
}

#[test]
fn reasons_of_poison_do_not_fill_the_memory_while_the_disk_is_full() {
    let mut bench = Bench::new(Limits { outgoing_bytes: 64 << 20, ..roomy() });
    bench.subscribe(1, "a", 10_000).unwrap();
    (0..5_000).for_each(|_| {
        bench.send("a", 0, None);
    });
    let given = bench.given();
    for (_, id) in given {
        let why = Some("x".repeat(1_000));
        bench.core.acknowledge(1, (Some(id), id), AckKind::Poison(why), None).unwrap();
    }
    let writes = bench.core.writes(Part::All);
    assert_eq!(writes.moves.len(), 5_000, "each is a dead letter");
    let reasons = writes.moves.iter().filter_map(|step| step.origin.as_ref()?.cause.why());
    assert_eq!(reasons.count(), 4_096);
}

#[test]
fn a_unit_that_cannot_be_written_fails_alone() {
    let mut bench = Bench::new(Limits::default());
    let sent = [1, 2, 3].map(|size| bench.send("a", size, None));
    bench.core.committed(Part::Owed);
    let mut stored = Vec::new();
    for fails in [false, true, false] {
        let writes = bench.core.writes(Part::First);
        if fails {
            bench.core.failed(Part::First, "too large");
        } else {
            stored.extend(writes.stores.iter().map(|placed| placed.message.body.len()));
            bench.core.committed(Part::First);
        }
    }
    assert_eq!(stored, [1, 3]);
    let answers: Vec<(u64, bool)> = bench
        .core
        .effects()
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Answer(token, answer) => Some((token, answer.is_ok())),
            _ => None,
        })
        .collect();
    assert_eq!(answers, [(sent[0], true), (sent[1], false), (sent[2], true)]);
    bench.subscribe(1, "a", 10).unwrap();
    assert_eq!(bench.given().len(), 2);
}

#[test]
fn what_a_producer_sent_after_what_could_not_be_written_fails_with_it() {
    let mut bench = Bench::new(Limits::default());
    let mut sent = |name: &str, number| {
        let body = Bytes::from_static(b"m");
        let message = Message { name: "m".into(), at: 1, expiration: 0, marks: None, origin: None, body };
        let send = Send {
            destination: Destination::queue("a").unwrap(),
            persistent: true,
            priority: 4,
            producer: Some((name.into(), number)),
            again: true,
            message: Arc::new(message),
        };
        bench.token += 1;
        bench.core.send(bench.token, 1, send, None);
        bench.token
    };
    let tokens = [sent("p", 1), sent("q", 1), sent("p", 1), sent("p", 2)];
    bench.core.failed(Part::First, "too large");
    bench.core.committed(Part::First);
    assert!(!bench.core.is_awaited());
    let refused: Vec<u64> = bench
        .core
        .effects()
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Answer(token, Err(_)) => Some(token),
            _ => None,
        })
        .collect();
    let words = "or the first, asked for again at once or later, would pass for kept";
    assert_eq!(refused, [tokens[3], tokens[2], tokens[0]], "{words}");
}

/// All of the queues' waiting messages are in memory.
fn roomy() -> Limits {
    Limits { window_messages: 10_000, window_bytes: 64 << 20, cached_bytes: 64 << 20, ..Limits::default() }
}

#[test]
fn what_a_consumer_held_goes_back_in_portions_and_nothing_overtakes_it() {
    let mut bench = Bench::new(roomy());
    let all = 2 * PORTION + 100;
    bench.subscribe(1, "a", all).unwrap();
    for _ in 0..all {
        bench.send("a", 1, None);
    }
    let mut held = Vec::new();
    while let more @ [_, ..] = &bench.given()[..] {
        held.extend(more.iter().map(|(_, id)| *id));
        bench.core.passed_on(1, more.len() * counted(1), 0);
    }
    assert_eq!(held.len(), all);
    bench.send("a", 1, None);
    bench.subscribe(2, "a", 10_000).unwrap();
    // One is taken by the newcomer before the other ends.
    let taken = bench.given();
    assert_eq!(taken.len(), 1);
    for _ in 0..2 {
        assert!(!bench.core.unsubscribe(1, Seen::UpTo(held[0])), "a portion at a time");
        bench.send("a", 1, None);
        assert_eq!(bench.given(), [], "not before those in front of it");
    }
    assert!(bench.core.unsubscribe(1, Seen::Nothing));
    let mut back = Vec::new();
    while let more @ [_, ..] = &bench.given()[..] {
        back.extend(more.iter().map(|(_, id)| *id));
        bench.core.passed_on(2, more.len() * counted(1), 0);
    }
    assert_eq!((back.len(), &back[..all]), (all + 2, &held[..]));
    assert!(bench.core.unsubscribe(1, Seen::Nothing), "it is over");
}

#[test]
fn a_connection_that_held_much_ends_in_portions() {
    let mut bench = Bench::new(roomy());
    let all = PORTION + 100;
    for (key, queue) in [(1, "a"), (2, "b")] {
        bench.subscribe(key, queue, all).unwrap();
        for _ in 0..all {
            bench.send(queue, 1, None);
        }
        while let more @ [_, ..] = &bench.given()[..] {
            bench.core.passed_on(key, more.len() * counted(1), 0);
        }
    }
    let ends = (0..10).find(|_| bench.core.disconnect(1));
    assert!((3..6).contains(&ends.unwrap()), "{ends:?}");
    assert!(bench.core.list().iter().all(|queue| queue.consumers == 0 && queue.in_flight == 0));
    assert_eq!(bench.core.list().iter().map(|queue| queue.depth).sum::<u64>(), 2 * all as u64);
}

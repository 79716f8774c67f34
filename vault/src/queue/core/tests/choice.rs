//! Who gets which message: priorities, exclusive consumers, groups and bridges' filters, one rule
//! each.

use std::sync::Arc;

use bytes::Bytes;

use super::rules::Bench;
use crate::queue::core::{AckKind, Core, Effect, Filter, Kept, Limits, Page, Part, Row, Seen, Terms};
use crate::queue::message::{Destination, Id, Level, Marks, Message, Placed};

fn orders() -> Destination {
    Destination::queue("orders").unwrap()
}

fn message(marks: Option<Arc<Marks>>) -> Message {
    let body = Bytes::from_static(b"0123456789");
    Message { name: "m".into(), at: 1, expiration: 0, marks, origin: None, body }
}

fn passed(path: &[&str]) -> Option<Arc<Marks>> {
    Marks::new(None, 0, path.iter().copied())
}

impl Bench {
    fn read(&mut self, key: u64, terms: Terms) {
        self.core.subscribe(key, key, &orders(), terms).unwrap();
    }

    /// One message of that group; a sequence below 0 closes it.
    fn group(&mut self, group: &str, sequence: i32) {
        let marks = Marks::new(Some(group), sequence, []);
        self.post_as(orders(), true, message(marks), None);
    }

    fn plain(&mut self, count: usize) {
        (0..count).for_each(|_| {
            self.post_as(orders(), true, message(None), None);
        });
    }

    /// Who is given something, in turn.
    fn served(&mut self) -> Vec<u64> {
        self.given().into_iter().map(|(key, _)| key).collect()
    }

    fn finish(&mut self, key: u64, id: Id) {
        self.core.passed_on(key, usize::MAX, 0);
        self.core.acknowledge(key, (Some(id), id), AckKind::Standard, None).unwrap();
    }
}

#[test]
fn a_higher_priority_is_served_first_and_the_lower_once_it_has_no_room() {
    let mut bench = Bench::new(Limits::default());
    for (key, priority) in [(1, 0), (2, 7), (3, 7), (4, -5)] {
        bench.read(key, Terms { priority, ..Terms::from(2) });
    }
    bench.plain(7);
    assert_eq!(bench.served(), [2, 3, 2, 3, 1, 1, 4]);
}

#[test]
fn an_exclusive_consumer_has_all_even_while_it_has_no_room_and_the_next_one_follows_it() {
    let mut bench = Bench::new(Limits::default());
    bench.read(1, 1.into());
    for (key, priority) in [(2, 0), (3, 0), (4, -1)] {
        bench.read(key, Terms { exclusive: true, priority, ..Terms::from(2) });
    }
    bench.plain(4);
    assert_eq!(bench.served(), [2, 2]);
    assert_eq!(bench.served(), [0; 0], "nobody else, though it is full");
    bench.core.unsubscribe(2, Seen::Nothing);
    assert_eq!(bench.served(), [3, 3], "of one priority the one that came first");
    bench.read(5, Terms { exclusive: true, priority: 1, ..Terms::from(1) });
    assert_eq!(bench.served(), [5], "a higher priority takes it over");
    for key in [5, 3, 4] {
        bench.core.unsubscribe(key, Seen::Nothing);
    }
    assert_eq!(bench.served(), [1], "without any the others are served");
}

#[test]
fn a_group_is_one_consumers_until_it_ends_or_is_closed() {
    let mut bench = Bench::new(Limits::default());
    bench.read(1, 10.into());
    bench.read(2, 10.into());
    for _ in 0..3 {
        bench.group("a", 1);
        bench.group("b", 1);
    }
    assert_eq!(bench.served(), [1, 2, 1, 2, 1, 2]);
    bench.group("a", -1);
    bench.group("a", 1);
    assert_eq!(bench.served(), [1, 2], "closed by its last message, it is anybody's");
    bench.core.unsubscribe(2, Seen::Nothing);
    assert_eq!(bench.served(), [1; 4], "what it had of both groups, and they with it");
}

#[test]
fn a_group_whose_consumer_has_no_room_waits_for_it_and_holds_nobody_else_back() {
    let mut bench = Bench::new(Limits { window_messages: 5, scanned_rows: 7, ..Limits::default() });
    bench.read(1, 1.into());
    bench.group("a", 1);
    let (_, first) = bench.given()[0];
    bench.read(2, 100.into());
    (0..50).for_each(|_| bench.group("a", 1));
    bench.group("b", 1);
    bench.core.committed(Part::All);
    let mut journal = Rows::of(&bench.core, 50, "a");
    journal.rows.push(row(journal.rows[49].id.next(), Marks::new(Some("b"), 1, [])));
    assert_eq!(journal.serve(&mut bench.core), [2], "behind all that are not its own");
    bench.finish(1, first);
    assert_eq!(journal.serve(&mut bench.core), [1], "and its owner goes on with the oldest");
    bench.core.unsubscribe(1, Seen::Nothing);
    assert_eq!(journal.serve(&mut bench.core), [2; 50], "nobody's, they are for whoever is there");
}

#[test]
fn a_bridge_is_not_given_what_passed_its_broker_or_too_many() {
    let mut bench = Bench::new(Limits::default());
    bench.read(1, Terms { filter: Some(Filter::new("ID:far", 2)), ..Terms::from(10) });
    for path in [&["ID:far"][..], &[], &["ID:other"], &["ID:other", "ID:more"]] {
        bench.post_as(orders(), true, message(passed(path)), None);
    }
    let given: Vec<u64> = bench.given().into_iter().map(|(_, id)| id.sequence()).collect();
    assert_eq!(given.len(), 2);
    assert_eq!(given[1], given[0] + 1, "the second and the third");
    bench.read(2, 10.into());
    assert_eq!(bench.served(), [2, 2], "others are");
    bench.read(3, Terms { filter: Some(Filter::new("ID:far", -1)), ..Terms::from(10) });
    bench.core.unsubscribe(2, Seen::Nothing);
    assert_eq!(bench.served(), [3], "below 0 is no limit");
}

#[test]
fn what_is_declined_is_looked_at_once_however_much_it_is_and_hides_nothing() {
    const DECLINED: u64 = 100_000;
    let level = Level::new(1, 4);
    let kept = Kept {
        next: DECLINED + 1,
        queues: vec![(1, orders())],
        levels: vec![(level, DECLINED, 266 * DECLINED)],
        ..Kept::default()
    };
    let mut bench = Bench::of(Core::new(Limits::default(), kept));
    let marks = passed(&["ID:far"]);
    let rows = (1..=DECLINED).map(|number| row(level.place(number), marks.clone())).collect();
    let mut journal = Rows { rows, read: 0 };
    bench.read(1, Terms { filter: Some(Filter::new("ID:far", -1)), ..Terms::from(1_000) });
    assert_eq!(journal.serve(&mut bench.core), [0; 0]);
    assert_eq!(journal.read, 100_000, "each once");
    for _ in 0..50 {
        bench.plain(1);
        bench.core.committed(Part::All);
        let id = level.place(bench.core.position() - 1);
        journal.rows.push(row(id, None));
        assert_eq!(journal.serve(&mut bench.core), [1]);
        bench.finish(1, id);
    }
    assert_eq!(journal.read, 100_050, "and only what is new after that");
    bench.read(2, 3.into());
    assert_eq!(journal.serve(&mut bench.core), [2; 3], "others begin at the front");
}

/// A journal that answers what the core wants to read.
struct Rows {
    rows: Vec<Row>,
    read: usize,
}

impl Rows {
    /// As many messages of a group as were sent last.
    fn of(core: &Core, count: u64, group: &str) -> Self {
        let number = core.find(&orders()).unwrap();
        let last = core.position() - 2;
        let marks = Marks::new(Some(group), 1, []);
        let places = (last - count + 1..=last).map(|sequence| Level::new(number, 4).place(sequence));
        Self { rows: places.map(|id| row(id, marks.clone())).collect(), read: 0 }
    }

    /// Does all that the core wants; tells who was served.
    fn serve(&mut self, core: &mut Core) -> Vec<u64> {
        let mut served = Vec::new();
        loop {
            core.committed(Part::All);
            core.dispatch(5);
            let effects = core.effects();
            if effects.is_empty() {
                return served;
            }
            for effect in effects {
                match effect {
                    Effect::Load { level, after, messages, .. } => {
                        let placed = |row: Row| Placed {
                            id: row.id,
                            persistent: true,
                            message: Arc::new(message(row.marks)),
                        };
                        let placed = self.page(level, after, messages).into_iter().map(placed).collect();
                        core.loaded(level, Some(Page { placed, damaged: Vec::new() }));
                    }
                    Effect::Scan { level, after, rows } => {
                        let page = self.page(level, after, rows);
                        core.scanned(level, after, Some(&page));
                    }
                    Effect::Deliver { consumer, .. } => served.push(consumer),
                    Effect::Answer(..) => {}
                }
            }
        }
    }

    fn page(&mut self, level: Level, after: u64, most: usize) -> Vec<Row> {
        let from = self.rows.partition_point(|row| row.id <= level.place(after));
        let page: Vec<Row> = self.rows[from..].iter().take(most).cloned().collect();
        self.read += page.len();
        page
    }
}

fn row(id: Id, marks: Option<Arc<Marks>>) -> Row {
    Row { id, size: 266, epitaph: 0, at: 1, expiration: 0, marks, origin: None }
}

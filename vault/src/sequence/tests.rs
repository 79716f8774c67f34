//! Two rooms in one process, told through the front door: who gives what, together and apart.

mod apart;
mod long_apart;

use std::sync::atomic::{AtomicUsize, Ordering};

use shared::api::NumberState;

use super::book::Refused;
use super::*;

/// Two rooms in one process, joined by a link that can be cut.
pub(super) struct Two {
    pub(super) rooms: [Sequence; 2],
    events: [Events; 2],
    /// Nothing is heard before both sides know of the connection, as on a real one.
    open: tokio::sync::watch::Sender<bool>,
    /// Which connection it is: what was said on an earlier one is heard no more.
    connection: Arc<AtomicUsize>,
    /// How often a room has ended the connection.
    hung_up: Arc<AtomicUsize>,
    shutdown: Shutdown,
    folder: tempfile::TempDir,
}

pub(super) fn two() -> Two {
    two_in(tempfile::tempdir().unwrap())
}

/// As [`two`], with the journals that lie there.
fn two_in(folder: tempfile::TempDir) -> Two {
    let (hung_up, shutdown) = (Arc::new(AtomicUsize::new(0)), Shutdown::new());
    let connection = Arc::new(AtomicUsize::new(0));
    let (to_a, mut from_b) = mpsc::unbounded_channel::<(usize, Bytes)>();
    let (to_b, mut from_a) = mpsc::unbounded_channel::<(usize, Bytes)>();
    let others: [Arc<std::sync::OnceLock<Sequence>>; 2] = Default::default();
    let start = |own: &str, to: mpsc::UnboundedSender<(usize, Bytes)>| {
        let settings = Settings {
            journal: folder.path().join(format!("{own}.db")),
            own: own.to_owned(),
            peer: if own == "a" { "b" } else { "a" }.to_owned(),
            owner: "a".to_owned(),
            run: run_folder::run_folder(None, std::path::Path::new("/proc/control.sock")),
            database: None,
        };
        let other = Arc::clone(&others[usize::from(own == "b")]);
        let forward: Forward = Arc::new(move |body| {
            let room = other.get().cloned();
            Box::pin(
                async move { room.ok_or(Unheard::Away)?.forwarded(body).await.map_err(|_| Unheard::Unknown) },
            )
        });
        let on = Arc::clone(&connection);
        let tell: Tell = Box::new(move |body| to.send((on.load(Ordering::SeqCst), body)).is_ok());
        let ended = Arc::clone(&hung_up);
        let hang_up: HangUp = Box::new(move || {
            ended.fetch_add(1, Ordering::SeqCst);
        });
        Sequence::start(&settings, &Registry::new(), tell, hang_up, forward, shutdown.clone()).unwrap()
    };
    let (a, events_a) = start("a", to_b);
    let (b, events_b) = start("b", to_a);
    for (other, room) in others.iter().zip([&b, &a]) {
        assert!(other.set(room.clone()).is_ok());
    }
    let (hear_a, hear_b) = (events_a.clone(), events_b.clone());
    let open = tokio::sync::watch::Sender::new(false);
    let (mut open_a, mut open_b) = (open.subscribe(), open.subscribe());
    let [on_a, on_b] = [Arc::clone(&connection), Arc::clone(&connection)];
    tokio::spawn(async move {
        while let Some((said_on, body)) = from_b.recv().await {
            open_a.wait_for(|open| *open).await.unwrap();
            if said_on == on_a.load(Ordering::SeqCst) {
                hear_a.told(body).await;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((said_on, body)) = from_a.recv().await {
            open_b.wait_for(|open| *open).await.unwrap();
            if said_on == on_b.load(Ordering::SeqCst) {
                hear_b.told(body).await;
            }
        }
    });
    Two { rooms: [a, b], events: [events_a, events_b], open, connection, hung_up, shutdown, folder }
}

impl Two {
    /// Ends both, and leaves their journals.
    async fn stop(self) -> tempfile::TempDir {
        self.shutdown.cancel();
        for room in &self.rooms {
            room.work.closed().await;
        }
        self.folder
    }
    pub(super) async fn connect(&self) {
        self.meet().await;
        while !self.rooms.iter().all(|room| room.status().together) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    /// They hear each other, whatever comes of it.
    async fn meet(&self) {
        for events in &self.events {
            events.up().await;
        }
        self.open.send_replace(true);
    }
    /// Neither hears the other any more, and nobody is told so.
    pub(super) fn mute(&self) {
        self.open.send_replace(false);
    }
    async fn hang_up(&self) {
        self.open.send_replace(false);
        for events in &self.events {
            let (noted, note) = oneshot::channel();
            events.down(noted).await;
            note.await.unwrap_err();
        }
        self.connection.fetch_add(1, Ordering::SeqCst);
    }
    pub(super) async fn cut(&self) {
        self.hang_up().await;
        while self.rooms.iter().any(|room| room.status().together) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn invoices() -> SeriesName {
    SeriesName { owner: "erp".to_owned(), series: "INV".to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn either_vault_gives_numbers_while_both_are_together_and_none_while_apart() {
    let two = two();
    let [a, b] = &two.rooms;
    let away = a.reserve(invoices(), "k0".to_owned(), None).await.unwrap_err();
    assert!(matches!(away, SequenceError::Apart(_)), "{away:?}");
    two.connect().await;
    let first = a.reserve(invoices(), "k1".to_owned(), None).await.unwrap();
    let second = b.reserve(invoices(), "k2".to_owned(), None).await.unwrap();
    assert_eq!((first.number.number, second.number.number, second.fresh), (1, 2, true));
    let confirmed = b.confirm(invoices(), 1, "hash".to_owned()).await.unwrap();
    assert_eq!(confirmed.number.state, NumberState::Confirmed);
    two.cut().await;
    let again = a.reserve(invoices(), "k1".to_owned(), None).await.unwrap();
    assert_eq!((again.number.number, again.fresh), (1, false));
    let apart = b.reserve(invoices(), "k3".to_owned(), None).await.unwrap_err();
    assert_eq!(
        apart.to_string(),
        "numbers need both vaults: the other vault is away; nothing was given, the same key may be tried again"
    );
    two.connect().await;
    assert_eq!(b.reserve(invoices(), "k3".to_owned(), None).await.unwrap().number.number, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn they_are_together_only_as_long_as_each_hears_the_other() {
    let two = two();
    let [a, b] = &two.rooms;
    assert!(!a.are_together().await && !b.are_together().await, "they have never met");
    two.connect().await;
    assert!(a.are_together().await && b.are_together().await);
    // Both still believe in the session; what one believes is not enough.
    two.mute();
    assert!(two.rooms.iter().all(|room| room.status().together));
    assert!(!a.are_together().await && !b.are_together().await, "nobody hears the other");
    two.cut().await;
    assert!(!a.are_together().await && !b.are_together().await);
    two.connect().await;
    assert!(a.are_together().await && b.are_together().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_callers_at_once_get_consecutive_numbers() {
    let two = two();
    two.connect().await;
    let calls: Vec<_> = (0..1000)
        .map(|call| {
            let room = two.rooms[call % 2].clone();
            tokio::spawn(async move {
                room.reserve(invoices(), format!("k{call}"), None).await.unwrap().number.number
            })
        })
        .collect();
    let mut numbers = Vec::new();
    for call in calls {
        numbers.push(call.await.unwrap());
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=1000).collect::<Vec<u64>>());
}

async fn define(room: &Sequence, definition: Definition) -> Result<Definition, SequenceError> {
    room.define(invoices(), definition).await
}

/// Waits until ranges are granted, and known so to that vault.
async fn set_aside(room: &Sequence) {
    for _ in 0..500 {
        let survey = room.survey(invoices(), false).await.unwrap().unwrap();
        if survey.counts[0].ranges.len() == 2 && room.status().final_entries >= room.status().entries {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no ranges were set aside");
}

fn key(number: usize) -> String {
    format!("{number:x<250}")
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_keys_in_one_call_get_one_number_each_and_others_are_served_meanwhile() {
    let two = two();
    two.connect().await;
    for (place, room) in two.rooms.iter().enumerate() {
        let name = SeriesName { owner: "erp".to_owned(), series: format!("BATCH{place}") };
        let keys: Vec<_> = (0..10_000).map(|number| (key(number), None)).collect();
        let batch = tokio::spawn({
            let (room, name, keys) = (room.clone(), name.clone(), keys.clone());
            async move { room.reserve_all(&name, keys).await }
        });
        let mut singles = 0;
        while !batch.is_finished() {
            let single = format!("single-{place}-{singles}");
            room.reserve(invoices(), single, None).await.unwrap();
            singles += 1;
        }
        let outcomes = batch.await.unwrap();
        let mut numbers: Vec<_> =
            outcomes.into_iter().map(|outcome| outcome.unwrap().number.number).collect();
        assert!(numbers.is_sorted(), "they come in the order of their keys");
        numbers.dedup();
        assert_eq!(numbers, (1..=10_000).collect::<Vec<u64>>());
        assert!(singles > 10, "only {singles} single callers were served meanwhile");
        let again = room.reserve_all(&name, keys).await;
        assert!(again.iter().all(|outcome| outcome.as_ref().is_ok_and(|done| !done.fresh)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_series_is_counted_anew_in_each_period_and_its_numbers_read_as_its_pattern_says() {
    let two = two();
    let yearly = Definition { pattern: Some("R-{year}-{n:04}".to_owned()), ..Definition::default() };
    let apart = define(&two.rooms[0], yearly.clone()).await.unwrap_err();
    assert!(matches!(apart, SequenceError::Unchanged(_)), "{apart:?}");
    two.connect().await;
    assert_eq!(define(&two.rooms[1], yearly.clone()).await.unwrap(), yearly);
    for (place, room) in two.rooms.iter().enumerate() {
        let name = |period| room.series_of("erp".to_owned(), "INV", period);
        for (period, year) in [("2026", 2026), ("2027", 2027)] {
            let done =
                room.reserve(name(Some(period)).unwrap(), format!("k{place}-{period}"), None).await.unwrap();
            let number = done.number;
            assert_eq!((number.series.as_str(), number.period.as_deref()), ("INV", Some(period)));
            assert_eq!(number.number, place as u64 + 1);
            assert_eq!(number.text, Some(format!("R-{year}-{:04}", place + 1)));
            let again = room.by_number(name(Some(period)).unwrap(), number.number, false).await.unwrap();
            assert_eq!(again, Some(number));
        }
        let wrong = name(None).unwrap_err();
        assert_eq!(
            wrong.to_string(),
            "period (none): series INV is counted by year; say ?period=2026 (vault number: --period 2026)"
        );
        let other = Definition { pattern: Some("{n}".to_owned()), ..Definition::default() };
        let refused = define(room, other).await.unwrap_err();
        assert_eq!(refused, SequenceError::Refused(Refused::InUse { series: "INV".to_owned() }));
        let survey = room.survey(invoices(), false).await.unwrap().unwrap();
        let counts: Vec<_> =
            survey.counts.iter().map(|count| (count.period.as_deref(), count.last, count.open)).collect();
        let so_far = place as u64 + 1;
        assert_eq!(counts, [(Some("2026"), so_far, so_far), (Some("2027"), so_far, so_far)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_apart_gives_numbers_of_an_available_series_to_keys_that_were_first_sent_to_it() {
    let two = two();
    two.connect().await;
    let [a, b] = &two.rooms;
    define(a, Definition { range: 20, ..Definition::default() }).await.unwrap();
    set_aside(a).await;
    set_aside(b).await;
    two.cut().await;
    for room in [a, b] {
        let number = async |key: &str, ticket| room.reserve(invoices(), key.to_owned(), ticket).await;
        let name = format!("{:x}", room.life());
        let given = number(&name, Some(room.life())).await.unwrap();
        assert!(given.fresh);
        assert_eq!(number(&name, Some(room.life())).await.unwrap().number.number, given.number.number);
        for ticket in [None, Some(7)] {
            let refused = number("elsewhere", ticket).await.unwrap_err();
            assert!(matches!(refused, SequenceError::Waits { .. }), "{refused:?}");
        }
    }
    two.connect().await;
    // A life that nobody ever met had nothing to give.
    assert!(b.reserve(invoices(), "elsewhere".to_owned(), Some(7)).await.unwrap().fresh);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_is_connected_and_silent_is_waited_for_no_longer_than_one_that_is_away() {
    let two = two();
    two.connect().await;
    let [a, b] = &two.rooms;
    define(a, Definition { range: 20, ..Definition::default() }).await.unwrap();
    set_aside(a).await;
    set_aside(b).await;
    let given_up = async |times: usize| {
        let due = Instant::now() + Duration::from_secs(8);
        while two.hung_up.load(Ordering::SeqCst) < times {
            assert!(Instant::now() < due, "the connection is given up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // Its disk hangs: a round is not written, and nothing that it should say is said.
    two.mute();
    let asked = tokio::spawn({
        let a = a.clone();
        async move { a.reserve(invoices(), "lost".to_owned(), None).await }
    });
    given_up(1).await;
    two.hang_up().await;
    let refused = asked.await.unwrap().unwrap_err();
    assert!(matches!(refused, SequenceError::InDoubt), "{refused:?}");
    for events in &two.events {
        events.up().await;
    }
    given_up(3).await;
    two.hang_up().await;
    for events in &two.events {
        events.up().await;
    }
    // Connected again, and nobody greets a silent one at once: what may be given alone is given.
    for room in [a, b] {
        let ticket = Some(room.life());
        assert!(room.reserve(invoices(), format!("{:x}", room.life()), ticket).await.unwrap().fresh);
    }
    two.open.send_replace(true);
    let due = Instant::now() + Duration::from_secs(8);
    while !(a.status().together && b.status().together) {
        assert!(Instant::now() < due, "they meet again by themselves");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_reservation_is_flagged_and_stays_its_keys() {
    let two = two();
    two.connect().await;
    let [a, b] = &two.rooms;
    define(a, Definition { expires_after: Some(1), ..Definition::default() }).await.unwrap();
    for key in ["used", "forgotten"] {
        a.reserve(invoices(), key.to_owned(), None).await.unwrap();
    }
    a.confirm(invoices(), 1, "h".to_owned()).await.unwrap();
    assert_eq!(b.list_expired(invoices(), 0, 10).await.unwrap(), []);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    for room in [a, b] {
        let expired = room.list_expired(invoices(), 0, 10).await.unwrap();
        assert_eq!(expired.iter().map(|number| number.number).collect::<Vec<_>>(), [2]);
        let all = room.list(invoices(), None, 0, 10).await.unwrap();
        assert_eq!(all.iter().map(|number| number.expired).collect::<Vec<_>>(), [false, true]);
        let again = room.reserve(invoices(), "forgotten".to_owned(), None).await.unwrap();
        assert_eq!((again.number.number, again.number.expired, again.fresh), (2, true, false));
        assert!(room.by_number(invoices(), 2, false).await.unwrap().unwrap().expired);
        assert_eq!(room.survey(invoices(), false).await.unwrap().unwrap().counts[0].expired, 1);
        let reserved = room.list(invoices(), Some(NumberState::Reserved), 0, 10).await.unwrap();
        assert_eq!(reserved.len(), 1);
        assert_eq!(room.list(invoices(), Some(NumberState::Confirmed), 0, 10).await.unwrap().len(), 1);
    }
    assert_eq!(
        a.confirm(invoices(), 2, "late".to_owned()).await.unwrap().number.state,
        NumberState::Confirmed
    );
    assert_eq!(a.list_expired(invoices(), 0, 10).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owners_series_are_listed_without_their_periods_page_by_page() {
    let two = two();
    two.connect().await;
    let room = &two.rooms[0];
    let yearly = Definition { pattern: Some("{year}-{n}".to_owned()), ..Definition::default() };
    let name = |series: &str| SeriesName { owner: "erp".to_owned(), series: series.to_owned() };
    room.define(name("INV"), yearly).await.unwrap();
    room.define(name("UNUSED"), Definition::default()).await.unwrap();
    for series in ["INV/2025", "INV/2026", "INV-A", "INV.b", "INV0", "A"] {
        room.reserve(name(series), "k".to_owned(), None).await.unwrap();
    }
    let other = SeriesName { owner: "shop".to_owned(), series: "INV-S".to_owned() };
    room.reserve(other, "k".to_owned(), None).await.unwrap();
    let (mut names, mut after) = (Vec::new(), String::new());
    loop {
        let page = room.series_names("erp".to_owned(), after.clone(), 2, false).await.unwrap();
        let Some(last) = page.last() else { break };
        after = last.clone();
        names.extend(page);
    }
    assert_eq!(names, ["A", "INV", "INV-A", "INV.b", "INV0", "UNUSED"]);
    assert_eq!(room.survey(name("INV"), false).await.unwrap().unwrap().counts.len(), 2);
    assert_eq!(room.survey(name("NONE"), false).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_for_an_export_is_proved_and_so_is_the_journal_behind_it() {
    let two = two();
    two.connect().await;
    let [a, b] = &two.rooms;
    define(a, Definition { range: 5, ..Definition::default() }).await.unwrap();
    let keys = |count: usize| (0..count).map(|number| (format!("k{number}"), None)).collect::<Vec<_>>();
    let shop = SeriesName { owner: "shop".to_owned(), ..invoices() };
    let (erp, shop) = ((invoices(), keys(466)), (shop, keys(234)));
    let (erp, shop) = tokio::join!(a.reserve_all(&erp.0, erp.1), b.reserve_all(&shop.0, shop.1));
    assert!(erp.iter().chain(&shop).all(Result::is_ok));
    b.void(invoices(), 3, "torn".to_owned()).await.unwrap();
    let mut audit = audit::Audit::default();
    loop {
        let last = audit.last();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let entries = b.entries(last.index).await.unwrap();
        if entries.is_empty() && last.index == a.status().final_entries {
            break;
        }
        entries.into_iter().for_each(|entry| audit.take(export::Row::of(entry, "erp", "INV")));
    }
    let findings = audit.finish(false);
    assert!(findings.proved, "{findings:?}");
    assert!(findings.skipped > 230 && findings.series.len() == 1, "{findings:?}");
    assert_eq!((findings.series[0].given, findings.series[0].voided), (466, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_doubt_is_given_up_for_another_and_its_number_never_counts() {
    let two = two();
    two.connect().await;
    let [a, b] = &two.rooms;
    define(a, Definition { range: 20, ..Definition::default() }).await.unwrap();
    for room in [a, b] {
        set_aside(room).await;
    }
    two.cut().await;
    let reserve = async |room: &Sequence, key: &str, ticket| {
        room.reserve(invoices(), key.to_owned(), Some(ticket)).await.map(|done| done.number)
    };
    let give_up = async |room: &Sequence, key: &str, by: &str| {
        room.supersede(invoices(), key.to_owned(), by.to_owned()).await
    };
    // The old key was first sent to `a`, whose answer its sender never heard.
    let unheard = reserve(a, "old", a.life()).await.unwrap();
    let refused = reserve(b, "old", a.life()).await.unwrap_err();
    assert!(matches!(refused, SequenceError::Waits { .. }), "{refused:?}");
    for _again in 0..2 {
        give_up(b, "old", "new").await.unwrap();
    }
    let other = give_up(b, "old", "third").await.unwrap_err();
    assert!(matches!(other, SequenceError::Refused(Refused::Superseded { .. })), "{other:?}");
    let new = reserve(b, "new", b.life()).await.unwrap();
    let known = give_up(b, "new", "newer").await.unwrap_err();
    assert!(matches!(known, SequenceError::Refused(Refused::HasNumber { .. })), "{known:?}");
    two.connect().await;
    for room in [a, b] {
        let old = room.by_key(invoices(), "old".to_owned(), false).await.unwrap().unwrap();
        assert_eq!((old.number, old.state), (unheard.number, NumberState::Void));
        assert_eq!(old.reason.as_deref(), Some("given up for key new"));
        let kept = room.by_key(invoices(), "new".to_owned(), false).await.unwrap().unwrap();
        assert_eq!((kept.number, kept.state), (new.number, NumberState::Reserved));
    }
    // A key that nobody ever answered.
    give_up(b, "never sent", "another").await.unwrap();
    let refused = reserve(a, "never sent", a.life()).await.unwrap_err();
    assert!(matches!(refused, SequenceError::Refused(Refused::Superseded { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_refusal_tells_a_number_that_may_yet_be_another() {
    let two = two();
    two.connect().await;
    let a = &two.rooms[0];
    let number = a.reserve(invoices(), "k1".to_owned(), None).await.unwrap().number.number;
    // The other one never hears of the next.
    let before = a.status().entries;
    two.mute();
    let asked = tokio::spawn({
        let a = a.clone();
        async move { a.reserve(invoices(), "k2".to_owned(), None).await }
    });
    while a.status().entries == before {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    two.hang_up().await;
    assert_eq!(asked.await.unwrap(), Err(SequenceError::InDoubt));
    // A connection stands, and nothing is agreed yet.
    for events in &two.events {
        events.up().await;
    }
    for key in ["k1", "k2"] {
        let refused = a.supersede(invoices(), key.to_owned(), "new".to_owned()).await.unwrap_err();
        let told = matches!(refused, SequenceError::Refused(Refused::HasNumber { .. }));
        assert_eq!(told, key == "k1", "{key}: {refused:?}");
    }
    let confirmed = a.confirm(invoices(), number + 1, "h".to_owned()).await.unwrap_err();
    assert_eq!(confirmed, SequenceError::InDoubt);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_was_given_alone_is_not_denied_before_both_have_agreed() {
    let two = two();
    two.connect().await;
    let [a, b] = &two.rooms;
    define(a, Definition { range: 20, ..Definition::default() }).await.unwrap();
    set_aside(a).await;
    set_aside(b).await;
    two.cut().await;
    let given = a.reserve(invoices(), "k1".to_owned(), Some(a.life())).await.unwrap().number.number;
    // A connection stands, and nothing is agreed yet.
    for events in &two.events {
        events.up().await;
    }
    for room in [a, b] {
        let confirmed = room.confirm(invoices(), given, "h".to_owned()).await.unwrap_err();
        assert!(matches!(confirmed, SequenceError::Unchanged(_)), "{confirmed:?}");
        let void = room.void(invoices(), given, "spoiled".to_owned()).await.unwrap_err();
        assert!(matches!(void, SequenceError::Unchanged(_)), "{void:?}");
    }
    two.open.send_replace(true);
    while !(a.status().together && b.status().together) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(b.confirm(invoices(), given, "h".to_owned()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vault_that_takes_over_is_followed_and_of_two_owners_one_yields() {
    let two = two();
    let [a, b] = &two.rooms;
    assert_eq!(a.take_over(false).await, Err(SequenceError::MayNotTakeOver), "it has never met the other");
    two.connect().await;
    let number = async |room: &Sequence, key: &str| {
        room.reserve(invoices(), key.to_owned(), None).await.unwrap().number.number
    };
    assert_eq!(number(b, "k1").await, 1);
    two.cut().await;
    assert_eq!(b.take_over(false).await, Ok(2));
    two.connect().await;
    assert_eq!(
        [a, b].map(|room| (room.status().owner, room.status().epoch)),
        [("b".to_owned(), 2), ("b".to_owned(), 2)]
    );
    assert_eq!((number(a, "k1").await, number(a, "k2").await), (1, 2));
    two.cut().await;
    for room in [a, b] {
        assert_eq!(room.take_over(false).await, Ok(3));
        let told = room.give_way().await.unwrap_err().to_string();
        assert!(told.contains("the other vault is away, and whether it owns the ledger too"), "{told}");
    }
    two.meet().await;
    for room in [a, b] {
        while room.status().reason.as_deref() != Some(&Reason::TwoOwners(3).to_string()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    assert_eq!(b.give_way().await, Ok([2, 0]));
    two.hang_up().await;
    two.connect().await;
    assert_eq!([a, b].map(|room| room.status().owner), ["a", "a"]);
    assert_eq!((number(b, "k2").await, number(b, "k3").await), (2, 3));
    assert_eq!(a.take_over(true).await, Err(SequenceError::OwnerAlready(3)), "it is, and nobody else");
    assert_eq!((a.status().epoch, b.status().epoch), (3, 3));
    let told = b.give_way().await.unwrap_err().to_string();
    assert!(told.ends_with("the two are together, and a owns the ledger in epoch 3"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_word_that_takes_long_is_not_told_to_have_failed() {
    let two = two();
    two.connect().await;
    two.cut().await;
    let [a, _] = &two.rooms;
    // Another program holds the file for longer than an answer may take.
    let other = rusqlite::Connection::open(two.folder.path().join("a.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (first, second) = tokio::join!(a.take_over(false), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        a.looked_at(0).await
    });
    for outcome in [first.map(drop), second.map(drop)] {
        let told = outcome.unwrap_err();
        assert!(matches!(told, SequenceError::Unheard | SequenceError::Apart(_)), "{told:?}");
    }
    let told = SequenceError::Unheard.to_string();
    assert!(told.starts_with("the vault has not come to this within 5 s and may still do it: vault status"));
    other.execute_batch("ROLLBACK").unwrap();
    while a.take_over(false).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(a.status().epoch > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_alone_and_gave_way_is_told_until_somebody_has_looked_at_it() {
    use super::record::{Content, Expect, Kind, RecordName, Wish, Written};
    let two = two();
    two.connect().await;
    let put = async |room: &Sequence, name: &str, value: &str| {
        let content = Content { value: value.to_owned(), json: false };
        let written = Written { content, by: "www1".to_owned(), key: value.to_owned() };
        let name = RecordName { owner: "erp".to_owned(), kind: Kind::Record, name: name.to_owned() };
        room.write_record(name, Wish::Put { written, expect: Expect::Absent }).await.unwrap().version
    };
    let [a, b] = &two.rooms;
    put(a, "both", "0").await;
    while b.status().final_entries < a.status().entries {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    two.cut().await;
    for room in [a, b] {
        assert_eq!(room.take_over(true).await, Ok(2));
        assert_eq!((put(room, "lot/1", "1").await, put(room, "lot/2", "2").await), (1, 1));
    }
    two.meet().await;
    while b.status().reason.as_deref() != Some(&Reason::TwoOwners(2).to_string()) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(b.give_way().await, Ok([1, 2]), "both are said to give way before they do");
    assert_eq!(b.status().dropped, 0);
    two.hang_up().await;
    two.connect().await;
    assert_eq!([a, b].map(|room| room.status().dropped), [0, 2]);
    let dropped = b.dropped(0, 10).await.unwrap();
    let names: Vec<_> = dropped.iter().map(|(_, entry)| entry.key.as_str()).collect();
    assert_eq!(names, ["lot/1", "lot/2"]);
    assert_eq!(b.looked_at(dropped[0].0).await, Ok(1));
    assert_eq!(b.looked_at(dropped[1].0).await, Ok(0));
    assert_eq!((b.status().dropped, b.dropped(0, 10).await.unwrap().len()), (0, 2));
}

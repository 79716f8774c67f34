//! Stories of what nobody can prove: a broker fell in the middle of a commit, another one that knows nothing of
//! it answers in its place, and an operator decides. The line in front of each broker knows what is true.

use std::collections::BTreeMap;
use std::time::Duration;

use harness::activemq::ActiveMq;
use harness::bridging::{Sections, told, wait_carried, wait_carried_by, wait_forwarded};
use harness::broker::Broker;
use harness::cluster::temporary_folder;
use harness::commit_line::{CommitLine, Cut};
use harness::java_client::{Acknowledge, JavaClient, Letter, Login, Session};
use harness::vault_host::{Pair, PairPlan, Vault};
use harness::{plain, wait};
use serde_json::Value;

use super::{SOON, brokers, seats};

const NAME: &str = "from-to-to";
const QUEUE: &str = "orders.new";

/// A pair between two brokers under the name of one and a third one, each behind a line of its own where it is
/// one of two; and the stock client at each of them, past the lines.
struct Scene {
    pair: Pair,
    lines: [CommitLine; 2],
    sessions: [Session; 3],
    _java: JavaClient,
    _brokers: [Broker; 3],
    _folder: tempfile::TempDir,
}

/// Which side has two brokers, the first of which is the first of the scene.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Twofold {
    Sources,
    Targets,
}

impl Scene {
    /// The two of a side are tried in this order; the second of the scene is not reached yet.
    fn set(twofold: Twofold, order: [usize; 2], lines_of_bridge: &str) -> Self {
        let folder = temporary_folder().unwrap();
        let brokers = brokers(folder.path(), seats(["a", "b", "c"]).map(ActiveMq::at));
        let lines = [0, 1].map(|which: usize| CommitLine::to(brokers[which].address).unwrap());
        lines[1].fall();
        let (two, one) = (order.map(|which| lines[which].uri()), [brokers[2].uri()]);
        let (from, to): (&[String], &[String]) = match twofold {
            Twofold::Sources => (&two, &one),
            Twofold::Targets => (&one, &two),
        };
        let sections = Sections::default().brokers("from", from, "").brokers("to", to, "");
        let sections = sections.way("from", "to", "orders.>", lines_of_bridge);
        let pair = sections.start(folder.path(), PairPlan::default()).unwrap();
        let java = JavaClient::start(folder.path()).unwrap();
        let session =
            |at: &Broker| java.connect(&Login::to(&at.uri())).unwrap().session(Acknowledge::Transacted);
        let sessions = [0, 1, 2].map(|which: usize| session(&brokers[which]).unwrap());
        Self { pair, lines, sessions, _java: java, _brokers: brokers, _folder: folder }
    }

    /// So many at once, told apart by their texts.
    fn send(&self, to: usize, what: &str, messages: u64) {
        for number in 0..messages {
            self.sessions[to].send(QUEUE, &Letter::text(&format!("{what} {number}"))).unwrap();
        }
        self.sessions[to].commit().unwrap();
    }

    /// How often each came, of so many that lie there, and no more.
    fn received(&self, at: usize, messages: u64) -> BTreeMap<String, u64> {
        let consumer = self.sessions[at].consumer(QUEUE).unwrap();
        let mut received = BTreeMap::new();
        for number in 0..messages {
            let arrived = consumer.receive(SOON).unwrap();
            let arrived =
                arrived.unwrap_or_else(|| panic!("{number} came, {messages} were told: {received:?}"));
            *received.entry(arrived.text().unwrap().to_owned()).or_default() += 1;
        }
        assert_eq!(consumer.receive(Duration::from_secs(1)).unwrap(), None, "behind {received:?}");
        self.sessions[at].commit().unwrap();
        received
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

/// Waits until it is so, and tells what the bridge told then.
fn when(vault: &Vault, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    wait::until(what, SOON, || {
        let told = told(vault, NAME)?;
        anyhow::ensure!(is_so(&told), "{told}");
        Ok(told)
    })
    .unwrap()
}

/// Every hop's count is that of the next one and what lies between.
fn adds_up(told: &Value) -> bool {
    let hops = ["forwarded", "expired", "dead"].map(|hop| number(&told[hop]));
    number(&told["received"]) == number(&told["journalled"]) + number(&told["uncertain"]["rows"])
        && number(&told["journalled"]) == hops.iter().sum::<u64>() + number(&told["waiting"]["rows"])
}

/// So it stands in the status, readiness and the log, for as long as it is so.
fn is_told_everywhere(vault: &mut Vault, words: &str) {
    wait::until("readiness tells it", SOON, || {
        let ready = plain::expect_ok(vault.admin, "/readyz?verbose")?;
        anyhow::ensure!(ready.contains(words), "{ready}");
        Ok(())
    })
    .unwrap();
    for asked in [["bridge", "status"].as_slice(), &["status", "--json"]] {
        for _ in 0..10 {
            let told = vault.command(asked).unwrap();
            assert!(told.contains(words), "{asked:?}: {told}");
        }
    }
    let log = vault.program().unwrap().log();
    assert!(log.contains(words), "{log}");
}

fn killed(vault: &mut Vault) {
    super::killed(vault.program().unwrap());
    vault.wait_ready().unwrap();
}

/// What is said of a command that is refused.
fn refused(vault: &Vault, words: &[&str]) -> String {
    format!("{:#}", vault.command(words).expect_err("it is refused"))
}

/// Each of them, so many of each kind, came so often.
fn each(what: &str, messages: u64, times: u64) -> BTreeMap<String, u64> {
    (0..messages).map(|number| (format!("{what} {number}"), times)).collect()
}

const STRANGE: &str = "is another broker than the one where messages of this bridge may be already";

#[test]
fn another_target_gets_nothing_while_an_answer_of_the_first_is_missing_until_an_operator_accepts_it() {
    // The one that is not there is tried last.
    let mut scene = Scene::set(Twofold::Targets, [1, 0], "preferred = \"vault-a\"");
    wait_carried_by(&scene.pair.vaults[0], NAME, SOON).unwrap();
    scene.send(2, "before", 3);
    wait_forwarded(&scene.pair, NAME, 3, SOON).unwrap();
    assert_eq!(scene.received(0, 3), each("before", 3, 1));

    // What it had got is not sent to the other one, and not twice to itself.
    scene.lines[1].rise();
    scene.lines[0].fall_at_commit(0, Cut::Unanswered);
    scene.send(2, "in doubt", 10);
    let is_strange = |told: &Value| told["target"].as_str().is_some_and(|why| why.contains(STRANGE));
    when(&scene.pair.vaults[0], "the other one is refused", is_strange);
    is_told_everywhere(&mut scene.pair.vaults[0], STRANGE);
    killed(&mut scene.pair.vaults[0]);
    // The other vault gives it back.
    wait_carried_by(&scene.pair.vaults[0], NAME, SOON).unwrap();
    scene.send(2, "later", 2);
    let waits = |told: &Value| is_strange(told) && number(&told["waiting"]["rows"]) == 12 && adds_up(told);
    when(&scene.pair.vaults[0], "all of them wait", waits);
    assert_eq!(scene.received(1, 0), BTreeMap::new());
    scene.lines[0].rise();
    wait_forwarded(&scene.pair, NAME, 15, SOON).unwrap();
    let arrived: BTreeMap<_, _> = each("in doubt", 10, 1).into_iter().chain(each("later", 2, 1)).collect();
    assert_eq!(scene.received(0, 12), arrived);

    // One that never heard of them, and never comes back.
    scene.lines[0].fall_at_commit(0, Cut::Unheard);
    scene.send(2, "lost", 10);
    when(&scene.pair.vaults[0], "the other one is refused", |told| {
        is_strange(told) && number(&told["waiting"]["rows"]) == 10 && adds_up(told)
    });
    let vault = &scene.pair.vaults[0];
    let asked = vault.command(&["bridge", "accept", NAME]).unwrap();
    assert!(asked.starts_with("from-to-to: 10 messages wait; ") && asked.contains(STRANGE), "{asked}");
    when(vault, "nothing is done yet", |told| is_strange(told) && number(&told["forwarded"]) == 15);
    let done = vault.command(&["bridge", "accept", NAME, "--yes"]).unwrap();
    assert_eq!(done.trim(), "from-to-to: 10 messages go to the new target");
    wait_forwarded(&scene.pair, NAME, 25, SOON).unwrap();
    assert_eq!(scene.received(1, 10), each("lost", 10, 1));
    let again = refused(vault, &["bridge", "accept", NAME, "--yes"]);
    assert!(again.contains("no other target is refused"), "{again}");

    // The first one, when it is back, has taken the other's part; what that had got comes twice.
    scene.lines[0].rise();
    scene.lines[1].fall_at_commit(0, Cut::Unanswered);
    scene.send(2, "doubled", 10);
    when(vault, "the first one is refused", is_strange);
    vault.command(&["bridge", "accept", NAME, "--yes"]).unwrap();
    wait_forwarded(&scene.pair, NAME, 35, SOON).unwrap();
    assert_eq!(scene.received(0, 10), each("doubled", 10, 1));
    let consumer = scene.sessions[1].consumer(QUEUE).unwrap();
    assert!(consumer.receive(SOON).unwrap().unwrap().text().unwrap().starts_with("doubled "));
    when(&scene.pair.vaults[0], "every hop is counted", |told| {
        told["target"].is_null() && number(&told["forwarded"]) == 35 && adds_up(told)
    });
}

const HELD: &str = "only the broker can tell that they came from, and another one answers";

/// What an operator says.
const TAKEN: &str = "--taken";
const RETURNED: &str = "--returned";

#[test]
fn what_another_source_cannot_tell_is_held_until_its_own_is_back_or_an_operator_settles_it() {
    let mut scene = Scene::set(Twofold::Sources, [0, 1], "");
    // Only one works, so that it goes from one source to the other.
    scene.pair.vaults[1].program().unwrap().kill().unwrap();
    wait_carried_by(&scene.pair.vaults[0], NAME, SOON).unwrap();
    scene.lines[1].rise();
    let mut forwarded = 0;
    for (round, cut, choice) in [
        (0, Cut::Unanswered, TAKEN),
        (1, Cut::Unheard, RETURNED),
        (2, Cut::Unheard, TAKEN),
        (3, Cut::Unanswered, RETURNED),
        (4, Cut::Unanswered, ""),
        (5, Cut::Unheard, ""),
    ] {
        let (what, meanwhile) = (format!("doubt {round}"), format!("meanwhile {round}"));
        // The first one goes through alone.
        scene.lines[0].fall_at_commit(1, cut);
        scene.send(0, &what, 20);
        let is_held = |told: &Value| number(&told["elsewhere"]["rows"]) > 0 && told["state"] == "carrying";
        let held = number(&when(&scene.pair.vaults[0], "some are held", is_held)["elsewhere"]["rows"]);
        if round == 0 {
            is_told_everywhere(&mut scene.pair.vaults[0], HELD);
            killed(&mut scene.pair.vaults[0]);
        }
        scene.send(1, &meanwhile, 1);
        let vault = &scene.pair.vaults[0];
        when(vault, "they are held, and what comes goes on", |told| {
            let held_all = [&told["elsewhere"]["rows"], &told["uncertain"]["rows"]].map(number) == [held; 2];
            held_all && number(&told["forwarded"]) == forwarded + 2 && adds_up(told)
        });
        let mut expected = each(&what, 20, 1);
        // If nobody chooses the first one proves it itself.
        if !choice.is_empty() {
            settle(vault, choice, held);
            let taken = if choice == TAKEN { held } else { 0 };
            when(vault, "it is settled", |told| {
                let is_none = [&told["elsewhere"]["rows"], &told["uncertain"]["rows"]].map(number) == [0; 2];
                is_none && number(&told["forwarded"]) == forwarded + 2 + taken && adds_up(told)
            });
            let wrong = match (cut, choice) {
                (Cut::Unheard, TAKEN) => Some(2),
                (Cut::Unanswered, RETURNED) => Some(0),
                _ => None,
            };
            // Those that were in doubt came behind the first one.
            if let Some(times) = wrong {
                expected.extend((1..=held).map(|number| (format!("{what} {number}"), times)));
            }
        }
        expected.retain(|_, times| *times > 0);
        expected.extend(each(&meanwhile, 1, 1));
        // Its own source is back, and the other one is not there.
        scene.lines[0].rise();
        scene.lines[1].fall();
        let back = format!("back {round}");
        scene.send(0, &back, 1);
        expected.extend(each(&back, 1, 1));
        let arrived = expected.values().sum::<u64>();
        forwarded += arrived;
        when(vault, "they have arrived", |told| number(&told["forwarded"]) == forwarded);
        assert_eq!(scene.received(2, arrived), expected, "{cut:?} {choice}: {held} were held");
        when(vault, "every hop is counted", |told| {
            number(&told["uncertain"]["rows"]) == 0
                && number(&told["forwarded"]) == forwarded
                && adds_up(told)
        });
        scene.lines[1].rise();
    }
}

/// First what each choice risks is told; then it is made.
fn settle(vault: &Vault, choice: &str, held: u64) {
    let asked = vault.command(&["bridge", "settle", NAME, choice]).unwrap();
    assert!(
        asked.starts_with(&format!("from-to-to: {held} messages wait for a source that is away")),
        "{asked}"
    );
    assert_eq!(number(&told(vault, NAME).unwrap()["elsewhere"]["rows"]), held, "nothing is done yet");
    let done = vault.command(&["bridge", "settle", NAME, choice, "--yes"]).unwrap();
    let become_of = if choice == TAKEN { "are sent on" } else { "are forgotten" };
    assert_eq!(done.trim(), format!("from-to-to: {held} messages {become_of}"));
}

#[test]
fn what_one_vault_holds_is_settled_there_while_the_other_carries_and_nothing_else_is() {
    let scene = Scene::set(Twofold::Sources, [0, 1], "");
    let carrier = wait_carried(&scene.pair, NAME, SOON).unwrap();
    let (own, other) = (&scene.pair.vaults[carrier], &scene.pair.vaults[1 - carrier]);
    for vault in [own, other] {
        for words in [["settle", "nobody", TAKEN].as_slice(), &["accept", "nobody"]] {
            for yes in [[].as_slice(), &["--yes"]] {
                let said = refused(vault, &[&["bridge"], words, yes].concat());
                assert!(said.contains("there is no bridge \"nobody\" here"), "{words:?} {yes:?}: {said}");
            }
        }
        for words in [["settle", NAME].as_slice(), &["settle", NAME, TAKEN, RETURNED]] {
            refused(vault, &[&["bridge"], words, &["--yes"]].concat());
        }
        nothing_is_settled(vault);
        let said = refused(vault, &["bridge", "accept", NAME, "--yes"]);
        assert!(said.contains("no other target is refused"), "{said}");
    }

    // That the second source answers nobody is no fault of whoever waits for the lock at the first one.
    when(other, "it waits for the lock", |told| told["state"] == "standby");
    for _ in 0..10 {
        assert_eq!(told(other, NAME).unwrap()["state"], "standby");
    }

    // The other one carries from the second source; this one holds what the first one may have given.
    scene.lines[1].rise();
    wait_carried_by(other, NAME, SOON).unwrap();
    scene.lines[0].fall_at_commit(1, Cut::Unanswered);
    scene.send(0, "doubt", 20);
    let is_held = |told: &Value| number(&told["elsewhere"]["rows"]) > 0 && told["state"] == "standby";
    let held = number(&when(own, "some are held", is_held)["elsewhere"]["rows"]);
    scene.send(1, "meanwhile", 5);
    wait_forwarded(&scene.pair, NAME, 6, SOON).unwrap();
    nothing_is_settled(other);
    assert_eq!(number(&told(own, NAME).unwrap()["elsewhere"]["rows"]), held);
    settle(own, TAKEN, held);
    wait_forwarded(&scene.pair, NAME, 6 + held, SOON).unwrap();
    nothing_is_settled(own);
    assert_eq!(told(other, NAME).unwrap()["state"], "carrying");
    scene.lines[0].rise();
    wait_forwarded(&scene.pair, NAME, 25, SOON).unwrap();
    let arrived: BTreeMap<_, _> = each("doubt", 20, 1).into_iter().chain(each("meanwhile", 5, 1)).collect();
    assert_eq!(scene.received(2, 25), arrived);
    for vault in [own, other] {
        when(vault, "every hop is counted", adds_up);
    }
}

fn nothing_is_settled(vault: &Vault) {
    for choice in [TAKEN, RETURNED] {
        let said = refused(vault, &["bridge", "settle", NAME, choice, "--yes"]);
        assert!(said.contains("nothing in this vault's journal waits for another source"), "{said}");
    }
}

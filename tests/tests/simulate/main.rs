//! Seeded histories of the pure pair protocol: two vaults, two disks that forget what was not
//! synced, a network that cuts, delays and repeats, crashes between any two steps, failed writes
//! that turn up after a crash, restored copies, lost disks and an operator who re-seeds them.
//! Asserts that no number is given twice, none is skipped, none that was answered is lost or
//! denied, and that what a reader may see at one vault is on both disks. A failure prints its
//! seed; `SEEDS` sets how many histories run, `SEED` runs one.
//!
//! Each safeguard has a control: with it taken away, the same checks must fail.

mod disk;
mod world;

use vault::sequence::entry::{Act, BATCH, Draft, Entry, Tail};
use vault::sequence::protocol::{Core, Hello, Input, Memory, Message, Output, Reason, Session};
use vault::sequence::witness::Witness;

use world::{Control, World};

fn history(seed: u64, control: Control, with_damage: bool) -> Result<usize, String> {
    let mut world = World::new(seed, control);
    let mut run = || {
        // Most histories are short and many; some are long, so that trouble can pile up.
        for _ in 0..if seed % 50 == 49 { 6_000 } else { 400 } {
            world.step(with_damage)?;
        }
        world.settle()
    };
    match run() {
        Ok(()) => Ok(world.answered.len()),
        Err(why) => {
            let from = world.log.len().saturating_sub(12);
            Err(format!("seed {seed}: {why}\n{}", world.log[from..].join("\n")))
        }
    }
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(3_000),
    }
}

#[test]
fn crashes_cuts_and_lost_writes_never_give_a_number_twice_or_skip_one() {
    let mut answered = 0;
    for seed in seeds() {
        answered += history(seed, Control::Nothing, false).unwrap_or_else(|why| panic!("{why}"));
    }
    assert!(answered > 0, "histories in which nobody is answered prove nothing");
}

#[test]
fn a_lost_or_rolled_back_journal_never_leads_to_a_number_given_twice() {
    let mut answered = 0;
    for seed in seeds() {
        answered += history(seed, Control::Nothing, true).unwrap_or_else(|why| panic!("{why}"));
    }
    assert!(answered > 0, "histories in which nobody is answered prove nothing");
}

/// A number given twice must turn up within as many histories as the gate can afford.
fn must_give_a_number_twice(control: Control, with_damage: bool) {
    must_fail(control, with_damage, "was given to");
}

fn must_fail(control: Control, with_damage: bool, how: &str) {
    let fails = |seed| history(seed, control, with_damage).is_err_and(|why| why.contains(how));
    assert!((0..3_000).any(fails), "{control:?} passes unnoticed: the checks check nothing");
}

#[test]
fn control_a_disk_that_answers_before_it_has_synced_is_noticed() {
    must_give_a_number_twice(Control::DiskLies, false);
}

#[test]
fn control_answering_what_is_in_doubt_is_noticed() {
    must_give_a_number_twice(Control::AnswersInDoubt, false);
}

#[test]
fn control_a_loss_that_passes_unseen_is_noticed() {
    must_give_a_number_twice(Control::LossPassesUnseen, true);
}

#[test]
fn control_remains_of_a_failed_write_that_linger_are_noticed() {
    must_fail(Control::RemainsLinger, false, "Forked");
}

#[test]
fn control_an_operator_who_re_seeds_from_the_wrong_side_is_noticed() {
    must_give_a_number_twice(Control::ReseedsFromTheWrongSide, true);
}

#[test]
fn control_a_reader_who_sees_what_one_disk_has_is_noticed() {
    must_fail(Control::ReadsAhead, false, "is on one disk only");
}

#[test]
fn control_denying_what_an_old_copy_does_not_know_is_noticed() {
    must_fail(Control::DeniesBlindly, true, "denies that");
}

fn draft(number: u64) -> Draft {
    let (owner, series, key) = ("erp".to_owned(), "INV".to_owned(), format!("k{number}"));
    Draft { owner, series, number, key, act: Act::Reserve, at: 0 }
}

/// A follower in a session with an empty ledger, and the session.
fn follower() -> (Core, Session) {
    let memory = Memory { journal: 2, epoch: 1, peer_journal: Some(1), peer_durable: 0 };
    let mut core = Core::new("b", "a", 20, memory, Tail::default());
    core.step(Input::Connected(200));
    let hello = Hello {
        nonce: 100,
        life: 10,
        owner: "a".to_owned(),
        epoch: 1,
        journal: 1,
        tail: Tail::default(),
        peer_journal: Some(2),
        peer_durable: 0,
    };
    core.step(Input::Received(Message::Hello(hello)));
    let session = Session(100, 200);
    core.step(Input::Received(Message::Grant { session, tail: Tail::default() }));
    assert_eq!(core.refusal(), None);
    (core, session)
}

#[test]
fn an_owner_who_says_too_much_at_once_ends_the_session_and_nothing_else() {
    let (mut core, session) = follower();
    let mut tail = Tail::default();
    let mut ended = 0;
    for number in 1..=100 {
        let entry = Entry::append(tail, 1, 10, draft(number));
        tail = entry.tail();
        let append = Message::Append { session, entries: vec![entry], durable: number - 1 };
        let output = core.step(Input::Received(append));
        ended += output.iter().filter(|output| **output == Output::HangUp).count();
    }
    assert_eq!((ended, core.refusal()), (1, Some(Reason::Syncing)));
    // The first entry was under way and is kept; what was held is forgotten.
    assert_eq!(core.step(Input::Written), []);
    assert_eq!((core.tail().index, core.final_index()), (1, 0));
}

#[test]
fn more_entries_than_a_batch_are_refused() {
    let (mut core, session) = follower();
    let mut tail = Tail::default();
    let entries: Vec<Entry> = (0..=BATCH as u64)
        .map(|number| {
            let entry = Entry::append(tail, 1, 10, draft(number + 1));
            tail = entry.tail();
            entry
        })
        .collect();
    core.step(Input::Received(Message::Append { session, entries, durable: 0 }));
    assert_eq!((core.tail().index, core.refusal()), (0, Some(Reason::Forked)));
}

#[test]
fn an_owner_whose_epoch_is_over_is_never_obeyed() {
    let memory = |journal, peer, epoch| Memory { journal, epoch, peer_journal: Some(peer), peer_durable: 0 };
    let mut old = Core::new("a", "a", 10, memory(1, 2, 1), Tail::default());
    let mut new = Core::new("b", "a", 20, memory(2, 1, 2), Tail::default());
    let said = |outputs: Vec<Output>| {
        outputs.into_iter().find_map(|output| match output {
            Output::Send(message) => Some(message),
            _ => None,
        })
    };
    let from_old = said(old.step(Input::Connected(100))).expect("a greeting");
    let from_new = said(new.step(Input::Connected(200))).expect("a greeting");
    old.step(Input::Received(from_new));
    new.step(Input::Received(from_old));
    assert_eq!((old.refusal(), new.refusal()), (Some(Reason::Fenced), Some(Reason::PeerFenced)));
    assert!(!old.may_propose());
}

/// Two vaults whose journals are both new, and what they say of each other.
fn both_new(witness: Option<Witness>) -> [Option<Reason>; 2] {
    let fresh = |journal| Memory { journal, epoch: 1, peer_journal: None, peer_durable: 0 };
    let core =
        |name, journal| Core::new(name, "a", journal, fresh(journal), Tail::default()).witnessed(witness);
    let mut vaults = [core("a", 1), core("b", 2)];
    let mut said: Vec<Vec<Output>> = vaults
        .iter_mut()
        .enumerate()
        .map(|(who, core)| core.step(Input::Connected(100 + who as u128)))
        .collect();
    for _ in 0..10 {
        for who in 0..2 {
            for output in std::mem::take(&mut said[who]) {
                let more = match output {
                    Output::Send(message) => vaults[1 - who].step(Input::Received(message)),
                    Output::Write(..) => {
                        let more = vaults[who].step(Input::Written);
                        said[who].extend(more);
                        continue;
                    }
                    _ => continue,
                };
                said[1 - who].extend(more);
            }
        }
    }
    vaults.map(|core| core.refusal())
}

#[test]
fn both_journals_lost_close_the_pair_instead_of_counting_from_below() {
    let before = Witness { journal: 9, index: 7 };
    assert_eq!(both_new(Some(before)), [Some(Reason::OwnJournalLost); 2]);
    assert_eq!(both_new(None), [None; 2], "control: new vaults come together");
}

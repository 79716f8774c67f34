//! Seeded histories of the pure pair protocol: two vaults, two disks that forget what was not
//! synced, a network that cuts, delays and repeats, crashes between any two steps, failed writes
//! that turn up after a crash, restored copies, lost disks and an operator who re-seeds them.
//! Asserts that no number is given twice, none is skipped, none that was answered is lost or
//! denied, and that what a reader may see at one vault is on both disks. A failure prints its
//! seed; `SEEDS` sets how many histories run, `SEED` runs one.
//!
//! Each safeguard has a control: with it taken away, the same checks must fail.

mod callers;
mod checks;
mod disk;
mod trouble;
mod world;

use vault::sequence::entry::{Act, BATCH, Draft, Entry, Tail};
use vault::sequence::protocol::{Core, Hello, Input, Memory, Message, Output, Reason, Session};
use vault::sequence::witness::Witness;

use world::{Control, World};

fn history(seed: u64, control: Control, with_damage: bool) -> Result<[usize; 2], String> {
    let mut world = World::new(seed, control);
    let mut run = || {
        // Most histories are short and many; some are long, so that trouble can pile up. What a
        // control takes away must turn up soon.
        if !seed.is_multiple_of(4) {
            world.come_together()?;
        }
        let short = if control == Control::Nothing { 500 } else { 2_000 };
        for _ in 0..if seed % 50 == 49 { 6_000 } else { short } {
            world.step(with_damage)?;
        }
        world.settle()
    };
    match run() {
        Ok(()) => Ok([world.told.len(), world.told.given_alone]),
        Err(why) => {
            let from = world.log.len().saturating_sub(12);
            Err(format!("seed {seed}: {why}\n{}", world.log[from..].join("\n")))
        }
    }
}

/// How many keys are answered in that history, and how many by a vault alone.
fn count(answered: &mut [usize; 2], seed: u64, with_damage: bool) {
    let more = history(seed, Control::Nothing, with_damage).unwrap_or_else(|why| panic!("{why}"));
    answered.iter_mut().zip(more).for_each(|(all, more)| *all += more);
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(1_000),
    }
}

#[test]
fn crashes_cuts_and_lost_writes_never_give_a_number_twice_or_skip_one() {
    let mut answered = [0, 0];
    for seed in seeds() {
        count(&mut answered, seed, false);
    }
    assert!(answered[0] > 0 && answered[1] > 0, "histories in which nobody is answered prove nothing");
}

#[test]
fn a_lost_or_rolled_back_journal_never_leads_to_a_number_given_twice() {
    let mut answered = [0, 0];
    for seed in seeds() {
        count(&mut answered, seed, true);
    }
    assert!(answered[0] > 0 && answered[1] > 0, "histories in which nobody is answered prove nothing");
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

#[test]
fn control_a_vault_alone_that_answers_any_ticket_is_noticed() {
    must_fail(Control::AnyTicket, false, "");
}

#[test]
fn control_taking_every_life_for_known_is_noticed() {
    must_give_a_number_twice(Control::EveryLifeIsProven, true);
}

#[test]
fn control_giving_from_a_range_that_one_journal_has_is_noticed() {
    must_give_a_number_twice(Control::OwnJournalOnly, false);
}

#[test]
fn control_keeping_what_a_lost_life_may_have_answered_is_noticed() {
    must_fail(Control::KeepsWhatIsDoubtful, true, "was told");
}

#[test]
fn control_a_number_for_a_key_of_a_lost_life_is_noticed() {
    must_fail(Control::LostKeysLive, true, "was told");
}

#[test]
fn control_forgetting_that_a_key_was_given_up_is_noticed() {
    must_fail(Control::ForgetsGivenUp, false, "was given up");
}

#[test]
fn control_a_token_that_is_brought_again_is_noticed() {
    must_give_a_number_twice(Control::TokenTwice, true);
}

fn draft(number: u64) -> Draft {
    let (owner, series, key) = ("erp".to_owned(), "INV".to_owned(), format!("k{number}"));
    Draft { owner, series, number, key, act: Act::Reserve(None), at: 0, carried: None }
}

fn memory(journal: u128, owns: bool, epoch: u64, peer_journal: Option<u128>) -> Memory {
    let solo = Tail::default();
    Memory {
        journal,
        epoch,
        owns,
        alone: false,
        whole: true,
        solo,
        peer_journal,
        peer_durable: 0,
        settled: 0,
    }
}

/// A follower in a session with an empty ledger, and the session.
fn follower() -> (Core, Session) {
    let mut core = Core::new(20, None, memory(2, false, 1, Some(1)), Tail::default());
    core.step(Input::Connected(200));
    let hello = Hello {
        nonce: 100,
        life: 10,
        proven: None,
        epoch: 1,
        owns: true,
        journal: 1,
        tail: Tail::default(),
        in_both: 0,
        settled: 0,
        peer_journal: Some(2),
        peer_durable: 0,
    };
    core.step(Input::Received(Message::Hello(hello)));
    let session = Session(100, 200);
    core.step(Input::Received(Message::Grant { session, tail: Tail::default() }));
    core.step(Input::Received(Message::Settled { session }));
    assert_eq!(core.refusal(), None);
    (core, session)
}

#[test]
fn an_owner_who_says_too_much_at_once_ends_the_session_and_nothing_else() {
    let (mut core, session) = follower();
    let mut tail = Tail::default();
    let mut ended = 0;
    for number in 1..=100 {
        let after = tail;
        let entry = Entry::append(tail, 1, 10, draft(number));
        tail = entry.tail();
        let append = Message::Append { session, after, entries: vec![entry], durable: number - 1 };
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
    let after = Tail::default();
    core.step(Input::Received(Message::Append { session, after, entries, durable: 0 }));
    assert_eq!((core.tail().index, core.refusal()), (0, Some(Reason::Forked)));
}

/// Two vaults that have just started with these journals, and what they say of each other once
/// connected.
fn met(mut vaults: [Core; 2]) -> [Core; 2] {
    let mut said: [Vec<Output>; 2] =
        [0, 1].map(|who: usize| vaults[who].step(Input::Connected(100 + who as u128)));
    for _ in 0..30 {
        for who in 0..2 {
            for output in std::mem::take(&mut said[who]) {
                let (to, input) = match output {
                    Output::Send(message) => (1 - who, Input::Received(message)),
                    Output::Write(..) => (who, Input::Written),
                    Output::Load(after) => (who, Input::Loaded(after, Vec::new())),
                    Output::LoadSolo(after) => (who, Input::SoloLoaded(after, Vec::new())),
                    Output::Settle => (who, Input::Settled),
                    _ => continue,
                };
                let more = vaults[to].step(input);
                said[to].extend(more);
            }
        }
    }
    vaults
}

#[test]
fn the_owner_of_the_higher_epoch_is_followed_and_of_two_owners_none() {
    let pair = |epochs: [u64; 2], owns: [bool; 2]| {
        met([0, 1].map(|who| {
            let (own, other) = (1 + who as u128, 2 - who as u128);
            Core::new(
                10 + who as u128,
                None,
                memory(own, owns[who], epochs[who], Some(other)),
                Tail::default(),
            )
        }))
    };
    let [old, new] = pair([1, 2], [true, true]);
    assert_eq!((old.refusal(), new.refusal()), (None, None));
    assert_eq!((old.epoch(), old.may_propose(), new.may_propose()), (2, false, true));
    for (owns, reason) in [([true, true], Reason::TwoOwners(3)), ([false, false], Reason::NoOwner)] {
        assert_eq!(pair([3, 3], owns).map(|core| core.refusal()), [Some(reason); 2]);
    }
}

#[test]
fn both_journals_lost_close_the_pair_instead_of_counting_from_below() {
    let both_new = |witness| {
        let core = |journal, owns| {
            Core::new(journal, None, memory(journal, owns, 1, None), Tail::default()).witnessed(witness)
        };
        met([core(1, true), core(2, false)]).map(|core| core.refusal())
    };
    let before = Witness { journal: 9, index: 7, solo: 0 };
    assert_eq!(both_new(Some(before)), [Some(Reason::OwnJournalLost); 2]);
    assert_eq!(both_new(None), [None; 2], "control: new vaults come together");
}

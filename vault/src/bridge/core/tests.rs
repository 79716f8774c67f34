//! Histories of a whole bridge: a source with transactions, receipts and a lock, both vaults with
//! their journals, a target that compares sequences; crashes, cut and frozen connections between
//! any two steps. Each message must reach the target (or the dead letters) exactly once. The
//! controls take one safeguard away each, and must be caught.

mod world;

use super::{Core, Input, Kept, Limits, Load, Row, Step, Write};
use std::time::Duration;
use world::{Flaw, World};

fn limits() -> Limits {
    Limits {
        rows: 4,
        bytes: 1000,
        journal_rows: 12,
        journal_bytes: 10_000,
        keep_returned: Duration::from_secs(600),
        tries: 2,
    }
}

/// The first history that goes wrong, and what went wrong.
fn first_failure(histories: std::ops::Range<u64>, flaw: Option<Flaw>) -> Option<(u64, String)> {
    histories.into_iter().find_map(|seed| World::new(seed, flaw).history().err().map(|why| (seed, why)))
}

#[test]
fn each_message_arrives_once_whatever_crashes_between_any_two_steps() {
    assert_eq!(first_failure(0..4000, None), None, "(seed, why)");
}

#[test]
fn without_faults_messages_arrive_in_order() {
    for seed in 0..200 {
        let arrived = World::calm(seed).history().unwrap();
        assert!(arrived.is_sorted(), "seed {seed}: {arrived:?}");
    }
}

#[test]
fn a_journal_that_answers_before_it_is_durable_is_caught() {
    assert!(first_failure(0..4000, Some(Flaw::AnswersBeforeDurable)).is_some());
}

#[test]
fn forwarding_what_may_have_been_taken_is_caught() {
    assert!(first_failure(0..4000, Some(Flaw::ForwardsUncertain)).is_some());
}

#[test]
fn dropping_what_may_not_have_been_taken_is_caught() {
    assert!(first_failure(0..4000, Some(Flaw::DropsUncertain)).is_some());
}

#[test]
fn a_receipt_outside_the_transaction_is_caught() {
    assert!(first_failure(0..4000, Some(Flaw::ReceiptOutside)).is_some());
}

#[test]
fn a_receipt_that_is_spent_with_its_own_batch_is_caught() {
    assert!(first_failure(0..4000, Some(Flaw::SpendsAtOnce)).is_some());
}

#[test]
fn a_target_that_does_not_compare_sequences_is_caught() {
    assert!(first_failure(0..4000, Some(Flaw::TargetForgets)).is_some());
}

fn kept() -> Kept {
    Kept { next_batch: 6, ..Kept::default() }
}

fn one() -> Load {
    Load { rows: 1, bytes: 1 }
}

fn row(sequence: u64) -> Row<u32> {
    Row { sequence, bytes: 1, is_expired: false, message: 0 }
}

fn take(batch: u64, message: u32, spent: &[u64]) -> Step<u32> {
    Step::Take { batch, first: message, last: message, count: 1, spent: spent.to_vec() }
}

#[test]
fn nothing_is_taken_while_the_journal_is_full_and_it_goes_on_when_there_is_room() {
    let mut core = Core::new(limits(), Kept { waiting: Load { rows: 12, bytes: 12 }, ..kept() });
    assert_eq!(core.apply(Input::Holding(vec![])), [Step::Consume]);
    assert_eq!(core.apply(Input::Received(1, 1)), []);
    assert!(core.is_full());
    for message in 2..=4 {
        core.apply(Input::Received(message, 1));
    }
    assert!(!core.wants_messages());
    core.apply(Input::TargetUp);
    let sending = core.apply(Input::Loaded(vec![row(1)]));
    assert_eq!(sending[0], Step::Send(vec![row(1)]));
    core.apply(Input::Sent);
    let taken = core.apply(Input::Written);
    assert_eq!(taken, [Step::Write(Write::Batch(6, vec![1, 2, 3, 4]))]);
    assert!(core.wants_messages());
}

#[test]
fn a_receipt_is_spent_by_a_later_batch_once_its_own_is_durably_ours() {
    let mut core = Core::new(limits(), kept());
    core.apply(Input::Holding(vec![]));
    core.apply(Input::Received(7, 1));
    assert_eq!(core.apply(Input::Written), [take(6, 7, &[])]);
    core.apply(Input::Received(8, 1));
    let next = [Step::Write(Write::Ours { batch: 6, afresh: false }), Step::Write(Write::Batch(7, vec![8]))];
    assert_eq!(core.apply(Input::Taken), next);
    core.apply(Input::Receipt(6));
    assert_eq!(core.apply(Input::Written), []);
    assert_eq!(core.apply(Input::Written), [take(7, 8, &[6])]);
}

#[test]
fn a_receipt_tells_that_a_batch_of_unknown_outcome_is_ours() {
    let mut core = Core::<u32>::new(limits(), Kept { uncertain: [(5, one())].into(), ..kept() });
    let steps = core.apply(Input::Holding(vec![5]));
    assert_eq!(steps, [Step::Write(Write::Ours { batch: 5, afresh: false }), Step::Consume]);
    assert_eq!(core.waiting(), Load::default());
    core.apply(Input::Written);
    assert_eq!(core.waiting(), one());
}

#[test]
fn a_receipt_that_comes_late_makes_returned_rows_ours_behind_all_others() {
    let mut core = Core::<u32>::new(limits(), Kept { uncertain: [(4, one()), (5, one())].into(), ..kept() });
    assert_eq!(core.apply(Input::Receipts(vec![])), []);
    assert_eq!(core.uncertain(), 0);
    let late = core.apply(Input::Holding(vec![5]));
    assert_eq!(late, [Step::Write(Write::Ours { batch: 5, afresh: true }), Step::Consume]);
    core.apply(Input::Released);
    assert_eq!(core.apply(Input::Tick(Duration::from_secs(600))), [], "the source may be away");
    assert_eq!(core.apply(Input::Holding(vec![])), [Step::Write(Write::Drop(4)), Step::Consume]);
}

#[test]
fn a_connection_lost_before_the_rows_are_durable_drops_them() {
    let mut core = Core::new(limits(), kept());
    core.apply(Input::Holding(vec![]));
    core.apply(Input::Received(7, 1));
    assert_eq!(core.apply(Input::Released), [Step::Write(Write::Drop(6))]);
    assert_eq!(core.apply(Input::Written), [], "it is not taken over a connection that is gone");
}

#[test]
fn one_message_that_the_target_refuses_is_found_by_halving_and_kept_apart() {
    let mut core = Core::<u32>::new(limits(), kept());
    core.apply(Input::TargetUp);
    let mut steps = core.apply(Input::Loaded((1..=4).map(row).collect()));
    let mut buried = Vec::new();
    let mut sent = Vec::new();
    for _ in 0..20 {
        let Some(Step::Send(rows)) = steps.iter().find(|step| matches!(step, Step::Send(_))) else { break };
        let sequences: Vec<u64> = rows.iter().map(|row| row.sequence).collect();
        steps = if sequences.contains(&3) {
            let mut steps = core.apply(Input::Refused("no".to_owned()));
            steps.extend(core.apply(Input::TargetUp));
            steps
        } else {
            sent.extend(sequences);
            core.apply(Input::Sent)
        };
        buried.extend(steps.iter().filter_map(|step| match step {
            Step::Write(Write::Bury { sequence, why }) => Some((*sequence, why.clone())),
            _ => None,
        }));
    }
    assert_eq!((sent, buried), (vec![1, 2, 4], vec![(3, "no".to_owned())]));
}

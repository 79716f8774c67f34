//! Histories of a whole bridge: a source with transactions, receipts and a lock, both vaults with
//! their journals, a target that compares sequences; crashes, cut and frozen connections between
//! any two steps. Each message must reach the target (or the dead letters) exactly once. The
//! controls take one safeguard away each, and must be caught.

mod world;

use super::{
    Badge, Core, Found, Held, Input, Kept, Limits, Load, MOST_BEHIND, Needed, Refusal, Row, Step, Write,
};
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
        suspects: 3,
        give_up: Duration::from_secs(600),
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
fn believing_that_nothing_was_taken_where_no_receipt_is_found_is_caught() {
    assert!(first_failure(0..4000, Some(Flaw::NoneTells)).is_some());
}

#[test]
fn a_target_that_does_not_compare_sequences_is_caught() {
    assert!(first_failure(0..4000, Some(Flaw::TargetForgets)).is_some());
}

#[test]
fn forgetting_what_was_set_aside_is_caught() {
    assert!(first_failure(0..4000, Some(Flaw::ForgetsAside)).is_some());
}

#[test]
fn asking_again_about_what_was_found_to_be_the_sources_is_caught() {
    assert!(first_failure(0..4000, Some(Flaw::ForgetsReturned)).is_some());
}

#[test]
fn taking_receipts_away_that_tell_something_yet_is_caught() {
    assert!(first_failure(0..4000, Some(Flaw::SpendsUnread)).is_some());
}

#[test]
fn taking_two_sources_behind_a_uri_for_one_is_caught() {
    assert!(first_failure(0..4000, Some(Flaw::OneSource)).is_some());
}

#[test]
fn taking_two_targets_behind_a_uri_for_one_is_caught() {
    assert!(first_failure(0..4000, Some(Flaw::OneTarget)).is_some());
}

#[test]
fn sending_what_is_under_way_to_another_target_is_caught() {
    assert!(first_failure(0..4000, Some(Flaw::NoDoubt)).is_some());
}

fn refused(why: &str, how: Refusal) -> Input<u32> {
    Input::Refused { why: why.to_owned(), how }
}

/// The target does not take what was sent, and lets us in again; nothing more waits in the journal.
fn refuse(core: &mut Core<u32>, why: &str) -> Vec<Step<u32>> {
    not_taken(core, refused(why, Refusal::Answered), &[])
}

/// The same, where these rows wait in the journal behind what was read.
fn not_taken(core: &mut Core<u32>, input: Input<u32>, journal: &[Row<u32>]) -> Vec<Step<u32>> {
    let mut steps = tell(core, input, journal);
    steps.extend(tell(core, Input::TargetUp([A].into()), journal));
    steps
}

/// What happens, and what the journal does then.
fn tell(core: &mut Core<u32>, input: Input<u32>, journal: &[Row<u32>]) -> Vec<Step<u32>> {
    let mut steps = core.apply(input);
    let mut done = 0;
    while let Some(step) = steps.get(done).cloned() {
        done += 1;
        match step {
            Step::Load { after, but, .. } => {
                let behind = journal.iter().filter(|row| row.sequence > after);
                let found = behind.filter(|row| !but.contains(&row.destination)).cloned().collect();
                steps.extend(core.apply(Input::Loaded(found)));
            }
            Step::Write(_) => steps.extend(core.apply(Input::Written)),
            _ => {}
        }
    }
    steps
}

/// What is sent next, by sequence.
fn sending(steps: &[Step<u32>]) -> Option<Vec<u64>> {
    steps.iter().find_map(|step| match step {
        Step::Send { rows, .. } => Some(rows.iter().map(|row| row.sequence).collect()),
        _ => None,
    })
}

/// Two brokers.
const A: Badge = [1; 16];
const B: Badge = [2; 16];

/// Both brokers were there before.
fn kept() -> Kept {
    Kept { next_batch: 6, source: Some(A), target: Some(A), ..Kept::default() }
}

fn held() -> Held {
    Held { at: Some(A), load: one() }
}

fn found(badge: Badge, receipts: &[u64]) -> Found {
    Found { badges: [badge].into(), receipts: receipts.to_vec() }
}

fn holding(receipts: &[u64]) -> Input<u32> {
    Input::Holding(found(A, receipts))
}

fn one() -> Load {
    Load { rows: 1, bytes: 1 }
}

fn row(sequence: u64) -> Row<u32> {
    Row { sequence, bytes: 1, is_expired: false, destination: 0, message: 0 }
}

fn take(batch: u64, message: u32, spent: &[u64]) -> Step<u32> {
    Step::Take { batch, first: message, last: message, count: 1, spent: spent.to_vec() }
}

#[test]
fn nothing_is_taken_while_the_journal_is_full_and_it_goes_on_when_there_is_room() {
    let mut core = Core::new(limits(), Kept { waiting: Load { rows: 12, bytes: 12 }, ..kept() });
    assert_eq!(core.apply(holding(&[])), [Step::Consume]);
    assert_eq!(core.apply(Input::Received(1, 1)), []);
    assert!(core.is_full());
    for message in 2..=4 {
        core.apply(Input::Received(message, 1));
    }
    assert!(!core.wants_messages());
    core.apply(Input::TargetUp([A].into()));
    let sending = core.apply(Input::Loaded(vec![row(1)]));
    assert_eq!(sending[0], Step::Send { rows: vec![row(1)], is_careful: false });
    core.apply(Input::Sent);
    let taken = core.apply(Input::Written);
    assert_eq!(taken, [Step::Write(Write::Batch(6, vec![1, 2, 3, 4]))]);
    assert!(core.wants_messages());
}

#[test]
fn a_receipt_is_spent_by_a_later_batch_once_its_own_is_durably_ours() {
    let mut core = Core::new(limits(), kept());
    core.apply(holding(&[]));
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
    let mut core = Core::<u32>::new(limits(), Kept { uncertain: [(5, held())].into(), ..kept() });
    let steps = core.apply(holding(&[5]));
    assert_eq!(steps, [Step::Write(Write::Ours { batch: 5, afresh: true }), Step::Consume]);
    assert_eq!(core.waiting(), Load::default());
    core.apply(Input::Written);
    assert_eq!(core.waiting(), one());
}

#[test]
fn a_receipt_that_comes_late_makes_returned_rows_ours_behind_all_others() {
    let mut core =
        Core::<u32>::new(limits(), Kept { uncertain: [(4, held()), (5, held())].into(), ..kept() });
    let returned = [Step::Write(Write::Return(vec![4, 5]))];
    assert_eq!(core.apply(Input::Receipts(found(A, &[3]))), returned);
    assert_eq!((core.uncertain(), core.returned()), (Load::default(), Load { rows: 2, bytes: 2 }));
    let late = core.apply(holding(&[5]));
    assert_eq!(late, [Step::Write(Write::Ours { batch: 5, afresh: true }), Step::Consume]);
    core.apply(Input::Released);
    assert_eq!(core.apply(Input::Tick(Duration::from_secs(600))), [], "the source may be away");
    assert_eq!(core.apply(Input::Receipts(found(A, &[5]))), [], "an old connection may have them");
    assert_eq!(core.apply(holding(&[5])), [Step::Write(Write::Drop(4)), Step::Consume]);
}

#[test]
fn on_a_steady_connection_receipts_are_read_again_until_what_returned_is_forgotten() {
    let mut core = Core::<u32>::new(limits(), Kept { uncertain: [(4, held())].into(), ..kept() });
    core.apply(holding(&[3]));
    assert!(!core.should_read() && core.returned() == one());
    core.apply(Input::Tick(Duration::from_secs(600)));
    assert!(core.should_read());
    core.apply(Input::Released);
    core.apply(holding(&[]));
    assert!(!core.should_read(), "none was found, so nothing is told; not at once again");
    core.apply(Input::Tick(Duration::from_secs(1200)));
    assert!(core.should_read());
    core.apply(Input::Released);
    assert_eq!(core.apply(holding(&[3])), [Step::Write(Write::Drop(4)), Step::Consume]);
    core.apply(Input::Tick(Duration::from_secs(9000)));
    assert!(!core.should_read() && core.returned() == Load::default());
}

#[test]
fn what_was_found_to_be_the_sources_is_not_asked_about_again_after_a_restart_where_another_one_answers() {
    let minutes = |number: u64| Duration::from_secs(60 * number);
    let kept = || Kept { returned: [(4, (minutes(4), held()))].into(), ..kept() };
    let mut core = Core::<u32>::new(limits(), kept());
    core.apply(Input::Holding(found(B, &[])));
    assert_eq!(
        (core.elsewhere(), core.uncertain(), core.returned()),
        (Load::default(), Load::default(), one())
    );
    assert_eq!(core.apply(Input::Settle { taken: true }), [], "it would come twice");
    assert!(core.searches(), "its receipt may come late all the same");
    let late = core.clone().apply(Input::Receipts(found(A, &[4])));
    assert_eq!(late, [Step::Write(Write::Ours { batch: 4, afresh: true })]);
    // The time before the restart counts.
    for (after, is_over) in [(5, false), (6, true)] {
        let mut core = Core::<u32>::new(limits(), kept());
        core.apply(Input::Tick(minutes(after)));
        let steps = core.apply(holding(&[3]));
        assert_eq!(writes(&steps).contains(&Write::Drop(4)), is_over, "{after} minutes: {steps:?}");
    }
}

#[test]
fn a_receipt_is_needed_until_what_became_of_its_batch_is_durable_and_none_that_is_not_known_yet_is_done() {
    let mut core = Core::new(limits(), Kept { uncertain: [(4, held())].into(), ..kept() });
    let settled = |core: &Core<u32>| (1..9).filter(|it| core.needed().is_settled(*it)).collect::<Vec<_>>();
    assert_eq!(settled(&core), [1, 2, 3, 5]);
    core.apply(holding(&[4]));
    assert_eq!(settled(&core), [1, 2, 3, 5], "that it is ours is not durable");
    core.apply(Input::Written);
    assert_eq!(settled(&core), [1, 2, 3, 4, 5]);
    core.apply(Input::Received(7, 1));
    core.apply(Input::Written);
    core.apply(Input::Released);
    assert_eq!(settled(&core), [1, 2, 3, 4, 5], "6 is uncertain");
    assert!(!Needed::default().is_settled(1));
}

#[test]
fn receipts_that_have_gathered_are_taken_away_in_portions() {
    let mut core = Core::new(limits(), Kept { next_batch: 2000, ..kept() });
    let all: Vec<u64> = (1..=1200).collect();
    core.apply(holding(&all));
    core.apply(Input::Received(7, 1));
    assert_eq!(
        core.apply(Input::Written),
        [Step::Take { batch: 2000, first: 7, last: 7, count: 1, spent: all[..500].to_vec() }]
    );
    core.apply(Input::Taken);
    core.apply(Input::Received(8, 1));
    core.apply(Input::Written);
    assert_eq!(core.apply(Input::Written), [take(2001, 8, &all[500..1000])]);
}

#[test]
fn where_no_receipt_is_found_nothing_is_judged_and_nothing_forgotten() {
    let mut core =
        Core::<u32>::new(limits(), Kept { uncertain: [(4, held()), (5, held())].into(), ..kept() });
    assert_eq!(core.apply(holding(&[])), [Step::Consume]);
    core.apply(Input::Tick(Duration::from_secs(600)));
    core.apply(Input::Released);
    assert_eq!(core.apply(holding(&[])), [Step::Consume], "4 and 5 may lie there");
    let told = [Step::Write(Write::Ours { batch: 5, afresh: true }), Step::Write(Write::Return(vec![4]))];
    assert_eq!(core.apply(Input::Receipt(5)), told);
    core.apply(Input::Released);
    assert_eq!(core.apply(holding(&[5])), [Step::Consume], "it is not long that 4 is not there");
    core.apply(Input::Released);
    core.apply(Input::Tick(Duration::from_secs(1200)));
    assert_eq!(core.apply(holding(&[])), [Step::Consume], "4 may lie there now");
    core.apply(Input::Released);
    assert_eq!(core.apply(holding(&[5])), [Step::Write(Write::Drop(4)), Step::Consume]);
}

#[test]
fn rows_whose_receipt_comes_while_a_batch_is_open_are_ours_behind_it() {
    let mut core = Core::new(limits(), Kept { uncertain: [(4, held())].into(), ..kept() });
    core.apply(holding(&[]));
    assert_eq!(core.apply(Input::Received(7, 1)), [Step::Write(Write::Batch(6, vec![7]))]);
    assert_eq!(core.apply(Input::Receipt(4)), []);
    assert_eq!(core.apply(Input::Written), [take(6, 7, &[])], "that of 4 is needed until 4 is ours");
    core.apply(Input::Received(8, 1));
    let ours = |batch, afresh| Step::Write(Write::Ours { batch, afresh });
    let batch = Step::Write(Write::Batch(7, vec![8]));
    assert_eq!(core.apply(Input::Taken), [ours(6, false), ours(4, true), batch]);
}

#[test]
fn a_connection_lost_before_the_rows_are_durable_drops_them() {
    let mut core = Core::new(limits(), kept());
    core.apply(holding(&[]));
    core.apply(Input::Received(7, 1));
    assert_eq!(core.apply(Input::Released), [Step::Write(Write::Drop(6))]);
    assert_eq!(core.apply(Input::Written), [], "it is not taken over a connection that is gone");
}

#[test]
fn one_message_that_the_target_refuses_is_found_by_halving_and_kept_apart() {
    let mut core = Core::<u32>::new(limits(), kept());
    core.apply(Input::TargetUp([A].into()));
    let mut steps = core.apply(Input::Loaded((1..=4).map(row).collect()));
    let mut buried = Vec::new();
    let mut sent = Vec::new();
    for _ in 0..20 {
        let Some(sequences) = sending(&steps) else { break };
        steps = if sequences.contains(&3) {
            refuse(&mut core, "no")
        } else {
            sent.extend(sequences);
            tell(&mut core, Input::Sent, &[])
        };
        buried.extend(steps.iter().filter_map(|step| match step {
            Step::Write(Write::Bury { sequence, why }) => Some((*sequence, why.clone())),
            _ => None,
        }));
    }
    assert_eq!((sent, buried), (vec![1, 2, 4], vec![(3, "no".to_owned())]));
}

#[test]
fn a_target_that_refuses_everything_buries_nothing_until_it_takes_something_again() {
    let mut core = Core::<u32>::new(limits(), kept());
    core.apply(Input::TargetUp([A].into()));
    let mut steps = core.apply(Input::Loaded((1..=3).map(row).collect()));
    core.apply(Input::Loaded(vec![]));
    let mut tried = Vec::new();
    for _ in 0..40 {
        tried.extend(sending(&steps).filter(|rows| rows.len() == 1));
        assert!(!steps.iter().any(|step| matches!(step, Step::Write(Write::Bury { .. }))), "{steps:?}");
        steps = refuse(&mut core, "store is away");
    }
    assert!([1, 2, 3].iter().all(|sequence| tried.contains(&vec![*sequence])), "each is tried: {tried:?}");
    let mut done = Vec::new();
    while let Some(sequences) = sending(&steps) {
        done.extend(sequences);
        steps = core.apply(Input::Sent);
        // One that had just been refused stands for a bad one, and is kept.
        done.extend(steps.iter().filter_map(|step| match step {
            Step::Write(Write::Bury { sequence, .. }) => Some(*sequence),
            _ => None,
        }));
    }
    done.sort_unstable();
    assert_eq!(done, [1, 2, 3]);
}

#[test]
fn a_message_that_will_be_refused_for_ever_or_was_for_long_is_buried_at_once() {
    let mut core = Core::<u32>::new(limits(), kept());
    core.apply(Input::TargetUp([A].into()));
    core.apply(Input::Loaded(vec![row(1)]));
    let bury = |sequence, why: &str| Step::Write(Write::Bury { sequence, why: why.to_owned() });
    assert_eq!(core.apply(refused("too long", Refusal::ForEver))[0], bury(1, "too long"));
    core.apply(Input::Written);
    assert_eq!(core.dead(), one());
    core.apply(Input::TargetUp([A].into()));
    core.apply(Input::Loaded(vec![row(2)]));
    core.apply(Input::Loaded(vec![]));
    for seconds in [0, 300, 599] {
        core.apply(Input::Tick(Duration::from_secs(seconds)));
        let steps = refuse(&mut core, "no");
        assert!(!steps.contains(&bury(2, "no")), "{steps:?}");
    }
    core.apply(Input::Tick(Duration::from_secs(600)));
    assert!(core.apply(refused("no", Refusal::Answered)).contains(&bury(2, "no")));
}

#[test]
fn a_refused_message_waits_alone_until_one_behind_it_is_taken() {
    let mut core = Core::<u32>::new(limits(), kept());
    core.apply(Input::TargetUp([A].into()));
    core.apply(Input::Loaded(vec![row(1)]));
    core.apply(Input::Loaded(vec![]));
    for _ in 0..6 {
        let steps = refuse(&mut core, "no");
        assert!(!steps.iter().any(|step| matches!(step, Step::Write(_))), "{steps:?}");
    }
    // Another one comes.
    core.apply(holding(&[]));
    core.apply(Input::Received(9, 1));
    core.apply(Input::Written);
    tell(&mut core, Input::Taken, &[row(2)]);
    let next = (0..4).find_map(|_| {
        let steps = not_taken(&mut core, refused("no", Refusal::Answered), &[row(2)]);
        sending(&steps).filter(|rows| rows[0] == 2)
    });
    assert_eq!(next, Some(vec![2]));
    let steps = core.apply(Input::Sent);
    let bury = Write::Bury { sequence: 1, why: "no".to_owned() };
    assert!(steps.contains(&Step::Write(bury)), "{steps:?}");
}

/// All writes of these steps.
fn writes(steps: &[Step<u32>]) -> Vec<Write<u32>> {
    let write = |step: &Step<u32>| match step {
        Step::Write(write) => Some(write.clone()),
        _ => None,
    };
    steps.iter().filter_map(write).collect()
}

#[test]
fn what_is_set_aside_is_durably_so_before_anything_passes_it() {
    let mut core = Core::<u32>::new(limits(), kept());
    core.apply(Input::TargetUp([A].into()));
    core.apply(Input::Loaded(vec![row(1), row(2)]));
    refuse(&mut core, "no");
    refuse(&mut core, "no");
    let mut steps = core.apply(refused("no", Refusal::Answered));
    steps.extend(core.apply(Input::TargetUp([A].into())));
    let aside = Write::Aside { sequence: 1, why: "no".to_owned(), is_answered: true };
    assert_eq!((writes(&steps), sending(&steps)), (vec![aside], None));
    let steps = core.apply(Input::Written);
    assert_eq!(sending(&steps), Some(vec![2]));
}

#[test]
fn one_destination_that_the_target_refuses_holds_up_no_other() {
    let to = |sequence, destination| Row { destination, ..row(sequence) };
    let journal: Vec<Row<u32>> = (1..=40).map(|it| to(it, 1)).chain([to(41, 2), to(42, 1)]).collect();
    let mut core = Core::<u32>::new(limits(), kept());
    let mut steps = tell(&mut core, Input::TargetUp([A].into()), &journal);
    let (mut refusals, mut passed) = (0, Vec::new());
    while sending(&steps) != Some(vec![41]) {
        refusals += 1;
        assert!(refusals < 20, "{steps:?}");
        let journal: Vec<_> = journal.iter().filter(|row| !passed.contains(&row.sequence)).cloned().collect();
        steps = not_taken(&mut core, refused("no", Refusal::Answered), &journal);
        passed.extend(writes(&steps).into_iter().flat_map(|write| match write {
            Write::Pass(sequences) => sequences,
            _ => Vec::new(),
        }));
    }
    assert_eq!(passed, (4..=40).collect::<Vec<u64>>(), "their places are behind it now");
    let buried: Vec<u64> = writes(&core.apply(Input::Sent))
        .into_iter()
        .filter_map(|write| match write {
            Write::Bury { sequence, .. } => Some(sequence),
            _ => None,
        })
        .collect();
    assert_eq!(buried, [1, 2, 3]);
}

#[test]
fn rows_of_an_open_batch_go_behind_those_that_were_passed_meanwhile() {
    let to = |sequence, destination| Row { destination, ..row(sequence) };
    let mut core = Core::<u32>::new(limits(), kept());
    tell(&mut core, Input::TargetUp([A].into()), &[1, 2, 3, 4].map(|it| to(it, 1)));
    core.apply(holding(&[]));
    assert_eq!(core.apply(Input::Received(7, 1)), [Step::Write(Write::Batch(6, vec![7]))]);
    core.apply(Input::Written);
    let passes = |steps: Vec<Step<u32>>| writes(&steps).contains(&Write::Pass(vec![4]));
    assert!((0..10).any(|_| passes(not_taken(&mut core, refused("no", Refusal::Answered), &[to(5, 2)]))));
    let ours = Step::Write(Write::Ours { batch: 6, afresh: true });
    assert_eq!(core.apply(Input::Taken), [ours], "otherwise they would be sent behind those, and dropped");
}

#[test]
fn a_target_that_refuses_every_destination_has_nothing_passed_again_and_again() {
    let to = |sequence, destination| Row { destination, ..row(sequence) };
    let mut core = Core::<u32>::new(limits(), kept());
    tell(&mut core, Input::TargetUp([A].into()), &[1, 2, 3, 4].map(|it| to(it, 1)));
    let passes = |steps: &[Step<u32>]| {
        writes(steps).iter().filter(|write| matches!(write, Write::Pass(_) | Write::Bury { .. })).count()
    };
    let all: usize = (0..60).map(|_| passes(&refuse(&mut core, "no"))).sum();
    assert_eq!(all, 0, "there is no other destination");
}

#[test]
fn a_message_that_loses_the_connection_is_found_and_set_aside_while_its_fate_is_known() {
    let mut core = Core::<u32>::new(limits(), kept());
    core.apply(Input::TargetUp([A].into()));
    let mut steps = core.apply(Input::Loaded((1..=3).map(row).collect()));
    for tried in [vec![1, 2, 3], vec![1]] {
        assert_eq!(sending(&steps), Some(tried));
        steps = not_taken(&mut core, Input::TargetLost, &[]);
    }
    for _ in 0..2 {
        let careful = Step::Send { rows: vec![row(1)], is_careful: true };
        assert!(steps.contains(&careful), "{steps:?}");
        steps = not_taken(&mut core, refused("closed", Refusal::HungUp), &[]);
    }
    assert!(steps.contains(&Step::Send { rows: vec![row(2)], is_careful: true }), "{steps:?}");
    // Now the outcome is unknown: as long as it is, nothing before 2 is sent.
    for _ in 0..5 {
        let input = [Input::TargetLost, refused("closed", Refusal::HungUp)];
        for input in input {
            steps = not_taken(&mut core, input, &[]);
            assert_eq!(sending(&steps), Some(vec![2]), "{steps:?}");
        }
    }
    let steps = core.apply(Input::Sent);
    let buried = writes(&steps).into_iter().any(|write| {
        matches!(write, Write::Bury { sequence: 1, why } if why.ends_with("so it may have got it: closed"))
    });
    assert!(buried, "{steps:?}");
}

#[test]
fn a_receipt_from_a_later_life_tells_that_the_journal_is_an_old_copy() {
    let mut core = Core::<u32>::new(limits(), kept());
    assert_eq!(core.apply(holding(&[9])), [Step::Write(Write::Jump(10)), Step::Consume]);
    let steps = core.apply(Input::Received(1, 1));
    assert_eq!(steps, [Step::Write(Write::Batch(10, vec![1]))]);
}

#[test]
fn a_receipt_of_a_batch_that_no_journal_comes_to_changes_no_number() {
    for forged in [MOST_BEHIND * 2, (1 << 62) - 1, 1 << 62, u64::MAX] {
        let mut core = Core::<u32>::new(limits(), kept());
        let steps = core.apply(holding(&[forged]));
        assert!(!writes(&steps).iter().any(|write| matches!(write, Write::Jump(_))), "{forged}: {steps:?}");
    }
}

#[test]
fn what_was_to_be_taken_from_one_source_is_judged_by_no_other_and_an_operator_can_settle_it() {
    let uncertain = || Core::<u32>::new(limits(), Kept { uncertain: [(5, held())].into(), ..kept() });
    let mut core = uncertain();
    assert_eq!(core.elsewhere(), Load::default(), "nobody has answered yet");
    let steps = core.apply(Input::Holding(found(B, &[3])));
    assert_eq!(steps, [Step::Write(Write::From(B)), Step::Consume]);
    assert_eq!((core.elsewhere(), core.uncertain()), (one(), one()));
    // Messages of the one that answers are taken meanwhile.
    assert_eq!(core.apply(Input::Received(1, 1)), [Step::Write(Write::Batch(6, vec![1]))]);
    core.apply(Input::Written);
    assert_eq!(core.apply(Input::Written), [take(6, 1, &[3])]);
    core.apply(Input::Taken);
    // The first one is found again.
    let ours = Step::Write(Write::Ours { batch: 5, afresh: true });
    assert_eq!(core.apply(Input::Receipts(found(A, &[5]))), std::slice::from_ref(&ours));
    assert_eq!(core.elsewhere(), Load::default());

    for (taken, step) in [(true, ours), (false, Step::Write(Write::Drop(5)))] {
        let mut core = uncertain();
        assert_eq!(core.apply(Input::Settle { taken }), [], "it may still tell");
        core.apply(Input::Holding(found(B, &[])));
        assert_eq!(core.apply(Input::Settle { taken }), [step]);
        assert_eq!((core.elsewhere(), core.uncertain()), (Load::default(), Load::default()));
    }
}

/// A target with that badge lets us in, and all reads end.
fn up(core: &mut Core<u32>, badge: Badge) -> Vec<Step<u32>> {
    core.apply(Input::TargetUp([badge].into()))
}

#[test]
fn what_may_be_at_one_target_goes_to_no_other_until_an_operator_accepts_it() {
    let mut core = Core::<u32>::new(limits(), kept());
    up(&mut core, A);
    assert_eq!(sending(&core.apply(Input::Loaded(vec![row(1), row(2)]))), Some(vec![1, 2]));
    core.apply(Input::TargetLost);
    assert_eq!(up(&mut core, B), [Step::Refuse]);
    assert!(core.refuses());
    assert_eq!(sending(&up(&mut core, A)), Some(vec![1]), "with the same sequences");
    assert!(!core.refuses());
    core.apply(Input::TargetLost);
    assert_eq!(core.apply(Input::Accept), [], "it was not refused");
    assert_eq!(up(&mut core, B), [Step::Refuse]);
    assert_eq!(core.apply(Input::Accept), [Step::Write(Write::To(B))]);
    assert_eq!(up(&mut core, B), [], "it is not noted yet");
    assert_eq!(sending(&core.apply(Input::Written)), Some(vec![1]));
}

#[test]
fn another_target_is_taken_as_soon_as_nothing_is_under_way() {
    let mut core = Core::<u32>::new(limits(), kept());
    up(&mut core, A);
    core.apply(Input::Loaded(vec![row(1)]));
    core.apply(Input::Sent);
    core.apply(Input::TargetLost);
    assert_eq!(up(&mut core, B)[0], Step::Write(Write::To(B)));
    assert_eq!(sending(&core.apply(Input::Loaded(vec![row(2)]))), None, "it is not noted yet");
    core.apply(Input::Written);
    assert_eq!(sending(&core.apply(Input::Written)), Some(vec![2]));
}

#[test]
fn after_a_crash_all_that_waited_may_be_at_the_target_and_what_came_later_may_not() {
    let waiting = Load { rows: 2, bytes: 2 };
    let mut core = Core::<u32>::new(limits(), Kept { waiting, last_sequence: 9, ..kept() });
    assert_eq!(up(&mut core, B), [Step::Refuse]);
    up(&mut core, A);
    core.apply(Input::Loaded(vec![row(4)]));
    core.apply(Input::Sent);
    core.apply(Input::TargetLost);
    assert_eq!(up(&mut core, B), [Step::Refuse], "one was not read yet");
    up(&mut core, A);
    assert_eq!(sending(&core.apply(Input::Loaded(vec![row(9), row(10)]))), Some(vec![9, 10]));
    core.apply(Input::Sent);
    core.apply(Input::TargetLost);
    assert_eq!(up(&mut core, B)[0], Step::Write(Write::To(B)));
}

#[test]
fn nothing_is_taken_while_it_is_held() {
    let mut core = Core::new(limits(), kept());
    core.apply(Input::Hold(true));
    core.apply(holding(&[]));
    assert_eq!(core.apply(Input::Received(1, 1)), []);
    assert!(core.is_idle());
    assert_eq!(core.apply(Input::Hold(false)), [Step::Write(Write::Batch(6, vec![1]))]);
    assert!(!core.is_idle());
}

#[test]
fn dead_letters_count_against_the_journals_bound_and_damaged_rows_are_dead() {
    let mut core = Core::<u32>::new(limits(), Kept { waiting: Load { rows: 12, bytes: 12 }, ..kept() });
    core.apply(Input::Damaged(Load { rows: 2, bytes: 2 }));
    assert_eq!((core.waiting().rows, core.dead().rows), (10, 2));
    assert!(core.is_full());
}

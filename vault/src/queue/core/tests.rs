//! Seeded histories of the queues' rules with a disk that fails and a process that is killed between
//! any two steps, beside a plain model of what must be. A failure prints its seed; `SEEDS` sets how
//! many histories run, `SEED` runs one. Each safeguard has a control: with it taken away, the
//! same checks must fail.

mod choice;
mod disk;
mod rules;
mod world;

use disk::Disk;
use world::{Control, World};

fn history(seed: u64, control: Control, disk: Disk) -> Result<usize, String> {
    let mut world = World::new(seed, control, disk);
    let mut run = || {
        for _ in 0..400 {
            world.step()?;
        }
        world.settle()
    };
    run().map_err(|why| {
        let from = world.log.len().saturating_sub(30);
        format!("seed {seed}: {why}\n{}", world.log[from..].join("\n"))
    })?;
    Ok(world.finished())
}

fn seeds(most: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(most),
    }
}

fn all_hold(disk: impl Fn() -> Disk, most: u64) {
    let mut finished = 0;
    for seed in seeds(most) {
        finished += history(seed, Control::Nothing, disk()).unwrap_or_else(|why| panic!("{why}"));
    }
    assert!(finished > 0, "histories in which nothing is finished prove nothing");
}

#[test]
fn crashes_and_failing_commits_lose_nothing_answered_and_double_nothing_acknowledged() {
    all_hold(Disk::memory, 2_000);
}

#[test]
fn the_journal_keeps_what_the_plain_disk_keeps_through_kills() {
    all_hold(Disk::both, 20);
}

fn must_fail(control: Control, how: &str) {
    let fails = |seed| history(seed, control, Disk::memory()).is_err_and(|why| why.contains(how));
    assert!((0..500).any(fails), "{control:?} passes unnoticed: the checks check nothing");
}

#[test]
fn control_answers_before_the_commit_are_noticed() {
    must_fail(Control::AnswersEarly, "was answered and is lost");
}

#[test]
fn control_a_disk_that_forgets_deletions_is_noticed() {
    must_fail(Control::ForgetsDeletions, "was acknowledged durably");
}

#[test]
fn control_a_forgotten_producer_is_noticed() {
    must_fail(Control::ForgetsProducers, "is kept twice");
}

#[test]
fn control_a_look_that_ends_too_early_is_noticed() {
    must_fail(Control::LooksTooShort, "might have it");
}

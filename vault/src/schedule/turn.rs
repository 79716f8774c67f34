//! What a job's state and the time ask for: wait, run, or leave a time out. Pure; `now` is passed in.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::plan::Plan;

/// A time that is later than this was missed: longer than the other vault needs to take over.
const ON_TIME: Duration = Duration::from_secs(90);

/// What is decided up to a time further ahead than this was decided by a clock that was wrong.
const AHEAD: Duration = Duration::from_secs(24 * 3600);
/// So many ended runs that operators asked for are remembered.
const ASKED: usize = 8;

/// What becomes of times that have passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// The latest of them is run, once for all.
    RunOnce,
    /// They are left out.
    Skip,
}

/// A job's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// For times at which no vault could run it.
    pub missed: Passed,
    /// For times at which it was still running.
    pub overlap: Passed,
}

/// A run that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The time for which it is.
    pub at: Timestamp,
    /// An operator asked for it, whatever the plan says.
    pub asked: bool,
    /// The vault that began it last.
    pub by: String,
    /// The lease's epoch in which it was begun last.
    pub epoch: u64,
    /// When it was begun last.
    pub began: Timestamp,
}

/// A run that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// It.
    pub run: Run,
    /// When.
    pub ended: Timestamp,
    /// Why it failed; `None`: it did not.
    pub fault: Option<String>,
}

/// What both vaults know of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// What was due up to here is decided.
    pub upto: Timestamp,
    /// Begun, and not known to have ended.
    pub running: Option<Run>,
    /// The last one that ended.
    pub last: Option<Ended>,
    /// So many of the last ones failed in a row.
    #[serde(default)]
    pub failures: u32,
    /// The last few runs that operators asked for and that have ended: a vault that never heard of the
    /// end still wishes for it.
    #[serde(default)]
    pub asked: Vec<Timestamp>,
    /// Times left out since the job is known; times missed in one go count as one.
    pub skipped: u64,
}

/// What operators want of a job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    /// A run for this time, whatever the plan says.
    pub asked: Option<Timestamp>,
    /// No other run begins, and none is begun again.
    pub paused: bool,
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until this time.
    Wait(Option<Timestamp>),
    /// Leave out what was due up to this time.
    Skip(Timestamp),
    /// Count what was decided from here on as not decided: it lies in the future.
    PutRight(Timestamp),
    /// Run it for this time.
    Run {
        /// The time, of which the run's key is made.
        at: Timestamp,
        /// An operator asked for it.
        asked: bool,
    },
}

impl State {
    /// A job that is seen for the first time: what was due before concerns it not.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self { upto: now, running: None, last: None, failures: 0, asked: Vec::new(), skipped: 0 }
    }

    /// What is to be done.
    #[must_use]
    pub fn step(&self, plan: &Plan, rules: Rules, wishes: Wishes, now: Timestamp) -> Step {
        // Nobody knows how far it came: it is run again under the same key.
        if let Some(Run { at, asked, .. }) = self.running
            && (asked || !wishes.paused)
        {
            return Step::Run { at, asked };
        }
        if self.running.is_none()
            && let Some(at) = wishes.asked.filter(|at| !self.has_run(*at))
        {
            return Step::Run { at, asked: true };
        }
        if wishes.paused {
            return Step::Wait(None);
        }
        if self.is_ahead(now, AHEAD) {
            return Step::PutRight(now);
        }
        let Some(at) = plan.last_until(now).filter(|at| *at > self.upto) else {
            return Step::Wait(plan.next_after(now.max(self.upto)));
        };
        let ran = |ended: &Ended| (ended.run.began..=ended.ended).contains(&at);
        let rule = if self.last.as_ref().is_some_and(ran) {
            rules.overlap
        } else if Duration::try_from(now.duration_since(at)).is_ok_and(|late| late <= ON_TIME) {
            Passed::RunOnce
        } else {
            rules.missed
        };
        match rule {
            Passed::RunOnce => Step::Run { at, asked: false },
            Passed::Skip => Step::Skip(at),
        }
    }

    /// Has that run, which an operator asked for, ended?
    #[must_use]
    pub fn has_run(&self, at: Timestamp) -> bool {
        self.asked.contains(&at)
    }

    /// Was something decided further ahead of `now` than clocks may differ?
    #[must_use]
    pub fn is_of_a_wrong_clock(&self, now: Timestamp) -> bool {
        self.is_ahead(now, ON_TIME)
    }

    fn is_ahead(&self, now: Timestamp, by: Duration) -> bool {
        Duration::try_from(self.upto.duration_since(now)).is_ok_and(|ahead| ahead > by)
    }

    /// When it is due next.
    #[must_use]
    pub fn next(&self, plan: &Plan, now: Timestamp) -> Option<Timestamp> {
        let decided = if self.is_ahead(now, AHEAD) { now } else { self.upto };
        plan.next_after(now.max(decided))
    }

    /// Since when a run is due that nobody has begun.
    #[must_use]
    pub fn late_since(&self, plan: &Plan, now: Timestamp) -> Option<Timestamp> {
        plan.next_after(self.upto).filter(|due| *due <= now && self.running.is_none())
    }

    /// The state once that was left out.
    #[must_use]
    pub fn skipping(self, upto: Timestamp) -> Self {
        Self { upto: self.upto.max(upto), skipped: self.skipped.saturating_add(1), ..self }
    }

    /// The state once a wrong clock's decisions count no more.
    #[must_use]
    pub fn put_right(self, now: Timestamp) -> Self {
        Self { upto: self.upto.min(now), ..self }
    }

    /// The state once that run has begun.
    #[must_use]
    pub fn running(self, run: Run) -> Self {
        Self { running: Some(run), ..self }
    }

    /// The state once it has ended.
    #[must_use]
    pub fn ended(mut self, run: Run, ended: Timestamp, fault: Option<String>) -> Self {
        self.failures = if fault.is_some() { self.failures.saturating_add(1) } else { 0 };
        if run.asked {
            self.asked.insert(0, run.at);
            self.asked.truncate(ASKED);
        } else {
            self.upto = self.upto.max(run.at);
        }
        Self { running: None, last: Some(Ended { run, ended, fault }), ..self }
    }
}

/// By which handlers and queues know a run that is repeated.
#[must_use]
pub fn key(job: &str, at: Timestamp) -> String {
    format!("{job}/{at}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SKIP: Rules = Rules { missed: Passed::Skip, overlap: Passed::Skip };
    const FREE: Wishes = Wishes { asked: None, paused: false };
    const PAUSED: Wishes = Wishes { asked: None, paused: true };
    const RUN: Rules = Rules { missed: Passed::RunOnce, overlap: Passed::RunOnce };

    fn at(text: &str) -> Timestamp {
        format!("2026-05-01T{text}Z").parse().unwrap()
    }

    /// Every ten minutes.
    fn plan() -> Plan {
        Plan::parse("*/10 * * * *", "UTC", at("00:00:00")).unwrap()
    }

    fn run(for_time: &str, began: &str) -> Run {
        Run { at: at(for_time), asked: false, by: "a".into(), epoch: 1, began: at(began) }
    }

    fn asking(at: Timestamp) -> Wishes {
        Wishes { asked: Some(at), paused: false }
    }

    fn due(text: &str) -> Step {
        Step::Run { at: at(text), asked: false }
    }

    #[test]
    fn a_new_job_waits_for_its_next_time() {
        let state = State::new(at("10:05:00"));
        assert_eq!(state.step(&plan(), RUN, FREE, at("10:05:00")), Step::Wait(Some(at("10:10:00"))));
        assert_eq!(state.step(&plan(), SKIP, FREE, at("10:10:00")), due("10:10:00"));
        assert_eq!(state.step(&plan(), SKIP, FREE, at("10:11:29")), due("10:10:00"), "late, yet not missed");
    }

    #[test]
    fn missed_times_are_run_once_for_all_or_left_out() {
        let state = State::new(at("10:05:00"));
        assert_eq!(state.step(&plan(), RUN, FREE, at("11:35:00")), due("11:30:00"));
        assert_eq!(state.step(&plan(), SKIP, FREE, at("11:35:00")), Step::Skip(at("11:30:00")));
        let state = state.skipping(at("11:30:00"));
        assert_eq!(state.step(&plan(), SKIP, FREE, at("11:35:00")), Step::Wait(Some(at("11:40:00"))));
        assert_eq!(state.skipped, 1);
    }

    #[test]
    fn a_run_that_may_not_have_ended_is_run_again_for_the_same_time() {
        let state = State::new(at("10:05:00")).running(run("10:10:00", "10:10:00"));
        assert_eq!(state.step(&plan(), SKIP, FREE, at("12:00:00")), due("10:10:00"));
    }

    #[test]
    fn a_time_at_which_the_job_still_ran_goes_by_the_rule_for_overlap() {
        let state = State::new(at("10:05:00")).ended(run("10:10:00", "10:10:00"), at("10:25:00"), None);
        assert_eq!(state.step(&plan(), RUN, FREE, at("10:25:00")), due("10:20:00"));
        assert_eq!(state.step(&plan(), SKIP, FREE, at("10:25:00")), Step::Skip(at("10:20:00")));
    }

    #[test]
    fn a_run_that_an_operator_asks_for_leaves_the_plan_as_it_is() {
        let state = State::new(at("10:05:00"));
        let asked = at("10:07:00");
        assert_eq!(state.step(&plan(), SKIP, asking(asked), asked), Step::Run { at: asked, asked: true });
        let ended = state.ended(Run { asked: true, ..run("10:07:00", "10:07:00") }, at("10:08:00"), None);
        assert_eq!(ended.step(&plan(), SKIP, FREE, at("10:10:00")), due("10:10:00"));
    }

    #[test]
    fn a_run_that_was_asked_for_is_not_run_again_once_it_has_ended() {
        let asked = at("10:07:00");
        let run = Run { asked: true, ..run("10:07:00", "10:07:00") };
        let ended = State::new(at("10:05:00")).ended(run, at("10:08:00"), None);
        let wait = Step::Wait(Some(at("10:20:00")));
        let later = ended.ended(self::run("10:10:00", "10:10:00"), at("10:11:00"), None);
        assert_eq!(later.step(&plan(), SKIP, asking(asked), at("10:12:00")), wait, "though others ran since");
        let many = (0..20).fold(later, |state, second| {
            let at = at(&format!("10:12:{second:02}"));
            state.ended(Run { at, asked: true, ..self::run("10:12:00", "10:12:00") }, at, None)
        });
        assert_eq!(many.asked.len(), ASKED);
    }

    #[test]
    fn what_a_wrong_clock_decided_for_years_ahead_is_put_right_and_the_plan_goes_on() {
        let wrong = State::new(at("10:05:00")).ended(
            Run { at: "2036-01-01T00:00:00Z".parse().unwrap(), ..run("10:10:00", "10:10:00") },
            at("10:11:00"),
            None,
        );
        let now = at("10:15:00");
        assert!(wrong.is_of_a_wrong_clock(now));
        assert_eq!(wrong.next(&plan(), now), Some(at("10:20:00")));
        assert_eq!(wrong.step(&plan(), RUN, FREE, now), Step::PutRight(now));
        let right = wrong.put_right(now);
        assert_eq!(right.step(&plan(), RUN, FREE, now), Step::Wait(Some(at("10:20:00"))));
        assert_eq!(right.step(&plan(), RUN, FREE, at("10:20:00")), due("10:20:00"));
        // Two clocks that are an hour apart are no reason to run anything twice.
        let apart = State::new(at("11:00:00"));
        assert!(apart.is_of_a_wrong_clock(now));
        assert_eq!(apart.step(&plan(), RUN, FREE, now), Step::Wait(Some(at("11:10:00"))));
        assert_eq!(apart.next(&plan(), now), Some(at("11:10:00")));
    }

    #[test]
    fn a_paused_job_begins_nothing_but_what_an_operator_asks_for() {
        let state = State::new(at("10:05:00"));
        assert_eq!(state.step(&plan(), RUN, PAUSED, at("10:30:00")), Step::Wait(None));
        let asked = at("10:31:00");
        let both = Wishes { asked: Some(asked), paused: true };
        assert_eq!(state.step(&plan(), RUN, both, asked), Step::Run { at: asked, asked: true });
        let broken_off = state.clone().running(run("10:10:00", "10:10:00"));
        assert_eq!(broken_off.step(&plan(), RUN, PAUSED, at("10:30:00")), Step::Wait(None));
        assert_eq!(broken_off.step(&plan(), RUN, both, asked), Step::Wait(None), "one run at a time");
        assert_eq!(broken_off.step(&plan(), RUN, FREE, at("10:30:00")), due("10:10:00"));
        assert_eq!(state.step(&plan(), RUN, FREE, at("10:35:00")), due("10:30:00"), "resumed: as if missed");
    }

    #[test]
    fn failures_in_a_row_are_counted_until_a_run_succeeds() {
        let failed =
            |state: State| state.ended(run("10:10:00", "10:10:00"), at("10:11:00"), Some("no".into()));
        let state = failed(failed(State::new(at("10:05:00"))));
        assert_eq!(state.failures, 2);
        assert_eq!(state.ended(run("10:20:00", "10:20:00"), at("10:21:00"), None).failures, 0);
    }

    #[test]
    fn a_job_is_late_from_its_first_time_that_nobody_has_taken() {
        let state = State::new(at("10:05:00"));
        assert_eq!(state.late_since(&plan(), at("10:09:59")), None);
        assert_eq!(state.late_since(&plan(), at("10:35:00")), Some(at("10:10:00")));
        assert_eq!(state.running(run("10:10:00", "10:10:00")).late_since(&plan(), at("10:35:00")), None);
    }

    #[test]
    fn a_state_reads_back_from_its_record() {
        let state =
            State::new(at("10:05:00")).ended(run("10:10:00", "10:10:01"), at("10:12:00"), Some("no".into()));
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
        assert_eq!(key("nightly", at("10:10:00")), "nightly/2026-05-01T10:10:00Z");
    }

    proptest! {
        #[test]
        fn no_time_is_run_twice_and_with_run_once_the_latest_is_never_left_out(
            steps in proptest::collection::vec((1_i64..5_000, 0_i64..2_000), 1..40), skips: bool
        ) {
            let (plan, rules) = (plan(), if skips { SKIP } else { RUN });
            let mut now = at("00:00:00");
            let (mut state, mut ran) = (State::new(now), Vec::new());
            for (pause, mut length) in steps {
                now += jiff::SignedDuration::from_secs(pause);
                loop {
                    match state.step(&plan, rules, FREE, now) {
                        Step::Wait(next) => {
                            prop_assert!(next.is_some_and(|next| next > now));
                            break;
                        }
                        Step::PutRight(_) => prop_assert!(false, "no clock was wrong"),
                        Step::Skip(upto) => {
                            prop_assert!(skips && upto > state.upto && upto <= now);
                            state = state.skipping(upto);
                        }
                        Step::Run { at, .. } => {
                            prop_assert!(at <= now && ran.last().is_none_or(|last| *last < at));
                            ran.push(at);
                            let run = Run { at, asked: false, by: "a".into(), epoch: 1, began: now };
                            // Only the first of a row is long, or it would go on for ever.
                            now += jiff::SignedDuration::from_secs(std::mem::take(&mut length));
                            state = state.running(run.clone()).ended(run, now, None);
                        }
                    }
                }
                let latest = plan.last_until(now).filter(|latest| *latest > at("00:00:00"));
                prop_assert!(skips || ran.last().copied() == latest, "{:?} {:?}", ran.last(), latest);
            }
        }
    }
}

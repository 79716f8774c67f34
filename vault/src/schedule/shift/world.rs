//! Two vaults at one job, simulated by seed: they die between any two acts, their clocks are apart and
//! are set, the ledger goes away, answers are lost. Drives shifts; what a vault does around them (the
//! lease's renewals, an entry repeated under its key) is done here as `worker/jobs` does it.
//!
//! Promised: no two runs at once; what was entered as ended has been run to its end, and is not begun
//! again; what was begun comes to an end; the latest time is run. Each control breaks one rule of the
//! design, and must be found out.

use std::collections::HashMap;

use jiff::SignedDuration;

use super::*;
use crate::schedule::plan::Plan;
use crate::schedule::turn::{Passed, Rules};

/// A tenth of a second.
type Tick = u64;
const SECOND: Tick = 10;
const HISTORIES: u64 = 300;
/// For so long there is trouble; then all is well for as long again.
const TROUBLE: Tick = 1200 * SECOND;
const CALM: Tick = 400 * SECOND;

/// Which rule is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Control {
    /// None.
    Sound,
    /// A run goes on for longer than the lease lasts without a renewal.
    TrustsTooLong,
    /// The state is not read again under the lease, and is entered over whatever is there.
    ReadsNothingAgain,
    /// A run is entered as ended when it begins.
    EndsTooEarly,
}

/// SplitMix64: the same seed, the same history.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// Seconds by which a clock may be off.
    fn apart(&mut self) -> i64 {
        i64::try_from(self.below(80)).unwrap() - 40
    }

    fn vault(&mut self) -> usize {
        usize::from(self.one_in(2))
    }
}

/// What a vault is about to do.
#[derive(Debug, Clone)]
enum Doing {
    Nothing {
        until: Tick,
    },
    /// Without the lease.
    Seen(Sight),
    Act {
        act: Act,
        key: u64,
    },
    Running {
        run: Run,
        ends: Tick,
    },
}

struct Vault {
    up_at: Tick,
    /// How far its clock is ahead, in seconds.
    ahead: i64,
    token: u64,
    /// Its own copy, which may be old.
    here: Option<Known>,
    wishes: Wishes,
    outcome: Option<Outcome>,
    /// It does nothing, and does not know it.
    frozen_until: Tick,
    shift: Option<Shift<'static>>,
    doing: Doing,
    renewed: Tick,
    renews_at: Tick,
}

/// What the ledger has.
#[derive(Default)]
struct Ledger {
    known: Option<Known>,
    /// The version that each key entered.
    keys: HashMap<u64, u64>,
    holder: Option<(u64, u64, Tick)>,
    epoch: u64,
    away_until: Tick,
    /// An operator keeps the job from running.
    paused: bool,
}

struct World {
    control: Control,
    tenure: Tenure,
    dice: Dice,
    now: Tick,
    job: &'static Job,
    ledger: Ledger,
    vaults: [Vault; 2],
    /// How often each time was run to its end, and whether that was entered.
    whole: HashMap<Timestamp, u32>,
    ended: HashMap<Timestamp, Tick>,
    begun: Vec<Timestamp>,
    asked: Vec<Timestamp>,
}

fn start() -> Timestamp {
    "2026-03-29T00:00:30Z".parse().unwrap()
}

impl World {
    fn new(seed: u64, control: Control) -> Self {
        let mut dice = Dice(seed);
        let rules = Rules { missed: Passed::RunOnce, overlap: Passed::RunOnce };
        let plan = Plan::parse("* * * * *", "Europe/Paris", start()).unwrap();
        let time_limit = Duration::from_secs(3600);
        // A few hundred of them, for the test's short life.
        let job = Box::leak(Box::new(Job { name: "job".into(), plan, rules, time_limit }));
        let mut vault = || Vault {
            up_at: 0,
            ahead: dice.apart(),
            token: dice.next(),
            here: None,
            wishes: Wishes::default(),
            outcome: None,
            frozen_until: 0,
            shift: None,
            doing: Doing::Nothing { until: 0 },
            renewed: 0,
            renews_at: 0,
        };
        let vaults = [vault(), vault()];
        Self {
            control,
            // Of a ledger of either kind.
            tenure: Tenure::of(seed % 2 == 1),
            dice,
            now: 0,
            job,
            ledger: Ledger::default(),
            vaults,
            whole: HashMap::new(),
            ended: HashMap::new(),
            begun: Vec::new(),
            asked: Vec::new(),
        }
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.now < TROUBLE && self.dice.one_in(one_in)
    }

    fn clock(&self, of: usize) -> Timestamp {
        let tenths = i64::try_from(self.now).unwrap() * 100;
        start() + SignedDuration::from_millis(tenths) + SignedDuration::from_secs(self.vaults[of].ahead)
    }

    fn live(&mut self) -> Result<(), String> {
        while self.now < TROUBLE + CALM {
            self.now += 1;
            self.happen();
            for of in 0..2 {
                if self.vaults[of].up_at.max(self.vaults[of].frozen_until) <= self.now {
                    self.step(of)?;
                }
            }
            // What sleeps past its lease is stopped by nobody; its epoch tells.
            let runs =
                |vault: &Vault| matches!(vault.doing, Doing::Running { .. }) && vault.frozen_until < self.now;
            let both = self.vaults.iter().all(runs);
            if both {
                return Err(format!("two run at once at {}", self.now));
            }
        }
        self.judge()
    }

    /// Trouble.
    fn happen(&mut self) {
        if self.now >= TROUBLE {
            self.ledger.paused = false;
        } else if self.chance(3000) {
            self.ledger.paused = !self.ledger.paused;
        }
        if self.chance(400) {
            let of = self.dice.vault();
            self.die(of);
        }
        if self.chance(1500) {
            let of = self.dice.vault();
            self.vaults[of].frozen_until = self.now + self.dice.below(60) * SECOND;
        }
        if self.chance(900) {
            self.ledger.away_until = self.now + (1 + self.dice.below(60)) * SECOND;
        }
        if self.chance(3000) {
            // Its owner begins anew, and every lease runs for its whole time again.
            let until = self.leased_until();
            self.ledger.holder = self.ledger.holder.map(|(token, epoch, _)| (token, epoch, until));
        }
        if self.chance(2000) {
            let of = self.dice.vault();
            self.vaults[of].ahead = self.dice.apart();
        }
        if self.chance(2000) {
            let of = self.dice.vault();
            // Each a key of its own: none is due then, nor asked for at the other vault.
            let second = self.clock(of).as_second();
            let at = second - second % 60 + 10 + 2 * i64::try_from(self.dice.below(20)).unwrap();
            let at = Timestamp::from_second(at + i64::try_from(of).unwrap()).unwrap();
            if !self.asked.contains(&at) {
                self.vaults[of].wishes.asked.get_or_insert(at);
            }
        }
    }

    fn die(&mut self, of: usize) {
        let (up_at, token) = (self.now + (1 + self.dice.below(40)) * SECOND, self.dice.next());
        let vault = &mut self.vaults[of];
        (vault.up_at, vault.token) = (up_at, token);
        (vault.wishes, vault.shift, vault.outcome) = (Wishes::default(), None, None);
        vault.frozen_until = 0;
        vault.doing = Doing::Nothing { until: 0 };
    }

    /// One act of this vault, if it is ready for it.
    fn step(&mut self, of: usize) -> Result<(), String> {
        // A vault that thaws goes on where it was, before it looks at any clock.
        if self.vaults[of].frozen_until != self.now {
            self.keep_lease(of);
        }
        match self.vaults[of].doing.clone() {
            Doing::Nothing { until } if until <= self.now => {
                if !self.is_away() && self.dice.one_in(2) {
                    self.vaults[of].here = self.ledger.known.clone();
                    self.vaults[of].wishes.paused = self.ledger.paused;
                }
                self.forget_what_has_run(of);
                let vault = &self.vaults[of];
                let state = vault.here.as_ref().map(|known| &known.state);
                match look(self.job, state, vault.wishes, self.clock(of)) {
                    Sight::Rest(_) => self.over(of, 1),
                    seen => self.vaults[of].doing = Doing::Seen(seen),
                }
            }
            Doing::Seen(seen) => self.go_on(of, seen),
            Doing::Act { act, key } => self.act(of, act, key)?,
            Doing::Running { run, ends } if ends <= self.now => {
                *self.whole.entry(run.at).or_default() += 1;
                let (fault, now) = (self.dice.one_in(3).then(|| "no".to_owned()), self.clock(of));
                let outcome = Outcome { run, ended: now, fault };
                let act = self.vaults[of].shift.as_mut().map(|shift| shift.ran(&outcome));
                self.vaults[of].outcome = Some(outcome);
                self.next(of, act.unwrap_or(Act::Again));
            }
            Doing::Nothing { .. } | Doing::Running { .. } => {}
        }
        Ok(())
    }

    fn forget_what_has_run(&mut self, of: usize) {
        let vault = &mut self.vaults[of];
        if let Some(Known { state, .. }) = &vault.here {
            vault.wishes.asked.take_if(|asked| state.has_run(*asked));
        }
    }

    fn is_away(&self) -> bool {
        self.now < self.ledger.away_until
    }

    /// Renews it, or breaks off in time.
    fn keep_lease(&mut self, of: usize) {
        if self.vaults[of].shift.is_none() {
            return;
        }
        let trust = match self.control {
            Control::TrustsTooLong => 3 * self.tenure.ttl * SECOND,
            _ => self.tenure.trust.as_secs() * SECOND,
        };
        if self.now >= self.vaults[of].renewed + trust {
            return self.over(of, 5);
        }
        if self.now < self.vaults[of].renews_at || self.is_away() || self.chance(3) {
            return;
        }
        let (token, renewed) = (self.vaults[of].token, self.leased_until());
        match &mut self.ledger.holder {
            Some((holder, _, until)) if *holder == token && self.now < *until => {
                *until = renewed;
                self.count_renewal(of);
            }
            _ if self.control == Control::TrustsTooLong => {}
            _ => self.over(of, 5),
        }
    }

    fn give_back(&mut self, of: usize) {
        let is_wanted =
            self.vaults[of].shift.is_some() && self.tenure.is_given_back(self.job, self.clock(of));
        if is_wanted && !self.is_away() && !self.chance(6) {
            self.ledger.holder.take_if(|(holder, ..)| *holder == self.vaults[of].token);
        }
    }

    /// When a lease that is entered or renewed now is over.
    fn leased_until(&self) -> Tick {
        self.now + self.tenure.ttl * SECOND
    }

    fn count_renewal(&mut self, of: usize) {
        let next = self.now + self.tenure.renew_every.as_secs() * SECOND;
        (self.vaults[of].renewed, self.vaults[of].renews_at) = (self.now, next);
    }

    fn over(&mut self, of: usize, seconds: Tick) {
        self.vaults[of].shift = None;
        self.vaults[of].doing = Doing::Nothing { until: self.now + seconds * SECOND };
    }

    fn next(&mut self, of: usize, act: Act) {
        match act {
            Act::Rest(_) | Act::Again => {
                self.give_back(of);
                self.over(of, u64::from(matches!(act, Act::Rest(_))));
            }
            act => self.vaults[of].doing = Doing::Act { act, key: self.dice.next() },
        }
    }

    /// Does what was seen to be done, without the lease.
    fn go_on(&mut self, of: usize, seen: Sight) {
        match seen {
            // It fails, or its answer is lost.
            _ if self.is_away() || self.chance(6) => self.over(of, 1),
            Sight::Rest(_) => self.over(of, 1),
            Sight::New => {
                let state = State::new(self.clock(of));
                self.ledger.known.get_or_insert(Known { state, version: 1 });
                self.vaults[of].here = self.ledger.known.clone();
                self.over(of, 0);
            }
            Sight::Acquire => self.acquire(of),
        }
    }

    fn act(&mut self, of: usize, act: Act, key: u64) -> Result<(), String> {
        match act {
            Act::Run(run) => self.run(of, run)?,
            // It fails, or its answer is lost; an entry is repeated under its key, the rest anew.
            _ if self.is_away() || self.chance(6) => {
                if self.vaults[of].shift.is_none() {
                    self.over(of, 1);
                }
            }
            Act::Read => {
                let found = match self.control {
                    Control::ReadsNothingAgain => self.vaults[of].here.clone(),
                    _ => self.ledger.known.clone(),
                };
                self.vaults[of].wishes.paused = self.ledger.paused;
                self.forget_what_has_run(of);
                let (wishes, now) = (self.vaults[of].wishes, self.clock(of));
                let vault = &mut self.vaults[of];
                let outcome = vault.outcome.as_ref();
                let act = vault.shift.as_mut().map(|shift| shift.read(found, outcome, wishes, now));
                self.next(of, act.unwrap_or(Act::Again));
            }
            Act::Enter { state, over, .. } => {
                let entered = self.enter(of, &state, over, key);
                if self.chance(8) {
                    // Entered, and never heard of: asked again under the same key.
                    return Ok(());
                }
                let act = match (entered, self.vaults[of].shift.as_mut()) {
                    (Some(version), Some(shift)) => shift.entered(version),
                    _ => Act::Again,
                };
                self.next(of, act);
            }
            Act::Rest(_) | Act::Again => self.over(of, 0),
        }
        Ok(())
    }

    fn acquire(&mut self, of: usize) {
        let token = self.vaults[of].token;
        match self.ledger.holder {
            Some((holder, _, until)) if self.now < until && holder != token => return self.over(of, 2),
            Some((holder, _, until)) if self.now < until && holder == token => {}
            _ => self.ledger.epoch += 1,
        }
        self.ledger.holder = Some((token, self.ledger.epoch, self.leased_until()));
        // The answer takes its time; the vault counts from before it asked.
        self.count_renewal(of);
        self.vaults[of].shift = Some(Shift::new(self.job, format!("vault-{of}"), self.ledger.epoch));
        self.next(of, Act::Read);
    }

    /// The version that the entry made, now or before under the same key.
    fn enter(&mut self, of: usize, state: &State, over: u64, key: u64) -> Option<u64> {
        if let Some(version) = self.ledger.keys.get(&key) {
            return Some(*version);
        }
        let present = self.ledger.known.as_ref()?.version;
        if over != present && self.control != Control::ReadsNothingAgain {
            return None;
        }
        let version = present + 1;
        self.ledger.keys.insert(key, version);
        self.ledger.known = Some(Known { state: state.clone(), version });
        self.vaults[of].here = self.ledger.known.clone();
        match (&state.running, &state.last) {
            (Some(run), _) => self.begun.push(run.at),
            (None, Some(last)) => {
                self.ended.entry(last.run.at).or_insert(self.now);
                if last.run.asked {
                    self.asked.push(last.run.at);
                    self.vaults[of].wishes.asked.take_if(|asked| *asked == last.run.at);
                }
            }
            (None, None) => {}
        }
        Some(version)
    }

    fn run(&mut self, of: usize, run: Run) -> Result<(), String> {
        // One that thaws in this very moment has not looked at its lease yet: its epoch tells.
        let thaws = self.vaults[of].frozen_until == self.now;
        if self.ended.contains_key(&run.at) && !thaws {
            return Err(format!("{} is begun again at {} after it has ended", run.at, self.now));
        }
        let ends = self.now + self.dice.below(250);
        if self.control == Control::EndsTooEarly {
            let now = self.clock(of);
            if let Some(Known { state, version }) = self.ledger.known.clone() {
                let key = self.dice.next();
                self.enter(of, &state.ended(run.clone(), now, None), version, key);
            }
        }
        self.vaults[of].doing = Doing::Running { run, ends };
        Ok(())
    }

    /// At the end, when all has been well for a while.
    fn judge(&self) -> Result<(), String> {
        if let Some(at) = self.ended.keys().find(|at| !self.whole.contains_key(at)) {
            return Err(format!("{at} is said to have ended, and was never run to its end"));
        }
        if let Some(at) = self.begun.iter().find(|at| !self.ended.contains_key(at)) {
            // The calm may end in mid-run.
            let latest = self.begun.last() == Some(at);
            if !latest {
                return Err(format!("{at} was begun, and never came to an end"));
            }
        }
        if self.vaults.iter().any(|vault| vault.wishes.asked.is_some()) {
            return Err("what an operator asked for is still to come".to_owned());
        }
        let soon =
            start() + SignedDuration::from_secs(i64::try_from((TROUBLE + CALM) / SECOND).unwrap() - 150);
        let due = self.job.plan.last_until(soon).unwrap();
        let known = self.ledger.known.as_ref().ok_or("nobody ever looked")?;
        if known.state.upto < due {
            return Err(format!("{due} was never run: everything is decided up to {}", known.state.upto));
        }
        Ok(())
    }
}

fn first_fault(control: Control) -> Option<String> {
    (0..HISTORIES).find_map(|seed| {
        let lived = World::new(seed, control).live();
        lived.err().map(|fault| format!("seed {seed}: {fault}"))
    })
}

#[test]
fn whatever_befalls_two_vaults_no_two_run_at_once_and_no_run_is_lost_or_begun_after_its_end() {
    assert_eq!(first_fault(Control::Sound), None);
}

#[test]
fn the_simulated_trouble_reaches_what_it_is_for() {
    let (mut again, mut asked, mut runs) = (0, 0, 0);
    for seed in 0..20 {
        let mut world = World::new(seed, Control::Sound);
        world.live().unwrap();
        again += world.begun.len() - world.ended.len().min(world.begun.len());
        asked += world.asked.len();
        runs += world.ended.len();
    }
    assert!(again > 20 && asked > 5 && runs > 200, "{again} begun again, {asked} asked for, {runs} ended");
}

#[test]
fn a_vault_that_trusts_its_lease_for_too_long_is_found_out() {
    let fault = first_fault(Control::TrustsTooLong).unwrap();
    assert!(fault.contains("two run at once") || fault.contains("begun again"), "{fault}");
}

#[test]
fn a_vault_that_goes_by_its_own_copy_is_found_out() {
    let fault = first_fault(Control::ReadsNothingAgain).unwrap();
    assert!(fault.contains("begun again") || fault.contains("never"), "{fault}");
}

#[test]
fn a_vault_that_enters_the_end_before_it_has_come_is_found_out() {
    let fault = first_fault(Control::EndsTooEarly).unwrap();
    assert!(fault.contains("never run to its end"), "{fault}");
}

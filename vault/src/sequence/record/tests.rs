//! What the ledger's rules promise of records and leases, against simple models of both.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::lease::Holder;
use super::*;

fn name(kind: Kind, name: &str) -> RecordName {
    RecordName { owner: "erp".to_owned(), kind, name: name.to_owned() }
}

fn written(value: &str, key: &str) -> Written {
    let content = Content { value: value.to_owned(), json: false };
    Written { content, by: "www1".to_owned(), key: key.to_owned() }
}

fn put(value: &str, key: &str, expect: Expect) -> Wish {
    Wish::Put { written: written(value, key), expect }
}

/// A chain of one record's versions, kept as entries leave it.
#[derive(Default)]
struct Chain(Vec<Held>);

impl Chain {
    fn context(&self, wish: &Wish) -> Context {
        let wrote = |held: &&Held| held.written().is_some_and(|w| Some(w.key.as_str()) == wish.key());
        let repeated = self.0.iter().find(wrote).cloned();
        Context { held: self.0.last().cloned(), repeated, records: 0 }
    }
    fn enter(&mut self, done: &Done, text: Option<String>) {
        let index = self.0.len() as u64 + 1;
        self.0.push(Held { name: "lot".to_owned(), version: done.version, index, at: 0, text });
    }
    fn decide(&self, round: &mut Round, leases: &mut Leases, wish: &Wish, now: Instant) -> Verdict {
        let kind = if matches!(wish, Wish::Lease(_)) { Kind::Lease } else { Kind::Record };
        round.decide(&name(kind, "lot"), wish, &self.context(wish), leases, now)
    }
    /// A round of its own for one wish.
    fn one(&mut self, wish: &Wish) -> Result<Done, Refused> {
        self.one_at(wish, &mut Leases::default(), now())
    }
    fn one_at(&mut self, wish: &Wish, leases: &mut Leases, now: Instant) -> Result<Done, Refused> {
        match self.decide(&mut Round::default(), leases, wish, now) {
            Verdict::Answer(done) => Ok(done),
            Verdict::Refuse(refused) => Err(refused),
            Verdict::Make(done, text) => {
                self.enter(&done, text);
                Ok(done)
            }
            Verdict::Wait => panic!("nothing is under way"),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "some moment; the tests only add to it")]
fn now() -> Instant {
    Instant::now()
}

fn version(outcome: Result<Done, Refused>) -> Result<(u64, bool), Refused> {
    outcome.map(|done| (done.version, done.fresh))
}

#[test]
fn of_those_that_have_seen_one_version_one_writes_the_next() {
    let mut chain = Chain::default();
    assert_eq!(version(chain.one(&put("10", "a", Expect::Absent))), Ok((1, true)));
    let mut round = Round::default();
    let bids: Vec<_> = ["b", "c", "d"].iter().map(|key| put(key, key, Expect::Version(1))).collect();
    let mut decide = |chain: &Chain, wish| chain.decide(&mut round, &mut Leases::default(), wish, now());
    let Verdict::Make(done, text) = decide(&chain, &bids[0]) else { panic!("the first one wins") };
    assert_eq!([decide(&chain, &bids[1]), decide(&chain, &bids[2])], [Verdict::Wait, Verdict::Wait]);
    chain.enter(&done, text);
    for bid in &bids[1..] {
        assert_eq!(version(chain.one(bid)), Err(Refused::Differs { present: Some(2) }));
    }
}

#[test]
fn a_repeated_key_is_answered_what_it_was_and_never_writes_twice() {
    let mut chain = Chain::default();
    assert_eq!(version(chain.one(&put("10", "a", Expect::Absent))), Ok((1, true)));
    assert_eq!(version(chain.one(&put("11", "b", Expect::Any))), Ok((2, true)));
    assert_eq!(version(chain.one(&put("10", "a", Expect::Absent))), Ok((1, false)));
    assert_eq!(chain.one(&put("12", "a", Expect::Any)), Err(Refused::KeyReused));
    assert_eq!(chain.0.len(), 2);
}

#[test]
fn a_removed_record_goes_on_with_its_versions() {
    let mut chain = Chain::default();
    let remove = |expect| Wish::Remove { expect };
    assert_eq!(chain.one(&remove(Expect::Any)), Err(Refused::Absent));
    assert_eq!(version(chain.one(&put("10", "a", Expect::Absent))), Ok((1, true)));
    assert_eq!(chain.one(&remove(Expect::Version(2))), Err(Refused::Differs { present: Some(1) }));
    assert_eq!(version(chain.one(&remove(Expect::Version(1)))), Ok((2, true)));
    assert_eq!(version(chain.one(&remove(Expect::Version(1)))), Ok((2, false)), "repeated");
    assert_eq!(chain.one(&put("11", "b", Expect::Any)), Err(Refused::Differs { present: None }));
    assert_eq!(version(chain.one(&put("11", "b", Expect::Absent))), Ok((3, true)));
}

#[test]
fn an_owner_has_so_many_records_and_no_more() {
    let context = |records| Context { records, ..Context::default() };
    let mut round = Round::default();
    let mut decide = |lot: &str, records| {
        let name = name(Kind::Record, lot);
        let wish = put("10", lot, Expect::Absent);
        round.decide(&name, &wish, &context(records), &mut Leases::default(), now())
    };
    assert!(matches!(decide("a", MAX_RECORDS - 1), Verdict::Make(..)));
    let Verdict::Refuse(refused) = decide("b", MAX_RECORDS - 1) else { panic!("two in one round") };
    assert_eq!(
        refused.to_string(),
        "erp has 1000000 records, names and leases, which is the most; remove some that are needed no more"
    );
}

#[test]
fn a_lease_is_held_renewed_released_and_taken_over() {
    let (mut chain, mut leases, start) = (Chain::default(), Leases::default(), now());
    leases.follow(true, start);
    let holder = |by: &str| Holder { by: by.to_owned(), token: "t".to_owned() };
    let acquire = |by| Wish::Lease(Claim::Acquire { holder: holder(by), ttl: 10 });
    let renew = |by, epoch| Wish::Lease(Claim::Renew { holder: holder(by), epoch });
    let release = |by, epoch| Wish::Lease(Claim::Release { holder: holder(by), epoch });
    let at = |seconds| start + Duration::from_secs(seconds);
    let epoch = |outcome: Result<Done, Refused>| outcome.map(|done| done.lease.unwrap().epoch);

    assert_eq!(epoch(chain.one_at(&acquire("a"), &mut leases, at(0))), Ok(1));
    leases.renew(&name(Kind::Lease, "lot"), 1, at(0));
    let held = chain.one_at(&acquire("b"), &mut leases, at(4)).unwrap_err();
    assert_eq!(held, Refused::Held { by: "a".to_owned(), epoch: 1, left: 6000 });
    assert_eq!(epoch(chain.one_at(&renew("a", 1), &mut leases, at(9))), Ok(1));
    assert_eq!(chain.0.len(), 1, "a renewal is no entry");
    chain.one_at(&acquire("b"), &mut leases, at(18)).unwrap_err();
    assert_eq!(chain.one_at(&renew("b", 1), &mut leases, at(18)), Err(Refused::Lost));
    // Another owner knows of no renewal, and lets it run anew.
    leases.follow(false, at(18));
    leases.follow(true, at(30));
    chain.one_at(&acquire("b"), &mut leases, at(39)).unwrap_err();
    assert_eq!(epoch(chain.one_at(&acquire("b"), &mut leases, at(40))), Ok(2));
    leases.renew(&name(Kind::Lease, "lot"), 2, at(40));
    assert_eq!(chain.one_at(&renew("a", 1), &mut leases, at(41)), Err(Refused::Lost));
    assert_eq!(chain.one_at(&release("a", 1), &mut leases, at(41)), Err(Refused::Lost));
    assert!(chain.one_at(&release("b", 2), &mut leases, at(42)).unwrap().fresh);
    assert!(!chain.one_at(&release("b", 2), &mut leases, at(42)).unwrap().fresh, "repeated");
    assert_eq!(chain.one_at(&Wish::Lease(Claim::Look), &mut leases, at(42)), Err(Refused::Absent));
    assert_eq!(epoch(chain.one_at(&acquire("a"), &mut leases, at(42))), Ok(4));
}

/// A register with versions, as simple as can be said.
#[derive(Default)]
struct Register {
    version: u64,
    value: Option<String>,
    wrote: BTreeMap<String, (u64, String)>,
}

impl Register {
    fn put(&mut self, value: &str, key: &str, expect: Expect) -> Option<u64> {
        if let Some((version, before)) = self.wrote.get(key) {
            return (before == value).then_some(*version);
        }
        let present = self.value.as_ref().map(|_| self.version);
        let fits = match expect {
            Expect::Absent => present.is_none(),
            Expect::Any => present.is_some(),
            Expect::Version(seen) => present == Some(seen),
        };
        fits.then(|| {
            self.version += 1;
            self.value = Some(value.to_owned());
            self.wrote.insert(key.to_owned(), (self.version, value.to_owned()));
            self.version
        })
    }
    fn remove(&mut self, expect: Expect) -> Option<u64> {
        let gone_since = if self.value.is_none() && self.version > 0 { Some(self.version - 1) } else { None };
        let fits = match (expect, gone_since) {
            (Expect::Any, Some(_)) => return Some(self.version),
            (Expect::Version(seen), Some(last)) => return (seen == last).then_some(self.version),
            (Expect::Absent, _) => false,
            (Expect::Any, None) => self.value.is_some(),
            (Expect::Version(seen), None) => self.value.is_some() && seen == self.version,
        };
        fits.then(|| {
            self.version += 1;
            self.value = None;
            self.version
        })
    }
}

fn expects() -> impl Strategy<Value = Expect> {
    prop_oneof![
        1 => Just(Expect::Absent),
        1 => Just(Expect::Any),
        4 => (0_u64..12).prop_map(Expect::Version),
    ]
}

proptest! {
    #[test]
    fn a_record_is_a_register_with_versions(
        wishes in prop::collection::vec((any::<bool>(), 0_u8..3, 0_u8..20, expects()), 0..40),
    ) {
        let (mut chain, mut register) = (Chain::default(), Register::default());
        for (puts, value, key, expect) in wishes {
            let (value, key) = (value.to_string(), key.to_string());
            let (wish, expected) = if puts {
                (put(&value, &key, expect), register.put(&value, &key, expect))
            } else {
                (Wish::Remove { expect }, register.remove(expect))
            };
            let outcome = chain.one(&wish);
            prop_assert_eq!(outcome.ok().map(|done| done.version), expected, "{:?}", wish);
            let versions: Vec<u64> = chain.0.iter().map(|held| held.version).collect();
            prop_assert_eq!(versions, (1..=register.version).collect::<Vec<_>>());
        }
    }

    /// Each holder counts its time from before it asked, on its own clock, which runs as fast as
    /// the owner's. Owners come and go; whoever is told that it holds the lease is alone with that.
    #[test]
    fn no_two_hold_a_lease_at_once(
        steps in prop::collection::vec((0_u8..8, 0_u8..3, 0_u64..4000, 5_u64..20), 1..80),
    ) {
        let (mut chain, mut leases, start) = (Chain::default(), Leases::default(), now());
        let mut clock = start;
        let mut believes: BTreeMap<u8, (Instant, u64)> = BTreeMap::new();
        let mut highest = 0;
        leases.follow(true, clock);
        for (what, who, wait, ttl) in steps {
            let sent = clock;
            clock += Duration::from_millis(wait);
            let holder = Holder { by: who.to_string(), token: String::new() };
            let claim = match what {
                0 => {
                    // Another owner, or a new session.
                    leases = Leases::default();
                    leases.follow(true, clock);
                    continue;
                }
                1 => match believes.remove(&who) {
                    Some((_, epoch)) => Claim::Release { holder, epoch },
                    None => continue,
                },
                2 | 3 => match believes.get(&who) {
                    Some((_, epoch)) => Claim::Renew { holder, epoch: *epoch },
                    None => continue,
                },
                _ => Claim::Acquire { holder, ttl },
            };
            let acquires = matches!(claim, Claim::Acquire { .. });
            let Ok(done) = chain.one_at(&Wish::Lease(claim), &mut leases, clock) else { continue };
            let Some(lease) = done.lease else { continue };
            if done.fresh {
                // Final, and answered, a while later.
                clock += Duration::from_millis(wait / 2);
                leases.renew(&name(Kind::Lease, "lot"), lease.epoch, clock);
            }
            for (other, (until, epoch)) in &believes {
                let alone = *other == who || *until <= clock;
                prop_assert!(alone, "{other} holds epoch {epoch}, and {who} got {}", lease.epoch);
            }
            let known = believes.get(&who).is_some_and(|(_, epoch)| *epoch == lease.epoch);
            if !known {
                if !acquires || lease.epoch <= highest {
                    let fault = format!("{who} got epoch {} after {highest}", lease.epoch);
                    return Err(TestCaseError::fail(fault));
                }
                highest = lease.epoch;
            }
            believes.insert(who, (sent + Duration::from_secs(lease.ttl), lease.epoch));
        }
    }
}

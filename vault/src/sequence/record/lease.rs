//! Leases: who may do a job at present. A lease is a record whose value names its holder, the
//! holder's epoch and for how long it holds; pure.
//!
//! - **Epoch**: the version by which this holder got the lease. It grows with each new holder and
//!   is the job's fencing token: whoever is handed a smaller one than it has seen refuses.
//! - **Expiry** is judged by the ledger's owner alone, by its monotonic clock: `ttl` after the
//!   holder was last entered or renewed there. A renewal is no entry of the ledger; it is answered
//!   only once the other vault has said that this one still is the owner.
//! - **A new owner, or a new session of the old one,** knows nothing of renewals: every lease then
//!   runs anew for its whole `ttl`. So a lease may last longer than its holder asked for, never
//!   shorter, and no second holder is entered while the first may still believe in its own: it
//!   counts its time from before it asked.
//! - **Where etcd is the ledger** two vaults judge, each by its own clock. There a renewal is an entry,
//!   so that both hear of it, and each counts from the moment when it read the entry.
//! - A holder that sleeps past its time is not stopped by any clock. The epoch is what stops it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::name::RecordName;
use super::{Context, Done, Refused, Verdict};

/// The shortest and the longest time that a lease holds without a renewal, in seconds.
pub const TTL: std::ops::RangeInclusive<u64> = 5..=3600;
/// Longest token, in bytes.
pub const MAX_TOKEN: usize = 128;
/// So many renewals are remembered before those that are long over are forgotten for the first time.
const REMEMBERED: usize = if cfg!(test) { 64 } else { 4096 };

/// Who holds a lease: a certificate, and a word that tells its programs apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The certificate's name.
    pub by: String,
    /// Chosen by the program that holds it.
    pub token: String,
}

/// What stands in the ledger of a lease that is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenancy {
    /// Who holds it.
    pub holder: Holder,
    /// Since which version.
    pub epoch: u64,
    /// For how long without a renewal, in seconds.
    pub ttl: u64,
}

/// What is wanted of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Claim {
    /// To hold it; whoever holds it already, renews it.
    Acquire {
        /// Who.
        holder: Holder,
        /// For how long, in seconds; within [`TTL`].
        ttl: u64,
    },
    /// To hold it for another `ttl`.
    Renew {
        /// Who.
        holder: Holder,
        /// As it was told.
        epoch: u64,
    },
    /// To hold it no longer.
    Release {
        /// Who.
        holder: Holder,
        /// As it was told.
        epoch: u64,
    },
    /// To know who holds it.
    Look,
}

/// A lease as its owner judges it now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The holder's certificate.
    pub by: String,
    /// The fencing token.
    pub epoch: u64,
    /// In seconds.
    pub ttl: u64,
    /// What is left of it, in milliseconds.
    pub left: u64,
}

/// When leases were last entered or renewed at this owner.
#[derive(Debug, Default)]
pub struct Leases {
    /// Since when this vault is sure to be the owner.
    since: Option<Instant>,
    renewed: HashMap<RecordName, (u64, Instant)>,
    /// Does another vault judge too?
    shared: bool,
    /// As many as were left when they were last swept.
    swept: usize,
    #[cfg(test)]
    sweeps: usize,
}

impl Leases {
    /// Judged by another vault too.
    #[must_use]
    pub fn shared() -> Self {
        Self { shared: true, ..Self::default() }
    }

    /// Is this vault the owner, and sure of it? Told at every change, at least.
    pub fn follow(&mut self, sure: bool, now: Instant) {
        if !sure {
            self.since = None;
            self.renewed.clear();
            self.swept = 0;
        } else if self.since.is_none() {
            self.since = Some(now);
        }
    }

    /// The lease's holder was entered or renewed in this epoch of it.
    pub fn renew(&mut self, name: &RecordName, epoch: u64, now: Instant) {
        // Only once they are twice as many: however many are held, a renewal looks at few.
        if self.renewed.len() >= REMEMBERED.max(2 * self.swept) {
            // Forgotten, they count from an earlier moment, and are over all the same.
            let longest = Duration::from_secs(*TTL.end());
            self.renewed.retain(|_, (_, at)| now.saturating_duration_since(*at) <= longest);
            self.swept = self.renewed.len();
            #[cfg(test)]
            {
                self.sweeps += 1;
            }
        }
        self.renewed.insert(name.clone(), (epoch, now));
    }

    /// How long that holder still holds it.
    fn left(&self, name: &RecordName, tenancy: &Tenancy, now: Instant) -> Duration {
        let renewed = self.renewed.get(name).filter(|(epoch, _)| *epoch == tenancy.epoch);
        let from = renewed.map(|(_, at)| *at).or(self.since).unwrap_or(now);
        Duration::from_secs(tenancy.ttl).saturating_sub(now.saturating_duration_since(from))
    }

    /// What becomes of a claim. What is to be entered begins to run when it is final: then
    /// [`Leases::renew`] must be told.
    pub(super) fn decide(
        &mut self,
        name: &RecordName,
        claim: &Claim,
        context: &Context,
        now: Instant,
    ) -> Verdict {
        let tenancy = context.held.as_ref().and_then(|held| held.tenancy());
        let version = context.held.as_ref().map_or(0, |held| held.version);
        let current = tenancy.map(|tenancy| (self.left(name, &tenancy, now), tenancy));
        let held = current.as_ref().filter(|(left, _)| !left.is_zero());
        match (claim, held) {
            (Claim::Look, None) => Verdict::Refuse(Refused::Absent),
            (Claim::Look, Some((left, tenancy))) => Verdict::Answer(told(version, tenancy, *left)),
            (Claim::Acquire { holder, ttl }, Some((_, tenancy))) if tenancy.holder == *holder => {
                if tenancy.ttl == *ttl {
                    return self.renewed(name, version, tenancy, now);
                }
                enter(version, Tenancy { ttl: *ttl, ..tenancy.clone() })
            }
            (Claim::Acquire { .. }, Some((left, tenancy))) => {
                let (by, epoch) = (tenancy.holder.by.clone(), tenancy.epoch);
                Verdict::Refuse(Refused::Held { by, epoch, left: millis(*left) })
            }
            (Claim::Acquire { holder, ttl }, None) => {
                enter(version, Tenancy { holder: holder.clone(), epoch: version + 1, ttl: *ttl })
            }
            (Claim::Renew { holder, epoch }, Some((_, tenancy)))
                if tenancy.holder == *holder && tenancy.epoch == *epoch =>
            {
                self.renewed(name, version, tenancy, now)
            }
            (Claim::Renew { .. }, _) => Verdict::Refuse(Refused::Lost),
            (Claim::Release { holder, epoch }, _) => match &current {
                Some((_, tenancy)) if tenancy.holder == *holder && tenancy.epoch == *epoch => {
                    Verdict::Make(Done { version: version + 1, fresh: true, lease: None }, None)
                }
                Some(_) => Verdict::Refuse(Refused::Lost),
                None => Verdict::Answer(Done { version, fresh: false, lease: None }),
            },
        }
    }

    fn renewed(&mut self, name: &RecordName, version: u64, tenancy: &Tenancy, now: Instant) -> Verdict {
        if self.shared {
            // To its holder it is the lease that it has, entered anew.
            let done = told(version + 1, tenancy, Duration::from_secs(tenancy.ttl));
            return Verdict::Make(done, Some(serde_json::to_string(tenancy).unwrap_or_default()));
        }
        self.renew(name, tenancy.epoch, now);
        Verdict::Answer(told(version, tenancy, Duration::from_secs(tenancy.ttl)))
    }
}

fn enter(version: u64, tenancy: Tenancy) -> Verdict {
    let text = serde_json::to_string(&tenancy).unwrap_or_default();
    let done = told(version + 1, &tenancy, Duration::from_secs(tenancy.ttl));
    Verdict::Make(Done { fresh: true, ..done }, Some(text))
}

fn told(version: u64, tenancy: &Tenancy, left: Duration) -> Done {
    let Tenancy { holder, epoch, ttl } = tenancy;
    let lease = Lease { by: holder.by.clone(), epoch: *epoch, ttl: *ttl, left: millis(left) };
    Done { version, fresh: false, lease: Some(lease) }
}

fn millis(left: Duration) -> u64 {
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::name::Kind;
    use super::*;

    #[test]
    fn however_many_leases_are_held_few_sweeps_forget_those_that_are_over() {
        let (mut leases, start) = (Leases::default(), tokio::time::Instant::now().into_std());
        let name = |number: u64| RecordName {
            owner: "erp".to_owned(),
            kind: Kind::Lease,
            name: format!("job/{number}"),
        };
        for turn in 0..3 {
            for number in 0..5_000 {
                leases.renew(&name(number), 1, start + Duration::from_secs(turn));
            }
        }
        assert_eq!((leases.renewed.len(), leases.sweeps), (5_000, 7), "64, 128, 256 … 4,096");
        // An hour later none of them is held, and others are.
        let later = start + Duration::from_secs(2 * TTL.end());
        for number in 5_000..15_000 {
            leases.renew(&name(number), 1, later);
        }
        assert_eq!((leases.renewed.len(), leases.sweeps), (10_000, 9), "the old ones made room");
    }
}

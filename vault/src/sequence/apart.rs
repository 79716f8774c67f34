//! What a vault that is apart from the other still does, for an operator who looks: which series it
//! gives from and how much of them is left, what else goes on, and which tokens hold no more. Reads
//! alone, for a short while; decides nothing.

use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;

use super::alone::Waits;
use super::coordinator::Seen;
use super::entry::Life;
use super::journal::{AllLeft, Left};
use super::protocol::{Core, Opens, Reason};
use super::standing::Standing;
use super::{Sequence, Status};

/// So long is read for one answer; what has not been seen by then is not told.
const READ: Duration = Duration::from_secs(1);

/// What the ledger's thread says of the time apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct GoesOn {
    /// Is this life known to the other, so that it may give from what is set aside for it?
    pub(super) numbers: bool,
    /// Did it begin with a token?
    pub(super) by_token: bool,
    /// Do records go on here, by an operator's word?
    pub(super) records: bool,
    /// What a token does.
    opens: Opens,
    /// What is wrong with this vault's journal.
    damage: Option<Reason>,
}

impl GoesOn {
    /// `used`: the life of this vault's own token that was used last.
    pub(super) fn of(core: &Core, used: Option<Life>) -> Self {
        Self {
            numbers: core.is_known(),
            by_token: used == Some(core.life()) && !core.has_met(),
            records: core.goes_on_alone(),
            opens: core.opens(),
            damage: core.damage(),
        }
    }

    /// Why this vault gives nothing, and what an operator who has a token can do about it.
    fn why_not(&self, has_token: bool) -> Option<(String, Option<&'static str>)> {
        if let Some(damage) = self.damage {
            return Some((damage.to_string(), None));
        }
        let next = match self.opens {
            _ if !has_token => None,
            Opens::Never => None,
            Opens::Now => Some("with its token it gives numbers: vault number open TOKEN"),
            Opens::AfterRestart => {
                Some("start it again, and with its token it gives numbers: vault number open TOKEN")
            }
        };
        (!self.numbers).then(|| (Waits::Unmet.to_string(), next))
    }
}

/// May this vault, as it stands apart, give numbers of some series?
pub(super) fn gives(core: &Core, standing: &Standing) -> bool {
    let apart = core.refusal().is_some_and(Reason::lets_give_alone);
    apart && core.is_known() && core.damage().is_none() && standing.names().next().is_some()
}

/// What goes on while the two vaults are apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Apart {
    /// Does this vault give numbers of available series alone, to keys that are first sent to it?
    pub gives: bool,
    /// Why not, where the reason for their being apart does not say it.
    pub why: Option<String>,
    /// What an operator can do about that now.
    pub next: Option<String>,
    /// Does it by a token that an operator has opened?
    pub by_token: bool,
    /// Do records, names and leases go on here, by an operator's word?
    pub records: bool,
    /// From which series, and how much of each is left.
    pub series: Vec<Left>,
    /// Are there others?
    pub more: bool,
    /// Is a number left, of any of them?
    pub left: bool,
    /// Could that not be read in time?
    pub unread: bool,
}

/// A token that holds no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenOver {
    /// The vault that it was made for.
    pub vault: String,
    /// Was it used? Otherwise it is void, for its vault lost what it may have answered.
    pub used: bool,
    /// Since when, by the ledger owner's clock; seconds since 1970.
    pub since: i64,
}

impl Sequence {
    /// Where the room stands, with all that an operator may ask for.
    pub async fn status_in_full(&self) -> Status {
        let mut status = self.status();
        if self.ready.is_some() {
            // Where etcd is the ledger nobody is alone, and there are no tokens.
            return status;
        }
        let seen = self.seen();
        if seen.definitions.values().any(|definition| definition.range > 0) {
            status.unproven = self.no_run_folder.as_ref().map(ToString::to_string);
        }
        if let Some(reason) = seen.refusal {
            status.apart = Some(self.apart(&seen, reason).await);
        }
        for (vault, sealed) in self.names.iter().zip(seen.sealed) {
            let asked = vault.clone();
            let over = self.readers.look(move |journal| journal.token_over(&asked));
            // A token that is used is told to be before the ledger has heard of it, too.
            if let (None, Ok(Ok(Some((used, at))))) = (sealed, timeout(READ, over).await) {
                let since = at.div_euclid(1000);
                status.tokens_over.push(TokenOver { vault: vault.clone(), used, since });
            }
        }
        status
    }

    async fn apart(&self, seen: &Seen, reason: Reason) -> Apart {
        let lets = reason.lets_give_alone();
        let (vault, life, last) = (self.names[0].clone(), seen.life, seen.final_index);
        let left = self.readers.walk(move |journal| journal.left_alone(&vault, life, last));
        let left = match timeout(READ, left).await {
            Ok(Ok(left)) => Some(left),
            Ok(Err(_)) | Err(_) => None,
        };
        let unread = left.is_none();
        let AllLeft { series, more, any } = left.unwrap_or_default();
        let why_not = seen.apart.why_not(seen.sealed[0].is_some()).filter(|_| lets);
        let gives = lets && why_not.is_none();
        let (why, next) = why_not.unzip();
        Apart {
            gives,
            why,
            next: next.flatten().map(str::to_owned),
            by_token: seen.apart.by_token,
            records: seen.apart.records,
            series,
            more,
            left: any,
            unread,
        }
    }
}

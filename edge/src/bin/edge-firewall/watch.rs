//! What the helper notices by itself of the rules in the kernel: that they are gone, and that somebody
//! changed them by hand. A look costs some messages of netlink; only where the outline of the table
//! has changed is it listed and compared. Must not know bans, and mends nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use edge::firewall::message::Standing;

use crate::drift;
use crate::drift::differences;
use crate::keeper;
use crate::netlink::{Netlink, NetlinkError, Outline};
use crate::warden::{LISTS, Warden, listing};

/// Between two listings of the table, at least.
const PAUSE: Duration = Duration::from_secs(1);
/// Listing takes a second with 100,000 bans, since `nft` reads them all: so it may take a twentieth of
/// the time, however often somebody changes something.
const SHARE: u32 = 20;

/// The way to the kernel, apart from the one that orders take: it is never busy for long.
#[derive(Debug)]
pub(crate) struct Watch {
    netlink: Mutex<Netlink>,
    seen: Mutex<Seen>,
}

/// What the last look found.
#[derive(Debug, Default)]
struct Seen {
    /// Of which loading of the rules.
    loads: u64,
    /// Of the table when it was listed last.
    outline: Option<Outline>,
    /// When it may be listed again.
    again: Option<Instant>,
    drift: Vec<String>,
}

impl Watch {
    /// Has seen nothing yet.
    ///
    /// # Errors
    /// The system gives no netlink socket.
    pub(crate) fn open() -> std::io::Result<Self> {
        Ok(Self { netlink: Mutex::new(Netlink::open()?), seen: Mutex::default() })
    }

    /// Do the rules stand now, and as they were loaded when they were looked at last?
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub(crate) fn standing(&self) -> Result<Standing, NetlinkError> {
        let stands = keeper::stands(&mut held(&self.netlink))?;
        Ok(match stands {
            true if held(&self.seen).drift.is_empty() => Standing::AsLoaded,
            true => Standing::Changed,
            false => Standing::NoRules,
        })
    }

    /// Looks whether somebody changed the rules, and tells it once. Call it about once a second.
    pub(crate) fn look(&self, warden: &Mutex<Warden>) {
        let loads = held(warden).loads();
        if held(&self.seen).loads != loads {
            // They were loaded a moment ago: what was told before is over.
            let mut seen = held(&self.seen);
            *seen = Seen { loads, again: seen.again, ..Seen::default() };
        }
        // That the table is gone is told by whoever mends it.
        let Ok(outline) = held(&self.netlink).outline(&LISTS) else { return };
        let now = now();
        {
            let seen = held(&self.seen);
            if seen.outline.as_ref() == Some(&outline) || seen.again.is_some_and(|again| now < again) {
                return;
            }
        }
        let drift = compared(warden);
        // Loaded anew meanwhile: then this was a look at something else. Asked before `seen` is held:
        // whoever holds the warden may ask how the rules stand.
        let same = held(warden).loads() == loads;
        let mut seen = held(&self.seen);
        seen.again = Some(now + PAUSE.max(now.elapsed() * SHARE));
        if let (Some(drift), true) = (drift, same) {
            tell(&seen.drift, &drift);
            seen.outline = Some(outline);
            seen.drift = drift;
        }
    }
}

/// What differs from what was loaded; `None` where that cannot be told. Orders go on meanwhile.
fn compared(warden: &Mutex<Warden>) -> Option<Vec<String>> {
    let as_loaded = match held(warden).as_loaded() {
        Ok(Some(as_loaded)) => as_loaded,
        Ok(None) => return Some(Vec::new()),
        Err(error) => {
            tracing::warn!("firewall: {error}; whether the rules were changed is not known");
            return None;
        }
    };
    let listing = listing().inspect_err(|error| tracing::warn!("firewall: {error}; tried again")).ok()?;
    Some(differences(&as_loaded, &drift::shape(&listing)))
}

fn tell(before: &[String], drift: &[String]) {
    match drift {
        same if same == before => {}
        [] => tracing::info!("firewall: the rules are again as they were loaded"),
        [first, more @ ..] => tracing::error!(
            "firewall: the rules were changed by hand: {first} (and {} more); `edge firewall status` tells all, \
             `edge firewall apply --confirm 60s` loads them as configured",
            more.len()
        ),
    }
}

fn held<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(clippy::disallowed_methods, reason = "the helper's corridor: how often it looks is its own")]
fn now() -> Instant {
    Instant::now()
}

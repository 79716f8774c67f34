//! The words that jails share with who drives them: what comes in, what is decided, what is told.
//! Knows no rule of its own.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::ban::Action;

/// The "jail" of an operator's own bans.
pub const OPERATOR: u16 = u16::MAX;
/// The "jail" of bans that were found in the kernel after a crash.
pub const ADOPTED: u16 = u16::MAX - 1;
/// The "jail" of bans whose jail the settings name no more; they last as they were given.
pub const RETIRED: u16 = u16::MAX - 2;

/// What a filter found in one line.
#[derive(Clone, Copy, Debug)]
pub struct Offence<'l> {
    /// Its place in the settings.
    pub jail: usize,
    /// Who, as the line says it.
    pub address: IpAddr,
    /// When, as the line says it; since the epoch. What lies ahead of the clock counts as now.
    pub at: Duration,
    /// For whoever asks why; 512 bytes of it are kept.
    pub line: &'l [u8],
    /// A page of another origin may have made its browser do so.
    pub cross_site: bool,
}

/// One network's ban. Times are since the epoch, in whole milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sentence {
    /// IPv4 /24 to /32, or IPv6 /48 to /64; truncated.
    pub network: IpNet,
    /// A jail's place in the settings, or [`OPERATOR`], [`ADOPTED`], [`RETIRED`].
    pub jail: u16,
    /// When it was given.
    pub since: Duration,
    /// When it ends; in force before that, not at it.
    pub until: Duration,
    /// How many led to it; 0 for an operator's.
    pub offences: u32,
    /// The how manieth ban of this network this is, forgiven ones left out; at least 1. A ban with 0
    /// comes from the file alone: it was lifted, is over whatever its times say, and counts as no
    /// earlier ban.
    pub times: u16,
    /// Ban or throttle.
    pub action: Action,
}

/// A network that is let in slowly for what foreign pages may have made it ask for. It is no ban.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Visit {
    /// As a [`Sentence`]'s.
    pub network: IpNet,
    /// A jail's place in the settings, or [`RETIRED`].
    pub jail: u16,
    /// When it ends; since the epoch, in whole milliseconds.
    pub until: Duration,
    /// How many led to it.
    pub offences: u32,
}

/// What somebody's word has ended and made forgotten.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Lifted {
    /// The bans that were in force.
    pub ended: Vec<Sentence>,
    /// Whose bans were over already, and count no more as earlier ones.
    pub forgotten: Vec<IpNet>,
}

impl Lifted {
    /// Adds what another word has ended.
    pub fn add(&mut self, other: Self) {
        self.ended.extend(other.ended);
        self.forgotten.extend(other.forgotten);
    }
}

/// Why who would have been banned is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Excuse {
    /// The jail only tells.
    LogOnly,
    /// The jail banned too many at once.
    Brake,
    /// An operator switched all bans off for a time.
    Off,
    /// The network is leased to a penetration test.
    Pentest,
}

/// What becomes of one offence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ruling {
    /// Nobody may ban it: ours, a peer, a proxy, or an address that many share.
    Protected,
    /// This jail lets it go.
    Allowed,
    /// Older than `find_time`, or of a jail that the settings do not name.
    TooOld,
    /// So many within `find_time`, and not yet too many.
    Counted(u32),
    /// It is banned; this is by what. The ban becomes no longer, and nothing is counted.
    Already(Sentence),
    /// Ban it now.
    Sentenced(Sentence),
    /// Let it in slowly from now on: foreign pages may have asked for it.
    Visitor(Visit),
    /// That is so already. It becomes no longer, and nothing is counted.
    AlreadyVisitor(Visit),
    /// It would have been this, and is not. Told once for as long as it would have lasted.
    Excused(Sentence, Excuse),
}

/// What an operator should hear of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Alarm {
    /// The jail goes on log-only: it bans more than its brake allows.
    Brake {
        /// Its place in the settings.
        jail: usize,
        /// With the one that was too many.
        bans_in_minute: u32,
        /// Of so many clients.
        active_clients: usize,
    },
    /// The jail bans again: an operator said so, or ten minutes held no minute over its limit.
    BrakeReleased {
        /// Its place in the settings.
        jail: usize,
    },
    /// The book is at 80 % of its bans. Told again after it was below 70 %.
    NearlyFull {
        /// Bans in force.
        active: usize,
        /// As many as there can be.
        max: usize,
    },
    /// The book is full: so many of the soonest to end went early.
    Evicted {
        /// Since the last time this was told.
        count: u64,
    },
    /// More offenders than can be counted at once: the least recently seen are forgotten. Told
    /// every ten minutes while it is so.
    OffendersFull {
        /// As many as there can be.
        tracked: usize,
    },
    /// So many visitors were throttled within a minute that for the rest of it no further ones are.
    /// Told once a minute while it is so.
    ManyVisitors {
        /// So many were.
        throttled: usize,
        /// Of so many clients.
        active_clients: usize,
    },
    /// The clock was set back. Every ban, lease and `off` keeps what remained of it, so its times
    /// are new: what has copied them takes them again from [`Jails::active`](super::Jails::active)
    /// and [`Jails::visitors`](super::Jails::visitors).
    ClockSetBack {
        /// By so much.
        by: Duration,
    },
}

/// Why an operator's ban is not given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// It would hit ourselves.
    #[error(
        "ban: {0}: not banned: it holds an address that is never banned (edge's own, a peer, a vault, a \
         proxy, or one that many share); write a network without it"
    )]
    Protected(IpNet),
    /// More than one site.
    #[error(
        "ban: {0}: not banned: too many addresses at once; write an IPv4 /24 to /32 or an IPv6 /48 to /64"
    )]
    TooWide(IpNet),
    /// Longer than anybody remembers.
    #[error("ban: {0}: not banned: longer than ten years; write a shorter time")]
    TooLong(IpNet),
    /// Shorter than a millisecond.
    #[error("ban: {0}: not banned: it would end at once; write how long, as in \"10m\"")]
    NoTime(IpNet),
}

/// What one jail knows of one address that is not banned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counter {
    /// Its place in the settings.
    pub jail: usize,
    /// Who is counted with that address.
    pub network: IpNet,
    /// Of offences for which it is let in slowly at most.
    pub cross_site: bool,
    /// How many count now.
    pub offences: u32,
    /// When, oldest first. Beyond sixteen, neighbours stand together under the older one's time.
    pub times: Vec<Duration>,
    /// The last of their lines, newest last.
    pub lines: Vec<Box<[u8]>>,
}

/// What is remembered of a network's bans.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct History {
    /// How many in a row, forgiven ones left out.
    pub times: u16,
    /// When the last one ended; of one in force, when it will.
    pub last_end: Duration,
}

//! Where a database server comes from: whose data it began with, and at which place of the log
//! each promotion branched off. Pure. Tells whether a server that takes writes continues what the
//! vault last wrote to, or branched off before it, so that rows were lost.
//!
//! The timeline's number alone tells nothing: two standbys promoted apart are both timeline 2.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A server's descent (PostgreSQL's documentation, "Timelines").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// Made with the first server of the family (`system_identifier`).
    pub system: String,
    /// The branch that it is on.
    pub timeline: u32,
    /// Each earlier branch, the oldest first, and the byte of the log where the next left it.
    /// `None`: the server does not let this account read it.
    pub forks: Option<Vec<(u32, u64)>>,
    /// How far its own log goes, in bytes.
    pub at: u64,
}

/// What a server is to the one that was written to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Descent {
    /// It has all that was written.
    Continues,
    /// It is on the same branch, and ends at this byte, before what was written last.
    Behind(u64),
    /// It left that branch at this byte, before what was written last.
    Forked(u64),
    /// It left an older branch at this byte, or never left one that was given up.
    Aside(u64),
    /// It began with other data.
    Stranger,
    /// It was promoted, and does not let this account read where it branched off.
    Untold,
}

impl Lineage {
    /// What this server is to one that was last seen as `known`.
    #[must_use]
    pub fn descent(&self, known: &Lineage) -> Descent {
        if self.system != known.system {
            return Descent::Stranger;
        }
        let same_branch = || {
            if self.at >= known.at { Descent::Continues } else { Descent::Behind(self.at) }
        };
        let (Some(own), Some(past)) = (self.branches(), known.branches()) else {
            return if self.timeline == known.timeline { same_branch() } else { Descent::Untold };
        };
        // Both came along the same branches as long as these are equal.
        if let Some((ours, theirs)) = own.iter().zip(past).find(|(ours, theirs)| ours != theirs) {
            return Descent::Aside(ours.1.min(theirs.1));
        }
        match own.get(past.len()) {
            Some((timeline, left)) if *timeline != known.timeline => Descent::Aside(*left),
            Some((_, left)) if *left >= known.at => Descent::Continues,
            Some((_, left)) => Descent::Forked(*left),
            None if own.len() == past.len() && self.timeline == known.timeline => same_branch(),
            None => Descent::Aside(past.get(own.len()).map_or(self.at, |(_, left)| *left)),
        }
    }

    /// The first branch has no history file.
    fn branches(&self) -> Option<&[(u32, u64)]> {
        if self.timeline == 1 { Some(&[]) } else { self.forks.as_deref() }
    }
}

/// Reads a history file: lines `timeline LSN reason`, `#` begins a comment.
#[must_use]
pub(super) fn history(text: &str) -> Option<Vec<(u32, u64)>> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines
        .filter(|line| !line.is_empty())
        .map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.parse().ok()?, lsn(words.next()?)?))
        })
        .collect()
}

/// `16/B374D848` as a byte of the log.
#[must_use]
pub(super) fn lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let half = |text| u32::from_str_radix(text, 16).ok().map(u64::from);
    Some((half(high)? << 32) | half(low)?)
}

/// A byte of the log as PostgreSQL writes it.
#[must_use]
pub(super) fn written(at: u64) -> String {
    format!("{:X}/{:X}", at >> 32, at & 0xFFFF_FFFF)
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "system {}, timeline {} at {}", self.system, self.timeline, written(self.at))?;
        for (timeline, left) in self.forks.iter().flatten() {
            write!(f, ", left timeline {timeline} at {}", written(*left))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(timeline: u32, forks: &[(u32, u64)], at: u64) -> Lineage {
        Lineage { system: "7".to_owned(), timeline, forks: Some(forks.to_vec()), at }
    }

    #[test]
    fn a_promotion_continues_only_what_it_had() {
        let known = at(1, &[], 1000);
        assert_eq!(at(1, &[], 1000).descent(&known), Descent::Continues);
        assert_eq!(at(2, &[(1, 1000)], 2000).descent(&known), Descent::Continues);
        assert_eq!(at(2, &[(1, 999)], 2000).descent(&known), Descent::Forked(999));
        assert_eq!(at(3, &[(1, 1500), (2, 1600)], 2000).descent(&known), Descent::Continues);
        // Restored from an old copy.
        assert_eq!(at(1, &[], 999).descent(&known), Descent::Behind(999));
        let stranger = Lineage { system: "8".to_owned(), ..at(1, &[], 5000) };
        assert_eq!(stranger.descent(&known), Descent::Stranger);
    }

    #[test]
    fn two_standbys_promoted_apart_are_told_apart_though_both_are_timeline_2() {
        let known = at(2, &[(1, 1000)], 1500);
        assert_eq!(at(2, &[(1, 1100)], 9000).descent(&known), Descent::Aside(1000));
        // The old primary that was left behind.
        assert_eq!(at(1, &[], 9000).descent(&known), Descent::Aside(1000));
        assert_eq!(at(2, &[(1, 1000)], 1500).descent(&known), Descent::Continues);
    }

    #[test]
    fn a_promotion_whose_history_cannot_be_read_is_not_trusted() {
        let hidden = |timeline| Lineage { forks: None, ..at(timeline, &[], 2000) };
        assert_eq!(hidden(2).descent(&at(1, &[], 1000)), Descent::Untold);
        assert_eq!(hidden(1).descent(&at(1, &[], 1000)), Descent::Continues);
    }

    #[test]
    fn a_history_file_reads_as_postgresql_writes_it() {
        let text = "1\t0/3000158\tno recovery target specified\n\n2\t16/B374D848\tx # y\n";
        assert_eq!(history(text), Some(vec![(1, 0x0300_0158), (2, 0x16_B374_D848)]));
        assert_eq!(written(0x16_B374_D848), "16/B374D848");
        for bad in ["1", "x 0/1", "1 1", "1 0/zz"] {
            assert_eq!(history(bad), None, "{bad}");
        }
    }
}

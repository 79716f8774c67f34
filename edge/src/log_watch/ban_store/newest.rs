//! Which row of a network counts. Rows are only ever added: a later ban takes an earlier one's
//! place, and a row may say that the ban before it is over early, or over and forgiven. Pure; must
//! not know SQL.
//!
//! So nothing has to be remembered of what lies in the file, however many bans stand: who wants to
//! know reads the rows from the newest to the oldest.

use std::collections::{HashMap, HashSet};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// In the column `over`: the row is a ban.
pub(super) const BAN: i64 = 0;
/// It ends the ban before it.
pub(super) const ENDED: i64 = 1;
/// It ends the ban before it, which counts no more as an earlier one.
pub(super) const FORGIVEN: i64 = 2;

/// What a row means, seen from the newest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The network's latest ban. It ends then, as the rows in `ended_by` say.
    Stands {
        /// See [`super::rows::time_to_row`].
        ends: i64,
        /// It counts no more as an earlier ban.
        forgiven: bool,
        /// Rows that are not needed any more once `ends` is written into this one.
        ended_by: Vec<i64>,
    },
    /// A later row of its network took its place.
    Replaced,
    /// It ends a ban that is yet to come.
    Ends,
}

/// What has been seen of the rows, newest first. 6 to 12 bytes an IPv4 address.
#[derive(Default)]
pub(super) struct Newest {
    four: HashSet<Ipv4Net>,
    six: HashSet<Ipv6Net>,
    ended: HashMap<IpNet, End>,
}

/// What later rows say of a ban.
struct End {
    earliest: i64,
    forgiven: bool,
    rows: Vec<i64>,
}

impl Newest {
    /// The next older row. `over` is [`BAN`], or it ends a ban at `ends`.
    pub(super) fn judge(&mut self, id: i64, network: IpNet, over: i64, ends: i64) -> Meaning {
        if over != BAN {
            if self.knows(network) {
                return Meaning::Replaced;
            }
            let none = End { earliest: ends, forgiven: false, rows: Vec::new() };
            let end = self.ended.entry(network).or_insert(none);
            end.earliest = ends.min(end.earliest);
            end.forgiven |= over == FORGIVEN;
            end.rows.push(id);
            return Meaning::Ends;
        }
        let first = match network {
            IpNet::V4(four) => self.four.insert(four),
            IpNet::V6(six) => self.six.insert(six),
        };
        if !first {
            return Meaning::Replaced;
        }
        match self.ended.remove(&network) {
            Some(End { earliest, forgiven, rows }) => {
                Meaning::Stands { ends: ends.min(earliest), forgiven, ended_by: rows }
            }
            None => Meaning::Stands { ends, forgiven: false, ended_by: Vec::new() },
        }
    }

    fn knows(&self, network: IpNet) -> bool {
        match network {
            IpNet::V4(four) => self.four.contains(&four),
            IpNet::V6(six) => self.six.contains(&six),
        }
    }

    /// How many networks have a ban.
    pub(super) fn len(&self) -> usize {
        self.four.len() + self.six.len()
    }

    /// After the oldest row: those that end bans which are not there.
    pub(super) fn idle(&mut self) -> Vec<i64> {
        std::mem::take(&mut self.ended).into_values().flat_map(|end| end.rows).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_ban_counts_and_is_over_and_forgiven_as_any_later_row_says() {
        let [a, b]: [IpNet; 2] = ["192.0.2.1/32", "2001:db8::/64"].map(|text| text.parse().unwrap());
        let mut newest = Newest::default();
        let mut judge = |id, network, over, ends| newest.judge(id, network, over, ends);
        assert_eq!(judge(9, b, ENDED, 90), Meaning::Ends);
        assert_eq!(judge(8, a, FORGIVEN, 50), Meaning::Ends);
        assert_eq!(judge(7, a, ENDED, 70), Meaning::Ends);
        let stands = Meaning::Stands { ends: 50, forgiven: true, ended_by: vec![8, 7] };
        assert_eq!(judge(6, a, BAN, 100), stands);
        assert_eq!(judge(5, a, FORGIVEN, 10), Meaning::Replaced);
        assert_eq!(judge(4, a, BAN, 10), Meaning::Replaced);
        assert_eq!(newest.idle(), [9], "what it would end was never banned");
        assert_eq!(newest.len(), 1);
    }
}

//! Who has made how many offences, and with which lines. Knows counting; must not know who may be
//! banned or for how long. Bounded whatever clients do: 262,144 offenders over all jails, of whom
//! the least recently seen leave first, and 16 MiB of lines, of which the same holds.
//!
//! Measured with 262,144 offenders: 50 MiB where jails ban at three offences; about 100 MiB at worst,
//! where each of them stands in a jail with a threshold above 16 and spreads its offences.

use std::collections::VecDeque;
use std::hash::RandomState;
use std::time::Duration;

use ipnet::IpNet;
use lru::LruCache;

use super::networks::overlap;
use super::record::Key;

/// So many offences stand with a time of their own. Beyond that the two nearest are taken
/// together under the older time: a jail with a higher threshold may ban late by the distance
/// between neighbours (under an eighth of `find_time` at a steady rate), and never early.
const RUNS: usize = 16;
/// So many lines of an offender are kept.
const LINES: usize = 10;
/// So many bytes of a line.
const LINE: usize = 512;
/// What a line and what an offender with lines take besides the bytes themselves.
const LINE_OVERHEAD: usize = 32;
const OFFENDER_OVERHEAD: usize = 160;

/// One network, as one jail sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Offender {
    pub(super) jail: u16,
    pub(super) key: Key,
    /// What foreign pages may have made it do is counted apart.
    pub(super) cross_site: bool,
}

/// How a jail counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measure {
    /// Milliseconds.
    pub(super) find_time: u64,
    /// At least 1.
    pub(super) max_offences: u32,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    at: u64,
    offences: u32,
}

#[derive(Clone, Debug, Default)]
struct Count {
    /// Oldest first.
    runs: Vec<Run>,
    /// Until when nobody need be told again that it would have been banned.
    excused_until: u64,
}

/// The counts of all jails.
#[derive(Debug)]
pub(super) struct Tally {
    counts: LruCache<Offender, Count, RandomState>,
    lines: LruCache<Offender, VecDeque<Box<[u8]>>, RandomState>,
    bytes: usize,
    max_offenders: usize,
    max_bytes: usize,
}

impl Tally {
    pub(super) fn new(max_offenders: usize, max_bytes: usize) -> Self {
        Self {
            counts: LruCache::unbounded_with_hasher(RandomState::new()),
            lines: LruCache::unbounded_with_hasher(RandomState::new()),
            bytes: 0,
            max_offenders: max_offenders.max(1),
            max_bytes,
        }
    }

    /// Counts one offence of the time `at`, which is not after `now` and not older than
    /// `find_time`. Returns how many count, and whether somebody else had to be forgotten for it.
    pub(super) fn count(
        &mut self,
        offender: Offender,
        at: u64,
        now: u64,
        measure: Measure,
        line: &[u8],
    ) -> (u32, bool) {
        let count = self.counts.get_or_insert_mut(offender, Count::default);
        count.runs.retain(|run| run.at.saturating_add(measure.find_time) >= now);
        count.insert(at);
        let offences = count.offences();
        let full = self.counts.len() > self.max_offenders;
        if full && let Some((forgotten, _)) = self.counts.pop_lru() {
            self.take_lines(forgotten);
        }
        self.keep_line(offender, line, offences.min(measure.max_offences));
        (offences, full)
    }

    /// The offender is counted anew; its lines stay until they are taken.
    pub(super) fn restart(&mut self, offender: Offender) {
        self.counts.pop(&offender);
    }

    /// As [`Tally::restart`], and it need not be told before `until` that it is excused.
    pub(super) fn restart_excused(&mut self, offender: Offender, until: u64) {
        if let Some(count) = self.counts.get_mut(&offender) {
            *count = Count { runs: Vec::new(), excused_until: until };
        }
    }

    pub(super) fn excused_until(&self, offender: Offender) -> u64 {
        self.counts.peek(&offender).map_or(0, |count| count.excused_until)
    }

    /// What still counts at `now`: the times, and the sum.
    pub(super) fn counted(&self, offender: Offender, now: u64, find_time: u64) -> (Vec<Duration>, u32) {
        let runs = self.counts.peek(&offender).map(|count| count.runs.as_slice()).unwrap_or_default();
        let fresh = runs.iter().filter(|run| run.at.saturating_add(find_time) >= now);
        let offences = fresh.clone().map(|run| run.offences).fold(0, u32::saturating_add);
        (fresh.map(|run| Duration::from_millis(run.at)).collect(), offences)
    }

    /// The last lines, newest last.
    pub(super) fn lines(&self, offender: Offender) -> Vec<Box<[u8]>> {
        self.lines.peek(&offender).map(|lines| lines.iter().cloned().collect()).unwrap_or_default()
    }

    /// As [`Tally::lines`], and they are gone.
    pub(super) fn take_lines(&mut self, offender: Offender) -> Vec<Box<[u8]>> {
        let Some(lines) = self.lines.pop(&offender) else { return Vec::new() };
        self.bytes -= OFFENDER_OVERHEAD + lines.iter().map(weight).sum::<usize>();
        lines.into()
    }

    /// How many offenders are counted.
    #[cfg(test)]
    pub(super) fn offenders(&self) -> usize {
        self.counts.len()
    }

    /// Forgets every offender that overlaps the network. Looks at all of them.
    pub(super) fn pardon(&mut self, network: IpNet) {
        self.forget(|offender| overlap(offender.key.network(), network));
    }

    pub(super) fn forget(&mut self, forgotten: impl Fn(&Offender) -> bool) {
        let counts = self.counts.iter().map(|(offender, _)| *offender);
        let lines = self.lines.iter().map(|(offender, _)| *offender);
        let gone: Vec<_> = counts.chain(lines).filter(forgotten).collect();
        for offender in gone {
            self.counts.pop(&offender);
            self.take_lines(offender);
        }
    }

    /// Forgets all counts, and keeps the lines: the clock was set back, so that it is not known
    /// how old an offence is.
    pub(super) fn restart_all(&mut self) {
        self.counts.clear();
    }

    /// Gives every offender the number that its jail has now, and forgets those of no jail.
    pub(super) fn renumber(&mut self, jail_now: impl Fn(u16) -> Option<u16>) {
        self.forget(|offender| jail_now(offender.jail).is_none());
        let moved = |offender: Offender| jail_now(offender.jail).map(|jail| Offender { jail, ..offender });
        for _ in 0..self.counts.len() {
            if let Some((offender, count)) = self.counts.pop_lru()
                && let Some(offender) = moved(offender)
            {
                self.counts.put(offender, count);
            }
        }
        for _ in 0..self.lines.len() {
            if let Some((offender, lines)) = self.lines.pop_lru()
                && let Some(offender) = moved(offender)
            {
                self.lines.put(offender, lines);
            }
        }
    }

    fn keep_line(&mut self, offender: Offender, line: &[u8], most: u32) {
        let most = usize::try_from(most).unwrap_or(LINES).min(LINES);
        let line: Box<[u8]> = line.get(..LINE).unwrap_or(line).into();
        if !self.lines.contains(&offender) {
            self.bytes += OFFENDER_OVERHEAD;
        }
        self.bytes += weight(&line);
        let lines = self.lines.get_or_insert_mut(offender, VecDeque::new);
        while lines.len() >= most.max(1)
            && let Some(oldest) = lines.pop_front()
        {
            self.bytes -= weight(&oldest);
        }
        lines.push_back(line);
        while self.bytes > self.max_bytes
            && let Some((_, lines)) = self.lines.pop_lru()
        {
            self.bytes -= OFFENDER_OVERHEAD + lines.iter().map(weight).sum::<usize>();
        }
    }
}

/// `&Box` because that is what iterators over lines yield.
#[expect(clippy::borrowed_box, reason = "handed to `map` over boxed lines")]
fn weight(line: &Box<[u8]>) -> usize {
    line.len() + LINE_OVERHEAD
}

impl Count {
    fn offences(&self) -> u32 {
        self.runs.iter().map(|run| run.offences).fold(0, u32::saturating_add)
    }

    fn insert(&mut self, at: u64) {
        let after = |runs: &[Run]| runs.partition_point(|run| run.at <= at);
        let last = after(&self.runs).checked_sub(1);
        if let Some(same) = last.and_then(|last| self.runs.get_mut(last)).filter(|run| run.at == at) {
            same.offences = same.offences.saturating_add(1);
            return;
        }
        if self.runs.is_empty() {
            self.runs.reserve_exact(1);
        }
        if self.runs.len() >= RUNS {
            self.merge_nearest();
        }
        self.runs.insert(after(&self.runs), Run { at, offences: 1 });
    }

    fn merge_nearest(&mut self) {
        let nearest = self.runs.windows(2).enumerate().min_by_key(|(_, pair)| match pair {
            [older, newer] => newer.at - older.at,
            _ => u64::MAX,
        });
        if let Some(older) = nearest.map(|(place, _)| place) {
            let newer = self.runs.remove(older + 1);
            let run = &mut self.runs[older];
            run.offences = run.offences.saturating_add(newer.offences);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEN: Measure = Measure { find_time: 10_000, max_offences: 10 };

    fn offender(number: u32) -> Offender {
        let address = std::net::Ipv4Addr::from_bits(0x0B00_0000 + number);
        Offender {
            jail: 0,
            key: Key::new(IpNet::from(std::net::IpAddr::from(address))).unwrap(),
            cross_site: false,
        }
    }

    #[test]
    fn the_least_recently_seen_offender_leaves_first() {
        let mut tally = Tally::new(3, 1 << 20);
        for number in [1, 2, 3, 1] {
            assert!(!tally.count(offender(number), 5, 5, TEN, b"a line").1);
        }
        assert!(tally.count(offender(4), 5, 5, TEN, b"a line").1, "somebody had to leave");
        assert_eq!(tally.offenders(), 3);
        assert_eq!(tally.counted(offender(2), 5, 10_000).1, 0, "number 2 was seen longest ago");
        assert_eq!(tally.counted(offender(1), 5, 10_000).1, 2);
        assert!(tally.lines(offender(2)).is_empty());
    }

    #[test]
    fn lines_keep_to_their_bytes_and_counts_do_not_suffer() {
        let mut tally = Tally::new(100_000, 100_000);
        for number in 0..2000 {
            tally.count(offender(number), 5, 5, TEN, &[b'x'; 5000]);
            assert!(tally.bytes <= 100_000);
        }
        let last = tally.lines(offender(1999));
        assert_eq!(last.iter().map(|line| line.len()).collect::<Vec<_>>(), vec![512]);
        assert!(tally.lines(offender(0)).is_empty());
        assert_eq!(tally.counted(offender(0), 5, 10_000).1, 1, "the count is still there");
        for number in 0..2000 {
            tally.take_lines(offender(number));
        }
        assert_eq!(tally.bytes, 0, "what is gone is no longer weighed");
    }

    #[test]
    fn only_lines_of_offences_that_count_are_kept() {
        let mut tally = Tally::new(10, 1 << 20);
        for (at, line) in [(0, b"1"), (1000, b"2"), (10_500, b"3")] {
            tally.count(offender(1), at, at, TEN, line);
        }
        let lines = tally.lines(offender(1));
        assert_eq!(lines.iter().map(|line| line[0]).collect::<Vec<_>>(), b"23");
        for at in 0..30 {
            tally.count(offender(1), 10_600 + at, 10_600 + at, TEN, b"more");
        }
        assert_eq!(tally.lines(offender(1)).len(), 10);
    }

    proptest! {
        #[test]
        fn up_to_sixteen_offences_are_counted_exactly(
            steps in proptest::collection::vec((0..3000_u64, 0..12_000_u64), 1..100),
        ) {
            let (mut tally, mut plain, mut now) = (Tally::new(10, 0), Vec::new(), 20_000);
            for (later, age) in steps {
                now += later;
                let at = now - age.min(10_000);
                plain.retain(|at| at + 10_000 >= now);
                plain.push(at);
                let (counted, _) = tally.count(offender(1), at, now, TEN, b"");
                prop_assert_eq!(counted as usize, plain.len());
                if plain.len() >= 16 {
                    tally.restart(offender(1));
                    plain.clear();
                }
            }
        }

        #[test]
        fn many_offences_are_never_counted_as_more_and_seldom_as_fewer(
            gaps in proptest::collection::vec(0..400_u64, 1..600),
        ) {
            let many = Measure { max_offences: 1000, ..TEN };
            let (mut tally, mut plain, mut now) = (Tally::new(10, 0), Vec::new(), 20_000);
            for gap in gaps {
                now += gap;
                plain.retain(|at| at + 10_000 >= now);
                plain.push(now);
                let (counted, _) = tally.count(offender(1), now, now, many, b"");
                prop_assert!(counted as usize <= plain.len());
                let surely = plain.iter().filter(|at| **at + 5000 >= now).count();
                prop_assert!(counted as usize >= surely, "{counted} of {}, {surely} recent", plain.len());
            }
        }
    }
}

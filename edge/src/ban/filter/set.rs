//! All filters that read one source: one automaton over all their patterns decides whether a line
//! deserves a closer look, which few do. Must not know jails, and opens nothing.

use std::borrow::Cow;
use std::time::Duration;

use jiff::tz::TimeZone;
use regex::{RegexSet, RegexSetBuilder};

use super::date::calendar::Calendar;
use super::date::{Dated, Finder};
use super::judge::Scratch;
use super::{Figures, Filter, FilterFault, Hit};

/// A line without a date has that of the line before, if that is no older.
const FRESH: Duration = Duration::from_secs(60);
/// Of so many combinations of dates that are cut alike, each has a gate of its own. Logs have one or two.
const GATES: usize = 8;
/// Bytes that one automaton may need, and what it may remember of its states.
const AUTOMATON: usize = 64 << 20;
const STATES: usize = 16 << 20;

/// What a set allows its source.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longer lines are skipped and counted; in bytes.
    pub line: usize,
    /// Where dates that name no zone were written.
    pub zone: TimeZone,
}

impl Default for Limits {
    fn default() -> Self {
        Self { line: 64 * 1024, zone: TimeZone::system() }
    }
}

/// All filters that read one source.
pub struct FilterSet {
    filters: Vec<Filter>,
    finders: Vec<Dates>,
    /// By filter: whose dates it goes by.
    finder_of: Vec<usize>,
    gates: Vec<Gate>,
    /// Filters that see every line, as an offence may span several.
    always: Vec<usize>,
    calendar: Calendar,
    limits: Limits,
    figures: Figures,
    line: String,
    scratch: Scratch,
    wanted: Vec<bool>,
}

impl std::fmt::Debug for FilterSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FilterSet").field("filters", &self.filters).finish_non_exhaustive()
    }
}

/// The dates of all filters that have the same date patterns.
struct Dates {
    finder: Finder,
    last: Option<Duration>,
    found: Option<Dated>,
}

/// What is asked of a line that has been cut as the dates of `finders` want it.
struct Gate {
    finders: Vec<usize>,
    /// One, unless all together are too large for it.
    automata: Vec<Automaton>,
}

struct Automaton {
    patterns: RegexSet,
    /// By pattern: the filter.
    owners: Vec<usize>,
    /// The filters, once each.
    distinct: Vec<usize>,
}

impl FilterSet {
    /// With usual [`Limits`].
    ///
    /// # Errors
    /// Patterns that together are too large, even one filter at a time.
    pub fn new(filters: Vec<Filter>) -> Result<Self, Vec<FilterFault>> {
        Self::with(filters, Limits::default())
    }

    /// With limits of your own.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with(mut filters: Vec<Filter>, limits: Limits) -> Result<Self, Vec<FilterFault>> {
        let (mut finders, mut finder_of, mut known) = (Vec::new(), Vec::new(), Vec::<Vec<String>>::new());
        for filter in &mut filters {
            let finder = filter.finder.take();
            let alike = known.iter().position(|dates| *dates == filter.dates);
            finder_of.push(match (alike, finder) {
                (Some(alike), _) => alike,
                (None, Some(finder)) => {
                    finders.push(Dates { finder, last: None, found: None });
                    known.push(filter.dates.clone());
                    finders.len() - 1
                }
                // A compiled filter has its finder until a set takes it, and a set does not give it back.
                (None, None) => continue,
            });
        }
        let always =
            filters.iter().enumerate().filter(|(_, filter)| filter.window.is_some()).map(|(index, _)| index);
        let always = always.collect();
        // All cut alike is the usual; whatever else a log turns out to need is built when it is seen.
        let gates = vec![gate_of(&filters, &finder_of, (0..finders.len()).collect())?];
        Ok(Self {
            wanted: vec![false; filters.len()],
            filters,
            finders,
            finder_of,
            gates,
            always,
            calendar: Calendar::new(limits.zone.clone()),
            limits,
            figures: Figures::default(),
            line: String::with_capacity(1024),
            scratch: Scratch::default(),
        })
    }

    /// Tries all filters on one line (its end of line may be there or not) and adds what they find,
    /// each with the filter's index.
    ///
    /// `known`: the time, where the source knows it; then no date is looked for: the line has none, or it was left
    /// out. `now`: for dates without a year, and for how long a connection is remembered.
    pub fn read(
        &mut self,
        line: &[u8],
        known: Option<Duration>,
        now: Duration,
        hits: &mut Vec<(usize, Hit)>,
    ) {
        self.figures.lines += 1;
        if line.len() > self.limits.line {
            self.figures.too_long += 1;
            return;
        }
        let end = line.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |last| last + 1);
        let line = line.get(..end).unwrap_or_default();
        // What is no UTF-8 becomes U+FFFD, as fail2ban reads it. Asked first whether there is any: that
        // takes a third of the time.
        let text = std::str::from_utf8(line).map_or_else(|_| String::from_utf8_lossy(line), Cow::Borrowed);
        let text = match memchr::memchr(b'\n', text.as_bytes()) {
            Some(_) => Cow::Owned(text.replace('\n', " ")),
            None => text,
        };
        self.date(&text, known, now);
        for first in 0..self.finders.len() {
            let Some(cut) = self.first_with_its_cut(first) else { continue };
            self.prepare(&text, cut);
            self.ask(cut);
            self.judge(cut, known, now, hits);
        }
    }

    fn judge(
        &mut self,
        cut: (usize, usize),
        known: Option<Duration>,
        now: Duration,
        hits: &mut Vec<(usize, Hit)>,
    ) {
        for (index, filter) in self.filters.iter_mut().enumerate() {
            let dates = self.finder_of.get(index).and_then(|finder| self.finders.get(*finder));
            let Some(dates) =
                dates.filter(|dates| self.wanted.get(index) == Some(&true) && dates.cut() == cut)
            else {
                continue;
            };
            let at = known.or(dates.found.and_then(|found| found.at)).or(dates.fresh(now));
            if let Some(hit) = filter.judge(&self.line, at, now, &mut self.scratch, &mut self.figures) {
                self.figures.hits += 1;
                hits.push((index, hit));
            }
        }
    }

    /// What it did since it was made.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.figures
    }

    /// The filters, in the order of the indices that hits carry.
    #[must_use]
    pub fn filters(&self) -> &[Filter] {
        &self.filters
    }

    /// The date templates that matched, and how often.
    #[must_use]
    pub fn date_hits(&self) -> Vec<(String, u64)> {
        let all = self.finders.iter().flat_map(|dates| dates.finder.hits());
        all.map(|(name, hits)| (name.to_owned(), hits)).collect()
    }

    fn date(&mut self, text: &str, known: Option<Duration>, now: Duration) {
        let mut undated = false;
        for dates in &mut self.finders {
            dates.found = match known {
                Some(_) => None,
                None => dates.finder.find(text, &mut self.calendar, now),
            };
            match dates.found {
                Some(Dated { at: Some(at), .. }) => dates.last = Some(at),
                // An empty match says on purpose that there is none.
                Some(Dated { cut: (start, end), .. }) => undated |= start != end,
                None => undated |= known.is_none(),
            }
        }
        self.figures.undated += u64::from(undated);
    }

    /// How this finder's date is cut out, unless one before it cuts alike; nearly always all do.
    fn first_with_its_cut(&self, finder: usize) -> Option<(usize, usize)> {
        let cut = self.finders.get(finder)?.cut();
        let known = self.finders.iter().take(finder).any(|before| before.cut() == cut);
        (!known).then_some(cut)
    }

    fn prepare(&mut self, text: &str, (start, end): (usize, usize)) {
        self.line.clear();
        self.line.push_str(text.get(..start).unwrap_or_default());
        self.line.push_str(text.get(end..).unwrap_or_default());
        self.line.push('\n');
    }

    /// Which filters want a closer look at the line, as it is cut now.
    fn ask(&mut self, cut: (usize, usize)) {
        self.wanted.fill(false);
        for index in &self.always {
            if let Some(wanted) = self.wanted.get_mut(*index) {
                *wanted = true;
            }
        }
        let alike = |finder: &usize| self.finders.get(*finder).is_some_and(|dates| dates.cut() == cut);
        let known = self.gates.iter().position(|gate| {
            gate.finders.iter().all(alike)
                && self.finders.iter().filter(|d| d.cut() == cut).count() == gate.finders.len()
        });
        let gate = match known {
            Some(index) => self.gates.get(index),
            None if self.gates.len() < GATES => {
                let finders = (0..self.finders.len()).filter(alike).collect();
                if let Ok(gate) = gate_of(&self.filters, &self.finder_of, finders) {
                    self.gates.push(gate);
                }
                self.gates.last()
            }
            // The first one knows all filters; those whose dates are cut otherwise are left out later.
            None => self.gates.first(),
        };
        for automaton in gate.map_or(&[][..], |gate| &gate.automata) {
            if !automaton.patterns.is_match(&self.line) {
                continue;
            }
            // Which one needs a second reading, unless all are one filter's.
            if let [owner] = automaton.distinct[..] {
                self.wanted.get_mut(owner).into_iter().for_each(|wanted| *wanted = true);
                continue;
            }
            for pattern in automaton.patterns.matches(&self.line) {
                let owner = automaton.owners.get(pattern).and_then(|owner| self.wanted.get_mut(*owner));
                if let Some(wanted) = owner {
                    *wanted = true;
                }
            }
        }
    }
}

impl Dates {
    fn cut(&self) -> (usize, usize) {
        self.found.map_or((0, 0), |found| if found.cut.0 == found.cut.1 { (0, 0) } else { found.cut })
    }

    /// The last date, if it is not old.
    fn fresh(&self, now: Duration) -> Option<Duration> {
        self.last.filter(|last| now.saturating_sub(*last) < FRESH)
    }
}

/// The gate of all filters whose dates these finders find.
fn gate_of(filters: &[Filter], finder_of: &[usize], finders: Vec<usize>) -> Result<Gate, Vec<FilterFault>> {
    let member = |(index, filter): &(usize, &Filter)| {
        filter.window.is_none() && finder_of.get(*index).is_some_and(|finder| finders.contains(finder))
    };
    let members: Vec<usize> = filters.iter().enumerate().filter(member).map(|(index, _)| index).collect();
    let mut automata = Vec::new();
    build(filters, &members, &mut automata)?;
    Ok(Gate { finders, automata })
}

/// One automaton for all of `members`, or where that is too large two for half of them each.
fn build(
    filters: &[Filter],
    members: &[usize],
    automata: &mut Vec<Automaton>,
) -> Result<(), Vec<FilterFault>> {
    if members.is_empty() {
        return Ok(());
    }
    let (mut texts, mut owners) = (Vec::new(), Vec::new());
    for owner in members {
        let Some(filter) = filters.get(*owner) else { continue };
        texts.extend(filter.gates());
        owners.resize(texts.len(), *owner);
    }
    match gate(texts) {
        Ok(patterns) => automata.push(Automaton { patterns, owners, distinct: members.to_vec() }),
        Err(error) if members.len() == 1 => {
            let filter =
                members.first().and_then(|index| filters.get(*index)).map_or("", Filter::name).to_owned();
            return Err(vec![FilterFault::TooLarge { filter, what: error.to_string() }]);
        }
        Err(_) => {
            let (left, right) = members.split_at(members.len() / 2);
            build(filters, left, automata)?;
            build(filters, right, automata)?;
        }
    }
    Ok(())
}

pub(super) fn gate(texts: impl IntoIterator<Item = String>) -> Result<RegexSet, regex::Error> {
    RegexSetBuilder::new(texts).size_limit(AUTOMATON).dfa_size_limit(STATES).build()
}

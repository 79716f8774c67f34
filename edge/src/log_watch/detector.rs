//! A line of a source → what its jails make of it. Joins filters and jails; the running engine and
//! a rehearsal over old logs use the same one. Knows no files and no clock.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use shared::config::{Fault, Faults};

use super::tail::Watched;
use crate::ban::filter::{Figures, Filter, FilterFault, FilterSet, Hit, Subject};
use crate::ban::jail::{Jails, Lifted, Offence, Ruling};
use crate::ban::{JailSettings, Source};
use crate::config::WrittenFilter;

/// The source of edge's own events.
pub const OWN: usize = 0;

/// One line, and who sent it.
#[derive(Clone, Copy, Debug)]
pub struct Line<'l> {
    /// [`OWN`], or the tag of a watched file.
    pub source: usize,
    /// Without its newline; of edge's own events also without the date.
    pub text: &'l [u8],
    /// When it happened, where that is known without reading it.
    pub at: Option<Duration>,
    /// Who it is about, where that is known without reading it: then nobody else can be meant.
    pub client: Option<IpAddr>,
    /// A page of another origin may have made its browser do so; of files nobody knows.
    pub cross_site: bool,
}

/// What time it is for the jails.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// It happens now.
    Now(Duration),
    /// It happened when the line says; this is the time of the line before.
    Rehearsal(Duration),
}

/// What became of one offence.
#[derive(Debug)]
pub struct Finding {
    /// Index of the jail.
    pub jail: usize,
    /// Who.
    pub address: IpAddr,
    /// When.
    pub at: Duration,
    /// What the jail made of it.
    pub ruling: Ruling,
}

/// Filters and jails of one configuration.
#[derive(Debug)]
pub struct Detector {
    /// Counts and decides.
    pub jails: Jails,
    sources: Vec<SourceFilters>,
    watched: Vec<Watched>,
    hits: Vec<(usize, Hit)>,
    /// Of filters that were replaced.
    past: Figures,
    /// Hits that name nobody who could be banned: host names, ids.
    nameless: u64,
    /// Hits on edge's own events that name somebody else than the client. Must stay 0.
    forged: u64,
}

#[derive(Debug)]
struct SourceFilters {
    set: FilterSet,
    /// Index of a filter in the set → its jail.
    jails: Vec<usize>,
}

impl Detector {
    /// Compiles what the jails need.
    ///
    /// # Errors
    /// Every bad pattern, with its place in the configuration.
    pub fn new(
        filters: &[WrittenFilter],
        jails: Vec<JailSettings>,
        never: Vec<IpNet>,
        max_bans: usize,
    ) -> Result<Self, Faults> {
        let mut faults = Vec::new();
        let groups = by_source(&jails);
        let mut sources = Vec::new();
        let mut watched = Vec::new();
        for (tag, (patterns, members)) in groups.into_iter().enumerate() {
            let mut compiled = Vec::new();
            for index in &members {
                match compile(filters, &jails[*index]) {
                    Ok(filter) => compiled.push(filter),
                    Err(found) => faults.extend(found),
                }
            }
            watched.extend(patterns.into_iter().map(|pattern| Watched { pattern, tag }));
            if compiled.len() < members.len() {
                continue;
            }
            let named: Vec<String> = members.iter().map(|index| jails[*index].filter.clone()).collect();
            match FilterSet::new(compiled) {
                Ok(set) => sources.push(SourceFilters { set, jails: members }),
                // Each compiled alone, so what fails is that they are too many.
                Err(found) => {
                    let first = filters.iter().find(|filter| Some(&filter.text.name) == named.first());
                    faults.extend(first.into_iter().flat_map(|written| located(written, &found)));
                }
            }
        }
        faults.sort();
        faults.dedup();
        if !faults.is_empty() {
            return Err(Faults(faults));
        }
        let jails = Jails::new(jails, never, max_bans);
        Ok(Self {
            jails,
            sources,
            watched,
            hits: Vec::new(),
            past: Figures::default(),
            nameless: 0,
            forged: 0,
        })
    }

    /// Takes over the filters, jails and files of `other`. Bans stay, and the counts of jails that are
    /// the same in both; bans that their jail allows now end and are returned.
    #[must_use]
    pub fn replace(&mut self, other: Self) -> Lifted {
        self.past = self.figures();
        (self.sources, self.watched) = (other.sources, other.watched);
        self.jails.set_jails(other.jails.settings().to_vec())
    }

    /// The files to follow; their tags are the sources of their lines.
    #[must_use]
    pub fn watched(&self) -> &[Watched] {
        &self.watched
    }

    /// The sources whose files the path is or was one of, besides [`OWN`].
    pub fn sources_of<'p>(&'p self, path: &'p Path) -> impl Iterator<Item = usize> + 'p {
        self.watched.iter().filter(move |watched| watched.covered(path)).map(|watched| watched.tag)
    }

    /// Reads one line and appends what its jails make of it. In a rehearsal the lines' own times
    /// are the clock, and `now` is only the last one known.
    pub fn read(&mut self, line: Line<'_>, clock: Clock, active_clients: usize, found: &mut Vec<Finding>) {
        let Some(source) = self.sources.get_mut(line.source) else { return };
        let (Clock::Now(now) | Clock::Rehearsal(now)) = clock;
        self.hits.clear();
        source.set.read(line.text, line.at, now, &mut self.hits);
        for (filter, hit) in self.hits.drain(..) {
            let Some(jail) = source.jails.get(filter).copied() else { continue };
            let address = match hit.subject {
                Subject::Address(address) => address,
                Subject::Network(network) => network.addr(),
                Subject::Name(_) | Subject::Id(_) => {
                    self.nameless += 1;
                    continue;
                }
            };
            if line.client.is_some_and(|client| client.to_canonical() != address.to_canonical()) {
                self.forged += 1;
                continue;
            }
            let at = hit.at.or(line.at).unwrap_or(now);
            let now = if matches!(clock, Clock::Rehearsal(_)) { now.max(at) } else { now };
            let offence = Offence { jail, address, at, line: line.text, cross_site: line.cross_site };
            let ruling = self.jails.judge(&offence, now, active_clients);
            found.push(Finding { jail, address, at, ruling });
        }
    }

    /// Lines, hits and what could not be read, of all sources together.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let mut sum = self.past;
        for figures in self.sources.iter().map(|source| source.set.figures()) {
            sum.lines += figures.lines;
            sum.hits += figures.hits;
            sum.ignored += figures.ignored;
            sum.too_long += figures.too_long;
            sum.undated += figures.undated;
            sum.backtrack_limit += figures.backtrack_limit;
        }
        sum
    }

    /// Hits that name nobody who could be banned, and hits that name another than the client.
    #[must_use]
    pub const fn unusable(&self) -> (u64, u64) {
        (self.nameless, self.forged)
    }
}

/// Jails that read the same files share one automaton; [`OWN`] is always there, and first.
fn by_source(jails: &[JailSettings]) -> Vec<(Vec<PathBuf>, Vec<usize>)> {
    let mut groups: Vec<(Vec<PathBuf>, Vec<usize>)> = vec![(Vec::new(), Vec::new())];
    for (index, jail) in jails.iter().enumerate() {
        let files = match &jail.source {
            Source::Edge => {
                groups[OWN].1.push(index);
                continue;
            }
            Source::Files(files) => files,
        };
        match groups.iter_mut().skip(1).find(|(patterns, _)| patterns == files) {
            Some((_, members)) => members.push(index),
            None => groups.push((files.clone(), vec![index])),
        }
    }
    groups
}

fn compile(filters: &[WrittenFilter], jail: &JailSettings) -> Result<Filter, Vec<Fault>> {
    match filters.iter().find(|filter| filter.text.name == jail.filter) {
        Some(written) => Filter::compile(&written.text).map_err(|faults| located(written, &faults)),
        // The configuration has looked: only a caller that made its own jails meets this.
        None => Err(vec![Fault {
            file: PathBuf::from(format!("jail {}", jail.name)),
            line: 0,
            column: 0,
            what: format!("filter {:?} is not there; write a [[filter]] of that name", jail.filter),
        }]),
    }
}

/// Faults of a filter at the patterns that they are about.
fn located(written: &WrittenFilter, faults: &[FilterFault]) -> Vec<Fault> {
    faults
        .iter()
        .map(|fault| {
            let (key, number) = match fault {
                FilterFault::Pattern { list, number, .. } => (*list, *number),
                FilterFault::NoSubject { number, .. } => ("failregex", *number),
                FilterFault::Date { number, .. } => ("datepattern", *number),
                _ => ("name", 1),
            };
            written.fault(key, number.saturating_sub(1), format!("filter {}: {fault}", written.text.name))
        })
        .collect()
}

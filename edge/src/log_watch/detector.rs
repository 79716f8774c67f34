//! A line of a source → what its jails make of it. Joins filters and jails; the running engine and
//! a rehearsal over old logs use the same one. Knows no files and no clock.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use super::tail::Watched;
use crate::ban::filter::{Figures, Filter, FilterFault, FilterSet, Hit, Subject};
use crate::ban::jail::{Jails, Offence, Ruling};
use crate::ban::{FilterText, JailSettings, Source};

/// The source of edge's own events.
pub const OWN: usize = 0;

/// Why a jail cannot work.
#[derive(Debug, thiserror::Error)]
pub enum DetectorFault {
    /// No such filter.
    #[error("jail {jail}: filter {filter:?} is not there; write a [[filter]] of that name")]
    NoFilter {
        /// The jail.
        jail: String,
        /// What it names.
        filter: String,
    },
    /// A pattern of it.
    #[error("filter {filter}: {fault}")]
    Filter {
        /// Its name.
        filter: String,
        /// Which pattern, and why.
        #[source]
        fault: FilterFault,
    },
}

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
    /// Every fault at once.
    pub fn new(
        filters: &[FilterText],
        jails: Vec<JailSettings>,
        never: Vec<IpNet>,
        max_bans: usize,
    ) -> Result<Self, Vec<DetectorFault>> {
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
            match FilterSet::new(compiled) {
                Ok(set) => sources.push(SourceFilters { set, jails: members }),
                Err(found) => faults.extend(
                    found
                        .into_iter()
                        .map(|fault| DetectorFault::Filter { filter: "all together".to_owned(), fault }),
                ),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let jails = Jails::new(jails, never, max_bans);
        Ok(Self { jails, sources, watched, hits: Vec::new(), nameless: 0, forged: 0 })
    }

    /// The files to follow; their tags are the sources of their lines.
    #[must_use]
    pub fn watched(&self) -> &[Watched] {
        &self.watched
    }

    /// The sources whose files the path could be one of, besides [`OWN`].
    pub fn sources_of<'p>(&'p self, path: &'p Path) -> impl Iterator<Item = usize> + 'p {
        self.watched.iter().filter(move |watched| watched.covers(path)).map(|watched| watched.tag)
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
            let offence = Offence { jail, address, at, line: line.text };
            let ruling = self.jails.judge(&offence, now, active_clients);
            found.push(Finding { jail, address, at, ruling });
        }
    }

    /// Lines, hits and what could not be read, of all sources together.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.sources.iter().fold(Figures::default(), |sum, source| sum + source.set.figures())
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

fn compile(filters: &[FilterText], jail: &JailSettings) -> Result<Filter, Vec<DetectorFault>> {
    let Some(text) = filters.iter().find(|filter| filter.name == jail.filter) else {
        return Err(vec![DetectorFault::NoFilter { jail: jail.name.clone(), filter: jail.filter.clone() }]);
    };
    Filter::compile(text).map_err(|faults| {
        faults.into_iter().map(|fault| DetectorFault::Filter { filter: text.name.clone(), fault }).collect()
    })
}

//! A filter's text → a compiled filter; a line → an offence. Knows patterns, tags and dates;
//! must not know who is counted or what becomes of an offender.

mod connection;
mod date;
mod emit;
mod forgeable;
mod fuzz;
mod groups;
mod judge;
mod pattern;
mod set;
mod syntax;
mod window;

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::ban::{FilterText, MAX_FILTER_LINES};
use connection::Connections;
use date::Finder;
use pattern::Pattern;
use window::Window;

pub use forgeable::{Forgeable, Weakness};
pub use fuzz::{fuzz_date, fuzz_line, fuzz_pattern};
pub use jiff::tz::TimeZone;
pub use set::{FilterSet, Limits};

/// One filter, ready to be tried on lines.
pub struct Filter {
    name: String,
    prefix: Option<Pattern>,
    fail: Vec<Pattern>,
    ignore: Vec<Pattern>,
    dates: Vec<String>,
    /// Handed to the set that it becomes part of.
    finder: Option<Finder>,
    /// Which of `fail` may match, if there are several.
    candidates: Option<regex::RegexSet>,
    connections: Connections,
    /// Where an offence may span several lines.
    window: Option<Window>,
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter")
            .field("name", &self.name)
            .field("patterns", &self.fail.len())
            .finish_non_exhaustive()
    }
}

/// Why a filter cannot be used. Patterns are counted from 1, as they are written; positions are
/// characters of the pattern, from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterFault {
    /// No regular expression, or one that cannot be compiled.
    #[error("{list} {number}: position {at}: {what}; filter {filter} is not used until it is put right")]
    Pattern {
        /// The filter's name.
        filter: String,
        /// `prefregex`, `failregex` or `ignoreregex`.
        list: &'static str,
        /// Which one, from 1.
        number: usize,
        /// Characters before the fault.
        at: usize,
        /// What is wrong, and what to write.
        what: String,
    },
    /// It would not say whom to ban.
    #[error(
        "failregex {number}: nothing in it says who the offender is; filter {filter} needs <HOST>, <ADDR> or <F-ID>…</F-ID> there, or in its prefregex"
    )]
    NoSubject {
        /// The filter's name.
        filter: String,
        /// Which one, from 1.
        number: usize,
    },
    /// A prefregex that hands nothing on, or a filter of no pattern.
    #[error("failregex: there is none; write at least one, or filter {filter} finds nothing")]
    Empty {
        /// The filter's name.
        filter: String,
    },
    /// A date pattern that cannot be read.
    #[error("datepattern {number}: {what}; filter {filter} is not used until it is put right")]
    Date {
        /// The filter's name.
        filter: String,
        /// Which one, from 1.
        number: usize,
        /// What is wrong.
        what: String,
    },
    /// An offence of too many lines.
    #[error(
        "maxlines: {lines} is above {most}; write fewer, as filter {filter} would search them all for each line"
    )]
    TooManyLines {
        /// The filter's name.
        filter: String,
        /// As it is written.
        lines: usize,
        /// What is possible.
        most: usize,
    },
    /// The automaton of one filter alone is too large.
    #[error(
        "failregex: all of filter {filter} together need too much memory ({what}); split the filter into two"
    )]
    TooLarge {
        /// The filter's name.
        filter: String,
        /// The engine's word.
        what: String,
    },
}

/// Whom a line is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A single address; IPv4-mapped ones are IPv4.
    Address(IpAddr),
    /// `<SUBNET>`, or `<ADDR>/<CIDR>`; truncated.
    Network(IpNet),
    /// A host name. It is never resolved: who owns the name would choose who is banned.
    Name(String),
    /// `<F-ID>` that is no address, or what looks like an address and is none.
    Id(String),
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Network(network) => network.fmt(f),
            Self::Name(text) | Self::Id(text) => text.fmt(f),
        }
    }
}

/// An offence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Whose.
    pub subject: Subject,
    /// When, by the line's own date, or by that of a line less than a minute ago. `None`: the line
    /// says nothing, and it happened now.
    pub at: Option<Duration>,
    /// Which failregex, from 0.
    pub pattern: usize,
    /// `<F-USER>` or the alternatives that stand in for it.
    pub user: Option<String>,
    /// All other named groups that took part.
    pub groups: Vec<(String, String)>,
}

/// What a [`FilterSet`] did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Lines read.
    pub lines: u64,
    /// Offences found.
    pub hits: u64,
    /// Matches that an ignoreregex took back.
    pub ignored: u64,
    /// Lines that were skipped because they are longer than [`Limits::line`].
    pub too_long: u64,
    /// Lines without a date where one was looked for.
    pub undated: u64,
    /// Matches that were given up: an irregular pattern went back too often.
    pub backtrack_limit: u64,
}

impl Filter {
    /// Compiles everything that the filter has.
    ///
    /// # Errors
    /// Every fault at once.
    pub fn compile(text: &FilterText) -> Result<Self, Vec<FilterFault>> {
        let mut faults = Vec::new();
        let several = text.max_lines > 1;
        if text.max_lines > MAX_FILTER_LINES {
            let filter = text.name.clone();
            faults.push(FilterFault::TooManyLines { filter, lines: text.max_lines, most: MAX_FILTER_LINES });
        }
        if text.failregex.is_empty() {
            faults.push(FilterFault::Empty { filter: text.name.clone() });
        }
        let mut all = |list: &'static str, patterns: &[String], lines: bool| -> Vec<Pattern> {
            let mut compiled = Vec::with_capacity(patterns.len());
            for (index, pattern) in patterns.iter().enumerate() {
                match Pattern::compile(pattern, lines) {
                    Ok(pattern) => compiled.push(pattern),
                    Err(wrong) => faults.push(FilterFault::Pattern {
                        filter: text.name.clone(),
                        list,
                        number: index + 1,
                        at: wrong.at,
                        what: wrong.what,
                    }),
                }
            }
            compiled
        };
        let prefix = all("prefregex", text.prefregex.as_slice(), false).pop();
        let fail = all("failregex", &text.failregex, several);
        let ignore = all("ignoreregex", &text.ignoreregex, false);
        let named = |pattern: &Pattern| {
            ["fid", "ip4", "ip6", "dns", "mlfid"].iter().any(|name| pattern.tree().has(name))
        };
        if faults.is_empty() && !prefix.as_ref().is_some_and(named) {
            for (index, _) in fail.iter().enumerate().filter(|(_, pattern)| !named(pattern)) {
                faults.push(FilterFault::NoSubject { filter: text.name.clone(), number: index + 1 });
            }
        }
        let date = |(index, what)| FilterFault::Date { filter: text.name.clone(), number: index + 1, what };
        let finder =
            Finder::new(&text.datepattern).map_err(|wrong| faults.extend(wrong.into_iter().map(date))).ok();
        if !faults.is_empty() {
            return Err(faults);
        }
        let candidates = match fail.len() {
            0 | 1 => None,
            _ => Some(set::gate(fail.iter().map(|pattern| pattern.gate(several))).map_err(|error| {
                vec![FilterFault::TooLarge { filter: text.name.clone(), what: error.to_string() }]
            })?),
        };
        Ok(Self {
            name: text.name.clone(),
            prefix,
            fail,
            ignore,
            dates: text.datepattern.clone(),
            finder,
            candidates,
            connections: Connections::default(),
            window: several.then(|| Window::new(text.max_lines)),
        })
    }

    /// One of these is passed by every line that may be an offence.
    fn gates(&self) -> Vec<String> {
        let Some(prefix) = &self.prefix else {
            return self.fail.iter().map(|pattern| pattern.gate(false)).collect();
        };
        let inner: Vec<_> = self.fail.iter().map(|pattern| &pattern.tree().root).collect();
        vec![emit::joined_gate(&prefix.tree().root, &inner).unwrap_or_else(|| prefix.gate(false))]
    }

    /// As jails name it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Patterns into which a client could write somebody else's address: not bound to the line's
    /// beginning, or with free text before the host.
    #[must_use]
    pub fn forgeable(text: &FilterText) -> Vec<Forgeable> {
        forgeable::forgeable(text)
    }
}

#[cfg(test)]
mod tests;

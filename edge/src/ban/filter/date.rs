//! Where a line's date is, and what time it says. Remembers what the last line had, as a log keeps
//! to its form. Must not know what else stands in a line.

pub(crate) mod calendar;
pub(crate) mod quick;
pub(crate) mod template;

use std::time::Duration;

use regex::RegexSet;

use calendar::Calendar;
use quick::Shape;
use template::{DEFAULTS, Found, Place, Template, unbound};

/// A date of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dated {
    /// What is cut out of the line: from, to (bytes).
    pub(crate) cut: (usize, usize),
    /// `None`: there is no such date, or nothing was cut.
    pub(crate) at: Option<Duration>,
}

/// Finds the dates of one source by the templates of one list.
pub(crate) struct Finder {
    templates: Vec<Template>,
    hits: Vec<u64>,
    /// Which templates may match at all.
    gate: RegexSet,
    last: Option<Last>,
    same: Option<Same>,
}

/// The last date that says its year and zone, and so its time whatever the present is: a busy log
/// has many lines of one second.
#[derive(Clone, Copy, Debug)]
struct Same {
    text: [u8; quick::CLF],
    at: Duration,
}

/// Where the last line had its date.
#[derive(Clone, Copy, Debug)]
struct Last {
    template: usize,
    start: usize,
    /// The bytes around it.
    before: Option<u8>,
    after: Option<u8>,
}

impl Finder {
    /// # Errors
    /// What is wrong, by the number of the pattern (from 0).
    pub(crate) fn new(patterns: &[String]) -> Result<Self, Vec<(usize, String)>> {
        let mut templates: Vec<Template> = Vec::new();
        let mut faults = Vec::new();
        let all = [String::from("{DEFAULT}")];
        let patterns = if patterns.is_empty() { all.as_slice() } else { patterns };
        for (number, pattern) in patterns.iter().enumerate() {
            for written in written(pattern) {
                if templates.iter().any(|known| known.name == written) {
                    continue;
                }
                match Template::compile(&written) {
                    Ok(template) => templates.push(template),
                    Err(what) => faults.push((number, what)),
                }
            }
        }
        let gate = RegexSet::new(templates.iter().map(|template| template.pattern.gate(false)));
        match gate {
            Ok(gate) if faults.is_empty() => {
                Ok(Self { hits: vec![0; templates.len()], templates, gate, last: None, same: None })
            }
            Ok(_) => Err(faults),
            Err(error) => Err(vec![(0, error.to_string())]),
        }
    }

    /// The date of `line`, if it has one.
    pub(crate) fn find(&mut self, line: &str, calendar: &mut Calendar, now: Duration) -> Option<Dated> {
        if let Some(dated) = self.quick(line.as_bytes(), calendar, now) {
            return Some(dated);
        }
        let again =
            self.again(line).map(|(template, found)| self.timed(template, found, line, calendar, now));
        let (template, found, at) = match again {
            Some(timed) if timed.is_dated() => timed,
            _ => self.search(line, calendar, now)?,
        }
        .parts();
        let bytes = line.as_bytes();
        self.last = Some(Last {
            template,
            start: found.start,
            before: found.start.checked_sub(1).and_then(|at| bytes.get(at)).copied(),
            after: bytes.get(found.end).copied(),
        });
        *self.hits.get_mut(template)? += 1;
        Some(Dated { cut: (found.start, found.end), at })
    }

    /// Templates that matched, and how often.
    pub(crate) fn hits(&self) -> impl Iterator<Item = (&str, u64)> {
        let named = self.templates.iter().map(|template| template.name.as_str());
        named.zip(self.hits.iter().copied()).filter(|(_, hits)| *hits > 0)
    }

    /// The same template at its place, without an expression.
    fn quick(&mut self, line: &[u8], calendar: &mut Calendar, now: Duration) -> Option<Dated> {
        let last = self.last?;
        let (shape, place) = self.templates.get(last.template)?.shape?;
        let start = match place {
            Place::LineBegin => {
                let before = line.get(..last.start)?;
                let plain =
                    before.iter().all(|byte| byte.is_ascii_punctuation() && *byte != b'_' || *byte == b' ');
                if !plain || before.len() > 2 {
                    return None;
                }
                last.start
            }
            Place::Bracket | Place::Brackets => line.iter().position(|byte| *byte == b'[')? + 1,
            Place::Free => match last.before {
                None => 0,
                Some(b'[') => line.iter().position(|byte| *byte == b'[')? + 1,
                Some(before) if line.get(last.start - 1) == Some(&before) => last.start,
                Some(_) => return None,
            },
        };
        let text = line.get(start..)?;
        let known = self.same.filter(|same| shape == Shape::Clf && quick::is_clf(text, &same.text));
        let (at, length) = match known {
            Some(same) => (same.at, quick::CLF),
            None => {
                let (fields, length) = quick::read(shape, text)?;
                let at = calendar.time(&fields, now)?;
                if shape == Shape::Clf {
                    self.same = text.first_chunk().map(|text| Same { text: *text, at });
                }
                (at, length)
            }
        };
        let end = start + length;
        if place == Place::Brackets && line.get(end) != Some(&b']') {
            return None;
        }
        if place == Place::Free && line.get(end).copied() != last.after {
            return None;
        }
        *self.hits.get_mut(last.template)? += 1;
        let cut = if place == Place::Brackets { (start - 1, end + 1) } else { (start, end) };
        Some(Dated { cut, at: Some(at) })
    }

    /// The last line's template, if it matches at the same place or between the same characters.
    fn again(&self, line: &str) -> Option<(usize, Found)> {
        let last = self.last?;
        let template = self.templates.get(last.template)?;
        let found = template.find(line)?;
        let bytes = line.as_bytes();
        let before = found.start.checked_sub(1).and_then(|at| bytes.get(at)).copied();
        let same = before == last.before && bytes.get(found.end).copied() == last.after;
        (template.anchored || same || self.templates.len() == 1).then_some((last.template, found))
    }

    /// The first template that is bound to the line's begin; else the date that stands first. What only
    /// looks like a date (`Sat` read as a zone) is taken where nothing else is: one such line must not
    /// decide how all others are read.
    fn search(&self, line: &str, calendar: &mut Calendar, now: Duration) -> Option<Timed> {
        let mut best: Option<Timed> = None;
        for index in self.gate.matches(line) {
            let Some(template) = self.templates.get(index) else { continue };
            let Some(found) = template.find(line) else { continue };
            let timed = self.timed(index, found, line, calendar, now);
            let dated = timed.is_dated();
            if template.anchored && dated {
                return Some(timed);
            }
            let better = best.as_ref().is_none_or(|best| match (dated, best.is_dated()) {
                (true, true) => timed.found.start < best.found.start,
                (dated, known) => dated && !known,
            });
            if better {
                best = Some(timed);
            }
        }
        best
    }

    fn timed(
        &self,
        template: usize,
        found: Found,
        line: &str,
        calendar: &mut Calendar,
        now: Duration,
    ) -> Timed {
        let empty = found.start == found.end;
        let known = self.templates.get(template).filter(|_| !empty);
        let at = known.and_then(|known| known.time(line, &found, calendar, now));
        Timed { template, found, at }
    }
}

/// What a template found, and the time of it.
struct Timed {
    template: usize,
    found: Found,
    at: Option<Duration>,
}

impl Timed {
    /// It is a date, or says on purpose that there is none.
    fn is_dated(&self) -> bool {
        self.at.is_some() || self.found.start == self.found.end
    }

    fn parts(self) -> (usize, Found, Option<Duration>) {
        (self.template, self.found, self.at)
    }
}

/// What a pattern of the list stands for.
fn written(pattern: &str) -> Vec<String> {
    let upper = pattern.to_uppercase();
    let begin = |default: &&str| {
        !default.starts_with('^') && !default.starts_with("{^") && !default.starts_with("**")
    };
    let at_begin =
        DEFAULTS.iter().filter(|default| begin(default)).map(|default| format!("{{^LN-BEG}}{default}"));
    match upper.as_str() {
        "{DEFAULT}" => at_begin.chain(DEFAULTS.iter().map(|default| (*default).to_owned())).collect(),
        "{^LN-BEG}" => {
            let bound = DEFAULTS.iter().filter(|default| !begin(default) && !default.starts_with("**"));
            at_begin.chain(bound.map(|default| (*default).to_owned())).collect()
        }
        "EPOCH" => {
            DEFAULTS.iter().filter(|default| default.contains("EPOCH")).map(|d| (*d).to_owned()).collect()
        }
        _ => {
            match upper.find("{DATE}").filter(|at| !pattern.get(..*at).unwrap_or_default().ends_with('\\')) {
                Some(at) if upper.len() == pattern.len() => DEFAULTS
                    .iter()
                    .filter(|default| !default.starts_with("**"))
                    .map(|default| {
                        let (before, rest) = pattern.split_at_checked(at).unwrap_or((pattern, ""));
                        format!("{before}{}{}", unbound(default), rest.get(6..).unwrap_or_default())
                    })
                    .collect(),
                _ => vec![pattern.to_owned()],
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;

    #[test]
    fn a_date_seen_before_is_read_as_if_it_were_new() {
        let now = Duration::from_secs(1_124_013_600);
        let dates =
            ["12:00:00 +0200", "12:00:00 +0200", "12:00:00 +02001", "12:00:00 +0200é", "12:00:01 +0200"];
        let dates =
            dates.into_iter().chain(["12:00:01 +0100", "12:00:01 +0100x", "12:00:01", "12:00:00 +0200"]);
        let mut calendar = Calendar::new(TimeZone::UTC);
        let (mut ours, mut forgetful) = (Finder::new(&[]).unwrap(), Finder::new(&[]).unwrap());
        let mut remembered = 0;
        for date in dates {
            let line = format!("192.0.2.1 - - [14/Aug/2005:{date}] \"GET / HTTP/1.1\" 200 5");
            forgetful.same = None;
            let expected = forgetful.find(&line, &mut calendar, now);
            assert_eq!(ours.find(&line, &mut calendar, now), expected, "{line}");
            remembered += usize::from(ours.same.is_some());
        }
        assert!(remembered > 5, "{remembered}: the test would prove nothing");
    }
}

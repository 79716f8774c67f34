//! What an operator has said of a series: how available it is, how its numbers read, when a
//! reservation counts as forgotten. Pure; part of the ledger, so both vaults have the same.
//!
//! A series may be counted by period: `INV` with the pattern `INV-{year}-{n:06}` is counted anew
//! in every year, each of which is a series of its own (`INV/2026`). The period is the document's,
//! named by the caller; no clock decides it.

use serde::{Deserialize, Serialize};

use super::standing::MAX_RANGE;

/// Longest pattern, in bytes.
pub const MAX_PATTERN: usize = 64;
/// Widest field of a number.
const MAX_WIDTH: usize = 19;

/// What is said of a series and all its periods.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// Numbers set aside for each vault, so that it can give them without the other; 0: strict.
    #[serde(default)]
    pub range: u64,
    /// How its numbers read; see [`Pattern`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// After how many seconds a reservation that was neither confirmed nor voided is flagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_after: Option<u64>,
}

/// Why a definition or a period is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// Too wide.
    #[error("range: {0} numbers; write at most {MAX_RANGE}, or 0 for a strict series")]
    Range(u64),
    /// Never.
    #[error("expires_after: 0 seconds; write at least 1, or leave it out")]
    Expiry,
    /// The pattern.
    #[error(
        "pattern {pattern}: {why}; write text with one {{n}} or {{n:06}}, and {{year}} or {{year}}{{month}} for periods"
    )]
    Pattern {
        /// As given.
        pattern: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The caller's period does not fit the pattern.
    #[error("period {given}: series {series} is counted by {wanted}")]
    Period {
        /// As given; `(none)` where none was.
        given: String,
        /// The series.
        series: String,
        /// What it wants.
        wanted: &'static str,
    },
}

/// What one number's text is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Year,
    Month,
    Number(usize),
}

/// How numbers read: text with `{n}` or `{n:WIDTH}` (with zeros in front) once, and `{year}`,
/// `{month}` where the series is counted by year or month.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<Part>);

/// By what a series is counted anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// Never.
    Through,
    /// Each year; periods read `2026`.
    ByYear,
    /// Each month; periods read `2026-03`.
    ByMonth,
}

impl Definition {
    /// Is all of it within its bounds?
    ///
    /// # Errors
    /// What is not.
    pub fn check(&self) -> Result<(), DefinitionError> {
        if self.range > MAX_RANGE {
            return Err(DefinitionError::Range(self.range));
        }
        if self.expires_after == Some(0) {
            return Err(DefinitionError::Expiry);
        }
        self.pattern().map(drop)
    }

    fn pattern(&self) -> Result<Option<Pattern>, DefinitionError> {
        self.pattern.as_deref().map(Pattern::parse).transpose()
    }

    /// May it be replaced by that one where numbers were given already? Only if no two numbers can
    /// come to read the same: a pattern that was ever used stays.
    #[must_use]
    pub fn may_become(&self, other: &Self) -> bool {
        self.pattern == other.pattern || (self.pattern.is_none() && other.counted() == Counted::Through)
    }

    /// Is `series`, a base or one with a period, counted by this?
    #[must_use]
    pub fn counts(&self, series: &str) -> bool {
        self.series(base_of(series), period_of(series)).is_ok()
    }

    /// By what it is counted anew.
    #[must_use]
    pub fn counted(&self) -> Counted {
        self.pattern().ok().flatten().map_or(Counted::Through, |pattern| pattern.counted())
    }

    /// The series that counts `period` of `base`.
    ///
    /// # Errors
    /// The period does not fit the pattern.
    pub fn series(&self, base: &str, period: Option<&str>) -> Result<String, DefinitionError> {
        let refuse = |wanted| {
            let given = period.unwrap_or("(none)").to_owned();
            Err(DefinitionError::Period { given, series: base.to_owned(), wanted })
        };
        match (self.counted(), period) {
            (Counted::Through, None) => Ok(base.to_owned()),
            (Counted::Through, Some(_)) => refuse("no period; leave it out"),
            (Counted::ByYear, Some(year)) if is_year(year) => Ok(format!("{base}/{year}")),
            (Counted::ByYear, _) => refuse("year; say ?period=2026 (vault number: --period 2026)"),
            (Counted::ByMonth, Some(month)) if is_month(month) => Ok(format!("{base}/{month}")),
            (Counted::ByMonth, _) => refuse("month; say ?period=2026-03 (vault number: --period 2026-03)"),
        }
    }

    /// How a number of `series` reads; `None` without a pattern, and for a period that is none of it.
    #[must_use]
    pub fn text(&self, series: &str, number: u64) -> Option<String> {
        let pattern = self.pattern().ok().flatten().filter(|_| self.counts(series))?;
        Some(pattern.text(period_of(series).unwrap_or_default(), number))
    }
}

/// The series without its period: what the definition is of.
#[must_use]
pub fn base_of(series: &str) -> &str {
    series.split_once('/').map_or(series, |(base, _)| base)
}

/// The period that a series counts.
#[must_use]
pub fn period_of(series: &str) -> Option<&str> {
    series.split_once('/').map(|(_, period)| period)
}

fn is_year(text: &str) -> bool {
    text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_month(text: &str) -> bool {
    text.split_once('-').is_some_and(|(year, month)| {
        is_year(year) && month.len() == 2 && month.parse().is_ok_and(|month: u8| (1..=12).contains(&month))
    })
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, DefinitionError> {
        let refuse = |why| DefinitionError::Pattern { pattern: text.to_owned(), why };
        if text.is_empty() || text.len() > MAX_PATTERN {
            return Err(refuse("it must have 1 to 64 bytes"));
        }
        if text.chars().any(char::is_control) {
            return Err(refuse("it has a control character"));
        }
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once('{') {
            let (field, after) = after.split_once('}').ok_or_else(|| refuse("a { is not closed"))?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(match field {
                "year" => Part::Year,
                "month" => Part::Month,
                "n" => Part::Number(0),
                field => {
                    let width = field.strip_prefix("n:").and_then(|width| width.parse().ok());
                    let width = width.filter(|width| (1..=MAX_WIDTH).contains(width));
                    Part::Number(
                        width.ok_or_else(|| refuse("an unknown field, or one wider than 19 digits"))?,
                    )
                }
            });
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        let count = |wanted: fn(&Part) -> bool| parts.iter().filter(|part| wanted(part)).count();
        if parts.iter().any(|part| matches!(part, Part::Text(text) if text.contains('}'))) {
            return Err(refuse("a } closes nothing"));
        }
        if count(|part| matches!(part, Part::Number(_))) != 1 {
            return Err(refuse("it must have the number once"));
        }
        if count(|part| *part == Part::Month) > 0 && count(|part| *part == Part::Year) == 0 {
            return Err(refuse("a month without its year comes again"));
        }
        parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
        Ok(Self(parts))
    }

    fn counted(&self) -> Counted {
        if self.0.contains(&Part::Month) {
            Counted::ByMonth
        } else if self.0.contains(&Part::Year) {
            Counted::ByYear
        } else {
            Counted::Through
        }
    }

    fn text(&self, period: &str, number: u64) -> String {
        let (year, month) = period.split_once('-').unwrap_or((period, ""));
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Year => text.push_str(year),
                Part::Month => text.push_str(month),
                Part::Number(width) => text.push_str(&format!("{number:0width$}")),
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(pattern: &str) -> Definition {
        Definition { pattern: Some(pattern.to_owned()), ..Definition::default() }
    }

    #[test]
    fn a_number_reads_as_its_pattern_says() {
        for (pattern, period, series, text) in [
            ("INV-{year}-{n:06}", Some("2026"), "INV/2026", "INV-2026-000042"),
            ("{year}{month}/{n}", Some("2026-03"), "INV/2026-03", "202603/42"),
            ("№{n:2}", None, "INV", "№42"),
            ("{n:1}", None, "INV", "42"),
        ] {
            let definition = by(pattern);
            definition.check().unwrap();
            assert_eq!(definition.series("INV", period).as_deref(), Ok(series));
            assert_eq!(definition.text(series, 42).as_deref(), Some(text));
            assert_eq!(base_of(series), "INV");
        }
        assert_eq!(Definition::default().text("INV", 42), None);
        assert_eq!(by("{year}{n}").text("INV", 42), None);
    }

    #[test]
    fn what_would_give_two_numbers_one_text_is_refused() {
        for pattern in [
            "",
            "INV",
            "{n}{n}",
            "{month}-{n}",
            "{n:0}",
            "{n:20}",
            "{n:x}",
            "{day}{n}",
            "{n",
            "n}{n}",
            "a\n{n}",
        ] {
            by(pattern).check().unwrap_err();
        }
        assert!(by(&format!("{{n}}{}", "x".repeat(MAX_PATTERN))).check().is_err());
        assert!(Definition { range: MAX_RANGE + 1, ..Definition::default() }.check().is_err());
        assert!(Definition { expires_after: Some(0), ..Definition::default() }.check().is_err());
    }

    #[test]
    fn a_period_must_be_the_patterns() {
        for (pattern, period) in [
            ("{year}-{n}", None),
            ("{year}-{n}", Some("26")),
            ("{year}-{n}", Some("2026-03")),
            ("{year}-{month}-{n}", Some("2026")),
            ("{year}-{month}-{n}", Some("2026-13")),
            ("{year}-{month}-{n}", Some("2026-3")),
            ("{n}", Some("2026")),
        ] {
            assert!(by(pattern).series("INV", period).is_err(), "{pattern} {period:?}");
        }
    }
}

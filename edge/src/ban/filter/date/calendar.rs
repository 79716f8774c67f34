//! A date's fields → seconds since 1970. Knows years that are left out, zones and their names;
//! must not know how dates are written.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

const DAY: i64 = 86_400;

/// What a line says of its time. What it leaves out is the present's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields {
    pub(crate) year: Option<i16>,
    pub(crate) month: Option<i8>,
    pub(crate) day: Option<i8>,
    pub(crate) hour: i8,
    pub(crate) minute: i8,
    pub(crate) second: i8,
    /// 1 to 366.
    pub(crate) day_of_year: Option<i16>,
    /// Week of the year, and whether weeks begin on Mondays.
    pub(crate) week: Option<(i16, bool)>,
    /// Monday is 0.
    pub(crate) weekday: Option<i16>,
    /// Seconds east of Greenwich.
    pub(crate) offset: Option<i32>,
}

/// Turns fields into times in one zone.
pub(crate) struct Calendar {
    zone: TimeZone,
    /// The last minute that was asked for, and when it began.
    minute: Option<(DateTime, i64)>,
    /// The last second that was the present, and the date that it had here.
    today: Option<(i64, DateTime)>,
}

impl Calendar {
    pub(crate) fn new(zone: TimeZone) -> Self {
        Self { zone, minute: None, today: None }
    }

    /// The time, unless there is no such date.
    pub(crate) fn time(&mut self, fields: &Fields, now: Duration) -> Option<Duration> {
        let seconds = i64::try_from(now.as_secs()).ok()?;
        let Some(year) = fields.year else {
            // No year: this one, or the last one where that would be tomorrow or later.
            let year = self.here(seconds)?.year();
            let this = self.in_year(fields, year, seconds);
            return match this {
                Some(time) if time <= seconds + DAY => duration(time),
                _ => duration(self.in_year(fields, year - 1, seconds)?),
            };
        };
        duration(self.in_year(fields, year, seconds)?)
    }

    fn in_year(&mut self, fields: &Fields, year: i16, now: i64) -> Option<i64> {
        let (date, today) = match (fields.month, fields.day) {
            (Some(month), Some(day)) => (Date::new(year, month, day).ok()?, false),
            (month, day) => match day_of_year(fields, year) {
                Some(ordinal) => (
                    Date::new(year, 1, 1).ok()?.checked_add(jiff::Span::new().days(ordinal - 1)).ok()?,
                    false,
                ),
                None if month.is_none() && day.is_none() => (self.here(now)?.date(), true),
                None => return None,
            },
        };
        let minute = date.at(fields.hour, fields.minute, 0, 0);
        let start = match fields.offset {
            Some(offset) => utc(minute) - i64::from(offset),
            None => self.local(minute)?,
        };
        let time = start + i64::from(fields.second.min(59));
        // A time of day that is still to come was yesterday's.
        Some(if today && time > now { time - DAY } else { time })
    }

    fn local(&mut self, minute: DateTime) -> Option<i64> {
        match self.minute {
            Some((known, start)) if known == minute => Some(start),
            _ => {
                let start = self.zone.to_timestamp(minute).ok()?.as_second();
                self.minute = Some((minute, start));
                Some(start)
            }
        }
    }

    fn here(&mut self, now: i64) -> Option<DateTime> {
        match self.today {
            Some((known, date)) if known == now => Some(date),
            _ => {
                let date = self.zone.to_datetime(Timestamp::from_second(now).ok()?);
                self.today = Some((now, date));
                Some(date)
            }
        }
    }
}

fn duration(seconds: i64) -> Option<Duration> {
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

fn utc(minute: DateTime) -> i64 {
    TimeZone::UTC.to_timestamp(minute).map_or(i64::MIN / 2, Timestamp::as_second)
}

fn day_of_year(fields: &Fields, year: i16) -> Option<i64> {
    if let Some(day) = fields.day_of_year {
        return Some(i64::from(day));
    }
    let ((week, monday), weekday) = (fields.week?, fields.weekday?);
    let first = i64::from(Date::new(year, 1, 1).ok()?.weekday().to_monday_zero_offset());
    // Days since the week's own first day, and how many days week 0 has.
    let (first, weekday) =
        if monday { (first, i64::from(weekday)) } else { ((first + 1) % 7, (i64::from(weekday) + 1) % 7) };
    let day = match week {
        0 => weekday - first + 1,
        week => (7 - first) % 7 + 7 * (i64::from(week) - 1) + weekday + 1,
    };
    (1..=366).contains(&day).then_some(day)
}

/// Seconds east of Greenwich of `Z`, `UTC`, `CEST`, `+02`, `+0200`, `-05:30` or `UTC+0200`.
/// Names are those of the zones that logs are written in; one that means two things is left out.
pub(crate) fn offset(text: &str) -> Option<i32> {
    let sign = text.find(['+', '-']).unwrap_or(text.len());
    let (name, shift) = text.split_at_checked(sign)?;
    let base = if name.is_empty() { 0 } else { named(name)? };
    if shift.is_empty() {
        return if text.is_empty() { None } else { Some(base) };
    }
    let digits: String = shift.chars().filter(char::is_ascii_digit).collect();
    let (hours, minutes) = match digits.len() {
        2 => (digits.parse::<i32>().ok()?, 0),
        4 => (digits.get(..2)?.parse::<i32>().ok()?, digits.get(2..)?.parse::<i32>().ok()?),
        _ => return None,
    };
    let seconds = hours * 3600 + minutes * 60;
    Some(base + if shift.starts_with('-') { -seconds } else { seconds })
}

fn named(name: &str) -> Option<i32> {
    let hours = |hours: i32| Some(hours * 3600);
    match name {
        "Z" | "UTC" | "GMT" | "UT" | "WET" => hours(0),
        "CET" | "MET" | "WEST" | "BST" | "WAT" => hours(1),
        "CEST" | "MEST" | "EET" | "SAST" | "CAT" => hours(2),
        "EEST" | "MSK" | "EAT" | "TRT" => hours(3),
        "GST" | "SAMT" => hours(4),
        "PKT" | "UZT" | "YEKT" => hours(5),
        "IRST" => Some(12_600),
        "AFT" => Some(16_200),
        "NPT" => Some(20_700),
        "OMST" | "NOVT" => hours(6),
        "ICT" | "WIB" | "KRAT" => hours(7),
        "HKT" | "SGT" | "AWST" | "IRKT" | "PHT" | "MYT" | "WITA" => hours(8),
        "JST" | "KST" | "WIT" | "YAKT" => hours(9),
        "ACST" => Some(34_200),
        "AEST" | "VLAT" => hours(10),
        "ACDT" => Some(37_800),
        "AEDT" | "MAGT" => hours(11),
        "NZST" | "PETT" => hours(12),
        "NZDT" => hours(13),
        "AZOT" => hours(-1),
        "BRT" | "ART" | "UYT" | "ADT" => hours(-3),
        "NST" => Some(-12_600),
        "NDT" => Some(-9_000),
        "AST" | "EDT" | "BOT" => hours(-4),
        "EST" | "CDT" | "COT" | "PET" => hours(-5),
        "CST" | "MDT" => hours(-6),
        "MST" | "PDT" => hours(-7),
        "PST" | "AKDT" => hours(-8),
        "AKST" => hours(-9),
        "HST" | "HAST" => hours(-10),
        _ => military(name),
    }
}

/// One letter: A to M east without J, N to Y west.
fn military(name: &str) -> Option<i32> {
    let [letter] = name.as_bytes() else { return None };
    let hours = match letter {
        b'A'..=b'I' => i32::from(letter - b'A') + 1,
        b'K'..=b'M' => i32::from(letter - b'A'),
        b'N'..=b'Y' => -(i32::from(letter - b'N') + 1),
        _ => return None,
    };
    Some(hours * 3600)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_124_013_600); // 2005-08-14T10:00:00Z

    fn at(fields: Fields) -> Option<u64> {
        Calendar::new(TimeZone::UTC).time(&fields, NOW).map(|time| time.as_secs())
    }

    #[test]
    fn a_date_without_year_is_this_years_or_the_last_ones() {
        let date = |month, day| Fields { month: Some(month), day: Some(day), ..Fields::default() };
        assert_eq!(at(date(8, 14)), Some(1_123_977_600));
        assert_eq!(at(date(12, 31)), Some(1_104_451_200));
        // 2005 has none, 2004 has.
        assert_eq!(at(date(2, 29)), Some(1_078_012_800));
        assert_eq!(at(date(2, 30)), None);
    }

    #[test]
    fn a_time_of_day_that_is_still_to_come_was_yesterdays() {
        let time = |hour| Fields { hour, ..Fields::default() };
        assert_eq!(at(time(9)), Some(NOW.as_secs() - 3600));
        assert_eq!(at(time(11)), Some(NOW.as_secs() + 3600 - 86_400));
    }

    #[test]
    fn weeks_and_days_of_the_year_are_dates() {
        let year = Some(2005);
        assert_eq!(at(Fields { year, day_of_year: Some(32), ..Fields::default() }), Some(1_107_216_000));
        // Monday of the week that begins with the year's first Monday: January 3rd.
        let week = Some((1, true));
        assert_eq!(at(Fields { year, week, weekday: Some(0), ..Fields::default() }), Some(1_104_710_400));
    }

    #[test]
    fn offsets_have_many_forms() {
        for (text, seconds) in [
            ("Z", 0),
            ("+0200", 7200),
            ("-05:30", -19_800),
            ("+01", 3600),
            ("CEST", 7200),
            ("UTC+0100", 3600),
            ("K", 36_000),
            ("N", -3600),
        ] {
            assert_eq!(offset(text), Some(seconds), "{text}");
        }
        assert_eq!(offset("ERROR"), None);
        assert_eq!(offset("J"), None);
        assert_eq!(offset(""), None);
    }
}

//! When a job is due: a cron expression read in a time zone. Pure; `now` is passed in.
//!
//! The syntax is croner's (Vixie cron's five fields; six with seconds first; `L`, `W`, `#`, names, and
//! `@daily` and its like). Where clocks change it keeps Vixie cron's rules:
//! - **A time of day** (minute and hour fixed) that the spring gap leaves out is due at the gap's end;
//!   one that the autumn brings twice is due the first time alone.
//! - **An interval** (`*`, `*/n` in minute or hour) goes by what the clock shows: nothing in the gap,
//!   and twice in the hour that comes twice.

use std::str::FromStr as _;
use std::time::Duration;

use croner::Cron;
use croner::errors::CronError;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// Nothing is due more often: what is entered about a run stays for good.
const SHORTEST: Duration = Duration::from_secs(10);
/// So many times in a row are looked at.
const LOOKED_AT: usize = 60;

/// When something is due, for ever.
#[derive(Debug, Clone)]
pub struct Plan {
    cron: Cron,
    zone: TimeZone,
    text: String,
}

/// Why a plan cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The expression.
    #[error(
        "{expression:?} is no cron expression: {source}; write \"MINUTE HOUR DAY MONTH WEEKDAY\", such as \"30 2 * * *\""
    )]
    Expression {
        /// As configured.
        expression: String,
        /// What is wrong.
        #[source]
        source: CronError,
    },
    /// 30 February.
    #[error("{expression:?} is never due; write a date that there is")]
    Never {
        /// As configured.
        expression: String,
    },
    /// Every second.
    #[error(
        "{expression:?} is due more often than every {SHORTEST:?}, and each run stays in the ledger for good; let the \
         handler loop, or give it the messages of a queue"
    )]
    TooOften {
        /// As configured.
        expression: String,
    },
    /// The zone.
    #[error(
        "{zone:?} is no time zone that this host knows: {source}; write \"UTC\" or \"Europe/Paris\", and install tzdata"
    )]
    Zone {
        /// As configured.
        zone: String,
        /// What is wrong.
        #[source]
        source: jiff::Error,
    },
}

/// The time zone of this name.
///
/// # Errors
/// This host knows none.
pub fn zone(name: &str) -> Result<TimeZone, PlanError> {
    TimeZone::get(name).map_err(|source| PlanError::Zone { zone: name.to_owned(), source })
}

impl Plan {
    /// Reads both; `now` only tells whether it is ever due again.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn parse(expression: &str, zone: &str, now: Timestamp) -> Result<Self, PlanError> {
        let expression = expression.to_owned();
        let cron = Cron::from_str(&expression)
            .map_err(|source| PlanError::Expression { expression: expression.clone(), source })?;
        let text = format!("{expression} in {zone}");
        let plan = Self { cron, zone: self::zone(zone)?, text };
        if plan.next_after(now).is_none() {
            return Err(PlanError::Never { expression });
        }
        if plan.is_too_often(now) {
            return Err(PlanError::TooOften { expression });
        }
        Ok(plan)
    }

    /// The expression and its zone, as they are configured.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    fn is_too_often(&self, now: Timestamp) -> bool {
        let times = std::iter::successors(self.next_after(now), |time| self.next_after(*time));
        let mut before = None;
        let close = |time: Timestamp| {
            let gap = before.replace(time).map(|before| time.duration_since(before));
            gap.is_some_and(|gap| gap.unsigned_abs() < SHORTEST)
        };
        times.take(LOOKED_AT).any(close)
    }

    /// The first time after `after`.
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let found = self.cron.find_next_occurrence(&self.local(after), false).ok()?;
        Some(found.timestamp())
    }

    /// The last time that is not after `now`.
    #[must_use]
    pub fn last_until(&self, now: Timestamp) -> Option<Timestamp> {
        let found = self.cron.find_previous_occurrence(&self.local(now), true).ok()?;
        Some(found.timestamp()).filter(|found| *found <= now)
    }

    fn local(&self, at: Timestamp) -> Zoned {
        at.to_zoned(self.zone.clone())
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::AmbiguousOffset;
    use jiff::{SignedDuration, ToSpan as _};
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn paris(expression: &str) -> Plan {
        Plan::parse(expression, "Europe/Paris", at("2026-01-01T00:00:00Z")).unwrap()
    }

    fn due(plan: &Plan, from: &str, count: usize) -> Vec<String> {
        let mut from = at(from);
        let mut next = || {
            from = plan.next_after(from).unwrap();
            from.to_string()
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn a_time_of_day_goes_by_the_zones_clock_through_the_year() {
        let daily = paris("30 8 * * *");
        assert_eq!(due(&daily, "2026-01-10T00:00:00Z", 1), ["2026-01-10T07:30:00Z"]);
        assert_eq!(due(&daily, "2026-07-10T00:00:00Z", 1), ["2026-07-10T06:30:00Z"]);
    }

    #[test]
    fn a_time_of_day_in_the_spring_gap_is_due_once_at_its_end() {
        // On 29 March 2026 the clock goes from 02:00 to 03:00 at 01:00 UTC.
        let nightly = paris("30 2 * * *");
        assert_eq!(
            due(&nightly, "2026-03-28T00:00:00Z", 3),
            ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]
        );
    }

    #[test]
    fn a_time_of_day_that_autumn_brings_twice_is_due_once() {
        // On 25 October 2026 the clock goes from 03:00 to 02:00 at 01:00 UTC.
        let nightly = paris("30 2 * * *");
        assert_eq!(
            due(&nightly, "2026-10-24T12:00:00Z", 2),
            ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
        );
    }

    #[test]
    fn an_interval_skips_the_gap_and_is_due_through_both_halves_of_the_double_hour() {
        let often = paris("*/30 * * * *");
        assert_eq!(
            due(&often, "2026-03-29T00:15:00Z", 3),
            ["2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z"]
        );
        assert_eq!(
            due(&often, "2026-10-24T23:45:00Z", 5),
            [
                "2026-10-25T00:00:00Z",
                "2026-10-25T00:30:00Z",
                "2026-10-25T01:00:00Z",
                "2026-10-25T01:30:00Z",
                "2026-10-25T02:00:00Z"
            ]
        );
    }

    #[test]
    fn what_is_no_plan_is_refused_with_what_to_write() {
        let parse = |expression: &str, zone: &str| Plan::parse(expression, zone, at("2026-01-01T00:00:00Z"));
        assert!(matches!(parse("every day", "UTC"), Err(PlanError::Expression { .. })));
        assert!(matches!(parse("", "UTC"), Err(PlanError::Expression { .. })));
        assert!(matches!(parse("0 0 30 2 *", "UTC"), Err(PlanError::Never { .. })));
        assert!(matches!(parse("0 0 * * *", "Europe/Atlantis"), Err(PlanError::Zone { .. })));
        assert!(parse("@daily", "UTC").is_ok());
        assert!(matches!(parse("*/9 * * * * *", "UTC"), Err(PlanError::TooOften { .. })));
        assert!(matches!(parse("0,5 0 3 * * *", "UTC"), Err(PlanError::TooOften { .. })));
        assert!(parse("*/10 * * * * *", "UTC").is_ok());
    }

    /// Both changes of 2026, where there are any: in the north, in the south, by half an hour, and none.
    const ZONES: [(&str, [&str; 2]); 5] = [
        ("Europe/Paris", ["2026-03-28T12:00:00Z", "2026-10-24T12:00:00Z"]),
        ("America/New_York", ["2026-03-07T18:00:00Z", "2026-10-31T18:00:00Z"]),
        ("America/Santiago", ["2026-04-04T16:00:00Z", "2026-09-05T16:00:00Z"]),
        ("Australia/Lord_Howe", ["2026-04-04T03:00:00Z", "2026-10-03T03:00:00Z"]),
        ("Asia/Kathmandu", ["2026-03-28T12:00:00Z", "2026-10-24T12:00:00Z"]),
    ];
    /// A change and a day before and after it.
    const DAYS: i64 = 2;

    /// All minutes that a zone's clock shows after `from`.
    fn minutes(zone: &TimeZone, from: Timestamp) -> impl Iterator<Item = Zoned> {
        (1..=DAYS * 1440).map(move |minute| (from + SignedDuration::from_mins(minute)).to_zoned(zone.clone()))
    }

    /// When a time of day is due, by jiff's own rules for what a clock shows: the gap's end, or the first.
    fn days(zone: &TimeZone, from: Timestamp, hour: i8, minute: i8) -> Vec<Timestamp> {
        let first = from.to_zoned(zone.clone()).date();
        let until = from + SignedDuration::from_hours(24 * DAYS);
        let due = (0..=DAYS).filter_map(|day| {
            let wanted = first.checked_add(day.days()).unwrap().at(hour, minute, 0, 0);
            let shown = zone.to_ambiguous_zoned(wanted);
            let gap = matches!(shown.offset(), AmbiguousOffset::Gap { .. });
            let first = shown.earlier().unwrap().timestamp();
            // Not shown on that day: it lies before the gap, whose end is the next change.
            let at = if gap { zone.following(first).next().unwrap().timestamp() } else { first };
            (at > from && at <= until).then_some(at)
        });
        due.collect()
    }

    fn told(plan: &Plan, from: Timestamp) -> Vec<Timestamp> {
        let until = from + SignedDuration::from_hours(24 * DAYS);
        let times = std::iter::successors(plan.next_after(from), |time| plan.next_after(*time));
        times.take_while(|time| *time <= until).collect()
    }

    proptest! {
        #[test]
        fn across_both_changes_of_any_zone_times_of_day_and_intervals_are_due_as_its_clock_shows(
            zone in 0_usize..ZONES.len(), autumn: bool, hour in 0_i8..24, minute in 0_i8..60, step in 0_usize..4
        ) {
            let (name, changes) = ZONES[zone];
            let from = at(changes[usize::from(autumn)]);
            let zone = TimeZone::get(name).unwrap();
            let daily = Plan::parse(&format!("{minute} {hour} * * *"), name, from).unwrap();
            prop_assert_eq!(told(&daily, from), days(&zone, from, hour, minute), "{} {}:{}", name, hour, minute);
            let step = [5_i8, 10, 15, 30][step];
            let often = Plan::parse(&format!("*/{step} * * * *"), name, from).unwrap();
            let shown = minutes(&zone, from).filter(|shown| shown.minute() % step == 0);
            prop_assert_eq!(told(&often, from), shown.map(|shown| shown.timestamp()).collect::<Vec<_>>(), "{}", name);
        }

        #[test]
        fn the_next_time_is_later_and_nothing_lies_between(
            seconds in 1_767_225_600_i64..1_830_297_600, which in 0_usize..4
        ) {
            let plan = paris(["30 2 * * *", "*/30 * * * *", "0 3 * * 0", "15 2 29 * *"][which]);
            let now = Timestamp::from_second(seconds).unwrap();
            let next = plan.next_after(now).unwrap();
            prop_assert!(next > now);
            let last = plan.last_until(next).unwrap();
            prop_assert!(last == next, "{} is due, and {} is said to be the last", next, last);
        }
    }
}

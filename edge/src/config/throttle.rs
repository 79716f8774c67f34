//! Reader of `[throttle]`, and of the rates that routes have of their own. Knows keys, defaults and what
//! makes sense; must not open anything.

use std::num::NonZeroU32;

use shared::config::Section;

/// Faster than that is no limit but a slip of the finger.
const MAX_RATE: u32 = 1_000_000;

/// How fast one client may ask: on average, and at once after a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests a second.
    pub per_second: NonZeroU32,
    /// Requests at once.
    pub burst: NonZeroU32,
}

/// `[throttle]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttle {
    /// Every client, all routes together; `None` is without limit.
    pub client: Option<Rate>,
    /// A client that a jail throttles.
    pub offender: Rate,
}

/// `None` after noting what is wrong.
pub(super) fn throttle(mut section: Section<'_>) -> Option<Throttle> {
    let s = &mut section;
    let client = rate(s, "rate", "burst");
    let per_second = number(s, "offender_rate", 1);
    let burst = number(s, "offender_burst", 5);
    let offender = Rate { per_second: per_second?, burst: burst? };
    let client = client?;
    if client.is_some_and(|client| client.per_second < offender.per_second) {
        s.fault("offender_rate", "lets offenders ask faster than all others; write less than rate");
    }
    Some(Throttle { client, offender })
}

/// The rate of `rate` and `burst`; the outer `None` after noting what is wrong, the inner one where there is
/// no limit. Without a burst, one second's requests may come at once.
pub(super) fn rate(s: &mut Section<'_>, rate: &'static str, burst: &'static str) -> Option<Option<Rate>> {
    if !s.has(rate) {
        if s.has(burst) {
            s.fault(burst, format!("limits nothing without a rate; write {rate} = 50 too, or leave it out"));
            return None;
        }
        return Some(None);
    }
    let per_second = number(s, rate, 50);
    let at_once = number(s, burst, per_second.map_or(1, NonZeroU32::get));
    Some(Some(Rate { per_second: per_second?, burst: at_once? }))
}

fn number(s: &mut Section<'_>, key: &'static str, default: u32) -> Option<NonZeroU32> {
    let number = s.or(key, default);
    if number > MAX_RATE {
        s.fault(key, format!("{number} is no limit; write at most {MAX_RATE}, or leave it out"));
        return None;
    }
    let number = NonZeroU32::new(number);
    if number.is_none() {
        s.fault(key, "0 would refuse everything; write 1 or more");
    }
    number
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use shared::config::read_text;

    use super::*;

    fn read(text: &str) -> Result<Throttle, String> {
        read_text(Path::new("edge.toml"), text, |root| throttle(root.section("throttle")))
            .map_err(|faults| faults.to_string().replace("edge.toml:", ""))
    }

    fn of(per_second: u32, burst: u32) -> Rate {
        Rate { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() }
    }

    #[test]
    fn nobody_is_throttled_but_offenders_unless_it_is_said() {
        assert_eq!(read(""), Ok(Throttle { client: None, offender: of(1, 5) }));
        assert_eq!(read("[throttle]\nrate = 50\n").unwrap().client, Some(of(50, 50)));
        assert_eq!(
            read("[throttle]\nrate = 50\nburst = 200\noffender_rate = 2\noffender_burst = 1\n"),
            Ok(Throttle { client: Some(of(50, 200)), offender: of(2, 1) })
        );
    }

    #[test]
    fn a_rate_that_limits_nothing_or_everything_is_refused() {
        assert_eq!(
            read("[throttle]\nburst = 5\n").unwrap_err(),
            "2:9: throttle.burst: limits nothing without a rate; write rate = 50 too, or leave it out"
        );
        assert_eq!(
            read("[throttle]\nrate = 0\noffender_burst = 2000000\n").unwrap_err(),
            "2:8: throttle.rate: 0 would refuse everything; write 1 or more\n\
             3:18: throttle.offender_burst: 2000000 is no limit; write at most 1000000, or leave it out"
        );
        assert_eq!(
            read("[throttle]\nrate = 5\noffender_rate = 6\n").unwrap_err(),
            "3:17: throttle.offender_rate: lets offenders ask faster than all others; write less than rate"
        );
    }
}

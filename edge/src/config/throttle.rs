//! Reader of `[throttle]`, and of the rates that routes have of their own. Knows keys, defaults and what
//! makes sense; must not open anything.

use shared::config::Section;

use crate::admission::Rate;

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
    let slow = s.or("offender_rate", 1.0);
    if s.has("rate") && s.or("rate", 50.0) < slow {
        s.fault("offender_rate", "lets offenders ask faster than all others; write less than rate");
    }
    let burst = s.or("offender_burst", 5);
    let offender = noted(s, "offender_rate", slow, burst)?;
    Some(Throttle { client: client?, offender })
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
    let per_second = s.or(rate, 50.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded on the line itself")]
    let second = per_second.ceil().clamp(1.0, 1e6) as u32;
    let at_once = s.or(burst, second);
    noted(s, rate, per_second, at_once).map(Some)
}

fn noted(s: &mut Section<'_>, key: &'static str, per_second: f64, burst: u32) -> Option<Rate> {
    match Rate::new(per_second, burst) {
        Ok(rate) => Some(rate),
        Err(fault) => {
            s.fault(key, fault);
            None
        }
    }
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

    fn of(per_second: f64, burst: u32) -> Rate {
        Rate::new(per_second, burst).unwrap()
    }

    #[test]
    fn nobody_is_throttled_but_offenders_unless_it_is_said() {
        assert_eq!(read(""), Ok(Throttle { client: None, offender: of(1.0, 5) }));
        assert_eq!(read("[throttle]\nrate = 50\n").unwrap().client, Some(of(50.0, 50)));
        assert_eq!(
            read("[throttle]\nrate = 50\nburst = 200\noffender_rate = 0.5\noffender_burst = 1\n"),
            Ok(Throttle { client: Some(of(50.0, 200)), offender: of(0.5, 1) })
        );
    }

    #[test]
    fn a_rate_that_limits_nothing_or_everything_is_refused() {
        assert_eq!(
            read("[throttle]\nburst = 5\n").unwrap_err(),
            "2:9: throttle.burst: limits nothing without a rate; write rate = 50 too, or leave it out"
        );
        assert_eq!(
            read("[throttle]\nrate = 0\noffender_rate = 0\noffender_burst = 0\n").unwrap_err(),
            "2:8: throttle.rate: 0 requests a second cannot be counted; write a number from 0.0001 to 1000000\n\
             3:17: throttle.offender_rate: 0 requests a second cannot be counted; write a number from 0.0001 to \
             1000000"
        );
        assert_eq!(
            read("[throttle]\nrate = 5\noffender_rate = 6\n").unwrap_err(),
            "3:17: throttle.offender_rate: lets offenders ask faster than all others; write less than rate"
        );
    }
}

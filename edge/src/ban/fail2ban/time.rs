//! fail2ban's times: `600`, `10m`, `1d12h`, `1h 30min`, `1year-6mo`, `60*60`. It evaluates them as
//! arithmetic, with `+` between what stands side by side; a month is a twelfth of a year of 365.25 days.
//! Knows one text → seconds; must not know what they are for.

/// Brackets within brackets.
const MAX_DEPTH: u32 = 16;
/// Longer texts are no time.
const MAX_TEXT: usize = 256;

/// Seconds, perhaps negative; `None` for what is no time.
pub(super) fn seconds(text: &str) -> Option<f64> {
    if text.len() > MAX_TEXT {
        return None;
    }
    let mut reader = Reader { rest: text.trim() };
    let total = reader.sum(0)?;
    (reader.rest.is_empty() && total.is_finite()).then_some(total)
}

struct Reader<'t> {
    rest: &'t str,
}

impl Reader<'_> {
    fn sum(&mut self, depth: u32) -> Option<f64> {
        let mut total = self.product(depth)?;
        loop {
            match self.next() {
                Some('+') => {
                    self.skip(1);
                    total += self.product(depth)?;
                }
                Some('-') => {
                    self.skip(1);
                    total -= self.product(depth)?;
                }
                Some(c) if c.is_ascii_digit() => total += self.product(depth)?,
                _ => return Some(total),
            }
        }
    }

    fn product(&mut self, depth: u32) -> Option<f64> {
        let mut total = self.factor(depth)?;
        loop {
            match self.next() {
                Some('*') => {
                    self.skip(1);
                    total *= self.factor(depth)?;
                }
                Some('/') => {
                    self.skip(1);
                    total /= self.factor(depth)?;
                }
                _ => return Some(total),
            }
        }
    }

    fn factor(&mut self, depth: u32) -> Option<f64> {
        if depth > MAX_DEPTH {
            return None;
        }
        match self.next()? {
            '-' => {
                self.skip(1);
                self.factor(depth + 1).map(|value| -value)
            }
            '+' => {
                self.skip(1);
                self.factor(depth + 1)
            }
            '(' => {
                self.skip(1);
                let inner = self.sum(depth + 1)?;
                (self.next()? == ')').then(|| self.skip(1))?;
                Some(inner)
            }
            _ => {
                let number: f64 = self.take(|c| c.is_ascii_digit() || c == '.').parse().ok()?;
                self.next();
                let unit = self.take(|c| c.is_ascii_alphabetic()).to_ascii_lowercase();
                Some(number * unit_seconds(&unit)?)
            }
        }
    }

    /// The next character that is no blank.
    fn next(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or_default();
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> &str {
        let end = self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }
}

fn unit_seconds(unit: &str) -> Option<f64> {
    const DAY: f64 = 86_400.0;
    const YEAR: f64 = 365.25 * DAY;
    Some(match unit {
        "" | "s" | "ss" | "se" | "sec" | "second" | "seconds" => 1.0,
        "m" | "mm" | "mi" | "min" | "minute" | "minutes" => 60.0,
        "h" | "hh" | "ho" | "hou" | "hour" | "hours" => 3_600.0,
        "d" | "dd" | "da" | "day" | "days" => DAY,
        "w" | "ww" | "we" | "wee" | "week" | "weeks" => 7.0 * DAY,
        "mo" | "mon" | "month" | "months" => YEAR / 12.0,
        "y" | "yy" | "ye" | "yea" | "year" | "years" => YEAR,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_mean_what_fail2ban_says_they_mean() {
        for (text, expected) in [
            ("600", 600.0),
            ("-1", -1.0),
            ("10m", 600.0),
            ("1d12h", 129_600.0),
            ("1h 2m 3s", 3_723.0),
            ("1hour+30min", 5_400.0),
            ("0d 1h 30m", 5_400.0),
            ("1year-6mo", 15_778_800.0),
            ("6 months", 15_778_800.0),
            ("60*60", 3_600.0),
            ("2 * (30m + 1h)", 10_800.0),
            ("1.5H", 5_400.0),
            ("1 30", 31.0),
        ] {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        for text in ["", "m", "10 fortnights", "1h,", "(1", "1/0", "1..2", "__import__('os')"] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[0-9a-zé.+*/() -]{0,40}") {
            let _ = seconds(&text);
        }
    }
}

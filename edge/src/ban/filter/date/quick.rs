//! The three dates that most logs have, read by hand: CLF, syslog and ISO 8601. Each answers only
//! where the template would find the very same; where it is not sure it leaves the line to that.

use super::calendar::Fields;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `14/Aug/2005:12:00:00 +0200`
    Clf,
    /// `Aug 14 12:00:00`
    Syslog,
    /// `2005-08-14T12:00:00.123+02:00`
    Iso,
}

/// Bytes of a CLF date.
pub(crate) const CLF: usize = 26;

/// Does `text` begin with the CLF date `known`, and does that end there?
pub(crate) fn is_clf(text: &[u8], known: &[u8; CLF]) -> bool {
    text.split_first_chunk().is_some_and(|(date, rest)| date == known && ends(rest).is_some())
}

/// The fields, and how many bytes they took.
pub(crate) fn read(shape: Shape, text: &[u8]) -> Option<(Fields, usize)> {
    match shape {
        Shape::Clf => clf(text),
        Shape::Syslog => syslog(text),
        Shape::Iso => iso(text),
    }
}

fn clf(text: &[u8]) -> Option<(Fields, usize)> {
    let [d1, d2, b'/', m1, m2, m3, b'/', y1, y2, y3, y4, b':', time @ ..] = text else { return None };
    let (hour, minute, second, rest) = clock(time)?;
    let [b' ', sign @ (b'+' | b'-'), h1, h2, z1, z2, rest @ ..] = rest else { return None };
    let offset = i32::from(two(*h1, *h2)?) * 3600 + i32::from(two(*z1, *z2)?) * 60;
    ends(rest)?;
    let fields = Fields {
        year: Some(year([*y1, *y2, *y3, *y4])?),
        month: Some(month([*m1, *m2, *m3])?),
        day: Some(day(two(*d1, *d2)?)?),
        hour,
        minute,
        second,
        offset: Some(if *sign == b'-' { -offset } else { offset }),
        ..Fields::default()
    };
    (*h1 <= b'1').then_some((fields, CLF))
}

fn syslog(text: &[u8]) -> Option<(Fields, usize)> {
    let [m1, m2, m3, b' ', d1, d2, b' ', time @ ..] = text else { return None };
    let (hour, minute, second, rest) = clock(time)?;
    let tens = if *d1 == b' ' { b'0' } else { *d1 };
    // A fraction, or what might be a year, is the template's.
    match rest {
        [b'.', ..] | [b' ', b'2', ..] => return None,
        rest => ends(rest)?,
    }
    let fields = Fields {
        month: Some(month([*m1, *m2, *m3])?),
        day: Some(day(two(tens, *d2)?)?),
        hour,
        minute,
        second,
        ..Fields::default()
    };
    Some((fields, 15))
}

fn iso(text: &[u8]) -> Option<(Fields, usize)> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, b'T' | b' ', time @ ..] = text else { return None };
    let (hour, minute, second, mut rest) = clock(time)?;
    let mut length = 19;
    if let [b'.' | b',', fraction @ ..] = rest {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if !(1..=6).contains(&digits) {
            return None;
        }
        length += 1 + digits;
        rest = fraction.get(digits..)?;
    }
    let mut offset = None;
    match rest {
        [b'Z', after @ ..] => {
            (offset, length, rest) = (Some(0), length + 1, after);
        }
        [sign @ (b'+' | b'-'), h1 @ b'0'..=b'1', h2, tail @ ..] => {
            let (z1, z2, more, after) = match tail {
                [b':', z1, z2, after @ ..] => (z1, z2, 6, after),
                [z1, z2, after @ ..] => (z1, z2, 5, after),
                _ => return None,
            };
            let seconds = i32::from(two(*h1, *h2)?) * 3600 + i32::from(two(*z1, *z2)?) * 60;
            offset = Some(if *sign == b'-' { -seconds } else { seconds });
            (length, rest) = (length + more, after);
        }
        // A zone may follow blanks.
        [b' ', b'Z' | b'U' | b'G' | b'+' | b'-' | b' ' | b'z' | b'u' | b'g', ..] => return None,
        [b'\t'..=b'\r', ..] => return None,
        _ => {}
    }
    ends(rest)?;
    let month = two(*m1, *m2).filter(|month| (1..=12).contains(month))?;
    let fields = Fields {
        year: Some(year([*y1, *y2, *y3, *y4])?),
        month: Some(month),
        day: Some(day(two(*d1, *d2)?)?),
        hour,
        minute,
        second,
        offset,
        ..Fields::default()
    };
    Some((fields, length))
}

/// `HH:MM:SS`, and what follows it.
fn clock(text: &[u8]) -> Option<(i8, i8, i8, &[u8])> {
    let [h1, h2, b':', m1, m2, b':', s1, s2, rest @ ..] = text else { return None };
    let (hour, minute, second) = (two(*h1, *h2)?, two(*m1, *m2)?, two(*s1, *s2)?);
    (hour < 24 && minute < 60 && second < 60).then_some((hour, minute, second, rest))
}

/// No word goes on behind it. What is not ASCII is the template's to judge.
fn ends(rest: &[u8]) -> Option<()> {
    let goes_on =
        rest.first().is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_' || !byte.is_ascii());
    (!goes_on).then_some(())
}

fn two(tens: u8, ones: u8) -> Option<i8> {
    let digit = |byte: u8| byte.is_ascii_digit().then(|| i8::try_from(byte - b'0').unwrap_or(0));
    Some(digit(tens)? * 10 + digit(ones)?)
}

fn year([y1, y2, y3, y4]: [u8; 4]) -> Option<i16> {
    let (century, rest) = (two(y1, y2)?, two(y3, y4)?);
    (century == 20).then_some(2000 + i16::from(rest))
}

fn day(day: i8) -> Option<i8> {
    (1..=31).contains(&day).then_some(day)
}

fn month(name: [u8; 3]) -> Option<i8> {
    const NAMES: [&[u8; 3]; 12] =
        [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    NAMES.iter().position(|known| **known == name).and_then(|index| i8::try_from(index + 1).ok())
}

//! HTTP/2 frames that cost edge work and move nothing: does a client send more of them than any decent one
//! does? Knows counts of frames and the times that it is given; must not know bytes, streams nor clocks.
//! Pure. It exists because the engine answers or books every one of them for as long as they come.
//!
//! What is allowed grows with what is moved meanwhile, because decent clients send pings and window updates
//! with the data (gRPC measures its connection by a ping a round trip). Streams that are taken back are
//! the engine's own budget.

use std::time::Duration;

/// What is counted is forgotten after so long.
const WINDOW: Duration = Duration::from_secs(10);

/// A kind of frame that can be too many (RFC 9113 section 10.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// PING, each of which is answered.
    Ping,
    /// SETTINGS, each of which is answered.
    Settings,
    /// PRIORITY, which nobody needs any more.
    Priority,
    /// WINDOW_UPDATE.
    WindowUpdate,
    /// DATA without a byte and without an end, and frames of types that edge does not know (browsers send
    /// some with their requests).
    Empty,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Ping, Self::Settings, Self::Priority, Self::WindowUpdate, Self::Empty];

    /// For counters and the log.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Settings => "settings",
            Self::Priority => "priority",
            Self::WindowUpdate => "window_update",
            Self::Empty => "empty",
        }
    }

    /// How many may come within ten seconds: so many anyway, and so many for each frame with something in it.
    const fn allowed(self) -> (u64, u64) {
        match self {
            Self::Ping => (200, 2),
            Self::Settings => (50, 0),
            Self::Priority => (500, 4),
            Self::WindowUpdate => (2000, 10),
            Self::Empty => (200, 4),
        }
    }
}

/// Of one connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Floods {
    began: Duration,
    /// In the order of [`Kind::ALL`].
    seen: [u64; 5],
    moved: u64,
}

impl Floods {
    /// A frame of that kind came at `now`.
    ///
    /// # Errors
    /// It is one too many.
    pub fn came(&mut self, kind: Kind, now: Duration) -> Result<(), Kind> {
        self.turn(now);
        let (anyway, each) = kind.allowed();
        let most = anyway.saturating_add(each.saturating_mul(self.moved));
        let place = Kind::ALL.iter().position(|own| *own == kind);
        let Some(count) = place.and_then(|place| self.seen.get_mut(place)) else { return Ok(()) };
        *count += 1;
        if *count > most { Err(kind) } else { Ok(()) }
    }

    /// A request's head or a part of a body went either way at `now`.
    pub fn moved(&mut self, now: Duration) {
        self.turn(now);
        self.moved += 1;
    }

    fn turn(&mut self, now: Duration) {
        if now.saturating_sub(self.began) >= WINDOW {
            *self = Self { began: now, ..Self::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn one_too_many_within_ten_seconds_is_a_flood() {
        for kind in Kind::ALL {
            let (most, _) = kind.allowed();
            let mut floods = Floods::default();
            for _ in 0..most {
                floods.came(kind, at(1)).unwrap();
            }
            let mut later = floods.clone();
            assert_eq!(floods.came(kind, at(9)), Err(kind));
            assert_eq!(later.came(kind, at(10)), Ok(()), "{kind:?} of before is forgotten");
        }
    }

    #[test]
    fn who_moves_data_may_send_more_of_what_goes_with_it() {
        let mut floods = Floods::default();
        for _ in 0..1000 {
            floods.moved(at(1));
            floods.came(Kind::Ping, at(1)).unwrap();
            for _ in 0..10 {
                floods.came(Kind::WindowUpdate, at(1)).unwrap();
            }
        }
        let settings = (0..51).find_map(|_| floods.came(Kind::Settings, at(1)).err());
        assert_eq!(settings, Some(Kind::Settings), "data excuses no settings");
    }

    proptest! {
        #[test]
        fn a_few_are_never_a_flood(steps in proptest::collection::vec((0_usize..5, 0_u64..3), 0..50)) {
            let (mut floods, mut now) = (Floods::default(), 0);
            for (kind, wait) in steps {
                now += wait;
                prop_assert!(floods.came(Kind::ALL[kind], at(now)).is_ok());
            }
        }
    }
}

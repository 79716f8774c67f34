//! HTTP/2 requests that were answered before their body's end, and how long their bodies have stood
//! still. Knows stream numbers and the times that it is given; must not know bytes, clocks or
//! answers. It exists because the engine waits for the rest of such a body without a deadline, and a
//! client would keep the request's place, and a connection to an upstream, for as long as it likes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::listen::floods::Kind;

/// What the frames of one connection say about its requests' bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The client opened a stream whose body follows.
    Begun(u32),
    /// The client sent something of a body.
    Moved(u32),
    /// The client sent the body's end, or one side took the stream back.
    Ended(u32),
    /// We sent the end of the answer.
    Answered(u32),
    /// A head begins, or a part of a body, in either direction.
    Moves,
    /// The client sent a frame that moves nothing.
    Idles(Kind),
}

/// Of one connection. Its size is bounded by the streams that the engine lets a client have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uploads {
    going_on: BTreeSet<u32>,
    /// When the body last moved, by the caller's clock.
    answered: BTreeMap<u32, Duration>,
}

impl Uploads {
    /// Takes note of what happened at `now`.
    pub fn note(&mut self, event: Event, now: Duration) {
        match event {
            Event::Begun(stream) => {
                self.going_on.insert(stream);
            }
            Event::Moved(stream) => {
                if let Some(last) = self.answered.get_mut(&stream) {
                    *last = now;
                }
            }
            Event::Ended(stream) => {
                self.going_on.remove(&stream);
                self.answered.remove(&stream);
            }
            Event::Answered(stream) => {
                if self.going_on.remove(&stream) {
                    self.answered.insert(stream, now);
                }
            }
            Event::Moves | Event::Idles(_) => {}
        }
    }

    /// The stream whose body has stood still the longest, and since when.
    #[must_use]
    pub fn longest(&self) -> Option<(u32, Duration)> {
        self.answered.iter().min_by_key(|(_, last)| **last).map(|(stream, last)| (*stream, *last))
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
    fn only_an_answered_request_whose_body_goes_on_is_waited_for() {
        let mut uploads = Uploads::default();
        uploads.note(Event::Begun(1), at(1));
        uploads.note(Event::Begun(3), at(1));
        assert_eq!(uploads.longest(), None);
        uploads.note(Event::Ended(3), at(2));
        uploads.note(Event::Answered(3), at(3));
        assert_eq!(uploads.longest(), None, "its body was whole before the answer");
        uploads.note(Event::Answered(1), at(4));
        assert_eq!(uploads.longest(), Some((1, at(4))));
        uploads.note(Event::Moved(1), at(9));
        assert_eq!(uploads.longest(), Some((1, at(9))), "a body that moves is waited for");
        uploads.note(Event::Ended(1), at(10));
        assert_eq!(uploads.longest(), None);
    }

    proptest! {
        #[test]
        fn what_has_ended_is_forgotten(events in proptest::collection::vec((0_u8..4, 0_u32..6), 0..100)) {
            let mut uploads = Uploads::default();
            for (now, (kind, stream)) in (0..).zip(events) {
                let event = match kind {
                    0 => Event::Begun(stream),
                    1 => Event::Moved(stream),
                    2 => Event::Ended(stream),
                    _ => Event::Answered(stream),
                };
                uploads.note(event, at(now));
            }
            for stream in 0..6 {
                uploads.note(Event::Ended(stream), at(1000));
            }
            prop_assert!(uploads.going_on.is_empty() && uploads.answered.is_empty());
        }
    }
}

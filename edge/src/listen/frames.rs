//! Walks over HTTP/2 frame headers (RFC 9113 section 4.1) on a connection that the engine decodes.
//! Knows nine bytes a frame; must not decode header compression nor change a byte. It exists
//! because the engine tells neither that a header block drips in for ever nor that it refused a
//! stream by itself, and both must be bounded and logged.

use std::time::Duration;

use crate::listen::floods::Kind;
use crate::listen::uploads::{Event, Uploads};

const PREFACE: u32 = 24;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const PRIORITY: u8 = 0x2;
const RESET: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const GO_AWAY: u8 = 0x7;
const WINDOW_UPDATE: u8 = 0x8;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const COMPRESSION_ERROR: u32 = 0x9;
const ENHANCE_YOUR_CALM: u32 = 0xb;

/// One direction of one connection.
#[derive(Debug, Clone)]
pub struct Frames {
    /// Preface bytes still to come.
    preface: u32,
    header: [u8; 9],
    header_seen: usize,
    payload_left: u32,
    /// First bytes of the payload, as far as a reset or a GOAWAY needs them.
    payload_start: [u8; 8],
    payload_seen: usize,
    open_block: bool,
    /// Bytes of the last header block so far, compressed; 0 once the client took a request back.
    block: u64,
    /// From so many bytes on a header block is large.
    large: u64,
    settings: bool,
    begun: bool,
    from_client: bool,
    last_stream: u32,
    /// Streams that a HEADERS frame opened.
    pub opened: u64,
    /// Header blocks that are large.
    pub large_blocks: u64,
    /// Streams reset with any code.
    pub resets: u64,
    /// The first non-zero error code of a GOAWAY.
    pub go_away: Option<u32>,
}

impl Frames {
    /// What a client sends: its preface comes first. A header block of `large` bytes, compressed, is
    /// a large one.
    #[must_use]
    pub const fn received(large: u64) -> Self {
        Self::new(PREFACE, true, large)
    }

    /// What we send.
    #[must_use]
    pub const fn sent() -> Self {
        Self::new(0, false, u64::MAX)
    }

    const fn new(preface: u32, from_client: bool, large: u64) -> Self {
        Self {
            preface,
            header: [0; 9],
            header_seen: 0,
            payload_left: 0,
            payload_start: [0; 8],
            payload_seen: 0,
            open_block: false,
            block: 0,
            large,
            settings: false,
            begun: false,
            from_client,
            last_stream: 0,
            opened: 0,
            large_blocks: 0,
            resets: 0,
            go_away: None,
        }
    }

    /// Is something begun that must be finished soon: the preface with its SETTINGS, or a header block?
    #[must_use]
    pub const fn must_go_on(&self) -> bool {
        !self.settings || self.open_block
    }

    /// Has anything come at all?
    #[must_use]
    pub const fn begun(&self) -> bool {
        self.begun
    }

    /// Has the opening come whole: the preface with its SETTINGS?
    #[must_use]
    pub const fn opened_well(&self) -> bool {
        self.settings
    }

    /// Bytes of the last header block so far, compressed. 0 where the client took a request back since:
    /// then it is not what the connection is about.
    #[must_use]
    pub const fn last_block(&self) -> u64 {
        self.block
    }

    /// The highest stream that a HEADERS frame opened.
    #[must_use]
    pub const fn last_stream(&self) -> u32 {
        self.last_stream
    }

    /// May a whole frame stand here: between two frames, and not in the midst of a header block?
    #[must_use]
    pub const fn between_frames(&self) -> bool {
        self.preface == 0 && self.header_seen == 0 && !self.must_go_on()
    }

    /// Walks over the next bytes and tells what they mean for requests' bodies.
    pub fn walk(&mut self, mut input: &[u8], mut told: impl FnMut(Event)) {
        self.begun |= !input.is_empty();
        while !input.is_empty() {
            if self.preface > 0 {
                let taken = (self.preface as usize).min(input.len());
                self.preface -= u32::try_from(taken).unwrap_or(self.preface);
                input = input.get(taken..).unwrap_or_default();
            } else if self.header_seen < 9 {
                let taken = (9 - self.header_seen).min(input.len());
                let (now, rest) = input.split_at(taken);
                if let Some(place) = self.header.get_mut(self.header_seen..self.header_seen + taken) {
                    place.copy_from_slice(now);
                }
                self.header_seen += taken;
                input = rest;
                if self.header_seen == 9 {
                    self.frame_begins(&mut told);
                }
            } else {
                let taken = (self.payload_left as usize).min(input.len());
                let (now, rest) = input.split_at(taken);
                for byte in now.iter().take(8_usize.saturating_sub(self.payload_seen)) {
                    if let Some(place) = self.payload_start.get_mut(self.payload_seen) {
                        *place = *byte;
                    }
                    self.payload_seen += 1;
                }
                self.payload_left -= u32::try_from(taken).unwrap_or(self.payload_left);
                input = rest;
                if self.from_client && self.header[3] == DATA {
                    told(Event::Moved(self.stream()));
                }
                if self.payload_left == 0 {
                    self.frame_ends(&mut told);
                }
            }
        }
    }

    const fn stream(&self) -> u32 {
        let [.., a, b, c, d] = self.header;
        u32::from_be_bytes([a & 0x7f, b, c, d])
    }

    fn frame_begins(&mut self, told: &mut impl FnMut(Event)) {
        let [a, b, c, kind, flags, ..] = self.header;
        self.payload_left = u32::from_be_bytes([0, a, b, c]);
        self.payload_seen = 0;
        self.payload_start = [0; 8];
        match kind {
            HEADERS => told(Event::Moves),
            DATA if self.payload_left > 0 => told(Event::Moves),
            DATA if flags & END_STREAM != 0 => {}
            _ if !self.from_client => {}
            PING => told(Event::Idles(Kind::Ping)),
            SETTINGS => told(Event::Idles(Kind::Settings)),
            PRIORITY => told(Event::Idles(Kind::Priority)),
            WINDOW_UPDATE => told(Event::Idles(Kind::WindowUpdate)),
            // The engine has budgets of its own for those; all others are of no known type.
            RESET | GO_AWAY | CONTINUATION => {}
            _ => told(Event::Idles(Kind::Empty)),
        }
        if kind == HEADERS || kind == CONTINUATION {
            let before = if kind == HEADERS { 0 } else { self.block };
            self.block = before + u64::from(self.payload_left);
            self.large_blocks += u64::from(before < self.large && self.block >= self.large);
            self.open_block = true;
        }
        if kind == RESET {
            self.block = 0;
        }
        if kind == HEADERS {
            let stream = self.stream();
            if stream > self.last_stream {
                self.last_stream = stream;
                self.opened += 1;
                if self.from_client && flags & END_STREAM == 0 {
                    told(Event::Begun(stream));
                }
            }
        }
        if self.payload_left == 0 {
            self.frame_ends(told);
        }
    }

    fn frame_ends(&mut self, told: &mut impl FnMut(Event)) {
        let [_, _, _, kind, flags, ..] = self.header;
        let [a, b, c, d, e, f, g, h] = self.payload_start;
        match kind {
            RESET => told(Event::Ended(self.stream())),
            DATA | HEADERS if flags & END_STREAM != 0 => told(match self.from_client {
                true => Event::Ended(self.stream()),
                false => Event::Answered(self.stream()),
            }),
            _ => {}
        }
        match kind {
            HEADERS | CONTINUATION if flags & END_HEADERS != 0 => self.open_block = false,
            SETTINGS => self.settings = true,
            RESET if u32::from_be_bytes([a, b, c, d]) != 0 => self.resets += 1,
            GO_AWAY => {
                let code = u32::from_be_bytes([e, f, g, h]);
                if code != 0 && self.go_away.is_none() {
                    self.go_away = Some(code);
                }
            }
            _ => {}
        }
        self.header_seen = 0;
    }
}

/// Can this error code of the engine's say that a header block was too large? Nothing else that a page
/// can make a browser send is an error.
#[must_use]
pub const fn may_mean_large(code: u32) -> bool {
    matches!(code, COMPRESSION_ERROR | ENHANCE_YOUR_CALM)
}

/// An error code's name (RFC 9113 section 7).
#[must_use]
pub const fn error_name(code: u32) -> &'static str {
    match code {
        0x1 => "PROTOCOL_ERROR",
        0x2 => "INTERNAL_ERROR",
        0x3 => "FLOW_CONTROL_ERROR",
        0x4 => "SETTINGS_TIMEOUT",
        0x5 => "STREAM_CLOSED",
        0x6 => "FRAME_SIZE_ERROR",
        0x7 => "REFUSED_STREAM",
        0x8 => "CANCEL",
        0x9 => "COMPRESSION_ERROR",
        0xb => "ENHANCE_YOUR_CALM",
        _ => "unknown error",
    }
}

/// The fuzz target's body: the walk does not depend on how the bytes arrive.
pub fn fuzz(data: &[u8]) {
    let (mut whole, mut all_at_once) = (Frames::received(20), Uploads::default());
    whole.walk(data, |event| all_at_once.note(event, Duration::ZERO));
    let (mut parts, mut in_parts) = (Frames::received(20), Uploads::default());
    for part in data.chunks(3) {
        parts.walk(part, |event| in_parts.note(event, Duration::ZERO));
    }
    assert_eq!(
        (whole.opened, whole.resets, whole.go_away, whole.must_go_on(), whole.between_frames()),
        (parts.opened, parts.resets, parts.go_away, parts.must_go_on(), parts.between_frames())
    );
    assert_eq!((whole.large_blocks, whole.last_block()), (parts.large_blocks, parts.last_block()));
    assert_eq!(all_at_once, in_parts);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut out = length[1..].to_vec();
        out.extend([kind, flags]);
        out.extend(stream.to_be_bytes());
        out.extend(payload);
        out
    }

    #[test]
    fn an_unfinished_header_block_must_go_on() {
        let mut frames = Frames::received(6);
        assert!(frames.must_go_on());
        frames.walk(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", |_| ());
        frames.walk(&frame(SETTINGS, 0, 0, &[]), |_| ());
        assert!(!frames.must_go_on());
        frames.walk(&frame(HEADERS, 0, 1, b"abc"), |_| ());
        assert!(frames.must_go_on());
        frames.walk(&frame(CONTINUATION, END_HEADERS, 1, b"d"), |_| ());
        assert!(!frames.must_go_on());
        assert_eq!((frames.large_blocks, frames.last_block()), (0, 4));
        frames.walk(&frame(HEADERS, END_HEADERS, 1, b"trailers"), |_| ());
        frames.walk(&frame(HEADERS, END_HEADERS, 3, b"next"), |_| ());
        assert_eq!((frames.opened, frames.large_blocks, frames.last_block()), (2, 1, 4));
        frames.walk(&frame(HEADERS, 0, 5, b"part"), |_| ());
        frames.walk(&frame(CONTINUATION, 0, 5, b"large"), |_| ());
        frames.walk(&frame(CONTINUATION, END_HEADERS, 5, b"as before"), |_| ());
        assert_eq!((frames.large_blocks, frames.last_block()), (2, 18));
        frames.walk(&frame(RESET, 0, 5, &[0, 0, 0, 8]), |_| ());
        assert_eq!((frames.large_blocks, frames.last_block()), (2, 0));
    }

    #[test]
    fn refusals_are_seen_in_what_is_sent() {
        let mut frames = Frames::sent();
        frames.walk(&frame(RESET, 0, 1, &[0, 0, 0, 1]), |_| ());
        frames.walk(&frame(RESET, 0, 3, &[0, 0, 0, 0]), |_| ());
        frames.walk(&frame(GO_AWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0]), |_| ());
        frames.walk(&frame(GO_AWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 9, b'x']), |_| ());
        assert_eq!((frames.resets, frames.go_away), (1, Some(9)));
        assert_eq!(error_name(9), "COMPRESSION_ERROR");
    }

    #[test]
    fn what_becomes_of_a_body_is_told() {
        let mut seen = Vec::new();
        let mut received = Frames::received(u64::MAX);
        let about_bodies = |event: &Event| !matches!(event, Event::Moves | Event::Idles(_));
        let mut walk =
            |bytes: &[u8]| received.walk(bytes, |event| seen.extend(Some(event).filter(about_bodies)));
        walk(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        walk(&frame(HEADERS, END_HEADERS | END_STREAM, 1, b"no body"));
        walk(&frame(HEADERS, END_HEADERS, 3, b"body"));
        walk(&frame(DATA, 0, 3, b"some"));
        walk(&frame(DATA, END_STREAM, 3, &[]));
        walk(&frame(HEADERS, END_HEADERS, 5, b"body"));
        walk(&frame(RESET, 0, 5, &[0, 0, 0, 8]));
        let expected = [
            Event::Ended(1),
            Event::Begun(3),
            Event::Moved(3),
            Event::Ended(3),
            Event::Begun(5),
            Event::Ended(5),
        ];
        assert_eq!(seen, expected);
        let mut seen = Vec::new();
        let mut sent = Frames::sent();
        sent.walk(&frame(HEADERS, END_HEADERS, 3, b"200"), |event| seen.push(event));
        sent.walk(&frame(DATA, END_STREAM, 3, b"done"), |event| seen.push(event));
        sent.walk(&frame(PING, 1, 0, &[0; 8]), |event| seen.push(event));
        assert_eq!(seen, [Event::Moves, Event::Moves, Event::Answered(3)], "what we send floods nobody");
    }

    #[test]
    fn frames_that_move_nothing_are_told_by_their_kind() {
        let mut seen = Vec::new();
        let mut received = Frames::received(u64::MAX);
        let mut walk = |bytes: &[u8]| received.walk(bytes, |event| seen.push(event));
        walk(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        walk(&frame(SETTINGS, 0, 0, &[]));
        walk(&frame(PING, 0, 0, &[0; 8]));
        walk(&frame(PRIORITY, 0, 3, &[0; 5]));
        walk(&frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]));
        walk(&frame(DATA, 0, 3, &[]));
        walk(&frame(0x42, 0, 0, b"grease"));
        let kinds =
            [Kind::Settings, Kind::Ping, Kind::Priority, Kind::WindowUpdate, Kind::Empty, Kind::Empty];
        assert_eq!(seen, kinds.map(Event::Idles));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz(&data);
        }
    }
}

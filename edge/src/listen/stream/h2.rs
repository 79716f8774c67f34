//! What is known of an HTTP/2 connection that the engine decodes: frames both ways, bodies that stand
//! still, floods. Knows frames; must not know sockets or clocks. It exists because the engine tells
//! neither what it refuses by itself nor how often it is asked for nothing.

use std::pin::Pin;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::time::Sleep;

use crate::listen::connection::Connection;
use crate::listen::floods::{Floods, Kind};
use crate::listen::frames::{Frames, error_name, may_mean_large};
use crate::listen::head::Limits;
use crate::listen::report::Report;
use crate::listen::uploads::{Event, Uploads};

/// RFC 9113 section 7.
const ENHANCE_YOUR_CALM: u32 = 0xb;

/// Of one connection.
pub(super) struct H2 {
    /// Largest head that the engine takes, in bytes.
    max_head: u64,
    pub(super) received: Frames,
    sent: Frames,
    /// When we sent a GOAWAY: was it for the header block itself, too large for any head?
    ended_large: Option<bool>,
    pub(super) timed_out: bool,
    pub(super) uploads: Uploads,
    /// A frame that ends a stream in the client's stead, on its way to the engine.
    pub(super) verdict: Bytes,
    pub(super) overdue: Option<Pin<Box<Sleep>>>,
    floods: Floods,
    flood: Option<Kind>,
}

impl H2 {
    /// Before the first byte.
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            max_head: limits.head as u64,
            // Compression takes away less than half of what a browser sends for the first time.
            received: Frames::received(limits.head as u64 / 2),
            sent: Frames::sent(),
            ended_large: None,
            timed_out: false,
            uploads: Uploads::default(),
            verdict: Bytes::new(),
            overdue: None,
            floods: Floods::default(),
            flood: None,
        }
    }

    /// The client sent these at `now`. Returns whether the connection may go on: it may not where it is
    /// flooded.
    pub(super) fn take_in(&mut self, bytes: &[u8], now: Duration) -> bool {
        let Self { received, uploads, floods, flood, .. } = self;
        received.walk(bytes, |event| match event {
            Event::Moves => floods.moved(now),
            Event::Idles(kind) => {
                if let Err(kind) = floods.came(kind, now) {
                    flood.get_or_insert(kind);
                }
            }
            event => uploads.note(event, now),
        });
        self.flood.is_none()
    }

    /// The engine sends these at `now`.
    pub(super) fn put_out(&mut self, bytes: &[u8], now: Duration) {
        let Self { sent, uploads, floods, .. } = self;
        sent.walk(bytes, |event| match event {
            Event::Moves => floods.moved(now),
            Event::Idles(_) => {}
            event => uploads.note(event, now),
        });
        if let Some(code) = self.sent.go_away {
            let large = may_mean_large(code) && self.received.last_block() >= self.max_head;
            self.ended_large.get_or_insert(large);
        }
    }

    /// What a client hears that floods us, where a frame may stand.
    pub(super) fn farewell(&self) -> Option<Bytes> {
        if !self.sent.between_frames() {
            return None;
        }
        let mut frame = BytesMut::with_capacity(17);
        frame.put(&[0, 0, 8, 7, 0, 0, 0, 0, 0][..]);
        frame.put_u32(self.received.last_stream());
        frame.put_u32(ENHANCE_YOUR_CALM);
        Some(frame.freeze())
    }

    /// One line for what the engine refused without starting the phases, and for a flood.
    pub(super) fn report(&self, connection: &Connection, report: &Report) {
        let Self { received, sent, ended_large, timed_out, .. } = self;
        let peer = connection.peer;
        let missing = received.opened.saturating_sub(u64::from(connection.phases()));
        if !received.begun() || connection.presence.is_cut() {
            // A connection that was opened and not used, or that a ban cut: nobody's fault.
        } else if let Some(kind) = self.flood {
            report.flooded(peer, kind.label());
        } else if *timed_out {
            report.broken_h2(peer, "preface or header block not complete in time".to_owned(), false);
        } else if !received.opened_well() && sent.go_away.is_none() {
            report.broken_h2(peer, "no valid HTTP/2 preface".to_owned(), false);
        } else if let Some(code) = sent.go_away {
            let large = ended_large.unwrap_or(false);
            report.broken_h2(peer, format!("connection error {}", error_name(code)), large);
        } else {
            // Streams that the client took back before the engine looked at them are no fault.
            let refused = missing.saturating_sub(received.resets).min(100);
            for number in 0..refused {
                let large = number < received.large_blocks;
                report.broken_h2(peer, "request refused by the HTTP engine".to_owned(), large);
            }
        }
    }
}

/// RST_STREAM (RFC 9113 section 6.4) with NO_ERROR, as a server ends a request that it has answered.
pub(super) fn reset(stream: u32) -> Bytes {
    let mut frame = BytesMut::with_capacity(13);
    frame.put(&[0, 0, 4, 3, 0][..]);
    frame.put_u32(stream);
    frame.put_u32(0);
    frame.freeze()
}

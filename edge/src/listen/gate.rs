//! The head gate: decides which received HTTP/1 bytes the engine may see. Knows heads and bodies;
//! must not know sockets or clocks. Nothing of a request is released until its head is whole and
//! has passed; nothing of the NEXT request is released before the engine asks for it, because the
//! engine probes an idle connection for its end and would swallow pipelined bytes.

use bytes::{Buf, BytesMut};

use crate::listen::body::Body;
use crate::listen::head::{self, Fault, Limits, Scan};

/// Bytes of later requests kept while an earlier one is answered, beyond a head's own limit.
const HELD_MOST: usize = 32 * 1024;

/// What the reader of the connection should do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// That many bytes at the front of the buffer belong to the engine.
    Release(usize),
    /// Nothing of a request is here yet.
    AwaitRequest,
    /// A head has begun and is not whole.
    AwaitHead,
    /// The body goes on.
    AwaitBody,
    /// The request is complete and the engine still answers it.
    AwaitTurn,
}

/// Of one connection: what has arrived and not been handed on, and where in a request we are.
#[derive(Debug)]
pub struct Gate {
    limits: Limits,
    buffer: BytesMut,
    /// Bytes at the front that are released.
    released: usize,
    state: State,
    heads: u32,
    empty_lines: u8,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Head(Scan),
    Body(Body),
    Tunnel,
}

impl Gate {
    /// A gate before the first request.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            buffer: BytesMut::new(),
            released: 0,
            state: State::Head(Scan::default()),
            heads: 0,
            empty_lines: 0,
        }
    }

    /// Where received bytes are appended.
    pub fn space(&mut self) -> &mut BytesMut {
        self.buffer.reserve(4096);
        &mut self.buffer
    }

    /// May more be read from the socket?
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.buffer.len() < self.limits.head + HELD_MOST
    }

    /// Bytes that are here and not handed to the engine.
    #[must_use]
    pub fn held(&self) -> &[u8] {
        &self.buffer
    }

    /// Has a head been released whose body goes on?
    #[must_use]
    pub const fn in_body(&self) -> bool {
        matches!(self.state, State::Body(_))
    }

    /// Heads released so far.
    #[must_use]
    pub const fn heads(&self) -> u32 {
        self.heads
    }

    /// From here on every byte passes: the connection speaks another protocol.
    pub const fn tunnel(&mut self) {
        self.state = State::Tunnel;
        self.released = 0;
    }

    /// Looks at what is here. `turn` counts the requests that the engine has asked for.
    ///
    /// # Errors
    /// The request must be refused and the connection closed.
    pub fn advance(&mut self, turn: u32) -> Result<Next, Fault> {
        if self.released > 0 {
            return Ok(Next::Release(self.released));
        }
        match &mut self.state {
            State::Tunnel if self.buffer.is_empty() => Ok(Next::AwaitBody),
            State::Tunnel => Ok(Next::Release(self.buffer.len())),
            State::Body(body) if body.done() => {
                self.state = State::Head(Scan::default());
                self.empty_lines = 0;
                self.advance(turn)
            }
            State::Body(body) => {
                self.released = body.advance(&self.buffer)?;
                Ok(if self.released == 0 { Next::AwaitBody } else { Next::Release(self.released) })
            }
            State::Head(_) if self.heads >= turn => Ok(Next::AwaitTurn),
            State::Head(_) => self.advance_head(),
        }
    }

    fn advance_head(&mut self) -> Result<Next, Fault> {
        // An empty line before the request line is to be ignored (RFC 9112 section 2.2), once or twice.
        while self.empty_lines < 2 && self.buffer.starts_with(b"\r\n") {
            self.buffer.advance(2);
            self.empty_lines += 1;
        }
        if self.buffer.is_empty() {
            // An idle connection keeps no memory.
            self.buffer = BytesMut::new();
            return Ok(Next::AwaitRequest);
        }
        if self.empty_lines < 2 && &self.buffer[..] == b"\r" {
            return Ok(Next::AwaitHead);
        }
        let State::Head(scan) = &mut self.state else { return Ok(Next::AwaitHead) };
        let Some(end) = scan.advance(&self.buffer, &self.limits)? else { return Ok(Next::AwaitHead) };
        let head = head::parse(self.buffer.get(..end).unwrap_or_default(), &self.limits)?;
        self.state = State::Body(Body::new(head.framing, self.limits.head));
        self.heads += 1;
        self.released = end;
        Ok(Next::Release(end))
    }

    /// Hands `count` released bytes on.
    pub fn take(&mut self, into: &mut impl bytes::BufMut, count: usize) {
        let count = match self.state {
            State::Tunnel => count.min(self.buffer.len()),
            _ => count.min(self.released),
        };
        debug_assert!(into.remaining_mut() >= count, "the caller offers room for what it takes");
        into.put((&mut self.buffer).take(count));
        self.released = self.released.saturating_sub(count);
    }
}

/// The fuzz target's body: whatever arrives, what is released is a prefix of it (empty lines
/// before a head aside), and a second request is never released with the first.
pub fn fuzz(data: &[u8]) {
    let mut gate = Gate::new(Limits { head: 2048, headers: 20, uri: 512 });
    let mut out = Vec::new();
    for part in data.chunks(7) {
        gate.space().extend_from_slice(part);
        loop {
            match gate.advance(1) {
                Ok(Next::Release(count)) => {
                    assert!(count > 0, "a release is of something");
                    gate.take(&mut out, count);
                }
                Ok(_) => break,
                Err(_) => return,
            }
        }
        assert!(gate.heads() <= 1, "one turn releases one head");
    }
    let start = data.len().min(4);
    assert!((0..=start).any(|skip| data.get(skip..).is_some_and(|rest| rest.starts_with(&out))));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gate() -> Gate {
        Gate::new(Limits { head: 1024, headers: 10, uri: 100 })
    }

    fn drain(gate: &mut Gate, turn: u32) -> (Vec<u8>, Next) {
        let mut out = Vec::new();
        loop {
            match gate.advance(turn).unwrap() {
                Next::Release(count) => gate.take(&mut out, count),
                next => return (out, next),
            }
        }
    }

    #[test]
    fn nothing_is_released_before_the_head_is_whole() {
        let mut gate = gate();
        assert_eq!(gate.advance(1), Ok(Next::AwaitRequest));
        gate.space().extend_from_slice(b"GET / HTTP/1.1\r\nHost: a\r\n");
        assert_eq!(gate.advance(1), Ok(Next::AwaitHead));
        gate.space().extend_from_slice(b"\r\n");
        let (out, next) = drain(&mut gate, 1);
        assert_eq!(out, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(next, Next::AwaitTurn);
    }

    #[test]
    fn a_pipelined_request_waits_for_its_turn() {
        let mut gate = gate();
        let first = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
        let second = b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n";
        gate.space().extend_from_slice(first);
        gate.space().extend_from_slice(second);
        assert_eq!(drain(&mut gate, 1), (first.to_vec(), Next::AwaitTurn));
        assert_eq!(gate.held(), second);
        assert_eq!(drain(&mut gate, 2), (second.to_vec(), Next::AwaitTurn));
        assert_eq!(drain(&mut gate, 3).1, Next::AwaitRequest);
    }

    #[test]
    fn a_smuggled_second_head_is_judged_as_a_head() {
        let mut gate = gate();
        gate.space().extend_from_slice(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\nHost: b\n\n");
        drain(&mut gate, 1);
        assert_eq!(gate.advance(2), Err(Fault::BareLineFeed));
    }

    #[test]
    fn a_bad_chunk_is_a_fault_in_the_middle_of_the_body() {
        let mut gate = gate();
        gate.space().extend_from_slice(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
        );
        assert_eq!(drain(&mut gate, 1).1, Next::AwaitBody);
        gate.space().extend_from_slice(b"zz\r\n");
        assert_eq!(gate.advance(1), Err(Fault::ChunkSize));
    }

    #[test]
    fn empty_lines_before_a_request_are_dropped() {
        let mut gate = gate();
        gate.space().extend_from_slice(b"\r\n\r");
        assert_eq!(gate.advance(1), Ok(Next::AwaitHead));
        gate.space().extend_from_slice(b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(drain(&mut gate, 1).0.starts_with(b"GET"));
    }

    #[test]
    fn a_tunnel_passes_everything() {
        let mut gate = gate();
        gate.space().extend_from_slice(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\x81\x05\n\0");
        drain(&mut gate, 1);
        gate.tunnel();
        assert_eq!(drain(&mut gate, 1).0, b"\x81\x05\n\0");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(data in proptest::collection::vec(any::<u8>(), 0..400)) {
            fuzz(&data);
        }

        #[test]
        fn requests_in_any_portions_come_out_one_by_one(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 1..4),
            portion in 1_usize..50,
        ) {
            let requests: Vec<Vec<u8>> = bodies.iter().map(|body| {
                let mut request =
                    format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
                request.extend(body);
                request
            }).collect();
            let wire = requests.concat();
            let mut gate = gate();
            let mut portions = wire.chunks(portion);
            for (turn, request) in (1..).zip(&requests) {
                let mut out = Vec::new();
                loop {
                    let (more, next) = drain(&mut gate, turn);
                    out.extend(more);
                    if next == Next::AwaitTurn { break }
                    gate.space().extend_from_slice(portions.next().unwrap());
                }
                prop_assert_eq!(&out, request);
            }
        }
    }
}

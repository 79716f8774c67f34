//! A handler's request body on its way in: kept where it is small, streamed where it is
//! large or endless, bounded in size and in silence. Knows no vault.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use shared::api::client;
use tokio::time::{Sleep, sleep, timeout};

/// How much of a body nobody wants any more is read, so that the answer gets through.
const DRAIN_BYTES: u64 = 64 << 20;
/// And for how long.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// Why a handler's body cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum IntakeFault {
    /// More bytes than allowed.
    #[error("the body exceeds {0} bytes")]
    TooLarge(u64),
    /// The handler sends nothing more.
    #[error("no byte of the body came for {0:?}")]
    Stalled(Duration),
    /// The connection or its framing broke.
    #[error("the body broke off")]
    Broken,
}

/// One body; clones are the same one, so that what a vault left unread can still be drained.
#[derive(Clone)]
pub(super) struct Intake(Arc<Mutex<State>>);

struct State {
    /// Read already, but to be passed on yet.
    ahead: VecDeque<Bytes>,
    body: Incoming,
    taken: u64,
    most: u64,
    idle: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    fault: Option<IntakeFault>,
    /// Being drained: the vault's connection gets no more of it, since it would get holes.
    diverted: bool,
}

impl Intake {
    pub(super) fn new(body: Incoming, most: u64, idle: Duration) -> Self {
        let state = State {
            ahead: VecDeque::new(),
            body,
            taken: 0,
            most,
            idle,
            timer: None,
            fault: None,
            diverted: false,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Decides between keeping and streaming; reads ahead where the length is unknown.
    pub(super) async fn take(&self, max_kept: usize) -> Result<client::Body, IntakeFault> {
        let (announced, most) = self.with(|state| (state.body.size_hint().exact(), state.most));
        match announced {
            Some(0) => return Ok(client::Body::Empty),
            Some(length) if length > most => return Err(IntakeFault::TooLarge(most)),
            Some(length) if length > max_kept as u64 => return Ok(client::Body::streamed(self.clone())),
            _ => {}
        }
        let mut kept = BytesMut::new();
        let mut source = self.clone();
        while let Some(frame) = source.frame().await {
            kept.extend_from_slice(&frame?.into_data().unwrap_or_default());
            if kept.len() > max_kept {
                self.with(|state| state.ahead.push_front(kept.split().freeze()));
                return Ok(client::Body::streamed(self.clone()));
            }
        }
        Ok(client::Body::Kept(kept.freeze()))
    }

    /// What went wrong on the handler's side, if anything did.
    pub(super) fn fault(&self) -> Option<IntakeFault> {
        self.with(|state| state.fault)
    }

    /// Reads on for a moment after the call is decided: closing a socket with unread bytes
    /// would take the answer with it. A handler that waits for `100 Continue` sends nothing.
    pub(super) async fn drain(&self, waits_for_continue: bool) {
        let (untouched, fault) = self.with(|state| (state.taken == 0, state.fault));
        let nothing_comes = matches!(fault, Some(IntakeFault::Stalled(_) | IntakeFault::Broken));
        if nothing_comes || (waits_for_continue && untouched) {
            return;
        }
        self.with(|state| state.diverted = true);
        let draining = async {
            let mut read = 0;
            while read < DRAIN_BYTES {
                let next = std::future::poll_fn(|cx| {
                    self.with(|state| match Pin::new(&mut state.body) {
                        body if body.is_end_stream() => Poll::Ready(None),
                        body => body.poll_frame(cx),
                    })
                });
                let Some(Ok(frame)) = next.await else { return };
                read += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
        };
        // Past the deadline the handler sees its connection closed, which is all that is left.
        let _ = timeout(DRAIN_TIME, draining).await;
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, IntakeFault>>> {
        if self.diverted {
            return Poll::Pending;
        }
        if let Some(bytes) = self.ahead.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if let Some(fault) = self.fault {
            return Poll::Ready(Some(Err(fault)));
        }
        let fault = loop {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Ok(frame))) => {
                    self.timer = None;
                    // Trailers stay outside.
                    let Ok(data) = frame.into_data() else { continue };
                    self.taken += data.len() as u64;
                    if self.taken > self.most {
                        break IntakeFault::TooLarge(self.most);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Poll::Ready(Some(Err(_))) => break IntakeFault::Broken,
                Poll::Pending => {
                    let idle = self.idle;
                    let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(idle)));
                    std::task::ready!(timer.as_mut().poll(cx));
                    break IntakeFault::Stalled(idle);
                }
            }
        };
        self.fault = Some(fault);
        Poll::Ready(Some(Err(fault)))
    }
}

impl hyper::body::Body for Intake {
    type Data = Bytes;
    type Error = IntakeFault;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, IntakeFault>>> {
        self.with(|state| state.poll(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.with(|state| state.ahead.is_empty() && state.fault.is_none() && state.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|state| {
            let ahead: u64 = state.ahead.iter().map(|bytes| bytes.len() as u64).sum();
            state
                .body
                .size_hint()
                .exact()
                .map_or_else(SizeHint::default, |rest| SizeHint::with_exact(ahead + rest))
        })
    }
}

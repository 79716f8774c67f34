//! Request bodies: what a caller hands in, and what each attempt borrows of it. A body in
//! memory can be sent as often as needed; a streamed one is lent to one attempt at a time
//! and can be lent again only while no byte has been taken out of it.

use std::error::Error;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Frame, SizeHint};

/// Any error a body's source may end with.
pub(super) type SourceError = Box<dyn Error + Send + Sync>;

/// The body of a request to the vault pair.
pub enum Body {
    /// None.
    Empty,
    /// In memory: can be repeated at the other vault.
    Kept(Bytes),
    /// Streamed: cannot be repeated once a byte went out. Build it with [`Body::streamed`].
    Streamed(UnsyncBoxBody<Bytes, SourceError>),
}

impl Body {
    /// A body that is passed on as it comes. An exact size hint becomes `Content-Length`.
    pub fn streamed<B>(body: B) -> Self
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<SourceError>,
    {
        Self::Streamed(body.map_err(Into::into).boxed_unsync())
    }
}

/// A call's body over all its attempts.
pub(super) enum Load {
    Kept(Bytes),
    Streamed(Arc<Lent>),
}

impl From<Body> for Load {
    fn from(body: Body) -> Self {
        match body {
            Body::Empty => Self::Kept(Bytes::new()),
            Body::Kept(bytes) => Self::Kept(bytes),
            Body::Streamed(source) => Self::Streamed(Arc::new(Lent::new(source))),
        }
    }
}

impl Load {
    /// What one attempt sends.
    pub(super) fn lend(&self) -> Outgoing {
        match self {
            Self::Kept(bytes) => Outgoing::Kept(bytes.clone()),
            Self::Streamed(lent) => Outgoing::Lent(Arc::clone(lent)),
        }
    }

    /// May another attempt still send it?
    pub(super) fn can_repeat(&self) -> bool {
        match self {
            Self::Kept(_) => true,
            Self::Streamed(lent) => !lent.touched(),
        }
    }

    pub(super) fn is_streamed(&self) -> bool {
        matches!(self, Self::Streamed(_))
    }

    /// What is in memory.
    pub(super) fn kept(&self) -> Option<&Bytes> {
        match self {
            Self::Kept(bytes) => Some(bytes),
            Self::Streamed(_) => None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Kept(bytes) if bytes.is_empty())
    }

    /// Did the source itself fail?
    pub(super) fn source_broke(&self) -> bool {
        matches!(self, Self::Streamed(lent) if lent.broke.load(Ordering::Acquire))
    }
}

/// A streamed body and how far it has gone.
pub(super) struct Lent {
    source: Mutex<UnsyncBoxBody<Bytes, SourceError>>,
    frames: AtomicU64,
    ended: AtomicBool,
    broke: AtomicBool,
    waits_for_source: AtomicBool,
}

impl Lent {
    fn new(source: UnsyncBoxBody<Bytes, SourceError>) -> Self {
        Self {
            source: Mutex::new(source),
            frames: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            broke: AtomicBool::new(false),
            waits_for_source: AtomicBool::new(false),
        }
    }

    fn touched(&self) -> bool {
        self.frames() > 0 || self.ended.load(Ordering::Acquire) || self.broke.load(Ordering::Acquire)
    }

    /// Frames taken so far; a watcher sees progress by it.
    pub(super) fn frames(&self) -> u64 {
        self.frames.load(Ordering::Acquire)
    }

    /// Is the vault ready for more while the source has none?
    pub(super) fn waits_for_source(&self) -> bool {
        self.waits_for_source.load(Ordering::Acquire)
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, SourceError>>> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let polled = hyper::body::Body::poll_frame(Pin::new(&mut *source), cx);
        self.waits_for_source.store(polled.is_pending(), Ordering::Release);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(Some(Ok(_))) => {
                self.frames.fetch_add(1, Ordering::AcqRel);
            }
            Poll::Ready(Some(Err(_))) => self.broke.store(true, Ordering::Release),
            Poll::Ready(None) => self.ended.store(true, Ordering::Release),
        }
        polled
    }

    fn hint(&self) -> (bool, SizeHint) {
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        (hyper::body::Body::is_end_stream(&*source), hyper::body::Body::size_hint(&*source))
    }
}

/// One attempt's view of the body.
pub(super) enum Outgoing {
    Kept(Bytes),
    Lent(Arc<Lent>),
}

impl hyper::body::Body for Outgoing {
    type Data = Bytes;
    type Error = SourceError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, SourceError>>> {
        match self.get_mut() {
            Self::Kept(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Kept(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Lent(lent) => lent.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Kept(bytes) => bytes.is_empty(),
            Self::Lent(lent) => lent.hint().0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Kept(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Lent(lent) => lent.hint().1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_streamed_body_can_be_lent_again_until_a_byte_is_taken() {
        let load = Load::from(Body::streamed(http_body_util::Full::new(Bytes::from_static(b"abc"))));
        drop(load.lend());
        assert!(load.can_repeat());
        let mut second = load.lend();
        assert!(second.frame().await.is_some());
        assert!(!load.can_repeat());
        assert!(!load.source_broke());
    }

    #[tokio::test]
    async fn a_kept_body_is_whole_each_time() {
        let load = Load::from(Body::Kept(Bytes::from_static(b"abc")));
        for _ in 0..3 {
            assert_eq!(load.lend().collect().await.unwrap().to_bytes(), "abc");
            assert!(load.can_repeat());
        }
    }

    #[tokio::test]
    async fn a_failing_source_is_told_from_a_failing_vault() {
        let failing = http_body_util::StreamBody::new(futures_util::stream::iter([Err::<Frame<Bytes>, _>(
            std::io::Error::other("handler left"),
        )]));
        let load = Load::from(Body::streamed(failing));
        assert!(load.lend().collect().await.is_err());
        assert!(load.source_broke());
    }
}

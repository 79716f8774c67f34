//! Bodies of answers: streamed with an idle deadline, and for files continued at the other
//! vault where they broke. A body ends whole or with an error, never silently short.
//! Knows RFC 9110's ranges (section 14) as far as it needs them for that.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep, timeout};

use super::body::Body;
use super::vault::{Connection, Vault};
use super::{Client, ClientError, Head, Transport};
use crate::api::Problem;

/// Longest refusal kept while the other vault is asked.
const MAX_REFUSAL: usize = 64 << 10;

/// The body of an answer.
pub struct Answer {
    source: Source,
    /// Bytes still to come, where that is known.
    left: Option<u64>,
    idle: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    resume: Option<Box<Resume>>,
}

enum Source {
    Kept(Bytes),
    Live(Box<Live>),
    Resuming(Pin<Box<dyn Future<Output = Result<Answer, ClientError>> + Send>>),
    Ended,
}

struct Live {
    body: Incoming,
    connection: Option<Connection>,
    vault: Arc<Vault>,
}

/// What it takes to go on with a broken download.
pub(super) struct Resume {
    client: Client,
    head: Head,
    etag: HeaderValue,
    /// The next byte's place in the whole file.
    next: u64,
    /// The whole file's length.
    whole: u64,
    times_left: u32,
}

impl Answer {
    pub(super) fn live(body: Incoming, connection: Connection, vault: Arc<Vault>, idle: Duration) -> Self {
        let left = body.size_hint().exact();
        let mut live = Live { body, connection: Some(connection), vault };
        live.release_if_ended();
        Self { source: Source::Live(Box::new(live)), left, idle, timer: None, resume: None }
    }

    /// Takes a refusal into memory, to be told if the other vault has nothing better; `None`
    /// if it does not come whole in time.
    pub(super) async fn kept(response: Response<Self>, within: Duration) -> Option<Response<Self>> {
        let (parts, body) = response.into_parts();
        let idle = body.idle;
        let bytes = timeout(within, Limited::new(body, MAX_REFUSAL).collect()).await.ok()?.ok()?.to_bytes();
        let left = Some(bytes.len() as u64);
        let body = Self { source: Source::Kept(bytes), left, idle, timer: None, resume: None };
        Some(Response::from_parts(parts, body))
    }

    /// Is it a refusal with this code, held in memory?
    pub(super) fn is_problem(&self, code: &str) -> bool {
        let Source::Kept(bytes) = &self.source else { return false };
        serde_json::from_slice::<Problem>(bytes).is_ok_and(|problem| problem.code == code)
    }

    pub(super) fn resume_with(&mut self, resume: Resume) {
        self.resume = Some(Box::new(resume));
    }

    /// Waiting for bytes: is it too long?
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let idle = self.idle;
        self.timer.get_or_insert_with(|| Box::pin(sleep(idle))).as_mut().poll(cx)
    }

    /// The source broke: go on elsewhere, or end with the error.
    fn break_off(&mut self, why: Transport) -> Option<ClientError> {
        let Source::Live(live) = std::mem::replace(&mut self.source, Source::Ended) else { return None };
        live.vault.failed(&why);
        self.timer = None;
        match self.resume.as_mut() {
            Some(resume) if resume.times_left > 0 => {
                resume.times_left -= 1;
                if resume.client.inner.vaults.len() > 1 {
                    resume.client.inner.failovers.fetch_add(1, Ordering::Relaxed);
                }
                tracing::info!(
                    vault = live.vault.name, path = %resume.head.path, at = resume.next,
                    "download broke: {why}; it is continued"
                );
                self.source = Source::Resuming(Box::pin(resume.rest()));
                None
            }
            _ => Some(ClientError::BrokenAnswer { vault: live.vault.name.clone(), source: why }),
        }
    }

    fn count(&mut self, taken: u64) {
        self.timer = None;
        self.left = self.left.map(|left| left.saturating_sub(taken));
        if let Some(resume) = self.resume.as_mut() {
            resume.next += taken;
        }
    }
}

impl Live {
    /// After the last byte the connection is free for the next exchange.
    fn release_if_ended(&mut self) {
        if self.body.is_end_stream() {
            self.release();
        }
    }

    fn release(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.give_back(&self.vault);
        }
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = ClientError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ClientError>>> {
        let answer = self.get_mut();
        loop {
            match &mut answer.source {
                Source::Ended => return Poll::Ready(None),
                Source::Kept(bytes) => {
                    let bytes = std::mem::take(bytes);
                    answer.source = Source::Ended;
                    answer.left = Some(0);
                    return Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))));
                }
                Source::Live(live) => match Pin::new(&mut live.body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => {
                        live.release_if_ended();
                        answer.count(frame.data_ref().map_or(0, |data| data.len() as u64));
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    Poll::Ready(None) => match answer.left {
                        Some(left) if left > 0 => {
                            if let Some(error) = answer.break_off(Transport::Short(left)) {
                                return Poll::Ready(Some(Err(error)));
                            }
                        }
                        _ => {
                            live.release();
                            answer.source = Source::Ended;
                        }
                    },
                    Poll::Ready(Some(Err(error))) => {
                        if let Some(error) = answer.break_off(Transport::Lost(error)) {
                            return Poll::Ready(Some(Err(error)));
                        }
                    }
                    Poll::Pending => {
                        std::task::ready!(answer.poll_idle(cx));
                        if let Some(error) = answer.break_off(Transport::Stalled(answer.idle)) {
                            return Poll::Ready(Some(Err(error)));
                        }
                    }
                },
                Source::Resuming(rest) => match std::task::ready!(rest.as_mut().poll(cx)) {
                    Ok(rest) => answer.source = rest.source,
                    Err(error) => {
                        answer.source = Source::Ended;
                        return Poll::Ready(Some(Err(error)));
                    }
                },
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Ended => true,
            Source::Kept(bytes) => bytes.is_empty(),
            Source::Live(live) => live.body.is_end_stream() && self.left.is_none_or(|left| left == 0),
            Source::Resuming(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Resume {
    /// Can this answer be continued if it breaks? Only a file's bytes with a strong ETag and
    /// a known length.
    pub(super) fn of(client: &Client, head: &Head, response: &Response<Answer>) -> Option<Self> {
        if head.method != Method::GET || !head.path.path().starts_with("/v1/files/") {
            return None;
        }
        let etag = response.headers().get(header::ETAG)?;
        if !etag.as_bytes().starts_with(b"\"") {
            return None;
        }
        let length = response.body().left?;
        let (next, whole) = match response.status() {
            StatusCode::OK => (0, length),
            StatusCode::PARTIAL_CONTENT => {
                let range = content_range(response.headers())?;
                (range.first, range.whole)
            }
            _ => return None,
        };
        let times_left = client.inner.limits.resumes;
        Some(Self { client: client.clone(), head: head.clone(), etag: etag.clone(), next, whole, times_left })
    }

    /// Asks for what is missing. The future owns all it needs.
    fn rest(&self) -> impl Future<Output = Result<Answer, ClientError>> + Send + use<> {
        let (client, etag) = (self.client.clone(), self.etag.clone());
        let (next, whole) = (self.next, self.whole);
        let last = self.last_byte();
        let mut request = Request::new(Body::Empty);
        *request.uri_mut() = http::Uri::from(self.head.path.clone());
        *request.headers_mut() = self.head.headers.clone();
        async move {
            let headers = request.headers_mut();
            for conditional in [header::IF_NONE_MATCH, header::IF_MATCH, header::IF_MODIFIED_SINCE] {
                headers.remove(conditional);
            }
            let range = HeaderValue::try_from(format!("bytes={next}-{last}"))
                .map_err(|_| ClientError::NotTheSame("its range cannot be written"))?;
            headers.insert(header::RANGE, range);
            headers.insert(header::IF_RANGE, etag.clone());
            let mut response = client.call(request).await?;
            let expected = ContentRange { first: next, last, whole };
            if response.status() != StatusCode::PARTIAL_CONTENT {
                return Err(ClientError::NotTheSame("the other vault does not give the missing part"));
            }
            if response.headers().get(header::ETAG) != Some(&etag)
                || content_range(response.headers()) != Some(expected)
            {
                return Err(ClientError::NotTheSame("the other vault gives another file or part"));
            }
            response.body_mut().resume = None;
            Ok(response.into_body())
        }
    }

    fn last_byte(&self) -> u64 {
        let asked = content_range_end(&self.head, self.whole);
        asked.unwrap_or(self.whole.saturating_sub(1))
    }
}

/// The last byte the caller itself asked for, where it asked for a range.
fn content_range_end(head: &Head, whole: u64) -> Option<u64> {
    let range = head.headers.get(header::RANGE)?.to_str().ok()?;
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    if first.is_empty() {
        return None;
    }
    Some(last.trim().parse::<u64>().ok()?.min(whole.saturating_sub(1)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ContentRange {
    first: u64,
    last: u64,
    whole: u64,
}

fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    parse_content_range(headers.get(header::CONTENT_RANGE)?.to_str().ok()?)
}

/// `bytes 0-99/1234`, RFC 9110 section 14.4, with a known whole.
fn parse_content_range(text: &str) -> Option<ContentRange> {
    let (range, whole) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let range =
        ContentRange { first: first.parse().ok()?, last: last.parse().ok()?, whole: whole.parse().ok()? };
    (range.first <= range.last && range.last < range.whole).then_some(range)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_content_range_reads_back(first in 0_u64..1 << 40, length in 1_u64..1 << 40, after in 0_u64..1 << 40) {
            let range = ContentRange { first, last: first + length - 1, whole: first + length + after };
            let text = format!("bytes {}-{}/{}", range.first, range.last, range.whole);
            prop_assert_eq!(parse_content_range(&text), Some(range));
        }

        #[test]
        fn no_content_range_of_a_vault_makes_the_client_panic(text in ".{0,60}") {
            if let Some(range) = parse_content_range(&text) {
                prop_assert!(range.first <= range.last && range.last < range.whole);
            }
        }
    }
}

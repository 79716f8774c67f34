//! `/v1/messages`: posting a message for who speaks no JMS. Knows headers, statuses and how much may
//! come at once; leaves to `posting` that each is kept once.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use shared::api::message::PostedMessage;
use shared::tls::Role;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::caller::Caller;
use super::enrol::wall_clock;
use super::files::digests_of;
use super::key::IdempotencyKey;
use super::numbers::Ticket;
use super::refusal::Refusal;
use crate::posting::{PostError, Posted, Posting};
use crate::queue::QueueError;
use crate::queue::core::Refusal as QueueRefusal;
use crate::queue::message::Destination;

mod headers;

pub use headers::{fuzz_headers, post_of};

/// Bodies that are read at once have room for so many of the largest.
const LARGEST_AT_ONCE: usize = 2;
/// Bodies of so many bytes are small, and so many of them have room of their own.
const SMALL: usize = 64 << 10;
const SMALL_AT_ONCE: usize = 64;
/// How fast a body must come.
const PACE: Pace =
    Pace { grace: Duration::from_secs(10), per_second: 64 << 10, longest: Duration::from_secs(60) };
/// A body waits no longer for room.
const ROOM_DEADLINE: Duration = Duration::from_secs(2);
/// When trying again may help.
const SOON: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(5);
/// What begins with it is the brokers' own.
const RESERVED: [&str; 2] = ["ActiveMQ.", "vault."];

/// Why messages are not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPosts {
    /// There is nothing to put them into.
    NoQueues,
    /// The file of their keys cannot be used; the log says why.
    Trouble,
}

/// What the handler needs.
#[derive(Clone)]
struct Desk {
    posting: Result<Posting, NoPosts>,
    most: usize,
    /// For bodies that are being read and kept, in KiB. A text is there about three times.
    room: Arc<Semaphore>,
    /// For small ones, so that no large one holds them up.
    small: Arc<Semaphore>,
}

/// How fast something must come.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// So long it may be slow,
    grace: Duration,
    /// then it comes at so many bytes a second,
    per_second: u32,
    /// and is whole within this time.
    longest: Duration,
}

impl Pace {
    /// Of what has come so far there must be more within this time.
    fn within(self, come: usize) -> Duration {
        let come = u32::try_from(come).unwrap_or(u32::MAX);
        (self.grace + Duration::from_secs(1) * come / self.per_second).min(self.longest)
    }
}

/// The routes under `/v1/messages`. Without `posting` every call is told why; a body has at most `most`
/// bytes.
pub fn routes(posting: Result<Posting, NoPosts>, most: usize) -> Router {
    Router::new().route("/v1/messages/{destination}", post(put)).with_state(Desk::new(posting, most))
}

async fn put(
    State(desk): State<Desk>,
    caller: Caller,
    Ticket(ticket): Ticket,
    IdempotencyKey(key): IdempotencyKey,
    Path(destination): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    caller.must_be(&[Role::Edge, Role::Admin])?;
    let posting = desk.posting.as_ref().map_err(|why| match why {
        NoPosts::NoQueues => no_queues(),
        NoPosts::Trouble => Refusal::later(
            "not_written",
            "this vault takes no messages; its log tells its operator why",
            LATER,
        ),
    })?;
    let digests = digests_of(&headers)?;
    let destination = named(&destination)?;
    let room = desk.room_for(&headers).await?;
    let body = desk.whole(body, PACE).await?;
    digests.check_whole(&body).map_err(|error| {
        let detail = format!("the message is not what its digest says: {error}; nothing was kept");
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "digest_mismatch", detail)
    })?;
    let post = post_of(destination.clone(), &headers, body)?;
    let posted = posting.post(post, (&caller.0.owner, &key), ticket, now(), room).await;
    let Posted { id, fresh } = posted.map_err(|error| refuse(&error))?;
    let status = if fresh { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(PostedMessage { id, destination: destination.name().to_owned() })).into_response())
}

impl Desk {
    fn new(posting: Result<Posting, NoPosts>, most: usize) -> Self {
        let room = (kib(most) as usize).saturating_mul(LARGEST_AT_ONCE).min(Semaphore::MAX_PERMITS);
        let small = kib(SMALL * SMALL_AT_ONCE) as usize;
        let (room, small) = (Arc::new(Semaphore::new(room)), Arc::new(Semaphore::new(small)));
        Self { posting, most, room, small }
    }

    /// Room for the body that is announced, or for the largest.
    async fn room_for(&self, headers: &HeaderMap) -> Result<OwnedSemaphorePermit, Refusal> {
        let length =
            headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let length = length.unwrap_or(self.most);
        if length > self.most {
            return Err(self.too_large());
        }
        let room = if length <= SMALL { &self.small } else { &self.room };
        let room = Arc::clone(room).acquire_many_owned(kib(length));
        match tokio::time::timeout(ROOM_DEADLINE, room).await {
            Ok(Ok(room)) => Ok(room),
            _ => {
                Err(Refusal::later("busy", "many large messages are coming in; repeat it in a moment", SOON))
            }
        }
    }

    /// The whole body, if it comes fast enough: meanwhile it holds room for others'.
    async fn whole(&self, body: Body, pace: Pace) -> Result<Bytes, Refusal> {
        let (begun, mut body, mut whole) = (Instant::now(), Limited::new(body, self.most), BytesMut::new());
        loop {
            let within = pace.within(whole.len());
            match tokio::time::timeout_at(begun + within, body.frame()).await {
                Ok(None) => return Ok(whole.freeze()),
                Ok(Some(Ok(frame))) => {
                    // Trailers say nothing here.
                    whole.extend_from_slice(&frame.into_data().unwrap_or_default());
                }
                Ok(Some(Err(error))) if error.is::<LengthLimitError>() => return Err(self.too_large()),
                Ok(Some(Err(_))) => {
                    let detail = "the body broke off; nothing was kept";
                    return Err(Refusal::new(StatusCode::BAD_REQUEST, "body_broken", detail));
                }
                Err(_) => {
                    let detail =
                        format!("after {within:?} only {} bytes had come; nothing was kept", whole.len());
                    return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "body_late", detail));
                }
            }
        }
    }

    fn too_large(&self) -> Refusal {
        let detail = format!(
            "a message has at most {} bytes (broker.max_message); store a file, and send its id",
            self.most
        );
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    }
}

/// Rounded up, so that each body counts.
fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX)
}

pub(super) fn no_queues() -> Refusal {
    let detail = "this vault has no queues: the operator writes [broker] into both vaults' vault.toml, \
                  and where another broker is to have the messages a [[bridge]] from there to it";
    Refusal::new(StatusCode::NOT_IMPLEMENTED, "no_broker", detail)
}

/// A queue that may be posted to.
fn named(destination: &str) -> Result<Destination, Refusal> {
    let bad = |detail: String| Refusal::new(StatusCode::BAD_REQUEST, "bad_destination", detail);
    if destination.contains('?') {
        return Err(bad("a queue's name has no \"?\": options are headers here".to_owned()));
    }
    if let Some(reserved) = RESERVED.iter().find(|reserved| destination.starts_with(**reserved)) {
        return Err(bad(format!("queues that begin with {reserved} are the broker's own; name another")));
    }
    Destination::queue(destination).map_err(|why| bad(why.to_string()))
}

/// In ms since 1970.
fn now() -> u64 {
    let since = wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The public text of why a message is not kept.
fn refuse(error: &PostError) -> Refusal {
    let text = error.to_string();
    let full = |code| Refusal::later(code, text.clone(), LATER);
    match error {
        PostError::KeyReused => Refusal::new(StatusCode::CONFLICT, "key_reused", text),
        PostError::KeyLost => Refusal::new(StatusCode::GONE, "key_lost", text),
        // Perhaps it is being kept at this moment: no other refusal may hide that.
        PostError::UnderWay => Refusal::later("in_doubt", text, SOON),
        PostError::InDoubt { .. } => Refusal::later("in_doubt", text, Duration::from_secs(2)),
        PostError::Busy => Refusal::later("busy", text, SOON),
        PostError::Full { .. } | PostError::Queue(QueueError::Full { .. }) => full("queue_full"),
        PostError::Stopped | PostError::Queue(QueueError::Stopped) => {
            Refusal::later("stopping", "this vault is stopping; ask the other", SOON)
        }
        PostError::Queue(QueueError::Refused(QueueRefusal::TooManyQueues { .. })) => {
            Refusal::new(StatusCode::INSUFFICIENT_STORAGE, "too_many_queues", text)
        }
        PostError::Encode(_) => Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", text),
        PostError::Book(_) | PostError::Queue(QueueError::Refused(QueueRefusal::NotWritten { .. })) => {
            tracing::error!("messages: {text}");
            full("not_written")
        }
        _ => {
            tracing::error!("messages: {text}");
            Refusal::internal()
        }
    }
}

#[cfg(test)]
mod tests;

//! `/v1/queues`: what operators do with queues and the messages in them. Knows paths, bodies and who
//! may; the queues decide.

mod retrying;

use std::time::{Duration, UNIX_EPOCH};

use axum::extract::{Path, Query, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Map;
use shared::api::{MAX_PAGE, Page};
use shared::tls::Role;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::body::JsonBody;
use super::caller::Caller;
use super::messages::no_queues;
use super::refusal::Refusal;
use crate::openwire::properties::{Properties, Value};
use crate::openwire::{Body, Message};
use crate::queue::core::Refusal as QueueRefusal;
use crate::queue::message::{Destination, Id, Placed};
use crate::queue::{QueueError, QueueStatus, Queues};

pub use retrying::{Retried, Retrying};

/// Messages of one page are read until they have so many bytes.
const PAGE_BYTES: usize = 1 << 20;
/// As much of a body is shown, in bytes.
const MOST_SHOWN: usize = 1 << 20;
/// When trying again may help.
const LATER: Duration = Duration::from_secs(5);

/// A queue, as `GET /v1/queues` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Does it end with a client's connection?
    pub temporary: bool,
    /// Messages, in consumers' hands or not.
    pub messages: u64,
    /// Of these in consumers' hands.
    pub in_flight: u64,
    /// Who read it.
    pub consumers: u64,
    /// RFC 3339, UTC: since when what came, was finished and died is counted, which is this vault's start.
    #[serde(default)]
    pub counted_since: String,
    /// Messages that came since then.
    pub enqueued: u64,
    /// Messages that consumers have finished since then.
    pub dequeued: u64,
    /// Messages that died since then.
    pub dead: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// RFC 3339, UTC: when the message that has waited longest came.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub oldest: Option<String>,
}

/// A message in a queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Queued {
    /// By which operators name it as long as it is in this queue.
    pub number: i64,
    /// JMSMessageID.
    pub id: String,
    /// RFC 3339, UTC: when it came.
    pub came: String,
    /// RFC 3339, UTC: when its time is over.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expires: Option<String>,
    /// 0 to 9.
    pub priority: u8,
    /// Does it survive restarts?
    pub persistent: bool,
    /// Of the whole message, in bytes.
    pub size: usize,
    /// JMS's headers, as far as they are set.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty", default)]
    pub headers: Map<String, serde_json::Value>,
    /// The application's properties.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty", default)]
    pub properties: Map<String, serde_json::Value>,
    /// Of a dead letter: its queue before, and why it died.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub died: Option<Died>,
    /// What it says, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub body: Option<Shown>,
}

/// Why a message is a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Died {
    /// The queue in which it was.
    pub queue: String,
    /// `expired` or `poison`.
    pub cause: String,
    /// What its consumer said.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
}

/// A body, as far as it can be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shown {
    /// Of a text message.
    Text(String),
    /// Of a bytes message.
    Base64(String),
    /// There is none, or none that can be shown: why.
    Not(String),
}

/// Body of `POST /v1/queues/{queue}/move`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moving {
    /// The queue they go to.
    pub to: String,
    /// Which ones, or:
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub numbers: Option<Vec<i64>>,
    /// so many from the front. All without either.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub count: Option<u64>,
}

/// The answer of what is done to many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// How many.
    pub messages: u64,
}

/// `?after=&limit=&number=&body=`
#[derive(Debug, Deserialize)]
struct Window {
    after: Option<i64>,
    limit: Option<usize>,
    number: Option<i64>,
    #[serde(default)]
    body: bool,
}

/// The operators' routes. Every one of them is for role admin alone.
pub fn routes(queues: Option<Queues>) -> Router {
    Router::new()
        .route("/v1/queues", get(list))
        .route("/v1/queues/{queue}", delete(remove))
        .route("/v1/queues/{queue}/messages", get(browse))
        .route("/v1/queues/{queue}/move", post(relocate))
        .route("/v1/queues/{queue}/purge", post(purge))
        .route("/v1/dead-letters/retry", post(retrying::retry))
        .with_state(queues)
}

/// Who may, and the queues where there are some.
fn opened(caller: &Caller, queues: Option<Queues>) -> Result<Queues, Refusal> {
    caller.must_be(&[Role::Admin])?;
    queues.ok_or_else(no_queues)
}

async fn list(State(queues): State<Option<Queues>>, caller: Caller) -> Result<Json<Page<Queue>>, Refusal> {
    let queues = opened(&caller, queues)?;
    let listed = queues.list().await.map_err(|error| refuse(&error))?;
    let since = rfc_3339(queues.opened_at());
    // There are at most as many as the queues' own limit, and no second page.
    Ok(Json(Page { items: listed.iter().map(|status| queue(status, &since)).collect(), next: None }))
}

async fn browse(
    State(queues): State<Option<Queues>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(window): Query<Window>,
) -> Result<Json<Page<Queued>>, Refusal> {
    let (queues, queue) = (opened(&caller, queues)?, named(&name)?);
    let (after, most) = match window.number {
        Some(number) => (number.saturating_sub(1), 1),
        None => (window.after.unwrap_or(0), window.limit.unwrap_or(100).clamp(1, MAX_PAGE)),
    };
    let page = queues.browse(queue, Id::from_number(after), most, PAGE_BYTES).await;
    let page = page.map_err(|error| refuse(&error))?;
    if let Some(number) = window.number {
        let items: Vec<_> =
            page.iter().filter(|placed| placed.id.number() == number).map(|one| queued(one, true)).collect();
        let gone = || Refusal::not_found(format!("queue {name} has no message {number} any more"));
        return if items.is_empty() { Err(gone()) } else { Ok(Json(Page { items, next: None })) };
    }
    let next = page.last().map(|placed| placed.id.number().to_string());
    Ok(Json(Page { items: page.iter().map(|placed| queued(placed, window.body)).collect(), next }))
}

async fn relocate(
    State(queues): State<Option<Queues>>,
    caller: Caller,
    Path(name): Path<String>,
    JsonBody(moving): JsonBody<Moving>,
) -> Result<Json<Counted>, Refusal> {
    let (queues, from, to) = (opened(&caller, queues)?, named(&name)?, named(&moving.to)?);
    // Said before it begins, too: who leaves in the middle has moved some.
    tracing::warn!(from = %name, to = %moving.to, by = %caller.0.name, "messages are to be moved");
    let moved = match (moving.numbers, moving.count) {
        (Some(_), Some(_)) => {
            let detail = "say which messages, or how many, not both";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_request", detail));
        }
        (Some(numbers), None) => queues.relocate(from, Some(ids(numbers)), to).await,
        (None, Some(count)) => relocate_first(&queues, from, count, to).await,
        (None, None) => queues.relocate(from, None, to).await,
    };
    let messages = moved.map_err(|error| refuse(&error))?;
    tracing::warn!(from = %name, to = %moving.to, messages, by = %caller.0.name, "messages are moved");
    Ok(Json(Counted { messages }))
}

async fn purge(
    State(queues): State<Option<Queues>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Counted>, Refusal> {
    let (queues, queue) = (opened(&caller, queues)?, named(&name)?);
    tracing::warn!(queue = %name, by = %caller.0.name, "a queue is to be purged");
    let messages = queues.purge(queue).await.map_err(|error| refuse(&error))?;
    tracing::warn!(queue = %name, messages, by = %caller.0.name, "a queue is purged");
    Ok(Json(Counted { messages }))
}

async fn remove(
    State(queues): State<Option<Queues>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    let (queues, queue) = (opened(&caller, queues)?, named(&name)?);
    queues.remove(queue).await.map_err(|error| refuse(&error))?;
    tracing::warn!(queue = %name, by = %caller.0.name, "a queue is removed");
    Ok(StatusCode::NO_CONTENT)
}

/// Operators name any queue.
fn named(name: &str) -> Result<Destination, Refusal> {
    Destination::queue(name)
        .map_err(|why| Refusal::new(StatusCode::BAD_REQUEST, "bad_destination", why.to_string()))
}

fn ids(numbers: Vec<i64>) -> Vec<Id> {
    numbers.into_iter().map(Id::from_number).collect()
}

/// Moves the first so many messages that no consumer holds; tells how many there were.
async fn relocate_first(
    queues: &Queues,
    from: Destination,
    count: u64,
    to: Destination,
) -> Result<u64, QueueError> {
    let (mut moved, mut after) = (0, Id::default());
    while moved < count {
        let most = usize::try_from(count - moved).unwrap_or(MAX_PAGE).min(MAX_PAGE);
        let page = queues.browse(from.clone(), after, most, PAGE_BYTES).await?;
        let Some(last) = page.last() else { break };
        after = last.id;
        let ids = page.iter().map(|placed| placed.id).collect();
        moved += queues.relocate(from.clone(), Some(ids), to.clone()).await?;
    }
    Ok(moved)
}

fn queue(status: &QueueStatus, since: &str) -> Queue {
    let state = &status.state;
    Queue {
        name: state.destination.name().to_owned(),
        temporary: state.destination.is_temporary(),
        messages: state.depth,
        in_flight: state.in_flight,
        consumers: state.consumers,
        counted_since: since.to_owned(),
        enqueued: state.enqueued,
        dequeued: state.dequeued,
        dead: state.dead,
        bytes: state.bytes,
        oldest: status.oldest_at.map(rfc_3339),
    }
}

fn queued(placed: &Placed, with_body: bool) -> Queued {
    let kept = &placed.message;
    let read = Message::from_bytes(kept.body.clone());
    let (mut headers, mut properties) = (Map::new(), Map::new());
    if let Ok(message) = &read {
        headers = self::headers(message);
        if let Some(Ok(read)) = message.properties.as_ref().map(Properties::read) {
            properties = read.iter().map(|(name, value)| (name.to_string(), json(value))).collect();
        }
    }
    let body = || match &read {
        Ok(message) => shown(message),
        Err(error) => Shown::Not(format!("what lies there is no message: {error}")),
    };
    Queued {
        number: placed.id.number(),
        id: kept.name.to_string(),
        came: rfc_3339(kept.at),
        expires: (kept.expiration != 0).then(|| rfc_3339(kept.expiration)),
        priority: placed.id.level().priority(),
        persistent: placed.persistent,
        size: kept.body.len(),
        headers,
        properties,
        died: kept.origin.as_ref().map(|origin| Died {
            queue: origin.queue.clone(),
            cause: origin.cause.word().to_owned(),
            why: origin.cause.why().map(str::to_owned),
        }),
        body: with_body.then(body),
    }
}

/// JMS's own names for what is set.
fn headers(message: &Message) -> Map<String, serde_json::Value> {
    let texts = [
        ("JMSType", message.jms_type.as_ref().map(ToString::to_string)),
        ("JMSCorrelationID", message.correlation_id.as_ref().map(ToString::to_string)),
        ("JMSReplyTo", message.reply_to.as_ref().map(ToString::to_string)),
        ("JMSXGroupID", message.group_id.as_ref().map(ToString::to_string)),
        ("JMSXUserID", message.user_id.as_ref().map(ToString::to_string)),
    ];
    texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?.into()))).collect()
}

fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Boolean(flag) => (*flag).into(),
        Value::Byte(number) => (*number).into(),
        Value::Short(number) => (*number).into(),
        Value::Integer(number) => (*number).into(),
        Value::Long(number) => (*number).into(),
        Value::Double(number) => (*number).into(),
        Value::Float(number) => f64::from(*number).into(),
        Value::Char(unit) => char::from_u32(u32::from(*unit)).map(String::from).into(),
        Value::String(text) => text.to_string().into(),
        // As text, which it is, whatever its length.
        Value::BigString(_) => {
            let mut one = Properties::default();
            one.set(crate::openwire::Text::default(), value.clone());
            one.text("").into()
        }
        Value::Null | Value::Bytes(_) | Value::Map(_) | Value::List(_) => serde_json::Value::Null,
    }
}

fn shown(message: &Message) -> Shown {
    match message.body(MOST_SHOWN) {
        Ok(Body::Empty) => Shown::Not("it has no body".to_owned()),
        Ok(Body::Text(text)) => Shown::Text(text),
        Ok(Body::Bytes(bytes)) => Shown::Base64(BASE64_STANDARD.encode(bytes)),
        Err(error) => Shown::Not(error.to_string()),
    }
}

/// A time in ms since 1970 as people read it.
fn rfc_3339(at: u64) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::from_millis(at));
    // A client says what it likes; a time beyond the calendar is shown as nothing.
    let fits = |time: &std::time::SystemTime| {
        time.duration_since(UNIX_EPOCH).is_ok_and(|since| since < Duration::from_secs(253_402_300_800))
    };
    time.filter(fits).and_then(|time| OffsetDateTime::from(time).format(&Rfc3339).ok()).unwrap_or_default()
}

fn refuse(error: &QueueError) -> Refusal {
    let text = error.to_string();
    match error {
        QueueError::NoQueue { .. } | QueueError::Refused(QueueRefusal::Gone { .. }) => {
            Refusal::not_found(text)
        }
        QueueError::Refused(QueueRefusal::InUse { .. }) => {
            Refusal::new(StatusCode::CONFLICT, "queue_in_use", text)
        }
        QueueError::Refused(QueueRefusal::TooManyQueues { .. }) => {
            Refusal::new(StatusCode::INSUFFICIENT_STORAGE, "too_many_queues", text)
        }
        QueueError::Stopped => Refusal::later("stopping", text, LATER),
        QueueError::Refused(_) => Refusal::later("not_written", text, LATER),
        // An operator asks, so an operator is told.
        _ => {
            tracing::error!("{text}");
            Refusal::later("journal", text, LATER)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::message::{Cause, Level, Origin};

    fn placed() -> Placed {
        let producer = crate::openwire::ProducerId {
            connection: crate::openwire::Text::shortened("ID:c"),
            value: 1,
            session: 1,
        };
        let name = crate::openwire::Destination::queue(crate::openwire::Text::shortened("orders"));
        let mut message =
            Message::new(crate::openwire::MessageKind::Plain, producer.message(1), name.clone());
        message.set_bytes(b"\0\xff"[..].into());
        message.reply_to = Some(name);
        let mut properties = Properties::default();
        for (name, value) in [
            ("lot", Value::Integer(7)),
            ("long", Value::string(&"x".repeat(9_000))),
            ("none", Value::Null),
            ("real", Value::Double(f64::NAN)),
        ] {
            properties.set(crate::openwire::Text::shortened(name), value);
        }
        message.properties = Some(properties.to_bytes());
        let kept = crate::queue::message::Message {
            name: "ID:c:1:1:1".into(),
            at: 1_000,
            expiration: u64::MAX,
            marks: None,
            origin: Some(Origin { queue: "orders".to_owned(), cause: Cause::poison(Some("no such lot")) }),
            body: message.to_bytes().unwrap(),
        };
        Placed { id: Level::new(3, 7).place(9), persistent: true, message: kept.into() }
    }

    #[test]
    fn a_message_is_shown_with_all_that_an_operator_asks_about() {
        let told = serde_json::to_value(queued(&placed(), true)).unwrap();
        for (pointer, value) in [
            ("/number", serde_json::json!(Level::new(3, 7).place(9).number())),
            ("/came", "1970-01-01T00:00:01Z".into()),
            ("/expires", "".into()),
            ("/priority", 7.into()),
            ("/headers/JMSReplyTo", "queue://orders".into()),
            ("/properties/lot", 7.into()),
            ("/properties/long", "x".repeat(9_000).into()),
            ("/properties/none", serde_json::Value::Null),
            ("/properties/real", serde_json::Value::Null),
            ("/died/queue", "orders".into()),
            ("/died/cause", "poison".into()),
            ("/died/why", "no such lot".into()),
            ("/body/base64", "AP8=".into()),
        ] {
            assert_eq!(told.pointer(pointer), Some(&value), "{pointer}: {told}");
        }
        assert_eq!(queued(&placed(), false).body, None);
    }

    #[tokio::test]
    async fn so_many_are_moved_as_were_asked_for_whatever_a_consumer_holds() {
        let folder = tempfile::tempdir().unwrap();
        let queues = Queues::open(crate::queue::Settings::new(folder.path().join("queue.db"))).unwrap();
        let (from, to) = (Destination::queue("orders").unwrap(), Destination::queue("aside").unwrap());
        let (session, mut deliveries) = queues.connect();
        for _ in 0..6 {
            let send = crate::queue::core::Send {
                destination: from.clone(),
                persistent: true,
                priority: 4,
                producer: None,
                again: false,
                message: placed().message,
            };
            session.send(send, None).await.unwrap().await.unwrap();
        }
        let consumer = session.consumer();
        session.subscribe(consumer, from.clone(), 3).await.unwrap().await.unwrap();
        for _ in 0..3 {
            deliveries.next().await.unwrap();
        }
        assert_eq!(relocate_first(&queues, from.clone(), 2, to.clone()).await.unwrap(), 2);
        assert_eq!(relocate_first(&queues, from, 2, to).await.unwrap(), 1, "no more are free");
    }

    #[test]
    fn what_lies_damaged_in_a_queue_is_shown_as_that() {
        let mut damaged = placed();
        let mut message = (*damaged.message).clone();
        message.body = bytes::Bytes::from_static(b"no message");
        damaged.message = message.into();
        let told = queued(&damaged, true);
        assert!(matches!(told.body, Some(Shown::Not(why)) if why.contains("no message")));
        assert!(told.died.is_some(), "what the queue knows by itself stays");
    }
}

//! `/v1/dead-letters/retry`: dead letters go back to the queues that they came from. Knows which ones an
//! operator means, and which nobody should mean by accident; the queues move them.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use shared::api::MAX_PAGE;

use super::super::body::JsonBody;
use super::super::caller::Caller;
use super::super::refusal::Refusal;
use super::{PAGE_BYTES, ids, opened, refuse};
use crate::queue::message::{DEAD_LETTERS, Destination, Id, Origin};
use crate::queue::{QueueError, Queues};

/// Body of `POST /v1/dead-letters/retry`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retrying {
    /// These, whatever they died of. Without, all that the rest says.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub numbers: Option<Vec<i64>>,
    /// Only those that came from this queue.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from: Option<String>,
    /// Only those whose cause says this somewhere, in capitals or not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// Those too that ActiveMQ's client put aside as duplicates: it had been given them before.
    #[serde(default)]
    pub duplicates: bool,
    /// Tell only how many there are.
    #[serde(default)]
    pub count_only: bool,
}

/// What became of them, or would.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retried {
    /// How many go back.
    pub messages: u64,
    /// Of these by queue, those included that a consumer of dead letters holds; empty where numbers named them.
    #[serde(default)]
    pub queues: BTreeMap<String, u64>,
    /// How many more stay, as duplicates.
    #[serde(default)]
    pub duplicates: u64,
    /// How many stay because they were put there by hand and came from no queue.
    #[serde(default)]
    pub strays: u64,
}

pub(super) async fn retry(
    State(queues): State<Option<Queues>>,
    caller: Caller,
    JsonBody(retrying): JsonBody<Retrying>,
) -> Result<Json<Retried>, Refusal> {
    let queues = opened(&caller, queues)?;
    let wants_some = Retrying { numbers: None, ..retrying.clone() } != Retrying::default();
    if retrying.numbers.is_some() && wants_some {
        let detail = "name dead letters by their numbers, or say which ones, not both";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_request", detail));
    }
    if retrying.count_only {
        return Ok(Json(sweep(&queues, &retrying).await.map_err(|error| refuse(&error))?));
    }
    tracing::warn!(by = %caller.0.name, "dead letters are to go back to their queues");
    let retried = match retrying.numbers.clone() {
        None => sweep(&queues, &retrying).await,
        Some(numbers) => {
            let moved = queues.retry(Some(ids(numbers))).await;
            moved.map(|messages| Retried { messages, ..Retried::default() })
        }
    };
    let retried = retried.map_err(|error| refuse(&error))?;
    let Retried { messages, duplicates, .. } = retried;
    tracing::warn!(messages, duplicates, by = %caller.0.name, "dead letters go back to their queues");
    Ok(Json(retried))
}

/// Page by page, what was dead when it began.
async fn sweep(queues: &Queues, retrying: &Retrying) -> Result<Retried, QueueError> {
    let dead = Destination::Queue(DEAD_LETTERS.into());
    let (before, mut after, mut retried) = (queues.position().await?, Id::default(), Retried::default());
    loop {
        let page = queues.browse(dead.clone(), after, MAX_PAGE, PAGE_BYTES).await?;
        let Some(last) = page.last() else { return Ok(retried) };
        after = last.id;
        let mut chosen = Vec::new();
        for placed in page.iter().filter(|placed| placed.id.sequence() < before) {
            let Some(origin) = &placed.message.origin else {
                retried.strays += u64::from(retrying.from.is_none() && retrying.reason.is_none());
                continue;
            };
            if !retrying.means(origin) {
                continue;
            }
            if origin.cause.is_duplicate() && !retrying.duplicates {
                retried.duplicates += 1;
                continue;
            }
            *retried.queues.entry(origin.queue.clone()).or_default() += 1;
            chosen.push(placed.id);
        }
        let count_only = retrying.count_only;
        let moved = if count_only { chosen.len() as u64 } else { queues.retry(Some(chosen)).await? };
        retried.messages += moved;
    }
}

impl Retrying {
    fn means(&self, origin: &Origin) -> bool {
        let says = |reason: &String| {
            let words = format!("{} {}", origin.cause.word(), origin.cause.why().unwrap_or_default());
            words.to_lowercase().contains(&reason.to_lowercase())
        };
        self.from.as_ref().is_none_or(|from| *from == origin.queue) && self.reason.as_ref().is_none_or(says)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Settings;
    use crate::queue::core::Send;
    use crate::queue::message::{Cause, Message};

    const DUPLICATE: &str =
        "java.lang.Throwable: Suppressing duplicate delivery on connection, consumer ID:c:1:1:1";
    const LIMIT: &str = "java.lang.Throwable: Exceeded redelivery policy limit: no such Lot";

    async fn die(queues: &Queues, origin: Option<(&str, Cause)>) {
        let origin = origin.map(|(queue, cause)| Origin { queue: queue.to_owned(), cause });
        let body = bytes::Bytes::from_static(b"body");
        let message = Message { name: "ID:1".into(), at: 1, expiration: 0, marks: None, origin, body };
        let send = Send {
            destination: Destination::queue(DEAD_LETTERS).unwrap(),
            persistent: true,
            priority: 4,
            producer: None,
            again: false,
            message: message.into(),
        };
        let (session, _deliveries) = queues.connect();
        session.send(send, None).await.unwrap().await.unwrap();
    }

    fn of(messages: u64, by_queue: &[(&str, u64)], duplicates: u64, strays: u64) -> Retried {
        let queues = by_queue.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        Retried { messages, queues, duplicates, strays }
    }

    #[tokio::test]
    async fn duplicates_and_letters_of_no_queue_stay_unless_they_are_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let queues = Queues::open(Settings::new(folder.path().join("queue.db"))).unwrap();
        die(&queues, Some(("orders", Cause::poison(Some(DUPLICATE))))).await;
        die(&queues, Some(("orders", Cause::poison(Some(LIMIT))))).await;
        die(&queues, Some(("orders", Cause::Expired))).await;
        die(&queues, Some(("offers", Cause::poison(None)))).await;
        die(&queues, None).await;
        let count = Retrying { count_only: true, ..Retrying::default() };
        let counted = sweep(&queues, &count).await.unwrap();
        assert_eq!(counted, of(3, &[("offers", 1), ("orders", 2)], 1, 1));
        assert_eq!(sweep(&queues, &count).await.unwrap(), counted, "to count moves nothing");

        let from = Retrying { from: Some("offers".to_owned()), ..Retrying::default() };
        assert_eq!(sweep(&queues, &from).await.unwrap(), of(1, &[("offers", 1)], 0, 0));
        let lot = Retrying { reason: Some("no such lot".to_owned()), ..Retrying::default() };
        assert_eq!(sweep(&queues, &lot).await.unwrap(), of(1, &[("orders", 1)], 0, 0));
        let expired = Retrying { reason: Some("expired".to_owned()), ..Retrying::default() };
        assert_eq!(sweep(&queues, &expired).await.unwrap(), of(1, &[("orders", 1)], 0, 0));
        assert_eq!(sweep(&queues, &Retrying::default()).await.unwrap(), of(0, &[], 1, 1));
        let all = Retrying { duplicates: true, ..Retrying::default() };
        assert_eq!(sweep(&queues, &all).await.unwrap(), of(1, &[("orders", 1)], 0, 1));
    }

    #[test]
    fn a_programs_own_words_make_no_duplicate() {
        assert!(Cause::poison(Some(DUPLICATE)).is_duplicate());
        let told = format!("java.lang.Throwable: Exceeded redelivery policy limit, cause:{DUPLICATE}");
        for cause in [Cause::Expired, Cause::poison(None), Cause::poison(Some(&told))] {
            assert!(!cause.is_duplicate(), "{cause:?}");
        }
    }
}

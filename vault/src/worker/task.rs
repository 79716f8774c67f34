//! What a run of a job does: puts a message into a queue of the embedded broker, or calls a handler.
//! Knows the run's key; not when it is due, nor who may run it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use tokio::time::sleep;

use crate::config::worker::{Call, Kind, Schedule};
use crate::delivery::course::{Course, Next, Policy};
use crate::delivery::letter::Letter;
use crate::delivery::{Caller, DeliveryError};
use crate::openwire::properties::{Properties, Value};
use crate::openwire::{self, EncodeError, MessageKind, ProducerId, Text};
use crate::queue::core::Send;
use crate::queue::message::{Destination, Message, NameError};
use crate::queue::{QueueError, Queues};
use crate::schedule::turn::{Run, key};

/// What a run does, ready to be done.
pub struct Task(Doing);

enum Doing {
    Message { queues: Queues, destination: Destination, text: String },
    Call { caller: Box<Caller>, body: Bytes, content_type: HeaderValue, policy: Policy },
}

/// Why a job cannot be run as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum UnfitError {
    /// Its URL or secrets.
    #[error("schedule: {0}")]
    Delivery(#[from] DeliveryError),
    /// Its queue's name.
    #[error("schedule {job}: queue {queue:?}: {source}")]
    Queue {
        /// The job.
        job: String,
        /// As configured.
        queue: String,
        /// What is wrong.
        #[source]
        source: NameError,
    },
    /// Its content type.
    #[error("schedule {job}: content_type {text:?} is none; write \"application/json\"")]
    ContentType {
        /// The job.
        job: String,
        /// As configured.
        text: String,
    },
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// It took too long.
    #[error("it took longer than its time_limit of {limit:?} and was ended")]
    TooLong {
        /// The limit.
        limit: Duration,
    },
    /// The queue takes nothing.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The message is over what the protocol holds.
    #[error("its message cannot be made: {0}")]
    Message(#[from] EncodeError),
    /// The handler does not want it.
    #[error("{0}")]
    Handler(String),
}

impl Task {
    /// Makes it ready: reads authority and secrets. `queues` are the embedded broker's.
    ///
    /// # Errors
    /// See [`UnfitError`].
    pub fn new(schedule: &Schedule, queues: &Queues) -> Result<Self, UnfitError> {
        let job = schedule.job.name.clone();
        let doing = match &schedule.kind {
            Kind::Message { queue, text } => {
                let wrong = |source| UnfitError::Queue { job, queue: queue.clone(), source };
                let destination = Destination::queue(queue).map_err(wrong)?;
                Doing::Message { queues: queues.clone(), destination, text: text.clone() }
            }
            Kind::Http(Call { endpoint, body, content_type, policy }) => {
                let none = |_| UnfitError::ContentType { job: job.clone(), text: content_type.clone() };
                let content_type = HeaderValue::try_from(content_type).map_err(none)?;
                let caller = Box::new(Caller::new(&job, endpoint, 1)?);
                let (body, policy) = (Bytes::from(body.clone()), *policy);
                Doing::Call { caller, body, content_type, policy }
            }
        };
        Ok(Self(doing))
    }

    /// One run of `job`. Dropping it ends it.
    ///
    /// # Errors
    /// See [`TaskError`].
    pub async fn run(&self, job: &str, run: &Run) -> Result<(), TaskError> {
        match &self.0 {
            Doing::Message { queues, destination, text } => {
                let send = message(job, run.at, destination, text)?;
                let (session, _) = queues.connect();
                session.send(send, None).await?.await?;
                Ok(())
            }
            Doing::Call { caller, body, content_type, policy } => {
                let id = key(job, run.at);
                let mut headers = HeaderMap::new();
                headers.insert(CONTENT_TYPE, content_type.clone());
                if let Ok(key) = HeaderValue::try_from(&id) {
                    headers.insert(HeaderName::from_static("x-schedule-key"), key);
                }
                // Greater with each vault that begins it: what bears a smaller one than was seen is of a
                // vault that slept past its lease.
                headers.insert(HeaderName::from_static("x-schedule-epoch"), run.epoch.into());
                call(caller, &Letter { id, headers, body: body.clone() }, *policy).await
            }
        }
    }
}

async fn call(caller: &Caller, letter: &Letter, policy: Policy) -> Result<(), TaskError> {
    let mut course = Course::new(policy);
    loop {
        let outcome = caller.post(letter, super::wall_clock()).await;
        match course.after(outcome, getrandom::u32().unwrap_or(u32::MAX)) {
            Next::Done => return Ok(()),
            Next::Again { wait, .. } => sleep(wait).await,
            Next::Dead(why) | Next::Gone(why) => return Err(TaskError::Handler(why)),
        }
    }
}

/// Known by its key to whoever reads the queue, and to the queue itself: a run that is repeated on
/// this vault while the queue remembers it puts nothing twice.
fn message(job: &str, at: Timestamp, destination: &Destination, text: &str) -> Result<Send, EncodeError> {
    let name = key(job, at);
    // One producer for each run: runs do not come in the order of their times, and a producer's numbers
    // must rise.
    let producer =
        ProducerId { connection: Text::shortened(&format!("ID:schedule:{name}")), value: 1, session: 1 };
    let queue = openwire::Destination::queue(Text::shortened(destination.name()));
    let mut message = openwire::Message::new(MessageKind::Text, producer.message(1), queue);
    message.set_text(text);
    message.timestamp = at.as_millisecond();
    let mut properties = Properties::default();
    properties.set(Text::shortened("scheduleKey"), Value::string(&name));
    message.properties = Some(properties.to_bytes());
    Ok(Send {
        destination: destination.clone(),
        persistent: true,
        priority: 4,
        producer: Some((format!("schedule:{name}").into(), 1)),
        again: true,
        message: Arc::new(Message {
            name: format!("ID:schedule:{name}").into(),
            at: u64::try_from(at.as_millisecond()).unwrap_or_default(),
            expiration: 0,
            marks: None,
            origin: None,
            body: message.to_bytes()?,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue;
    use crate::queue::message::Id;
    use crate::schedule::Job;
    use crate::schedule::plan::Plan;
    use crate::schedule::turn::{Passed, Rules};

    fn at(text: &str) -> Timestamp {
        format!("2026-05-01T{text}Z").parse().unwrap()
    }

    fn run(time: &str) -> Run {
        Run { at: at(time), asked: false, by: "vault-a".into(), epoch: 1, began: at(time) }
    }

    #[tokio::test]
    async fn each_run_puts_one_message_in_whatever_order_they_come_and_a_repeated_one_none() {
        let folder = tempfile::tempdir().unwrap();
        let queues = Queues::open(queue::Settings::new(folder.path().join("queue.db"))).unwrap();
        let rules = Rules { missed: Passed::RunOnce, overlap: Passed::Skip };
        let plan = Plan::parse("*/10 * * * *", "UTC", at("00:00:00")).unwrap();
        let job = Job { name: "report".into(), plan, rules, time_limit: Duration::from_secs(60) };
        let kind = Kind::Message { queue: "reports".into(), text: "go".into() };
        let task = Task::new(&Schedule { job, kind }, &queues).unwrap();
        // An operator's wish comes before the run that was due before it.
        for time in ["10:10:01", "10:10:00", "10:20:00", "10:10:00", "10:20:00"] {
            task.run("report", &run(time)).await.unwrap();
        }
        let destination = Destination::queue("reports").unwrap();
        let placed = queues.browse(destination, Id::default(), 10, 1 << 20).await.unwrap();
        let names: Vec<_> = placed.iter().map(|placed| &*placed.message.name).collect();
        assert_eq!(
            names,
            ["10:10:01", "10:10:00", "10:20:00"].map(|time| format!("ID:schedule:report/2026-05-01T{time}Z"))
        );
    }
}

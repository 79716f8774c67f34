//! A session and its consumers: each call is the one of JMS that has its name.

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

use super::{Letter, PATIENCE, Received, Talk};

/// How a session acknowledges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledge {
    /// `AUTO_ACKNOWLEDGE`.
    Auto,
    /// `CLIENT_ACKNOWLEDGE`: one stands for all that the session has received.
    Client,
    /// `DUPS_OK_ACKNOWLEDGE`.
    DupsOk,
    /// ActiveMQ's `INDIVIDUAL_ACKNOWLEDGE`.
    Individual,
    /// `SESSION_TRANSACTED`.
    Transacted,
}

impl Acknowledge {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Client => "client",
            Self::DupsOk => "dups_ok",
            Self::Individual => "individual",
            Self::Transacted => "transacted",
        }
    }
}

/// How a message is sent.
#[derive(Debug, Clone, Copy)]
pub struct Delivery {
    /// Does it survive the broker's restart?
    pub persistent: bool,
    /// From 0 to 9.
    pub priority: u8,
    /// How long it is worth something; zero: for ever. Counted in milliseconds.
    pub time_to_live: Duration,
}

impl Default for Delivery {
    /// JMS's own defaults.
    fn default() -> Self {
        Self { persistent: true, priority: 4, time_to_live: Duration::ZERO }
    }
}

/// One session. Destinations are `queue://A`, `topic://A`, what [`Self::temporary_queue`] gave, or
/// the bare name of a queue. It is not closed when it is dropped: say [`Self::close`].
#[derive(Debug)]
pub struct Session {
    talk: Arc<Talk>,
    number: u32,
}

impl Session {
    pub(super) fn new(talk: &Arc<Talk>, number: u32) -> Self {
        Self { talk: Arc::clone(talk), number }
    }

    /// Sends with JMS's defaults: persistent, priority 4, for ever. Tells what was sent.
    ///
    /// # Errors
    /// The [`super::Refusal`].
    pub fn send(&self, destination: &str, letter: &Letter) -> anyhow::Result<Received> {
        self.send_as(destination, letter, Delivery::default())
    }

    /// Sends; tells what was sent with what the client has added to it.
    ///
    /// # Errors
    /// The [`super::Refusal`].
    pub fn send_as(
        &self,
        destination: &str,
        letter: &Letter,
        delivery: Delivery,
    ) -> anyhow::Result<Received> {
        let words = json!({
            "destination": destination,
            "message": letter,
            "persistent": delivery.persistent,
            "priority": delivery.priority,
            "time_to_live": milliseconds(delivery.time_to_live)?,
        });
        self.ask("send", words)
    }

    /// Subscribes to a queue or a topic.
    ///
    /// # Errors
    /// The [`super::Refusal`].
    pub fn consumer(&self, destination: &str) -> anyhow::Result<Consumer<'_>> {
        self.subscribe(json!({ "destination": destination }))
    }

    /// Subscribes to the messages that a selector of JMS picks.
    ///
    /// # Errors
    /// The [`super::Refusal`].
    pub fn selecting(&self, destination: &str, selector: &str) -> anyhow::Result<Consumer<'_>> {
        self.subscribe(json!({ "destination": destination, "selector": selector }))
    }

    /// Subscribes durably to a topic.
    ///
    /// # Errors
    /// The [`super::Refusal`].
    pub fn durable(&self, topic: &str, name: &str) -> anyhow::Result<Consumer<'_>> {
        self.subscribe(json!({ "destination": topic, "durable": name }))
    }

    /// Ends a durable subscription.
    ///
    /// # Errors
    /// The [`super::Refusal`].
    pub fn unsubscribe(&self, name: &str) -> anyhow::Result<()> {
        self.ask("unsubscribe", json!({ "name": name }))
    }

    /// Acknowledges a message that this session has received.
    ///
    /// # Errors
    /// The [`super::Refusal`]; also where it was acknowledged, or `recover` was said, before.
    pub fn acknowledge(&self, message: &Received) -> anyhow::Result<()> {
        self.ask("acknowledge", json!({ "message": message.id }))
    }

    /// Has all that is not acknowledged delivered again.
    ///
    /// # Errors
    /// The [`super::Refusal`].
    pub fn recover(&self) -> anyhow::Result<()> {
        self.ask("recover", json!({}))
    }

    /// Commits the transaction.
    ///
    /// # Errors
    /// The [`super::Refusal`].
    pub fn commit(&self) -> anyhow::Result<()> {
        self.ask("commit", json!({}))
    }

    /// Rolls the transaction back.
    ///
    /// # Errors
    /// The [`super::Refusal`].
    pub fn rollback(&self) -> anyhow::Result<()> {
        self.ask("rollback", json!({}))
    }

    /// Looks at what waits in a queue, from the front, at `most` so many.
    ///
    /// # Errors
    /// The [`super::Refusal`].
    pub fn browse(&self, queue: &str, most: u32) -> anyhow::Result<Vec<Received>> {
        self.ask("browse", json!({ "destination": queue, "most": most }))
    }

    /// Looks at what waits in a queue message by message.
    ///
    /// # Errors
    /// The [`super::Refusal`].
    pub fn browser(&self, queue: &str) -> anyhow::Result<Browser<'_>> {
        let number = self.ask("open_browser", json!({ "destination": queue }))?;
        Ok(Browser { session: self, number })
    }

    /// Makes a temporary queue of the connection; its name, for everything that takes a destination.
    ///
    /// # Errors
    /// The [`super::Refusal`].
    pub fn temporary_queue(&self) -> anyhow::Result<String> {
        self.ask("temporary_queue", json!({}))
    }

    /// Deletes a temporary queue.
    ///
    /// # Errors
    /// The [`super::Refusal`].
    pub fn delete_temporary(&self, name: &str) -> anyhow::Result<()> {
        self.ask("delete_temporary", json!({ "destination": name }))
    }

    /// Closes it and its consumers.
    ///
    /// # Errors
    /// The [`super::Refusal`].
    pub fn close(self) -> anyhow::Result<()> {
        self.ask("end", json!({}))
    }

    fn subscribe(&self, words: Json) -> anyhow::Result<Consumer<'_>> {
        Ok(Consumer { number: self.ask("consumer", words)?, session: self })
    }

    fn ask<T: DeserializeOwned>(&self, op: &str, words: Json) -> anyhow::Result<T> {
        self.ask_within(op, words, PATIENCE)
    }

    fn ask_within<T: DeserializeOwned>(
        &self,
        op: &str,
        mut words: Json,
        within: Duration,
    ) -> anyhow::Result<T> {
        words["session"] = self.number.into();
        self.talk.ask_within(op, words, within)
    }
}

/// One subscription. Dropped, it is closed before anything else is done in its session; then what
/// it had fetched and not given out goes back, and what it gave out can no longer be acknowledged.
#[derive(Debug)]
pub struct Consumer<'s> {
    session: &'s Session,
    number: u32,
}

impl Consumer<'_> {
    /// The next message, if one comes `within` that time; zero does not wait at all.
    ///
    /// # Errors
    /// The [`super::Refusal`].
    pub fn receive(&self, within: Duration) -> anyhow::Result<Option<Received>> {
        let words = json!({ "consumer": self.number, "within": milliseconds(within)? });
        self.session.ask_within("receive", words, within + PATIENCE)
    }

    /// From now on messages go to a listener; it throws at the first `refusals` deliveries.
    ///
    /// # Errors
    /// The [`super::Refusal`].
    pub fn listen(&self, refusals: u32) -> anyhow::Result<()> {
        self.session.ask("listen", json!({ "consumer": self.number, "refusals": refusals }))
    }

    /// What the listener was given so far, refused deliveries too.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn heard(&self) -> anyhow::Result<Vec<Received>> {
        self.session.ask("heard", json!({ "consumer": self.number }))
    }
}

impl Drop for Consumer<'_> {
    fn drop(&mut self) {
        let words = json!({ "session": self.session.number, "consumer": self.number });
        // Nobody waits for the answer: it may be closed already with its session, or the client gone.
        let _ = self.session.talk.tell("close_consumer", words);
    }
}

/// One look at a queue. Dropped, it is closed before anything else is done in its session.
#[derive(Debug)]
pub struct Browser<'s> {
    session: &'s Session,
    number: u32,
}

impl Browser<'_> {
    /// The next message, if there is one more.
    ///
    /// # Errors
    /// The [`super::Refusal`].
    pub fn look(&mut self) -> anyhow::Result<Option<Received>> {
        self.session.ask("next_browsed", json!({ "browser": self.number }))
    }
}

impl Drop for Browser<'_> {
    fn drop(&mut self) {
        let words = json!({ "session": self.session.number, "browser": self.number });
        // As with a consumer.
        let _ = self.session.talk.tell("close_browser", words);
    }
}

fn milliseconds(time: Duration) -> anyhow::Result<u64> {
    Ok(u64::try_from(time.as_millis())?)
}

//! What was posted as a JMS message: OpenWire's form of it, and the queue's. Pure; knows no HTTP, and
//! not whether it was posted before.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::book::Hash;
use crate::openwire::properties::Properties;
use crate::openwire::{self, Body, EncodeError, MessageKind, ProducerId, Text};
use crate::queue::core::Send;
use crate::queue::message::{Destination, Marks, Message};

/// How [`Post::print`] is made.
const PRINT: u8 = 1;

/// A message that somebody wants posted. Headers are JMS's.
#[derive(Debug, Clone, PartialEq)]
pub struct Post {
    /// Where to.
    pub destination: Destination,
    /// Is it to survive restarts?
    pub persistent: bool,
    /// 0 to 9.
    pub priority: u8,
    /// After so long it is worthless; `None` is never.
    pub time_to_live: Option<Duration>,
    /// JMSCorrelationID.
    pub correlation_id: Option<Text>,
    /// JMSType.
    pub jms_type: Option<Text>,
    /// JMSXGroupID.
    pub group: Option<Text>,
    /// JMSReplyTo, a queue.
    pub reply_to: Option<Text>,
    /// The application's properties.
    pub properties: Properties,
    /// A text or bytes.
    pub body: Body,
}

impl Post {
    /// SHA-256 of all that its sender said: two posts are the same if theirs are. The same in all
    /// releases: it is kept, and compared with the other vault's.
    pub(super) fn print(&self) -> Hash {
        let mut hasher = Sha256::new_with_prefix([PRINT]);
        let mut field = |bytes: Option<&[u8]>| {
            // Its length tells where a field ends, and none is no empty one.
            let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
            hasher.update(length.to_be_bytes());
            hasher.update(bytes.unwrap_or_default());
        };
        let time = self.time_to_live.map_or(0, |time| time.as_millis());
        field(Some(self.destination.name().as_bytes()));
        field(Some(&[u8::from(self.persistent), self.priority]));
        field(Some(&time.to_be_bytes()));
        for text in [&self.correlation_id, &self.jms_type, &self.group, &self.reply_to] {
            field(text.as_ref().map(Text::as_bytes));
        }
        field(Some(&self.properties.to_bytes()));
        let (kind, body): (u8, &[u8]) = match &self.body {
            Body::Empty => (0, &[]),
            Body::Text(text) => (1, text.as_bytes()),
            Body::Bytes(bytes) => (2, bytes),
        };
        field(Some(&[kind]));
        field(Some(body));
        hasher.finalize().into()
    }

    /// As the queues take it, as message `number` of its producer; `now` in ms since 1970.
    ///
    /// # Errors
    /// More than any frame holds.
    pub(super) fn to_queue(&self, producer: &ProducerId, number: u64, now: u64) -> Result<Send, EncodeError> {
        let message = self.message(producer, signed(number), signed(now));
        let group = message.group_id.as_ref().map(ToString::to_string);
        Ok(Send {
            destination: self.destination.clone(),
            persistent: self.persistent,
            priority: self.priority,
            producer: Some((producer.to_string().into(), number)),
            again: false,
            message: Arc::new(Message {
                name: message.message_id.to_string().into(),
                at: now,
                expiration: u64::try_from(message.expiration).unwrap_or_default(),
                marks: Marks::new(group.as_deref(), message.group_sequence, None),
                origin: None,
                body: message.to_bytes()?,
            }),
        })
    }

    fn message(&self, producer: &ProducerId, number: i64, now: i64) -> openwire::Message {
        let queue = |name: Text| openwire::Destination::queue(name);
        let destination = queue(Text::shortened(self.destination.name()));
        let mut message = openwire::Message::new(MessageKind::Plain, producer.message(number), destination);
        match &self.body {
            Body::Empty => {}
            Body::Text(text) => message.set_text(text),
            Body::Bytes(bytes) => message.set_bytes(bytes.clone()),
        }
        message.persistent = self.persistent;
        message.priority = i8::try_from(self.priority).unwrap_or(4);
        message.timestamp = now;
        message.broker_in_time = now;
        message.expiration = self.time_to_live.map_or(0, |time| {
            let time = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
            now.saturating_add(time)
        });
        message.correlation_id = self.correlation_id.clone();
        message.jms_type = self.jms_type.clone();
        message.group_id = self.group.clone();
        message.reply_to = self.reply_to.clone().map(queue);
        if self.properties.iter().next().is_some() {
            message.properties = Some(self.properties.to_bytes());
        }
        message
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openwire::properties::Value;

    fn post() -> Post {
        Post {
            destination: Destination::queue("orders").unwrap(),
            persistent: true,
            priority: 4,
            time_to_live: None,
            correlation_id: None,
            jms_type: None,
            group: None,
            reply_to: None,
            properties: Properties::default(),
            body: Body::Text("hello".to_owned()),
        }
    }

    fn text(text: &str) -> Option<Text> {
        Some(Text::shortened(text))
    }

    #[test]
    fn whatever_differs_makes_another_message_and_time_does_not() {
        let mut all = vec![post()];
        let mut other = |change: &dyn Fn(&mut Post)| {
            let mut post = post();
            change(&mut post);
            all.push(post);
        };
        other(&|post| post.destination = Destination::queue("other").unwrap());
        other(&|post| post.persistent = false);
        other(&|post| post.priority = 5);
        other(&|post| post.time_to_live = Some(Duration::from_secs(1)));
        other(&|post| post.correlation_id = text("c"));
        other(&|post| post.jms_type = text("c"));
        other(&|post| post.group = text("c"));
        other(&|post| post.reply_to = text("c"));
        other(&|post| post.properties.set(Text::shortened("a"), Value::Integer(1)));
        other(&|post| post.properties.set(Text::shortened("a"), Value::Long(1)));
        other(&|post| post.body = Body::Bytes("hello".into()));
        other(&|post| post.body = Body::Text("hullo".to_owned()));
        let prints: std::collections::HashSet<Hash> = all.iter().map(|post| post.print()).collect();
        assert_eq!(prints.len(), all.len());
        assert_eq!(post().print(), post().print());
    }

    #[test]
    fn its_name_in_the_queue_is_the_one_that_java_shows() {
        let mut post = post();
        post.time_to_live = Some(Duration::from_millis(50));
        let producer = ProducerId { connection: Text::shortened("ID:vault-a"), value: 3, session: 1 };
        let send = post.to_queue(&producer, 7, 1_000).unwrap();
        assert_eq!(&*send.message.name, "ID:vault-a:1:3:7");
        assert_eq!(send.producer, Some(("ID:vault-a:1:3".into(), 7)));
        assert_eq!((send.message.at, send.message.expiration), (1_000, 1_050));
        let kept = openwire::Message::from_bytes(send.message.body.clone()).unwrap();
        assert_eq!(kept.message_id.to_string(), "ID:vault-a:1:3:7");
        assert_eq!(kept.body(100).unwrap(), Body::Text("hello".to_owned()));
    }
}

//! A message on its way through the broker: from the client's frame into a queue, and out of it to
//! a consumer with what the broker adds. Pure; body and properties stay the bytes that they are.

use std::sync::Arc;

use crate::openwire::properties::{Properties, Value};
use crate::openwire::{
    ConsumerId, Destination, DestinationKind, EncodeError, Message, MessageDispatch, MessageId, MessageKind,
    Text,
};
use crate::queue::core::Send;
use crate::queue::message::{self, Cause, Id, Marks};
use crate::queue::{self, Delivery};

use super::fault::Refused;

/// What ActiveMQ's client counts for a message's headers, bytes.
const HEADERS: usize = 1024;
/// Begins the names of the properties that ActiveMQ's scheduler reads.
const SCHEDULED: &[u8] = b"AMQ_SCHEDULED_";
/// Queues that one message may go to.
const MOST_AT_ONCE: usize = 64;
/// Where a dead letter tells why it is one.
const CAUSE: &str = "dlqDeliveryFailureCause";

/// The queue that a destination names.
///
/// # Errors
/// Topics, and what names no single queue.
pub(super) fn queue_of(destination: &Destination) -> Result<message::Destination, Refused> {
    let name = destination.name.to_string();
    let made = match destination.kind {
        DestinationKind::Queue => message::Destination::queue(&name),
        DestinationKind::TempQueue => message::Destination::temporary(&name),
        DestinationKind::Topic | DestinationKind::TempTopic => return Err(Refused::Unserved("topics")),
    };
    made.map_err(|why| Refused::Name { name, why })
}

/// The queues that a message goes to: one, or those of a composite name, `A,queue://B`.
///
/// # Errors
/// Those of [`queue_of`] for any of them; [`Refused::TooMany`].
pub(super) fn queues_of(destination: &Destination) -> Result<Vec<message::Destination>, Refused> {
    if !destination.name.as_bytes().contains(&b',') {
        return Ok(vec![queue_of(destination)?]);
    }
    let names = destination.name.to_string();
    let mut queues = Vec::new();
    for name in names.split(',').map(str::trim) {
        let (kind, name) = match name.split_once("://") {
            None => (destination.kind, name),
            Some(("queue", name)) => (DestinationKind::Queue, name),
            Some(("temp-queue", name)) => (DestinationKind::TempQueue, name),
            Some(_) => (DestinationKind::Topic, name),
        };
        let queue = queue_of(&Destination { kind, name: Text::shortened(name) })?;
        if queues.contains(&queue) {
            continue;
        }
        if queues.len() == MOST_AT_ONCE {
            return Err(Refused::TooMany { what: "queues in one name", most: MOST_AT_ONCE });
        }
        queues.push(queue);
    }
    Ok(queues)
}

/// Is it to survive restarts, as far as its sender and its queue say?
pub(super) fn is_kept(message: &Message) -> bool {
    message.persistent && message.destination.kind != DestinationKind::TempQueue
}

/// Is it to be delivered later, or again and again? ActiveMQ's scheduler reads that from properties.
pub(super) fn is_scheduled(message: &Message) -> bool {
    let Some(properties) = &message.properties else { return false };
    // Looked for first: few messages have any of them.
    properties.windows(SCHEDULED.len()).any(|bytes| bytes == SCHEDULED)
        && Properties::read(properties)
            .is_ok_and(|properties| properties.iter().any(|(name, _)| name.as_bytes().starts_with(SCHEDULED)))
}

/// What a message takes, as the Java client counts it; bytes.
pub(super) fn size(message: &Message) -> usize {
    let length = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
    HEADERS + length(&message.content) + length(&message.properties)
}

/// Its body as it came, in bytes; without the length that a text begins with.
pub(super) fn body_size(message: &Message) -> usize {
    let content = message.content.as_ref().map_or(0, bytes::Bytes::len);
    match message.kind {
        MessageKind::Text if !message.compressed => content.saturating_sub(size_of::<u32>()),
        _ => content,
    }
}

/// How much of its producer's window a message takes; bytes.
pub(super) fn window_size(message: &Message) -> i32 {
    i32::try_from(size(message)).unwrap_or(i32::MAX)
}

/// One of the messages that a composite name makes; see [`to_queue`]. Each is recognised by itself
/// when it is sent again.
///
/// # Errors
/// As [`to_queue`].
pub(super) fn to_one_of(
    message: &Message,
    destination: message::Destination,
    again: bool,
    now: u64,
) -> Result<Send, EncodeError> {
    let name = destination.name().to_owned();
    let mut send = to_queue(message.clone(), destination, again, now)?;
    send.producer = send.producer.map(|(producer, number)| (format!("{producer}>{name}").into(), number));
    Ok(send)
}

/// A message as the queues take it. `again`: its connection may have sent it before. `now` in ms
/// since 1970.
///
/// # Errors
/// [`EncodeError`]: more than any frame holds.
pub(super) fn to_queue(
    mut message: Message,
    destination: message::Destination,
    again: bool,
    now: u64,
) -> Result<Send, EncodeError> {
    // What was true of the frame and of its transaction is not true of what is kept.
    message.head = crate::openwire::Head::default();
    message.transaction_id = None;
    message.broker_in_time = signed(now);
    let id = &message.message_id;
    let producer = u64::try_from(id.producer_sequence).ok().map(|number| (producer(id).into(), number));
    let group = message.group_id.as_ref().map(Text::to_string);
    let path: Vec<String> =
        message.broker_path.iter().flatten().map(|broker| broker.value.to_string()).collect();
    let path = path.iter().map(String::as_str);
    Ok(Send {
        destination,
        persistent: message.persistent,
        priority: u8::try_from(message.priority.clamp(0, 9)).unwrap_or_default(),
        producer,
        again,
        message: Arc::new(queue::message::Message {
            name: name(id).into(),
            at: now,
            expiration: u64::try_from(message.expiration).unwrap_or_default(),
            marks: Marks::new(group.as_deref(), message.group_sequence, path),
            origin: None,
            body: message.to_bytes()?,
        }),
    })
}

/// As JMSMessageID shows it.
fn name(id: &MessageId) -> String {
    match &id.text_view {
        Some(text) => text.to_string(),
        None => format!("{}:{}", producer(id), id.producer_sequence),
    }
}

fn producer(id: &MessageId) -> String {
    let producer = &id.producer;
    format!("{}:{}:{}", producer.connection, producer.session, producer.value)
}

/// A message for a consumer of `source`, as it goes out at `now` (ms since 1970).
///
/// # Errors
/// What lies in the queue is no message: its file was damaged.
pub(super) fn dispatch(
    delivery: &Delivery,
    consumer: &ConsumerId,
    source: &Destination,
    now: u64,
) -> Result<MessageDispatch, crate::openwire::DecodeError> {
    let Delivery { id, redeliveries, first, message, .. } = delivery;
    let counter = i32::try_from(*redeliveries).unwrap_or(i32::MAX);
    let mut out = Message::from_bytes(message.body.clone())?;
    mark(&mut out, *id, message, source, now);
    out.redelivery_counter = counter;
    out.group_first_for_consumer = *first;
    Ok(MessageDispatch {
        head: crate::openwire::Head::default(),
        consumer_id: consumer.clone(),
        destination: Some(source.clone()),
        message: Some(out),
        redelivery_counter: counter,
    })
}

/// What the broker knows better than the message itself.
fn mark(out: &mut Message, id: Id, kept: &message::Message, source: &Destination, now: u64) {
    out.message_id.broker_sequence = id.number();
    out.broker_out_time = signed(now);
    let expired_at = std::mem::replace(&mut out.expiration, signed(kept.expiration));
    if out.destination != *source {
        let before = std::mem::replace(&mut out.destination, source.clone());
        out.original_destination = Some(before);
    }
    if let Some(origin) = &kept.origin {
        out.original_destination = Some(Destination::queue(Text::shortened(&origin.queue)));
        tell_cause(out, &origin.cause, expired_at);
    }
}

/// As ActiveMQ's own dead letters tell it.
fn tell_cause(out: &mut Message, cause: &Cause, expired_at: i64) {
    let why = match cause {
        Cause::Expired => format!("java.lang.Throwable: Message Expired. Expiration:{expired_at}"),
        Cause::Poison(why) => {
            why.as_deref().unwrap_or("poison, and its consumer does not say why").to_owned()
        }
    };
    let properties = out.properties.as_ref().map_or(Ok(Properties::default()), Properties::read);
    // Properties that cannot be read stay as they are.
    if let Ok(mut properties) = properties {
        properties.set(Text::shortened(CAUSE), Value::string(&why));
        out.properties = Some(properties.to_bytes());
    }
}

fn signed(milliseconds: u64) -> i64 {
    i64::try_from(milliseconds).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::openwire::ProducerId;
    use crate::queue::message::{Level, Origin};

    fn text(text: &str) -> Text {
        Text::shortened(text)
    }

    fn message() -> Message {
        let producer = ProducerId { connection: text("ID:host-1-2-0:1"), value: 3, session: 2 };
        let id = MessageId { text_view: None, producer, producer_sequence: 7, broker_sequence: 0 };
        let mut message = Message::new(MessageKind::Text, id, Destination::queue(text("orders")));
        message.content = Some(Bytes::from_static(b"\0\0\0\x02hi"));
        message.expiration = 99;
        message.priority = 12;
        message
    }

    fn kept(origin: Option<Origin>) -> Delivery {
        let sent = to_queue(message(), message::Destination::queue("orders").unwrap(), true, 5).unwrap();
        let mut kept = (*sent.message).clone();
        kept.origin = origin;
        if kept.origin.is_some() {
            kept.expiration = 0;
        }
        let id = Level::new(3, 4).place(8);
        Delivery { consumer: 1, id, size: 1, redeliveries: 2, first: false, message: Arc::new(kept) }
    }

    fn consumer() -> ConsumerId {
        ConsumerId { connection: text("c"), session: 1, value: 1 }
    }

    #[test]
    fn a_message_is_kept_under_the_name_that_java_shows_and_the_number_that_failover_repeats() {
        let send = to_queue(message(), message::Destination::queue("orders").unwrap(), true, 5).unwrap();
        assert_eq!(&*send.message.name, "ID:host-1-2-0:1:2:3:7");
        assert_eq!(send.producer, Some(("ID:host-1-2-0:1:2:3".into(), 7)));
        assert_eq!((send.priority, send.message.expiration, send.again), (9, 99, true));
    }

    #[test]
    fn a_dispatch_carries_place_and_count_and_leaves_the_body_alone() {
        let delivery = kept(None);
        let source = Destination::queue(text("orders"));
        let out = dispatch(&delivery, &consumer(), &source, 6).unwrap();
        let sent = out.message.unwrap();
        assert_eq!(sent.message_id.broker_sequence, delivery.id.number());
        assert_eq!((out.redelivery_counter, sent.redelivery_counter), (2, 2));
        assert_eq!((sent.broker_in_time, sent.broker_out_time, sent.expiration), (5, 6, 99));
        assert_eq!((sent.content, sent.original_destination), (message().content, None));
    }

    #[test]
    fn a_dead_letter_tells_where_it_comes_from_and_why_and_expires_no_more() {
        let origin = Origin { queue: "orders".to_owned(), cause: Cause::Expired };
        let source = Destination::queue(text(queue::message::DEAD_LETTERS));
        let sent = dispatch(&kept(Some(origin)), &consumer(), &source, 6).unwrap().message.unwrap();
        assert_eq!((sent.destination, sent.expiration), (source, 0));
        assert_eq!(sent.original_destination, Some(Destination::queue(text("orders"))));
        let properties = Properties::read(&sent.properties.unwrap()).unwrap();
        let cause = properties.text(CAUSE);
        assert_eq!(cause.as_deref(), Some("java.lang.Throwable: Message Expired. Expiration:99"));
    }

    #[test]
    fn a_producers_window_is_counted_as_its_client_counts_it() {
        let mut sent = message();
        sent.content = Some(Bytes::from(vec![0; 900]));
        assert_eq!(window_size(&sent), 1924);
    }

    #[test]
    fn a_composite_name_is_several_queues_each_once_and_none_of_them_a_topic() {
        let of = |name: &str| queues_of(&Destination::queue(text(name)));
        let names = |name: &str| -> Vec<String> {
            of(name).unwrap().iter().map(|queue| queue.name().to_owned()).collect()
        };
        assert_eq!(names("a"), ["a"]);
        assert_eq!(names("a, queue://b,a"), ["a", "b"]);
        assert!(matches!(of("a,topic://t"), Err(Refused::Unserved("topics"))));
        assert!(matches!(of("a,b.>"), Err(Refused::Name { .. })));
        assert!(matches!(of("a,,b"), Err(Refused::Name { .. })));
        let many: Vec<_> = (0..65).map(|number| number.to_string()).collect();
        assert!(matches!(of(&many.join(",")), Err(Refused::TooMany { most: 64, .. })));
    }

    #[test]
    fn each_message_of_a_composite_name_is_recognised_by_itself() {
        let [one, two] = ["a", "b"].map(|name| {
            let queue = message::Destination::queue(name).unwrap();
            to_one_of(&message(), queue, true, 5).unwrap().producer.unwrap()
        });
        assert_eq!((&*one.0, one.1), ("ID:host-1-2-0:1:2:3>a", 7));
        assert_ne!(one, two);
    }

    #[test]
    fn a_message_for_activemqs_scheduler_is_known_by_its_properties() {
        let with = |name: &str, value| {
            let mut properties = Properties::default();
            properties.set(text(name), value);
            Message { properties: Some(properties.to_bytes()), ..message() }
        };
        assert!(!is_scheduled(&message()));
        assert!(is_scheduled(&with("AMQ_SCHEDULED_DELAY", Value::Long(1))));
        assert!(is_scheduled(&with("AMQ_SCHEDULED_CRON", Value::string("* * * * *"))));
        assert!(!is_scheduled(&with("about", Value::string("AMQ_SCHEDULED_DELAY"))));
    }

    #[test]
    fn topics_patterns_and_lists_are_no_queues() {
        assert!(matches!(queue_of(&Destination::topic(text("t"))), Err(Refused::Unserved("topics"))));
        for name in ["orders.>", "a,b", ""] {
            assert!(matches!(queue_of(&Destination::queue(text(name))), Err(Refused::Name { .. })), "{name}");
        }
        for name in [&b"\xff"[..], b"\xfe", b"a\xed\xa0\x80"] {
            let name = Text::from_bytes(bytes::Bytes::from_static(name)).unwrap();
            assert!(matches!(queue_of(&Destination::queue(name)), Err(Refused::Name { .. })));
        }
    }
}

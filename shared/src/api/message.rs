//! Messages that are posted over HTTP: the names of their headers and the answer. What the headers say
//! is JMS's; texts in them are percent-encoded UTF-8.

use serde::{Deserialize, Serialize};

/// Request header: `true` (by default) or `false`, which a restart of its vault loses.
pub const MESSAGE_PERSISTENT: &str = "x-message-persistent";
/// Request header: 0 to 9; 4 by default.
pub const MESSAGE_PRIORITY: &str = "x-message-priority";
/// Request header: after so many milliseconds it is worthless; 0, the default, is never.
pub const MESSAGE_TIME_TO_LIVE: &str = "x-message-time-to-live";
/// Request header: JMSCorrelationID.
pub const MESSAGE_CORRELATION_ID: &str = "x-message-correlation-id";
/// Request header: JMSType.
pub const MESSAGE_TYPE: &str = "x-message-type";
/// Request header: JMSXGroupID.
pub const MESSAGE_GROUP: &str = "x-message-group";
/// Request header: JMSReplyTo, the name of a queue.
pub const MESSAGE_REPLY_TO: &str = "x-message-reply-to";
/// Request header: the application's properties, a JSON object of strings, numbers and truth values.
pub const MESSAGE_PROPERTIES: &str = "x-message-properties";
/// How all of them begin; what begins so and is none of them is a mistake.
pub const MESSAGE_PREFIX: &str = "x-message-";
/// All of them.
pub const MESSAGE_HEADERS: [&str; 8] = [
    MESSAGE_PERSISTENT,
    MESSAGE_PRIORITY,
    MESSAGE_TIME_TO_LIVE,
    MESSAGE_CORRELATION_ID,
    MESSAGE_TYPE,
    MESSAGE_GROUP,
    MESSAGE_REPLY_TO,
    MESSAGE_PROPERTIES,
];

/// Answer of `POST /v1/messages/{destination}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostedMessage {
    /// JMSMessageID.
    pub id: String,
    /// Its queue.
    pub destination: String,
}

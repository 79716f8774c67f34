//! The protocol's numbers of types, by name; also of those that are not spoken here, so that they
//! are refused by name. Knows no fields.
//!
//! Source: ActiveMQ's `CommandTypes`.

use super::fault::Fault;

/// Every number and its name. Journal records never leave a broker's disk; partial and replay
/// commands belong to datagram transports.
const NAMES: &[(u8, &str)] = &[
    (1, "WireFormatInfo"),
    (2, "BrokerInfo"),
    (3, "ConnectionInfo"),
    (4, "SessionInfo"),
    (5, "ConsumerInfo"),
    (6, "ProducerInfo"),
    (7, "TransactionInfo"),
    (8, "DestinationInfo"),
    (9, "RemoveSubscriptionInfo"),
    (10, "KeepAliveInfo"),
    (11, "ShutdownInfo"),
    (12, "RemoveInfo"),
    (14, "ControlCommand"),
    (15, "FlushCommand"),
    (16, "ConnectionError"),
    (17, "ConsumerControl"),
    (18, "ConnectionControl"),
    (19, "ProducerAck"),
    (20, "MessagePull"),
    (21, "MessageDispatch"),
    (22, "MessageAck"),
    (23, "ActiveMQMessage"),
    (24, "ActiveMQBytesMessage"),
    (25, "ActiveMQMapMessage"),
    (26, "ActiveMQObjectMessage"),
    (27, "ActiveMQStreamMessage"),
    (28, "ActiveMQTextMessage"),
    (29, "ActiveMQBlobMessage"),
    (30, "Response"),
    (31, "ExceptionResponse"),
    (32, "DataResponse"),
    (33, "DataArrayResponse"),
    (34, "IntegerResponse"),
    (40, "DiscoveryEvent"),
    (50, "JournalTopicAck"),
    (52, "JournalQueueAck"),
    (53, "JournalTrace"),
    (54, "JournalTransaction"),
    (55, "SubscriptionInfo"),
    (60, "PartialCommand"),
    (61, "LastPartialCommand"),
    (65, "ReplayCommand"),
    (90, "MessageDispatchNotification"),
    (91, "NetworkBridgeFilter"),
    (92, "BrokerSubscriptionInfo"),
    (100, "ActiveMQQueue"),
    (101, "ActiveMQTopic"),
    (102, "ActiveMQTempQueue"),
    (103, "ActiveMQTempTopic"),
    (110, "MessageId"),
    (111, "LocalTransactionId"),
    (112, "XATransactionId"),
    (120, "ConnectionId"),
    (121, "SessionId"),
    (122, "ConsumerId"),
    (123, "ProducerId"),
    (124, "BrokerId"),
];

/// The type's name in the protocol.
#[must_use]
pub(super) fn name(code: u8) -> Option<&'static str> {
    let at = NAMES.binary_search_by_key(&code, |(number, _)| *number).ok()?;
    NAMES.get(at).map(|(_, name)| *name)
}

/// That `found` is the number `wanted`.
pub(super) fn expect(wanted: u8, found: u8) -> Result<(), Fault> {
    if wanted == found { Ok(()) } else { Err(stray(name(wanted).unwrap_or("a structure"), found)) }
}

/// A number `found` where something else is `wanted`.
pub(super) fn stray(wanted: &'static str, found: u8) -> Fault {
    name(found).map_or(Fault::UnknownType(found), |found| Fault::WrongType { wanted, found })
}

/// A number that no command spoken here has.
pub(super) fn unsupported(code: u8) -> Fault {
    name(code).map_or(Fault::UnknownType(code), Fault::Unsupported)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_by_its_number() {
        assert!(NAMES.is_sorted_by(|(one, _), (other, _)| one < other));
        assert_eq!(name(90), Some("MessageDispatchNotification"));
        assert_eq!(name(0), None);
        assert_eq!(unsupported(65), Fault::Unsupported("ReplayCommand"));
        assert_eq!(expect(5, 200), Err(Fault::UnknownType(200)));
    }
}

//! Commands as they are usually said: all that is seldom said is left off. Who wants more sets it.
//! Knows no conversation.

use super::command::{
    BrokerInfo, ConnectionInfo, ConsumerInfo, ExceptionResponse, Head, MessageDispatch, Response, Throwable,
};
use super::id::{BrokerId, ConnectionId, ConsumerId, Destination};
use super::message::Message;
use super::text::Text;

impl BrokerInfo {
    /// A broker that stands alone.
    #[must_use]
    pub fn new(broker_id: BrokerId, name: Text) -> Self {
        Self {
            head: Head::default(),
            broker_id,
            url: None,
            peers: Some(Vec::new()),
            name: Some(name),
            slave: false,
            master: false,
            fault_tolerant: false,
            duplex: false,
            network: false,
            connection_id: 0,
            upload_url: None,
            network_properties: None,
        }
    }
}

impl ConnectionInfo {
    /// A client without credentials, for the first time.
    #[must_use]
    pub fn new(connection_id: ConnectionId, client_id: Text) -> Self {
        Self {
            head: Head::default(),
            connection_id,
            client_id: Some(client_id),
            password: None,
            user_name: None,
            broker_path: None,
            master_connector: false,
            manageable: false,
            client_master: true,
            fault_tolerant: false,
            failover_reconnect: false,
            client_ip: None,
        }
    }
}

impl ConsumerInfo {
    /// A consumer of all that comes, of which `prefetch` messages may be under way.
    #[must_use]
    pub fn new(consumer_id: ConsumerId, destination: Destination, prefetch: i32) -> Self {
        Self {
            head: Head::default(),
            consumer_id,
            browser: false,
            destination,
            prefetch,
            maximum_pending: 0,
            dispatch_async: true,
            selector: None,
            client_id: None,
            subscription: None,
            no_local: false,
            exclusive: false,
            retroactive: false,
            priority: 0,
            broker_path: None,
            additional_predicate: None,
            network: false,
            optimized_acknowledge: false,
            no_range_acks: false,
            network_path: None,
        }
    }
}

impl MessageDispatch {
    /// A message for the consumer, with its own count of redeliveries.
    #[must_use]
    pub fn new(consumer_id: ConsumerId, message: Message) -> Self {
        Self {
            head: Head::default(),
            consumer_id,
            destination: Some(message.destination.clone()),
            redelivery_counter: message.redelivery_counter,
            message: Some(message),
        }
    }

    /// Nothing (more) for the consumer: the end of a browse, or of a pull's wait.
    #[must_use]
    pub fn end(consumer_id: ConsumerId) -> Self {
        Self { head: Head::default(), consumer_id, destination: None, message: None, redelivery_counter: 0 }
    }
}

impl Response {
    /// Done: the command that began so.
    #[must_use]
    pub fn to(head: Head) -> Self {
        Self { head: Head::default(), correlation_id: head.command_id }
    }
}

impl ExceptionResponse {
    /// Not done: the command that began so, and why.
    #[must_use]
    pub fn to(head: Head, why: Throwable) -> Self {
        Self { head: Head::default(), correlation_id: head.command_id, exception: Some(why) }
    }
}

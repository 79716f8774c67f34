//! The two sums: what can be a frame, and what can lie where the protocol says no more than "a
//! structure". Knows the numbers of the types; their fields stand in their tables.

use super::command::{
    BrokerInfo, BrokerSubscriptionInfo, ConnectionControl, ConnectionError, ConnectionInfo, ConsumerControl,
    ConsumerInfo, ControlCommand, DataArrayResponse, DataResponse, DestinationInfo, ExceptionResponse,
    FlushCommand, Head, IntegerResponse, KeepAliveInfo, MessageAck, MessageDispatch,
    MessageDispatchNotification, MessagePull, NetworkBridgeFilter, ProducerAck, ProducerInfo, RemoveInfo,
    RemoveSubscriptionInfo, Response, SessionInfo, ShutdownInfo, SubscriptionInfo, TransactionInfo,
};
use super::fault::DecodeError;
use super::id::{
    BrokerId, ConnectionId, ConsumerId, Destination, MessageId, ProducerId, SessionId, TransactionId,
};
use super::message::Message;
#[cfg(test)]
use super::sample::{Dice, Sample};
use super::types;
use super::wire::{Reader, Structure, Writer};

/// The sum over what can be a frame (the greeting apart): variants, numbers, and the names that
/// the protocol gives them.
macro_rules! commands {
    ($( $name:ident = $code:pat => $held:ty; )*) => {
        /// A command: what one frame holds after the greeting. Large ones are boxed.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Command { $( $name($held), )* }

        $(
            impl From<$name> for Command {
                fn from(command: $name) -> Self {
                    Command::$name(command.into())
                }
            }
        )*

        impl Structure for Command {
            fn code(&self) -> u8 {
                match self { $( Command::$name(command) => command.code(), )* }
            }

            fn read_fields(code: u8, reader: &mut Reader) -> Result<Self, DecodeError> {
                match code {
                    $( $code => <$name>::read_fields(code, reader).map(Command::from), )*
                    other => Err(types::unsupported(other).into()),
                }
            }

            fn write_fields(&self, writer: &mut Writer) {
                match self { $( Command::$name(command) => command.write_fields(writer), )* }
            }
        }

        impl Command {
            /// What the command begins with.
            #[must_use]
            pub fn head(&self) -> Head {
                match self { $( Command::$name(command) => command.head, )* }
            }

            /// Sets what the command begins with, before it is sent.
            pub fn head_mut(&mut self) -> &mut Head {
                match self { $( Command::$name(command) => &mut command.head, )* }
            }
        }

        #[cfg(test)]
        impl Sample for Command {
            fn sample(dice: &mut Dice) -> Self {
                let all = [$( |dice: &mut Dice| Command::from(<$name>::sample(dice)) ),*];
                all[usize::from(dice.throw()) % all.len()](dice)
            }
        }
    };
}

commands! {
    BrokerInfo = 2 => Box<BrokerInfo>;
    ConnectionInfo = 3 => Box<ConnectionInfo>;
    SessionInfo = 4 => SessionInfo;
    ConsumerInfo = 5 => Box<ConsumerInfo>;
    ProducerInfo = 6 => Box<ProducerInfo>;
    TransactionInfo = 7 => Box<TransactionInfo>;
    DestinationInfo = 8 => Box<DestinationInfo>;
    RemoveSubscriptionInfo = 9 => Box<RemoveSubscriptionInfo>;
    KeepAliveInfo = 10 => KeepAliveInfo;
    ShutdownInfo = 11 => ShutdownInfo;
    RemoveInfo = 12 => Box<RemoveInfo>;
    ControlCommand = 14 => ControlCommand;
    FlushCommand = 15 => FlushCommand;
    ConnectionError = 16 => Box<ConnectionError>;
    ConsumerControl = 17 => Box<ConsumerControl>;
    ConnectionControl = 18 => Box<ConnectionControl>;
    ProducerAck = 19 => ProducerAck;
    MessagePull = 20 => Box<MessagePull>;
    MessageDispatch = 21 => Box<MessageDispatch>;
    MessageAck = 22 => Box<MessageAck>;
    Message = 23..=29 => Box<Message>;
    Response = 30 => Response;
    ExceptionResponse = 31 => Box<ExceptionResponse>;
    DataResponse = 32 => Box<DataResponse>;
    DataArrayResponse = 33 => DataArrayResponse;
    IntegerResponse = 34 => IntegerResponse;
    MessageDispatchNotification = 90 => Box<MessageDispatchNotification>;
    BrokerSubscriptionInfo = 92 => Box<BrokerSubscriptionInfo>;
}

/// The sum over what may lie where the protocol says no more than "a structure".
macro_rules! data_structures {
    ($( $name:ident = $code:pat => $held:ty; )*) => {
        /// Whatever may lie in a [`DataResponse`] and in an advisory message.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum DataStructure { Command(Box<Command>), $( $name($held), )* }

        impl Structure for DataStructure {
            fn code(&self) -> u8 {
                match self {
                    DataStructure::Command(command) => command.code(),
                    $( DataStructure::$name(structure) => structure.code(), )*
                }
            }

            fn read_fields(code: u8, reader: &mut Reader) -> Result<Self, DecodeError> {
                match code {
                    $( $code => <$name>::read_fields(code, reader).map(|it| DataStructure::$name(it.into())), )*
                    _ => Command::read_fields(code, reader).map(|it| DataStructure::Command(it.into())),
                }
            }

            fn write_fields(&self, writer: &mut Writer) {
                match self {
                    DataStructure::Command(command) => command.write_fields(writer),
                    $( DataStructure::$name(structure) => structure.write_fields(writer), )*
                }
            }
        }

        #[cfg(test)]
        impl Sample for DataStructure {
            fn sample(dice: &mut Dice) -> Self {
                let all = [$( |dice: &mut Dice| DataStructure::$name(<$name>::sample(dice).into()) ),*];
                match all.get(usize::from(dice.throw()) % (2 * all.len())) {
                    Some(make) => make(dice),
                    None => DataStructure::Command(Sample::sample(dice)),
                }
            }
        }
    };
}

data_structures! {
    SubscriptionInfo = 55 => Box<SubscriptionInfo>;
    NetworkBridgeFilter = 91 => NetworkBridgeFilter;
    Destination = 100..=103 => Destination;
    MessageId = 110 => Box<MessageId>;
    TransactionId = 111..=112 => Box<TransactionId>;
    ConnectionId = 120 => ConnectionId;
    SessionId = 121 => SessionId;
    ConsumerId = 122 => ConsumerId;
    ProducerId = 123 => ProducerId;
    BrokerId = 124 => BrokerId;
}

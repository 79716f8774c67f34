//! Why a client is not served what it asked for, in its own words: the class of Java's exception
//! and a text that says who acts. Pure.

use crate::openwire::{DecodeError, EncodeError, Throwable};
use crate::queue::QueueError;
use crate::queue::core::Refusal;
use crate::queue::message::NameError;

/// Why one command is refused. The connection goes on, unless [`Refused::ends`].
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// JMS knows it, and this broker does not.
    #[error(
        "{0} are not served by the vault's own broker; do without, or give this client the URI of an ActiveMQ or Artemis"
    )]
    Unserved(&'static str),
    /// A queue's name that names none.
    #[error("{name:?}: {why}")]
    Name {
        /// What the client calls it.
        name: String,
        /// Why it is none.
        #[source]
        why: NameError,
    },
    /// The queues say no.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Neither which nor why is told to a stranger.
    #[error("User name or password is invalid.")]
    Password {
        /// As whom; for the log alone.
        user: String,
    },
    /// The file of users cannot be read: nobody is let in on a guess.
    #[error("the broker cannot look up its users now; its operator finds the reason in the vault's log")]
    Users,
    /// More logins than are looked at in time.
    #[error("too many logins wait for an answer, from this address or in all; try again in some seconds")]
    Busy,
    /// The client's name is in use.
    #[error("Broker: {broker} - Client: {client} already connected from {from}")]
    ClientTaken {
        /// This broker.
        broker: String,
        /// The name.
        client: String,
        /// Whose connection has it.
        from: String,
    },
    /// No such transaction was begun.
    #[error("Transaction '{0}' has not been started.")]
    NoTransaction(String),
    /// A commit that failed, or that had failed before it was asked for.
    #[error("transaction {transaction} is rolled back: {why}")]
    RolledBack {
        /// As ActiveMQ calls it.
        transaction: String,
        /// What was refused.
        why: String,
    },
    /// A consumer that was never opened, or is closed.
    #[error("there is no consumer {0} on this connection; open it first")]
    NoConsumer(String),
    /// More of something than one connection may have.
    #[error("this connection has {most} {what} already; close some")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        most: usize,
    },
    /// What only a broker says to a client, or an operator to a broker.
    #[error("{0} is nothing that a client says to a broker")]
    OutOfPlace(&'static str),
    /// Before it has said who it is.
    #[error("the connection must begin with ConnectionInfo")]
    Unknown,
    /// A message that was not read.
    #[error(
        "a message of {length} bytes is over the {limit} that this broker takes; send less in one, or raise broker.max_message"
    )]
    Oversized {
        /// Its length, in bytes.
        length: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// A message that waits for a client, and that other clients may take.
    #[error(
        "a message of {length} bytes for one of its consumers is over the {limit} that this client takes in a frame; raise its wireFormat.maxFrameSize"
    )]
    Misfit {
        /// Its length, in bytes.
        length: usize,
        /// The client's limit, in bytes.
        limit: usize,
    },
    /// An answer that is too long for a client, which would wait for it for ever.
    #[error(
        "an answer of {length} bytes is over the {limit} that this client takes in a frame; raise its wireFormat.maxFrameSize"
    )]
    Narrow {
        /// Its length, in bytes.
        length: usize,
        /// The client's limit, in bytes.
        limit: usize,
    },
    /// A temporary queue called after an id that is somebody else's.
    #[error(
        "the connection id {0} belongs to another connection, or to another user who had it within the last ten minutes; connect under an id of your own"
    )]
    ForeignId(String),
    /// More than any frame holds.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The bytes are no command.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl Refused {
    /// The class of the exception that a Java client throws.
    pub(super) fn class(&self) -> &'static str {
        match self {
            Self::Name { .. } | Self::ForeignId(_) => INVALID_DESTINATION,
            Self::Password { .. } | Self::Users | Self::Unknown => "java.lang.SecurityException",
            Self::ClientTaken { .. } => "javax.jms.InvalidClientIDException",
            Self::TooMany { .. } | Self::Busy => RESOURCES,
            Self::RolledBack { .. } => "javax.jms.TransactionRolledBackException",
            Self::Queue(error) => class_of(error),
            Self::Decode(_) => "java.io.IOException",
            Self::Encode(_) | Self::Oversized { .. } => "javax.jms.MessageFormatException",
            Self::Unserved(_) | Self::NoTransaction(_) | Self::NoConsumer(_) => JMS,
            Self::OutOfPlace(_) | Self::Misfit { .. } | Self::Narrow { .. } => JMS,
        }
    }

    /// As it stands in a response.
    pub(super) fn throwable(&self) -> Throwable {
        Throwable::new(self.class(), &self.to_string())
    }

    /// Is the connection of no use any more?
    pub(super) fn ends(&self) -> bool {
        match self {
            Self::Password { .. } | Self::Users | Self::Busy | Self::ClientTaken { .. } => true,
            Self::Unknown | Self::Decode(_) | Self::Misfit { .. } | Self::Narrow { .. } => true,
            Self::Queue(error) => matches!(error, QueueError::Stopped),
            _ => false,
        }
    }
}

const JMS: &str = "javax.jms.JMSException";
const INVALID_DESTINATION: &str = "javax.jms.InvalidDestinationException";
const RESOURCES: &str = "javax.jms.ResourceAllocationException";

fn class_of(error: &QueueError) -> &'static str {
    match error {
        QueueError::NoQueue { .. } => INVALID_DESTINATION,
        QueueError::Full { .. } => RESOURCES,
        QueueError::Refused(refusal) => match refusal {
            Refusal::Gone { .. } | Refusal::NotYours { .. } => INVALID_DESTINATION,
            Refusal::TooManyQueues { .. }
            | Refusal::TooManyConsumers { .. }
            | Refusal::Share { .. }
            | Refusal::TooManyTransactions { .. }
            | Refusal::TransactionTooBig
            | Refusal::NotWritten { .. } => RESOURCES,
            _ => JMS,
        },
        _ => JMS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_java_program_gets_the_exception_that_it_can_act_on() {
        let gone = Refusal::Gone { destination: crate::queue::message::Destination::Temporary("t".into()) };
        let cases: [(Refused, &str, &str, bool); 5] = [
            (Refused::Unserved("topics"), "javax.jms.JMSException", "topics are not served", false),
            (Refused::Password { user: "erp".into() }, "java.lang.SecurityException", "invalid", true),
            (
                Refused::Queue(QueueError::Refused(gone)),
                "javax.jms.InvalidDestinationException",
                "temporary queue t",
                false,
            ),
            (
                Refused::Name { name: "a.>".to_owned(), why: NameError::Pattern },
                "javax.jms.InvalidDestinationException",
                "patterns and lists",
                false,
            ),
            (
                Refused::ClientTaken { broker: "b".into(), client: "c".into(), from: "d".into() },
                "javax.jms.InvalidClientIDException",
                "Broker: b - Client: c already connected from d",
                true,
            ),
        ];
        for (refused, class, words, ends) in cases {
            let shown = refused.throwable();
            assert_eq!(shown.class.to_string(), class);
            assert!(shown.message.is_some_and(|message| message.to_string().contains(words)), "{refused}");
            assert_eq!(refused.ends(), ends, "{refused}");
        }
    }
}

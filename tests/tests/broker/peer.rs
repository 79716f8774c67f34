//! A peer that speaks OpenWire as no library would: it says what a story wants said, and hears all that
//! comes. Promises nothing by itself.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use bytes::Buf as _;
use harness::wait::Deadline;
use vault::openwire::{
    Arrival, Command, ConnectionId, ConnectionInfo, ConsumerId, ConsumerInfo, Destination, DestinationAct,
    DestinationInfo, DestinationKind, Head, Incoming, Message, MessageDispatch, MessageId, MessageKind,
    Offer, Outgoing, Password, ProducerId, Text,
};

use super::house::{House, SOON};

/// Who it says it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Guise {
    pub(super) name: String,
    pub(super) connection: String,
    /// Its user and password.
    pub(super) account: Option<(String, String)>,
    /// Was it connected before?
    pub(super) again: bool,
}

impl Guise {
    pub(super) fn called(name: &str) -> Self {
        Self { name: name.to_owned(), connection: name.to_owned(), ..Self::default() }
    }
}

pub(super) struct Peer {
    pub(super) socket: TcpStream,
    incoming: Incoming,
    outgoing: Outgoing,
    connection: String,
    asked: i32,
    /// Messages that came before an answer.
    given: VecDeque<MessageDispatch>,
}

impl Peer {
    pub(super) fn connect(house: &House, guise: &Guise) -> Result<Self, String> {
        let socket = TcpStream::connect(house.pair.vaults[0].broker).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.set_nodelay(true).unwrap();
        let offer = Offer { inactivity: Duration::ZERO, ..Offer::default() };
        let outgoing = Outgoing::new(&offer.greeting()).unwrap();
        let (connection, asked, given) = (guise.connection.clone(), 0, VecDeque::new());
        let mut peer = Self { socket, incoming: Incoming::new(offer), outgoing, connection, asked, given };
        let id = ConnectionId { value: Text::shortened(&guise.connection) };
        let mut info = ConnectionInfo::new(id, Text::shortened(&guise.name));
        info.failover_reconnect = guise.again;
        if let Some((user, password)) = &guise.account {
            info.user_name = Some(Text::shortened(user));
            info.password = Some(Password::new(Text::shortened(password)));
        }
        // Nothing may be said before the greeting is answered, or the versions may differ.
        peer.flush();
        let settled = loop {
            if let Arrival::Greeting(_, settled) = peer.hear() {
                break settled;
            }
        };
        peer.outgoing.settle(&settled);
        peer.ask(info).map(|()| peer)
    }

    /// Says it, and waits for the answer; an exception's text is the error.
    pub(super) fn ask(&mut self, command: impl Into<Command>) -> Result<(), String> {
        let asked = self.say(command, true);
        loop {
            match self.hear() {
                Arrival::Command(Command::Response(told)) if told.correlation_id == asked => return Ok(()),
                Arrival::Command(Command::ExceptionResponse(told)) if told.correlation_id == asked => {
                    return Err(told
                        .exception
                        .and_then(|thrown| thrown.message)
                        .unwrap_or_default()
                        .to_string());
                }
                Arrival::Command(Command::MessageDispatch(dispatch)) => self.given.push_back(*dispatch),
                _ => {}
            }
        }
    }

    /// Says it, and goes on; its number.
    pub(super) fn say(&mut self, command: impl Into<Command>, response_required: bool) -> i32 {
        self.gather(command, response_required);
        self.flush();
        self.asked
    }

    /// Says it with what is said next.
    pub(super) fn gather(&mut self, command: impl Into<Command>, response_required: bool) {
        let mut command = command.into();
        self.asked += 1;
        *command.head_mut() = Head { command_id: self.asked, response_required };
        self.outgoing.push(&command).unwrap();
    }

    pub(super) fn flush(&mut self) {
        let bytes = self.outgoing.copy_to_bytes(self.outgoing.remaining());
        self.socket.write_all(&bytes).unwrap();
    }

    /// The next message for one of its consumers; `None` is a browser's end.
    pub(super) fn next(&mut self) -> Option<Message> {
        loop {
            let dispatch = self.given.pop_front();
            if let Some(dispatch) = dispatch {
                return dispatch.message;
            }
            if let Arrival::Command(Command::MessageDispatch(dispatch)) = self.hear() {
                self.given.push_back(*dispatch);
            }
        }
    }

    fn hear(&mut self) -> Arrival {
        let deadline = Deadline::after(SOON);
        loop {
            if let Some(arrival) = self.incoming.arrival().unwrap() {
                return arrival;
            }
            assert!(!deadline.passed(), "nothing comes");
            let mut portion = vec![0; 256 << 10];
            let length = self.socket.read(&mut portion).unwrap();
            assert!(length > 0, "closed");
            self.incoming.buffer().extend_from_slice(&portion[..length]);
        }
    }

    /// A persistent message under a producer's number, whosever that is.
    pub(super) fn message(&self, producer: &str, number: i64, destination: Destination) -> Message {
        let producer = ProducerId { connection: Text::shortened(producer), value: 1, session: 1 };
        let id = MessageId { text_view: None, producer, producer_sequence: number, broker_sequence: 0 };
        let mut message = Message::new(MessageKind::Plain, id, destination);
        message.persistent = true;
        message
    }

    pub(super) fn consumer(&self, number: i64, destination: Destination, prefetch: i32) -> ConsumerInfo {
        let connection = Text::shortened(&self.connection);
        ConsumerInfo::new(ConsumerId { connection, session: 1, value: number }, destination, prefetch)
    }

    /// Makes a temporary queue.
    pub(super) fn temporary(&self, name: &str) -> DestinationInfo {
        DestinationInfo {
            head: Head::default(),
            connection_id: Some(ConnectionId { value: Text::shortened(&self.connection) }),
            destination: temporary(name),
            act: DestinationAct::Add,
            timeout: 0,
            broker_path: None,
        }
    }
}

pub(super) fn queue(name: &str) -> Destination {
    Destination::queue(Text::shortened(name))
}

pub(super) fn temporary(name: &str) -> Destination {
    Destination { kind: DestinationKind::TempQueue, name: Text::shortened(name) }
}

//! A client against a listener on loopback that speaks the codec: garbage, silence, another
//! protocol, refusals, sign of life. Against real brokers it is tried by the stories.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::*;
use crate::openwire::command::{
    ConnectionError, ExceptionResponse, FlushCommand, KeepAliveInfo, Response, TransactionAct,
    TransactionInfo,
};
use crate::openwire::uri::Uri;
use crate::openwire::{ConsumerId, Destination, Message, MessageKind, Offer, ProducerId};

/// The other side of one connection.
struct Host {
    stream: TcpStream,
    incoming: Incoming,
    outgoing: Outgoing,
}

impl Host {
    async fn greeted(listener: &TcpListener, offer: Offer) -> Self {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut incoming = Incoming::new(offer.clone());
        let mut outgoing = Outgoing::new(&offer.greeting()).unwrap();
        greet(&mut stream, &mut incoming, &mut outgoing).await.unwrap();
        Self { stream, incoming, outgoing }
    }

    /// Also answers the introduction.
    async fn introduced(listener: &TcpListener, offer: Offer) -> Self {
        let mut host = Self::greeted(listener, offer).await;
        let introduction = host.next().await.unwrap();
        host.say(Response::to(introduction.head())).await;
        host
    }

    async fn say(&mut self, command: impl Into<Command>) {
        self.outgoing.push(&command.into()).unwrap();
        self.stream.write_all_buf(&mut self.outgoing).await.unwrap();
    }

    async fn next(&mut self) -> Option<Command> {
        use tokio::io::AsyncReadExt as _;
        loop {
            match self.incoming.arrival().unwrap() {
                Some(Arrival::Command(command)) => return Some(command),
                Some(arrival) => panic!("{arrival:?}"),
                None => match self.stream.read_buf(self.incoming.buffer()).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                },
            }
        }
    }
}

async fn listener(options: &str) -> (TcpListener, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri: Uri = format!("tcp://{}{options}", listener.local_addr().unwrap()).parse().unwrap();
    (listener, uri.brokers.into_iter().next().unwrap())
}

fn login() -> Login {
    Login {
        client_id: "vault-bridge-test".to_owned(),
        connection_id: "ID:test-0:1".to_owned(),
        patience: Duration::from_secs(5),
        ..Login::default()
    }
}

fn refuse(command: &Command, class: &str, text: &str) -> ExceptionResponse {
    ExceptionResponse::to(command.head(), Throwable::new(class, text))
}

fn dispatch(size: usize) -> MessageDispatch {
    let producer = ProducerId { connection: Text::shortened("p"), value: 1, session: 1 };
    let queue = Destination::queue(Text::shortened("orders"));
    let mut message = Message::new(MessageKind::Bytes, producer.message(1), queue.clone());
    message.content = Some(vec![7; size].into());
    MessageDispatch::new(ConsumerId { connection: Text::shortened("c"), session: 1, value: 1 }, message)
}

#[tokio::test]
async fn answers_find_those_who_asked_and_dispatches_arrive_in_order() {
    let (listener, address) = listener("").await;
    let host = tokio::spawn(async move {
        let mut host = Host::introduced(&listener, Offer::default()).await;
        host.say(dispatch(10)).await;
        let first = host.next().await.unwrap();
        let second = host.next().await.unwrap();
        host.say(refuse(&second, "javax.jms.JMSException", "no")).await;
        host.say(dispatch(20)).await;
        host.say(Response::to(first.head())).await;
        let farewell = host.next().await.unwrap();
        host.say(Response::to(farewell.head())).await;
        assert!(matches!(host.next().await, Some(Command::ShutdownInfo(_))));
        assert!(host.next().await.is_none());
    });
    let (client, mut dispatches) = Client::connect(&address, &login()).await.unwrap();
    let flush = || FlushCommand { head: Head::default() };
    let (first, second) = tokio::join!(client.request(flush()), client.request(flush()));
    assert!(matches!(first, Ok(Command::Response(_))));
    assert_eq!(second.unwrap_err().to_string(), "the broker refused: no (javax.jms.JMSException)");
    for size in [10, 20] {
        let message = dispatches.next().await.unwrap().message.unwrap();
        assert_eq!(message.content.unwrap().len(), size);
    }
    client.close().await;
    host.await.unwrap();
}

#[test]
fn an_end_without_tls_own_farewell_is_told_as_an_end() {
    let ended = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "peer closed without close_notify");
    assert_eq!(ClientError::broken(ended).to_string(), "the broker closed the connection");
    let broken = ClientError::broken(std::io::ErrorKind::ConnectionReset.into());
    assert!(broken.is_hung_up() && broken.to_string().starts_with("the connection broke"), "{broken}");
}

#[tokio::test]
async fn a_taken_client_id_is_told_from_other_refusals() {
    let (listener, address) = listener("").await;
    let host = tokio::spawn(async move {
        let mut host = Host::greeted(&listener, Offer::default()).await;
        let introduction = host.next().await.unwrap();
        host.say(refuse(&introduction, "javax.jms.InvalidClientIDException", "already connected")).await;
    });
    let refused = Client::connect(&address, &login()).await.unwrap_err();
    assert!(refused.is_taken(), "{refused}");
    assert!(!ClientError::Closed.is_taken());
    host.await.unwrap();
}

#[test]
fn exceptions_of_activemq_6_mean_the_same_under_their_new_package() {
    for package in ["javax", "jakarta"] {
        let refused = |name| ClientError::Refused(Throwable::new(&format!("{package}.jms.{name}"), "no"));
        assert!(refused("InvalidClientIDException").is_taken());
        assert!(!refused("ResourceAllocationException").is_for_good(), "it has no room, and may have some");
        assert!(refused("JMSException").is_for_good() && !refused("JMSException").is_taken());
    }
}

#[tokio::test]
async fn another_protocol_and_garbage_are_named() {
    use tokio::io::AsyncReadExt as _;
    for answer in ["HTTP/1.1 400 Bad Request\r\n\r\n", "\0\0\0\x05wrong", "SSH-2.0-OpenSSH_9.2\r\n"] {
        let (listener, address) = listener("").await;
        let host = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            let mut rest = Vec::new();
            // The client hangs up, perhaps with unread bytes.
            let _reset = stream.read_to_end(&mut rest).await;
        });
        let refused = Client::connect(&address, &login()).await.unwrap_err();
        assert!(matches!(refused, ClientError::Protocol(_)), "{answer:?}: {refused}");
        host.await.unwrap();
    }
}

#[tokio::test]
async fn a_broker_that_does_not_greet_is_given_up_in_time() {
    let (listener, address) = listener("?connectionTimeout=100").await;
    let refused = Client::connect(&address, &login()).await.unwrap_err().to_string();
    assert_eq!(refused, format!("{address}: greeting: no answer within 100 ms; it is tried again"));
    drop(listener);
    let refused = Client::connect(&address, &login()).await.unwrap_err();
    assert!(matches!(refused, ClientError::Reach { step: "connect", .. }), "{refused}");
}

#[tokio::test]
async fn a_silent_broker_is_given_up_and_hears_signs_of_life_until_then() {
    let options = "?wireFormat.maxInactivityDuration=300&wireFormat.maxInactivityDurationInitalDelay=0";
    let (listener, address) = listener(options).await;
    let (count, counted) = oneshot::channel();
    let host = tokio::spawn(async move {
        let mut host = Host::introduced(&listener, Offer::default()).await;
        let mut signs = 0;
        while let Some(command) = host.next().await {
            assert!(matches!(command, Command::KeepAliveInfo(_)));
            signs += 1;
        }
        count.send(signs).unwrap();
    });
    let (client, mut dispatches) = Client::connect(&address, &login()).await.unwrap();
    let ended = dispatches.next().await.unwrap_err();
    assert_eq!(ended.to_string(), "the broker was silent for 300 ms");
    let late = client.request(FlushCommand { head: Head::default() }).await.unwrap_err();
    assert_eq!(late.to_string(), ended.to_string(), "who comes later is told the same");
    assert!(counted.await.unwrap() >= 1);
    host.await.unwrap();
}

#[tokio::test]
async fn a_sign_of_life_that_wants_an_answer_gets_it_and_keeps_the_connection() {
    let options = "?wireFormat.maxInactivityDuration=400&wireFormat.maxInactivityDurationInitalDelay=0";
    let (listener, address) = listener(options).await;
    let host = tokio::spawn(async move {
        let mut host = Host::introduced(&listener, Offer::default()).await;
        for number in 1..=8 {
            let head = Head { command_id: number, response_required: true };
            host.say(KeepAliveInfo { head }).await;
            loop {
                match host.next().await.unwrap() {
                    Command::KeepAliveInfo(sign) if sign.head.command_id == number => break,
                    other => assert!(matches!(other, Command::KeepAliveInfo(_)), "{other:?}"),
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        host.say(dispatch(1)).await;
        host
    });
    let (_client, mut dispatches) = Client::connect(&address, &login()).await.unwrap();
    assert!(dispatches.next().await.unwrap().message.is_some(), "after 800 ms of 400");
    drop(host.await.unwrap());
}

#[tokio::test]
async fn an_unasked_failure_ends_the_connection_with_its_words() {
    let (listener, address) = listener("").await;
    let host = tokio::spawn(async move {
        let mut host = Host::introduced(&listener, Offer::default()).await;
        let exception = Some(Throwable::new("javax.jms.JMSException", "Could not correlate acknowledgment"));
        host.say(ConnectionError { head: Head::default(), exception, connection_id: None }).await;
        host
    });
    let (_client, mut dispatches) = Client::connect(&address, &login()).await.unwrap();
    let ended = dispatches.next().await.unwrap_err().to_string();
    assert_eq!(
        ended,
        "the broker told of a failure: Could not correlate acknowledgment (javax.jms.JMSException)"
    );
    drop(host.await.unwrap());
}

#[tokio::test]
async fn a_request_has_a_deadline() {
    let (listener, address) = listener("").await;
    let host = tokio::spawn(async move { Host::introduced(&listener, Offer::default()).await });
    let hasty = Login { patience: Duration::from_millis(100), ..login() };
    let (client, _dispatches) = Client::connect(&address, &hasty).await.unwrap();
    let recover = TransactionInfo {
        head: Head::default(),
        connection_id: Some(client.connection_id().clone()),
        transaction_id: None,
        act: TransactionAct::Recover,
    };
    let late = client.request(recover).await.unwrap_err();
    assert_eq!(late.to_string(), "no answer to a step of a transaction within 100 ms");
    drop(host.await.unwrap());
}

#[tokio::test]
async fn a_request_waits_as_long_as_bytes_move_and_no_longer() {
    let (listener, address) = listener("").await;
    let host = tokio::spawn(async move {
        let mut host = Host::introduced(&listener, Offer::default()).await;
        let first = host.next().await.unwrap();
        // The answer lies behind what takes longer than the patience of whoever waits for it.
        for _ in 0..30 {
            host.say(dispatch(100_000)).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        host.say(Response::to(first.head())).await;
        // Signs of life alone are no progress.
        host.next().await.unwrap();
        while host.stream.writable().await.is_ok() {
            let sign = KeepAliveInfo { head: Head::default() };
            host.outgoing.push(&sign.into()).unwrap();
            if host.stream.write_all_buf(&mut host.outgoing).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let hasty = Login { patience: Duration::from_secs(1), ..login() };
    let (client, dispatches) = Client::connect(&address, &hasty).await.unwrap();
    client.request(FlushCommand { head: Head::default() }).await.unwrap();
    let late = client.request(FlushCommand { head: Head::default() }).await.unwrap_err();
    assert_eq!(late.to_string(), "no answer to a request within 1000 ms");
    drop((client, dispatches));
    host.await.unwrap();
}

#[tokio::test]
async fn what_was_given_on_waits_until_it_is_let_go() {
    let (listener, address) = listener("").await;
    let host = tokio::spawn(async move {
        let mut host = Host::introduced(&listener, Offer::default()).await;
        let mut sent = 0;
        while sent < 4 * (MOST_WAITING >> 20) {
            host.outgoing.push(&dispatch(1 << 20).into()).unwrap();
            if host.stream.write_all_buf(&mut host.outgoing).await.is_err() {
                break;
            }
            sent += 1;
        }
        sent
    });
    let (client, mut dispatches) = Client::connect(&address, &login()).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..60 {
        held.push(dispatches.next_held().await.unwrap());
    }
    // It asks for no more, however much the other side has.
    let more = async {
        loop {
            held.push(dispatches.next_held().await.unwrap());
        }
    };
    assert!(timeout(Duration::from_millis(500), more).await.is_err());
    assert!(held.len() < 70, "{}", held.len());
    assert!(dispatches.shared.waiting.load(Ordering::Relaxed) < MOST_WAITING + (4 << 20));
    held.clear();
    for _ in 0..20 {
        dispatches.next().await.unwrap();
    }
    drop((client, dispatches));
    assert!(host.await.unwrap() > 64);
}

#[tokio::test]
async fn what_nobody_takes_is_bounded_and_an_answer_behind_it_is_not_waited_for() {
    let (listener, address) = listener("").await;
    let host = tokio::spawn(async move {
        let mut host = Host::introduced(&listener, Offer::default()).await;
        // Twice what may wait; the socket's buffers take the rest, or the client hangs up.
        for _ in 0..2 * MOST_WAITING / (1 << 20) {
            host.outgoing.push(&dispatch(1 << 20).into()).unwrap();
            if host.stream.write_all_buf(&mut host.outgoing).await.is_err() {
                break;
            }
        }
    });
    let (client, dispatches) = Client::connect(&address, &login()).await.unwrap();
    let refused = client.request(FlushCommand { head: Head::default() }).await.unwrap_err();
    assert!(refused.is_overrun(), "{refused}");
    assert!(dispatches.shared.waiting.load(Ordering::Relaxed) < MOST_WAITING + (4 << 20));
    host.await.unwrap();
}

#[tokio::test]
async fn a_frame_over_the_brokers_limit_fails_alone() {
    let (listener, address) = listener("").await;
    let host = tokio::spawn(async move {
        let mut host = Host::introduced(&listener, Offer { max_frame: 5000, ..Offer::default() }).await;
        let flush = host.next().await.unwrap();
        host.say(Response::to(flush.head())).await;
        host
    });
    let (client, _dispatches) = Client::connect(&address, &login()).await.unwrap();
    let long = client.request(dispatch(6000).message.unwrap()).await.unwrap_err();
    assert!(matches!(long, ClientError::TooLong(_)), "{long}");
    client.request(FlushCommand { head: Head::default() }).await.unwrap();
    drop(host.await.unwrap());
}

//! Peers that are no decent clients: garbled, huge, silent, slow, many, unknown. Each is bounded, closed
//! with a reason, and disturbs nobody.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Buf as _;
use harness::broker::failover;
use harness::java_client::{Acknowledge, Kind, Load, Login};
use harness::{extent, plain, raw, wait};
use vault::openwire::{
    AckKind, Arrival, Command, ConnectionId, ConnectionInfo, ConsumerId, ConsumerInfo, Destination, Head,
    Incoming, MessageAck, Offer, Outgoing, Password, Text,
};

use super::house::{House, OPEN, SOON, put, take, texts, waiting};

/// A client that greets, introduces itself and says these, and reads nothing.
fn mute(house: &House, name: &str, more: &[Command]) -> TcpStream {
    let mut socket = TcpStream::connect(house.pair.vaults[0].broker).unwrap();
    let info = ConnectionInfo::new(ConnectionId { value: Text::shortened(name) }, Text::shortened(name));
    let all: Vec<Command> = [info.into()].into_iter().chain(more.iter().cloned()).collect();
    socket.write_all(&said(&all)).unwrap();
    socket
}

/// The bytes of a greeting without a watch on silence and of what follows it.
fn said(commands: &[Command]) -> Vec<u8> {
    said_by(&Offer { inactivity: Duration::ZERO, ..Offer::default() }, commands)
}

fn said_by(offer: &Offer, commands: &[Command]) -> Vec<u8> {
    let mut says = Outgoing::new(&offer.greeting()).unwrap();
    commands.iter().for_each(|command| says.push(command).unwrap());
    says.copy_to_bytes(says.remaining()).to_vec()
}

fn queue(name: &str) -> Destination {
    Destination::queue(Text::shortened(name))
}

#[test]
fn garbage_beside_a_working_client_is_closed_and_disturbs_nobody() {
    let house = House::shared();
    let session = house.session(Acknowledge::Auto);
    let address = house.pair.vaults[0].broker;
    let greeting = b"\0\0\0\x0e\x01ActiveMQ\0\0\0\x0c\0".to_vec();
    let with = |more: &[u8]| [&greeting[..], more].concat();
    let wrong: [Vec<u8>; 6] = [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"\0\0\0\x0e\x01ActiveMQ\0\0\0\x02\0".to_vec(),
        with(&[0, 0, 0, 1, 200]),
        with(&[0x7f, 0xff, 0xff, 0xff]),
        with(&[0, 0, 0, 6, 10, 0, 0, 0, 1, 7]),
        vec![0; 1000],
    ];
    for bytes in &wrong {
        let answer = raw::in_clear(address, bytes).unwrap();
        assert!(answer.windows(8).any(|word| word == b"ActiveMQ"), "it greets, and closes: {answer:?}");
        put(&session, "undisturbed", &["one more"]);
    }
    let mut truncated = TcpStream::connect(address).unwrap();
    truncated.write_all(&greeting[..9]).unwrap();
    drop(truncated);
    assert_eq!(waiting(&session, "undisturbed").len(), wrong.len());
    let log = house.pair.vaults[0].program.as_ref().unwrap().log();
    assert!(log.contains("broker: connection from"), "{log}");
}

#[test]
fn a_stranger_is_given_no_memory_for_the_length_that_he_announces() {
    let house = House::start(OPEN);
    let session = house.session(Acknowledge::Auto);
    put(&session, "before", &["yes"]);
    let before = house.resident();
    // One byte over what somebody unknown may send, and half of what everybody may.
    for length in [65_537_u32, 32 << 20] {
        for _ in 0..50 {
            let bytes = [said(&[]), length.to_be_bytes().to_vec(), vec![3; 200_000]].concat();
            let answer = raw::in_clear(house.pair.vaults[0].broker, &bytes).unwrap();
            assert!(answer.len() < 2000, "{} bytes", answer.len());
        }
    }
    let more = house.resident() - before;
    assert!(more < 24.0, "{more} MiB");
    assert!(house.log().contains("over the limit of 65536"), "{}", house.log());
    assert_eq!(waiting(&session, "before"), ["yes"]);
}

#[test]
fn who_does_not_say_who_he_is_is_closed_within_his_deadline() {
    let house = House::shared();
    let session = house.session(Acknowledge::Auto);
    let introduction =
        ConnectionInfo::new(ConnectionId { value: Text::shortened("slow") }, Text::shortened("slow"));
    let whole = said(&[introduction.into()]);
    let greeting = said(&[]).len();
    // Nothing at all, half a greeting, a greeting, half a name.
    let slow = [0, 20, greeting, greeting + 10].map(|length| {
        let mut socket = TcpStream::connect(house.pair.vaults[0].broker).unwrap();
        socket.set_read_timeout(Some(SOON * 3)).unwrap();
        socket.write_all(&whole[..length]).unwrap();
        socket
    });
    let drips = std::thread::spawn({
        let mut socket = TcpStream::connect(house.pair.vaults[0].broker).unwrap();
        move || {
            whole
                .iter()
                .take_while(|byte| {
                    std::thread::sleep(Duration::from_millis(500));
                    socket.write_all(&[**byte]).is_ok()
                })
                .count()
                < whole.len()
        }
    });
    put(&session, "meanwhile", &["served"]);
    for mut socket in slow {
        // It ends, where a read that waits for ever would be an error.
        std::io::copy(&mut socket, &mut std::io::sink()).unwrap();
    }
    assert!(drips.join().unwrap(), "drop by drop is not in time either");
    let metrics = plain::expect_ok(house.pair.vaults[0].admin, "/metrics").unwrap();
    let silent = metrics.lines().find_map(|line| {
        line.strip_prefix("vault_broker_connections_refused_total{reason=\"silence\"} ")?.parse::<u32>().ok()
    });
    assert!(silent >= Some(5), "{metrics}");
    let consumer = session.consumer("meanwhile").unwrap();
    assert_eq!(texts(&take(&consumer, 1)), ["served"]);
}

#[test]
fn sockets_that_say_nothing_keep_nobody_out() {
    let house = House::start(&format!("{OPEN}max_connections = 100\n"));
    // Half of them greet; none says who it is. Each that is closed comes again.
    let (address, stop) = (house.pair.vaults[0].broker, AtomicBool::new(false));
    std::thread::scope(|scope| {
        for half in 0..2 {
            let (stop, greeting) = (&stop, said(&[]));
            scope.spawn(move || {
                let mut crowd: Vec<TcpStream> = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    crowd.retain_mut(|socket| match socket.read(&mut [0; 4096]) {
                        Ok(come) => come > 0,
                        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
                    });
                    while crowd.len() < 150 {
                        let Ok(mut socket) = TcpStream::connect(address) else { break };
                        if half == 0 && socket.write_all(&greeting).is_err() {
                            continue;
                        }
                        socket.set_nonblocking(true).unwrap();
                        crowd.push(socket);
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
        let honest = std::panic::catch_unwind(AssertUnwindSafe(|| {
            // On a busy machine one may be slower than its moment, and comes again.
            let login = Login::to(&failover(&[house.uri()], "maxReconnectDelay=200"));
            let connections: Vec<_> = (0..4).map(|_| house.java.connect(&login).unwrap()).collect();
            for connection in &connections {
                put(&connection.session(Acknowledge::Auto).unwrap(), "honest", &["in"]);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        honest.unwrap();
    });
    let ousted = |metrics: &str| {
        let label = "vault_broker_connections_refused_total{reason=\"ousted\"} ";
        metrics.lines().find_map(|line| line.strip_prefix(label)?.parse::<u32>().ok())
    };
    let metrics = plain::expect_ok(house.pair.vaults[0].admin, "/metrics").unwrap();
    assert!(ousted(&metrics) >= Some(1), "{metrics}");
    assert!(house.log().contains("it has not said who it is"), "{}", house.log());
}

#[test]
fn a_crowd_with_wrong_passwords_keeps_nobody_out() {
    let folder = harness::cluster::temporary_folder().unwrap();
    let users = folder.path().join("users");
    let hash = vault::broker::users::hash("erp", "right").unwrap();
    vault::broker::users::write(&users, &[("erp".to_owned(), hash)].into()).unwrap();
    let house = House::start(&format!("in_clear = true\nusers_file = \"{}\"\n", users.display()));
    let before = house.resident();
    let crowd: Vec<_> = (0..30).map(|number| guess(&house, number, "let-me-in-7")).collect();
    let connection = house.java.connect(&Login::to(&house.uri()).account("erp", "right")).unwrap();
    let session = connection.session(Acknowledge::Auto).unwrap();
    put(&session, "secret", &["yes"]);
    for mut socket in crowd {
        let mut told = Vec::new();
        std::io::copy(&mut socket, &mut told).unwrap();
        let told = String::from_utf8_lossy(&told).into_owned();
        assert!(told.contains("java.lang.SecurityException"), "{told}");
        assert!(told.contains("User name or password is invalid."), "{told}");
    }
    let more = house.resident() - before;
    assert!(more < 80.0, "{more} MiB");
    let log = house.log();
    assert!(log.contains("User name or password is invalid.") && !log.contains("let-me-in-7"), "{log}");
    assert_eq!(waiting(&session, "secret"), ["yes"]);
}

/// A client that asks to be let in with this password.
fn guess(house: &House, number: usize, password: &str) -> TcpStream {
    let name = Text::shortened(&format!("stranger-{number}"));
    let mut info = ConnectionInfo::new(ConnectionId { value: name.clone() }, name);
    info.head = Head { command_id: 1, response_required: true };
    info.user_name = Some(Text::shortened("erp"));
    info.password = Some(Password::new(Text::shortened(password)));
    let mut socket = TcpStream::connect(house.pair.vaults[0].broker).unwrap();
    socket.set_read_timeout(Some(SOON * 6)).unwrap();
    socket.write_all(&said(&[info.into()])).unwrap();
    socket
}

#[test]
fn guesses_take_no_clients_place_and_no_time_once_they_have_hung_up() {
    let folder = harness::cluster::temporary_folder().unwrap();
    let users = folder.path().join("users");
    let hash = vault::broker::users::hash("erp", "right").unwrap();
    vault::broker::users::write(&users, &[("erp".to_owned(), hash)].into()).unwrap();
    let house = House::start(&format!(
        "in_clear = true\nusers_file = \"{}\"\nmax_connections = 20\n",
        users.display()
    ));
    let login = Login::to(&house.uri()).account("erp", "right");
    let first = house.java.connect(&login).unwrap();
    let mut crowd = Vec::new();
    for number in 0..200 {
        let socket = guess(&house, number, &format!("guess {number}"));
        crowd.extend((number % 3 == 0).then_some(socket));
    }
    // Its password is known.
    let again = house.java.connect(&login).unwrap();
    put(&again.session(Acknowledge::Auto).unwrap(), "secret", &["in"]);
    let mut busy = 0;
    for mut socket in crowd {
        let mut told = Vec::new();
        std::io::copy(&mut socket, &mut told).unwrap();
        let told = String::from_utf8_lossy(&told).into_owned();
        let is_busy = told.contains("too many logins wait");
        assert!(is_busy || told.contains("User name or password is invalid."), "{told}");
        busy += u32::from(is_busy);
    }
    assert!(busy > 0, "each has waited for all others");
    wait::until("they are gone", SOON, || {
        let metrics = plain::expect_ok(house.pair.vaults[0].admin, "/metrics")?;
        anyhow::ensure!(metrics.contains("\nvault_broker_connections 2\n"), "{metrics}");
        Ok(())
    })
    .unwrap();
    assert_eq!(waiting(&first.session(Acknowledge::Auto).unwrap(), "secret"), ["in"]);
}

/// A client that takes all that it is given, says that it has seen it, and acknowledges nothing.
struct Hoarder {
    socket: TcpStream,
    incoming: Incoming,
    outgoing: Outgoing,
    consumer: ConsumerId,
    queue: Destination,
}

impl Hoarder {
    fn of(house: &House, name: &str) -> Self {
        let consumer = ConsumerId { connection: Text::shortened("hoarder"), session: 1, value: 1 };
        let subscribes = ConsumerInfo::new(consumer.clone(), queue(name), i32::MAX);
        let socket = mute(house, "hoarder", &[subscribes.into()]);
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let offer = Offer { inactivity: Duration::ZERO, ..Offer::default() };
        let mut outgoing = Outgoing::new(&offer.greeting()).unwrap();
        outgoing.advance(outgoing.remaining());
        Self { socket, incoming: Incoming::new(offer), outgoing, consumer, queue: queue(name) }
    }

    /// Takes messages until none comes for a while; tells how many came.
    fn hoard(&mut self) -> usize {
        let mut count = 0;
        loop {
            while let Some(arrival) = self.incoming.arrival().unwrap() {
                let Arrival::Command(Command::MessageDispatch(dispatch)) = arrival else { continue };
                count += 1;
                if count % 1000 == 0 {
                    self.tell_seen(dispatch.message.unwrap().message_id);
                }
            }
            let mut portion = vec![0; 256 << 10];
            match std::io::Read::read(&mut self.socket, &mut portion) {
                Ok(length @ 1..) => self.incoming.buffer().extend_from_slice(&portion[..length]),
                Ok(_) => panic!("closed after {count}"),
                Err(_) => return count,
            }
        }
    }

    fn tell_seen(&mut self, last: vault::openwire::MessageId) {
        let ack = MessageAck {
            head: Head::default(),
            destination: self.queue.clone(),
            transaction_id: None,
            consumer_id: self.consumer.clone(),
            kind: AckKind::Delivered,
            first: None,
            last,
            count: 1000,
            poison_cause: None,
        };
        self.outgoing.push(&ack.into()).unwrap();
        self.socket.write_all(&self.outgoing.copy_to_bytes(self.outgoing.remaining())).unwrap();
    }
}

#[test]
fn who_takes_everything_and_acknowledges_nothing_is_given_so_much_and_no_more() {
    // Over the hundred thousand that one consumer may hold.
    let messages: u64 = if extent::is_full() { 1_000_000 } else { 120_000 };
    let house = House::start(OPEN);
    let load = Load { bytes: 16, connections: 4, batch: 1000, ..Load::new(Kind::Send, "hoard", messages) };
    let run = house.java.load(&Login::to(&house.uri()), &load).unwrap();
    let outcome = run.wait(SOON * 60).unwrap();
    assert_eq!((outcome.messages, outcome.errors), (messages, vec![]));
    let before = house.resident();
    let mut hoarder = Hoarder::of(&house, "hoard");
    assert_eq!(hoarder.hoard(), 100_000);
    let more = house.resident() - before;
    assert!(more < 96.0, "{more} MiB for 100,000 messages in one client's hands");
    // The rest is there for others, and all of it once he is gone.
    let session = house.session(Acknowledge::Auto);
    let consumer = session.consumer("hoard").unwrap();
    assert!(!take(&consumer, 1)[0].redelivered);
    drop(hoarder);
    wait::until("he is gone", SOON, || {
        let clients = house.clients()?;
        anyhow::ensure!(clients == 1, "{clients}");
        Ok(())
    })
    .unwrap();
    drop(consumer);
    let consumer = session.consumer("hoard").unwrap();
    assert!(take(&consumer, 1)[0].redelivered, "what he had is in front again");
}

#[test]
fn ten_thousand_idle_connections_cost_a_few_kib_each() {
    const IDLE: usize = 10_000;
    let house = House::start(&format!("{OPEN}max_connections = {IDLE}\n"));
    let session = house.session(Acknowledge::Auto);
    put(&session, "before", &["yes"]);
    let before = house.resident();
    let idle: Vec<TcpStream> =
        (0..IDLE - 1).map(|number| mute(&house, &format!("idle-{number}"), &[])).collect();
    wait::until("all are connected", SOON, || {
        let clients = house.clients()?;
        anyhow::ensure!(clients == IDLE as u64, "{clients}");
        Ok(())
    })
    .unwrap();
    let each = (house.resident() - before) * 1024.0 / IDLE as f64;
    assert!(each < 32.0, "{each} KiB for each");
    // Nobody else is let in, and who is in is served.
    let answer = raw::in_clear(house.pair.vaults[0].broker, b"").unwrap();
    assert!(answer.is_empty(), "{answer:?}");
    assert_eq!(waiting(&session, "before"), ["yes"]);
    drop(idle);
    wait::until("they are gone", SOON, || {
        let clients = house.clients()?;
        anyhow::ensure!(clients == 1, "{clients}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_slow_reader_holds_a_bounded_share_of_memory_and_disturbs_nobody() {
    let house = House::start(OPEN);
    let session = house.session(Acknowledge::Auto);
    put(&session, "before", &["yes"]);
    let consumer_id = ConsumerId { connection: Text::shortened("slow"), session: 1, value: 1 };
    let subscribes = ConsumerInfo::new(consumer_id, queue("slow"), 32_000);
    let _slow = mute(&house, "slow", &[subscribes.into()]);
    let before = house.resident();
    let load = Load { bytes: 200_000, ..Load::new(Kind::Send, "slow", 400) };
    let outcome = house.java.load(&Login::to(&house.uri()), &load).unwrap().wait(SOON * 2).unwrap();
    assert_eq!((outcome.messages, outcome.errors), (400, vec![]));
    let more = house.resident() - before;
    assert!(more < 48.0, "{more} MiB for 80 MB that nobody reads");
    put(&session, "before", &["still"]);
    assert_eq!(waiting(&session, "before"), ["yes", "still"]);
}

#[test]
fn a_consumer_whose_frames_are_too_small_is_closed_with_a_reason_and_buries_nothing() {
    let house = House::start(OPEN);
    let session = house.session(Acknowledge::Auto);
    let bodies: Vec<String> = (0..5).map(|number| format!("{number} {}", "x".repeat(2_000))).collect();
    put(&session, "small", &["fits"]);
    put(&session, "small", &bodies.iter().map(String::as_str).collect::<Vec<_>>());
    let id = ConsumerId { connection: Text::shortened("small"), session: 1, value: 1 };
    let browser_id = ConsumerId { value: 2, ..id.clone() };
    let mut browses = ConsumerInfo::new(browser_id, queue("small"), 100);
    browses.browser = true;
    let consumes = ConsumerInfo::new(id, queue("small"), 100);
    // More than the redeliveries after which the Java client gives up what does fit.
    for round in 0..10 {
        // The name of the one before may not be free yet.
        let name = Text::shortened(&format!("small-{round}"));
        let info = ConnectionInfo::new(ConnectionId { value: name.clone() }, name);
        let opens = if round == 0 { browses.clone() } else { consumes.clone() };
        let offer = Offer { inactivity: Duration::ZERO, max_frame: 900, ..Offer::default() };
        let bytes = said_by(&offer, &[info.into(), opens.into()]);
        let mut socket = TcpStream::connect(house.pair.vaults[0].broker).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.write_all(&bytes).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        let words = b"raise its wireFormat.maxFrameSize";
        assert!(answer.windows(words.len()).any(|said| said == words), "{round}: {answer:?}");
    }
    let log = house.log();
    assert!(log.contains("wireFormat.maxFrameSize"), "{log}");
    let got = take(&session.consumer("small").unwrap(), 6);
    assert!(got.iter().all(|message| !message.redelivered), "{got:?}");
    assert_eq!(texts(&got)[1..], bodies.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(waiting(&session, "ActiveMQ.DLQ"), Vec::<String>::new());
}

#[test]
fn a_client_whose_frames_take_no_answer_is_closed_with_a_reason() {
    let house = House::start(OPEN);
    let name = Text::shortened("narrow");
    let info = ConnectionInfo::new(ConnectionId { value: name.clone() }, name.clone());
    let id = ConsumerId { connection: name, session: 1, value: 1 };
    // What it is told of that name is longer than any frame that it takes; what it says is not.
    let reads = ConsumerInfo::new(id, queue(&"pattern.>".repeat(6)), 100);
    let offer = Offer { inactivity: Duration::ZERO, max_frame: 150, ..Offer::default() };
    let bytes = said_by(&offer, &[info.into(), reads.into()]);
    let mut socket = TcpStream::connect(house.pair.vaults[0].broker).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.write_all(&bytes).unwrap();
    socket.read_to_end(&mut Vec::new()).unwrap();
    wait::until("the log says why", SOON, || {
        let log = house.log();
        anyhow::ensure!(log.contains("an answer of ") && log.contains("raise its wireFormat"), "{log}");
        Ok(())
    })
    .unwrap();
}

//! What a ban, a throttle and too many idle connections do to live clients, to those behind a trusted
//! proxy, and to their neighbours.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use edge::admission::Rate;
use edge::listen::live::Idle;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::{Edge, Limits, PATIENCE, application, block, frame, settings, speak_h2, start, status, until};

/// All that a ban may take: it is to be felt at once.
const AT_ONCE: Duration = Duration::from_millis(100);
const PROXIES: Limits = Limits {
    trusted: &["127.0.0.0/8"],
    client: None,
    route: None,
    offender: Rate::OFFENDER,
    idle: Idle { most: 40, rest: Duration::from_secs(1) },
    connections: 200,
};

/// Streams to everybody for ever; `pace` lies between two chunks.
struct Endless {
    address: SocketAddr,
    /// Streams that are being written now.
    live: Arc<AtomicUsize>,
}

async fn endless(chunk: usize, pace: Duration) -> Endless {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let live = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&live);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                count.fetch_add(1, Ordering::SeqCst);
                let head: &[u8] = if head.windows(9).any(|part| part == b"websocket") {
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
                } else {
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                };
                let part = [format!("{chunk:x}\r\n").as_bytes(), &vec![b'x'; chunk], b"\r\n"].concat();
                let mut written = stream.write_all(head).await;
                while written.is_ok() {
                    written = stream.write_all(&part).await;
                    sleep(pace).await;
                }
                count.fetch_sub(1, Ordering::SeqCst);
                std::io::Result::Ok(())
            });
        }
    });
    Endless { address, live }
}

fn get(path: &str, more: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n{more}\r\n").into_bytes()
}

fn h2_get(path: &str, forwarded: &str) -> Vec<u8> {
    let fields = [(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", path)];
    block(&[&fields[..], &[("x-forwarded-for", forwarded)]].concat())
}

fn here(edge: &Edge) {
    edge.banned.ban("127.0.0.1/32".parse().unwrap(), u64::MAX);
}

/// Bans this host and cuts what it has; returns how many connections.
async fn cut(edge: &Edge) -> usize {
    here(edge);
    let connections = Arc::clone(&edge.connections);
    // From another thread, as the engine does.
    tokio::task::spawn_blocking(move || connections.cut("127.0.0.1/32".parse().unwrap())).await.unwrap()
}

/// Reads until the connection ends and says how.
async fn end(stream: &mut (impl AsyncRead + Unpin)) -> Option<ErrorKind> {
    let mut sink = vec![0; 65536];
    let read = async {
        loop {
            match stream.read(&mut sink).await {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(error.kind()),
            }
        }
    };
    timeout(PATIENCE, read).await.unwrap()
}

/// Connects, speaks and reads; how that ends. The reset may come before `connect` has returned.
async fn refused(address: SocketAddr) -> ErrorKind {
    let ended = async {
        let mut tcp = TcpStream::connect(address).await?;
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await?;
        tcp.read_u8().await
    };
    match timeout(PATIENCE, ended).await.unwrap().unwrap_err().kind() {
        // A write after the reset was read by nobody.
        ErrorKind::BrokenPipe => ErrorKind::ConnectionReset,
        kind => kind,
    }
}

/// The next frame: its kind, flags and stream.
async fn next_frame(stream: &mut (impl AsyncRead + Unpin)) -> Option<(u8, u8, u32)> {
    let mut head = [0; 9];
    timeout(PATIENCE, stream.read_exact(&mut head)).await.unwrap().ok()?;
    let [a, b, c, kind, flags, d, e, f, g] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    timeout(PATIENCE, stream.read_exact(&mut payload)).await.unwrap().ok()?;
    Some((kind, flags, u32::from_be_bytes([d, e, f, g])))
}

/// Reads frames up to one that is asked for.
async fn frame_like(stream: &mut (impl AsyncRead + Unpin), wanted: impl Fn(u8, u8, u32) -> bool) -> bool {
    loop {
        match next_frame(stream).await {
            Some((kind, flags, id)) if wanted(kind, flags, id) => return true,
            Some(_) => {}
            None => return false,
        }
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const GO_AWAY: u8 = 7;

async fn line_of(edge: &Edge, number: usize) -> serde_json::Value {
    let log = edge.log_file.clone();
    let lines = || std::fs::read_to_string(&log).unwrap();
    until("the line in the log", || lines().lines().count() > number).await;
    serde_json::from_str(lines().lines().nth(number).unwrap()).unwrap()
}

#[tokio::test]
async fn live_downloads_are_cut_at_once_however_they_stand() {
    let endless = endless(16_384, Duration::ZERO).await;
    let edge = start(vec![endless.address]);
    // One reads, one has stopped reading, so that edge waits in a write; one speaks HTTP/2, one is a
    // tunnel, and one has not even shaken hands.
    let mut reads = edge.connect().await;
    let mut stopped = edge.connect().await;
    let mut tunnel = edge.connect().await;
    for stream in [&mut reads, &mut stopped] {
        stream.write_all(&get("/big", "")).await.unwrap();
        stream.read_exact(&mut [0; 100_000]).await.unwrap();
    }
    tunnel.write_all(&get("/ws", "Connection: Upgrade\r\nUpgrade: websocket\r\n")).await.unwrap();
    tunnel.read_exact(&mut [0; 100_000]).await.unwrap();
    let mut h2 = speak_h2(&edge, &[frame(HEADERS, 5, 1, &h2_get("/h2", "1.2.3.4"))]).await;
    assert!(frame_like(&mut h2, |kind, _, id| (kind, id) == (DATA, 1)).await);
    let mut shaking = TcpStream::connect(edge.address).await.unwrap();
    until("all are listed", || edge.connections.len() == 5).await;
    assert_eq!(edge.connections.clients(), 1);
    sleep(Duration::from_millis(300)).await;

    let began = Instant::now();
    assert_eq!(cut(&edge).await, 5);
    let reset = Some(ErrorKind::ConnectionReset);
    let ends = tokio::join!(end(&mut reads), end(&mut tunnel), end(&mut h2), end(&mut shaking));
    let took = began.elapsed();
    assert_eq!(ends, (reset, reset, reset, reset));
    assert!(took < AT_ONCE, "{took:?}");
    until("edge has let go of all", || edge.connections.is_empty() && edge.in_flight.total() == 0).await;
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    // Who did not read finds what had reached it before, and then the reset.
    assert_eq!(end(&mut stopped).await, reset);
    until("the upstream is let go", || endless.live.load(Ordering::SeqCst) == 0).await;
    assert_eq!(edge.metrics.connections_cut.get(), 5);
    let lines = edge.stop().await;
    assert_eq!(lines.len(), 4, "four requests, and no offence of the one in its handshake: {lines:?}");
}

#[tokio::test]
async fn a_banned_client_gets_no_handshake_and_no_redirect_until_it_is_lifted() {
    let application = application(true).await;
    let edge = start(vec![application.address]);
    here(&edge);
    assert_eq!(refused(edge.address).await, ErrorKind::ConnectionReset);
    assert_eq!(refused(edge.plain).await, ErrorKind::ConnectionReset);
    assert_eq!((edge.rejected("banned"), edge.metrics.handshake_failures.get()), (2, 0));
    assert!(edge.banned.lift("127.0.0.1/32".parse().unwrap()));
    assert_eq!(status(&edge.ask(&get("/", "Connection: close\r\n")).await), 200);
    let mut plain = TcpStream::connect(edge.plain).await.unwrap();
    plain.write_all(&get("/", "")).await.unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).await.unwrap();
    assert_eq!(status(&answer), 301);
    assert_eq!(edge.stop().await.len(), 2);
}

#[tokio::test]
async fn the_oldest_idle_connection_goes_in_order_when_a_client_has_too_many() {
    let application = application(true).await;
    let idle = Idle { most: 2, rest: Duration::from_millis(20) };
    let edge = Limits { idle, ..Limits::default() }.start(settings(), vec![application.address]);
    let mut first = edge.connect().await;
    first.write_all(&get("/1", "")).await.unwrap();
    let mut answer = vec![0; 4096];
    let count = first.read(&mut answer).await.unwrap();
    assert_eq!(status(&String::from_utf8_lossy(&answer[..count])), 200);
    let mut second = speak_h2(&edge, &[frame(HEADERS, 5, 1, &h2_get("/2", "1.2.3.4"))]).await;
    assert!(frame_like(&mut second, |_, flags, id| (flags & 1, id) == (1, 1)).await);
    until("both requests have ended", || edge.in_flight.total() == 0).await;
    sleep(Duration::from_millis(50)).await;

    let began = Instant::now();
    let mut third = edge.connect().await;
    assert_eq!(end(&mut first).await, None, "a farewell, no reset");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let fourth = edge.connect().await;
    assert!(frame_like(&mut second, |kind, _, _| kind == GO_AWAY).await);
    // It does not even answer the ping that comes with it, and is closed all the same.
    assert_eq!(end(&mut second).await, None);
    // The youngest are left alone.
    third.write_all(&get("/3", "Connection: close\r\n")).await.unwrap();
    let mut answer = String::new();
    third.read_to_string(&mut answer).await.unwrap();
    assert_eq!(status(&answer), 200);
    drop((first, second, fourth));
    assert_eq!(edge.metrics.idle_closed.get(), 2);
    assert_eq!(edge.stop().await.len(), 3);
}

#[tokio::test]
async fn behind_a_proxy_the_banned_client_is_refused_and_its_neighbours_are_served() {
    let application = application(true).await;
    let edge = PROXIES.start(settings(), vec![application.address]);
    edge.banned.ban("203.0.113.0/28".parse().unwrap(), u64::MAX);
    // The proxy itself is judged by nobody's ban.
    here(&edge);
    assert_eq!(cut(&edge).await, 0);
    let asked = |client: &str| get("/", &format!("X-Forwarded-For: {client}\r\n"));
    let mut stream = edge.connect().await;
    stream
        .write_all(&[asked("203.0.113.77"), asked("203.0.113.7"), asked("203.0.113.78")].concat())
        .await
        .unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 1, "{answer}");
    assert!(answer.contains("HTTP/1.1 403 Forbidden") && answer.contains("\"banned\""), "{answer}");
    assert_eq!(edge.rejected("banned"), 1, "the connection ends with it");

    let mut h2 = speak_h2(
        &edge,
        &[
            frame(HEADERS, 5, 1, &h2_get("/banned", "203.0.113.7")),
            frame(HEADERS, 5, 3, &h2_get("/free", "203.0.113.77")),
        ],
    )
    .await;
    let log = edge.log_file.clone();
    let lines = || std::fs::read_to_string(&log).unwrap().lines().count();
    until("a line for each", || lines() == 4).await;
    h2.write_all(&frame(HEADERS, 5, 5, &h2_get("/later", "203.0.113.78"))).await.unwrap();
    assert!(frame_like(&mut h2, |_, flags, id| (flags & 1, id) == (1, 5)).await, "the connection goes on");
    drop(h2);
    let lines = edge.stop().await;
    let mut seen: Vec<(String, u64)> = lines
        .iter()
        .map(|line| {
            (
                line["source.ip"].as_str().unwrap().to_owned(),
                line["http.response.status_code"].as_u64().unwrap(),
            )
        })
        .collect();
    seen.sort();
    let expected = [
        ("203.0.113.7", 403),
        ("203.0.113.7", 403),
        ("203.0.113.77", 200),
        ("203.0.113.77", 200),
        ("203.0.113.78", 200),
    ];
    assert_eq!(seen, expected.map(|(client, status)| (client.to_owned(), status)));
}

#[tokio::test]
async fn behind_a_proxy_a_live_download_is_cut_at_its_next_chunk_and_its_neighbours_goes_on() {
    let endless = endless(100, Duration::from_millis(5)).await;
    let edge = PROXIES.start(settings(), vec![endless.address]);
    let mut h1 = edge.connect().await;
    h1.write_all(&get("/1", "X-Forwarded-For: 203.0.113.7\r\n")).await.unwrap();
    h1.read_exact(&mut [0; 1000]).await.unwrap();
    let mut h2 = speak_h2(
        &edge,
        &[
            frame(HEADERS, 5, 1, &h2_get("/2", "203.0.113.7")),
            frame(HEADERS, 5, 3, &h2_get("/3", "203.0.113.77")),
        ],
    )
    .await;
    for stream in [1, 3] {
        assert!(frame_like(&mut h2, |kind, _, id| (kind, id) == (DATA, stream)).await);
    }
    let began = Instant::now();
    edge.banned.ban("203.0.113.7/32".parse().unwrap(), u64::MAX);
    // What had been read ahead comes first, then the end.
    end(&mut h1).await;
    assert!(frame_like(&mut h2, |kind, _, id| (kind, id) == (RESET, 1)).await);
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    for _ in 0..20 {
        assert!(frame_like(&mut h2, |kind, _, id| (kind, id) == (DATA, 3)).await, "the neighbour's goes on");
    }
    assert_eq!(edge.rejected("banned"), 2);
    until("two are let go", || endless.live.load(Ordering::SeqCst) == 1).await;
    for number in 0..2 {
        let line = line_of(&edge, number).await;
        assert_eq!(
            (line["source.ip"].as_str(), line["event.reason"].as_str()),
            (Some("203.0.113.7"), Some("banned"))
        );
    }
    drop(h2);
    edge.stop().await;
}

#[tokio::test]
async fn a_request_that_waits_for_its_answer_is_refused_when_its_client_is_banned() {
    let application = application(false).await;
    let edge = Arc::new(PROXIES.start(settings(), vec![application.address]));
    let asking = {
        let edge = Arc::clone(&edge);
        tokio::spawn(async move { edge.ask(&get("/", "X-Forwarded-For: 203.0.113.7\r\n")).await })
    };
    until("it is at the application", || application.arrived.load(Ordering::SeqCst) == 1).await;
    edge.banned.ban("203.0.113.7/32".parse().unwrap(), u64::MAX);
    application.answer.send_replace(true);
    assert_eq!(status(&asking.await.unwrap()), 403);
    Arc::into_inner(edge).unwrap().stop().await;
}

#[tokio::test]
async fn an_offender_is_slowed_down_and_told_when_to_come_back() {
    let application = application(true).await;
    let limits = Limits { offender: Rate::new(0.4, 2).unwrap(), ..PROXIES };
    let edge = limits.start(settings(), vec![application.address]);
    edge.banned.throttle("203.0.113.7/32".parse().unwrap(), u64::MAX);
    let ask = async |client: &str| {
        edge.ask(&get("/", &format!("X-Forwarded-For: {client}\r\nConnection: close\r\n"))).await
    };
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(status(&ask("203.0.113.7").await));
    }
    assert_eq!(statuses, [200, 200, 429]);
    let refused = ask("203.0.113.7").await.to_lowercase();
    let wait: u64 =
        refused.split("retry-after: ").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap();
    assert!((2..=3).contains(&wait), "2.5 seconds, less what has passed, rounded up: {refused}");
    assert_eq!(status(&ask("203.0.113.8").await), 200, "nobody else is");
    assert_eq!(edge.rejected("throttled"), 2);
    let lines = edge.stop().await;
    assert_eq!(lines.len(), 5, "what is refused is an event, too");
    assert!(lines[2]["event.reason"].as_str().unwrap().starts_with("throttled: "), "{lines:?}");
}

#[tokio::test]
async fn clients_and_routes_have_rates_of_their_own() {
    let application = application(true).await;
    let rate = |per_second, burst| Some(Rate::new(per_second, burst).unwrap());
    for (limits, reason, passed) in [
        (Limits { client: rate(0.01, 3), ..PROXIES }, "rate", 3),
        (Limits { client: rate(0.01, 9), route: rate(0.01, 4), ..PROXIES }, "route_rate", 4),
    ] {
        let edge = limits.start(settings(), vec![application.address]);
        for client in ["203.0.113.7", "2001:db8::7"] {
            let mut statuses = Vec::new();
            for _ in 0..6 {
                let request = get("/", &format!("X-Forwarded-For: {client}\r\nConnection: close\r\n"));
                statuses.push(status(&edge.ask(&request).await));
            }
            let expected: Vec<u16> = (0..6).map(|turn| if turn < passed { 200 } else { 429 }).collect();
            assert_eq!(statuses, expected, "{reason} of {client}");
        }
        assert_eq!(edge.rejected(reason), 2 * (6 - passed));
        edge.stop().await;
    }
}

#[tokio::test]
async fn a_handshake_that_is_cut_is_no_offence_and_one_that_fails_is() {
    let application = application(true).await;
    let edge = start(vec![application.address]);
    let mut garbage = TcpStream::connect(edge.address).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    end(&mut garbage).await;
    until("it is told", || edge.metrics.handshake_failures.get() == 1).await;
    let mut half = TcpStream::connect(edge.address).await.unwrap();
    half.write_all(&[22, 3, 1]).await.unwrap();
    until("it is listed", || edge.connections.len() == 1).await;
    let mut plain = TcpStream::connect(edge.plain).await.unwrap();
    plain.write_all(b"GET / HT").await.unwrap();
    let mut head = edge.connect().await;
    head.write_all(b"GET / HT").await.unwrap();
    until("all are listed", || edge.connections.len() == 3).await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!(cut(&edge).await, 3);
    let ends = tokio::join!(end(&mut half), end(&mut plain), end(&mut head));
    let reset = Some(ErrorKind::ConnectionReset);
    assert_eq!(ends, (reset, reset, reset));
    until("edge has let go of all", || edge.connections.is_empty()).await;
    assert_eq!((edge.metrics.handshake_failures.get(), edge.metrics.malformed.get()), (1, 0));
    assert_eq!(edge.stop().await.len(), 1);
}

/// The server has ended it, by a reset or by its end.
fn sees_its_end(connection: std::io::Result<std::net::TcpStream>) {
    let Ok(mut connection) = connection else { return };
    connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    match std::io::Read::read(&mut connection, &mut [0; 1]) {
        Ok(0) => {}
        Ok(_) => panic!("edge has said something to a banned client"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

#[tokio::test]
async fn no_connection_slips_in_between_a_ban_and_its_cut() {
    let application = application(true).await;
    let edge = start(vec![application.address]);
    for _ in 0..10 {
        let address = edge.address;
        // Connections come all the time, and their clients hold on to them.
        let connect = move || (0..60).map(|_| std::net::TcpStream::connect(address)).collect::<Vec<_>>();
        let coming = [tokio::task::spawn_blocking(connect), tokio::task::spawn_blocking(connect)];
        until("some are here", || edge.connections.len() > 10).await;
        cut(&edge).await;
        let mut held = Vec::new();
        for connections in coming {
            held.push(connections.await.unwrap());
        }
        // Also those that edge had not accepted yet.
        tokio::task::spawn_blocking(|| held.into_iter().flatten().for_each(sees_its_end)).await.unwrap();
        until("all are gone", || edge.connections.is_empty()).await;
        assert!(edge.banned.lift("127.0.0.1/32".parse().unwrap()));
    }
    assert_eq!(edge.metrics.handshake_failures.get(), 0, "what edge cuts is nobody's offence");
    edge.stop().await;
}

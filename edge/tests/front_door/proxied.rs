//! The listener that demands a PROXY header: who may write one, and that bans, limits and lines are about
//! the client that it names.

use super::*;

const LOAD_BALANCER: &[&str] = &["127.0.0.1/32"];
const ASK: &str =
    "GET /x HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 203.0.113.99\r\nConnection: close\r\n\r\n";

fn trusting() -> Limits {
    Limits { trusted: LOAD_BALANCER, ..Limits::default() }
}

fn version1(client: &str) -> Vec<u8> {
    format!("PROXY TCP4 {client} 127.0.0.1 4711 443\r\n").into_bytes()
}

/// Version 2 with a field that nobody here knows.
fn version2(client: Ipv4Addr) -> Vec<u8> {
    let ports = [0x12, 0x67, 1, 187];
    let field = [0xea, 0, 3, b'x', b'y', b'z'];
    let start = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x12";
    [&start[..], &client.octets(), &[127, 0, 0, 1], &ports, &field].concat()
}

/// `None` where edge was so quick to reset the connection that it never stood.
async fn sent(edge: &Edge, parts: &[&[u8]]) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(edge.proxied).await.ok()?;
    for part in parts {
        // Who has been refused need not hear the rest.
        if stream.write_all(part).await.is_err() {
            break;
        }
    }
    Some(stream)
}

/// What comes back until edge closes, in whatever manner.
async fn answer(stream: Option<TcpStream>) -> String {
    let mut answer = Vec::new();
    if let Some(mut stream) = stream {
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn whom_the_load_balancer_names_is_the_client_to_everybody() {
    let application = application(true).await;
    let edge = trusting().start(settings(), vec![application.address]);
    let ask = ASK.as_bytes();
    let one = [&version1("192.0.2.1")[..], ask].concat();
    let two = [&version2([192, 0, 2, 2].into())[..], ask].concat();
    assert_eq!(status(&answer(sent(&edge, &[&one]).await).await), 200);
    assert_eq!(status(&answer(sent(&edge, &[&two]).await).await), 200);
    // However it arrives.
    for whole in [one, two] {
        let mut stream = TcpStream::connect(edge.proxied).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in whole {
            stream.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(status(&answer(Some(stream)).await), 200);
    }
    // The load balancer's own look.
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    let own = ASK.replace("X-Forwarded-For: 203.0.113.99\r\n", "");
    assert_eq!(status(&answer(sent(&edge, &[local, own.as_bytes()]).await).await), 200);
    assert_eq!(status(&answer(sent(&edge, &[b"PROXY UNKNOWN\r\n", own.as_bytes()]).await).await), 200);
    let heads = application.heads.lock().unwrap().clone();
    let told = |head: &String| {
        head.split("x-forwarded-for: ").nth(1).unwrap().split("\r\n").next().unwrap().to_owned()
    };
    let told: Vec<_> = heads.iter().map(told).collect();
    let expected = ["192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.2", "127.0.0.1", "127.0.0.1"];
    assert_eq!(told, expected, "and what the client says of itself is nothing");
    let lines = edge.stop().await;
    let logged: Vec<_> = lines.iter().map(|line| line["source.ip"].as_str().unwrap()).collect();
    assert_eq!(logged, expected);
}

#[tokio::test]
async fn a_header_is_demanded_and_only_from_trusted_proxies() {
    let application = application(true).await;
    let wary = start(vec![application.address]);
    let header = [&version1("192.0.2.1")[..], ASK.as_bytes()].concat();
    assert_eq!(answer(sent(&wary, &[&header]).await).await, "", "a stranger is not listened to");
    until("it is counted", || wary.rejected("proxy_header") == 1).await;
    let lines = wary.stop().await;
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["source.ip"], "127.0.0.1");
    assert!(lines[0]["event.reason"].as_str().unwrap().contains("only trusted proxies"), "{lines:?}");

    let mut settings = settings();
    settings.handshake_timeout = Duration::from_secs(1);
    let edge = trusting().start(settings, vec![application.address]);
    let cases: [(&[u8], &str); 5] = [
        (ASK.as_bytes(), "does not begin with one"),
        (b"\x16\x03\x01\x02\0\x01\0", "does not begin with one"),
        (b"PROXY TCP4 192.0.2.1\r\n", "version 1 is malformed"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\0", "no TCP connection"),
        (b"PROXY TCP4 192.0.2.1 127.0", "not complete in time"),
    ];
    for (bytes, _) in cases {
        assert_eq!(answer(sent(&edge, &[bytes]).await).await, "");
    }
    // A look whether somebody listens, as monitors take it: nothing was begun, and nothing is written.
    drop(TcpStream::connect(edge.proxied).await.unwrap());
    let mut broken = sent(&edge, &[b"PROXY TCP4"]).await.unwrap();
    broken.shutdown().await.unwrap();
    assert_eq!(answer(Some(broken)).await, "");
    until("all are counted", || edge.rejected("proxy_header") == 6).await;
    assert_eq!(application.arrived.load(Ordering::SeqCst), 0);
    let lines = edge.stop().await;
    let reasons: Vec<_> = lines.iter().map(|line| line["event.reason"].as_str().unwrap()).collect();
    assert_eq!(reasons.len(), 6, "{reasons:?}");
    for (reason, (_, expected)) in reasons.iter().zip(cases) {
        assert!(reason.starts_with("PROXY header: ") && reason.contains(expected), "{reasons:?}");
    }
    assert!(reasons[5].contains("ended in it"), "{reasons:?}");
}

#[tokio::test]
async fn bans_and_limits_are_about_the_client_that_is_named() {
    let application = application(true).await;
    let limits = Limits { connections: 2, ..trusting() };
    let edge = limits.start(settings(), vec![application.address]);
    let open = async |client: &str| {
        let mut stream = sent(&edge, &[&version1(client), b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"]).await?;
        let mut byte = [0];
        match timeout(PATIENCE, stream.read(&mut byte)).await.unwrap() {
            Ok(1) => Some(stream),
            _ => None,
        }
    };
    let (first, second) = (open("192.0.2.1").await.unwrap(), open("192.0.2.1").await.unwrap());
    assert!(open("192.0.2.1").await.is_none(), "one more than its two");
    until("it is counted", || edge.rejected("client_connections") == 1).await;
    let other = open("192.0.2.2").await.unwrap();
    drop(first);
    until("its place is free", || edge.connections.len() == 2).await;
    let third = open("192.0.2.1").await.unwrap();
    // A ban cuts the named client's connections, and no other that the load balancer carries.
    let banned = "192.0.2.1/32".parse().unwrap();
    edge.banned.ban(banned, u64::MAX);
    assert_eq!(edge.connections.cut(banned), 2);
    for mut cut in [second, third] {
        let mut rest = Vec::new();
        assert!(timeout(PATIENCE, cut.read_to_end(&mut rest)).await.unwrap().is_err());
    }
    assert!(open("192.0.2.1").await.is_none());
    until("it is counted", || edge.rejected("banned") == 1).await;
    drop(open("192.0.2.2").await.unwrap());
    drop(other);
    let lines = edge.stop().await;
    let refused: Vec<_> = lines.iter().filter(|line| line["http.response.status_code"] == 0).collect();
    assert_eq!(refused.len(), 1, "{lines:?}");
    assert_eq!(refused[0]["source.ip"], "192.0.2.1");
    assert!(refused[0]["event.reason"].as_str().unwrap().starts_with("too many connections"), "{lines:?}");
}

#[tokio::test]
async fn a_client_has_a_number_of_connections_and_no_more() {
    let limits = Limits { connections: 3, ..Limits::default() };
    let edge = limits.start(settings(), vec![application(true).await.address]);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(edge.connect().await);
    }
    // Before TLS: not a byte of a handshake is answered, on any listener.
    for address in [edge.address, edge.plain, edge.clear] {
        let Ok(mut refused) = TcpStream::connect(address).await else { continue };
        assert!(!matches!(timeout(PATIENCE, refused.read(&mut [0])).await.unwrap(), Ok(1)));
    }
    until("all are counted", || edge.rejected("client_connections") == 3).await;
    drop(held.pop());
    until("its place is free", || edge.connections.len() == 2).await;
    drop(edge.connect().await);
    drop(held);
    let lines = edge.stop().await;
    assert_eq!(lines.iter().filter(|line| line["http.version"] == "TCP").count(), 3, "{lines:?}");
}

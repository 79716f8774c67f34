//! The listener that serves in clear: the same gate, limits, bans and lines in the log as over TLS, and
//! nothing but HTTP/1.

use super::*;

async fn ask_in_clear(edge: &Edge, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(edge.clear).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8(answer).unwrap()
}

fn request(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn what_is_served_in_clear_is_served_as_over_tls() {
    let edge = start(vec![application(true).await.address]);
    let pipelined = b"POST /1 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc\
                      GET /2 HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    let [over_tls, in_clear] = [edge.ask(pipelined).await, ask_in_clear(&edge, pipelined).await];
    for (answer, secure) in [(&over_tls, true), (&in_clear, false)] {
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
        assert!(answer.contains("\r\n\r\n/1") && answer.ends_with("\r\n\r\n/2"), "{answer}");
        assert_eq!(answer.to_lowercase().contains("strict-transport-security"), secure, "{answer}");
    }
    let lines = edge.stop().await;
    let schemes: Vec<_> = lines.iter().map(|line| line["url.scheme"].as_str().unwrap()).collect();
    assert_eq!(schemes, ["https", "https", "http", "http"]);
}

#[tokio::test]
async fn what_the_gate_refuses_over_tls_it_refuses_in_clear() {
    let application = application(true).await;
    let edge = start(vec![application.address]);
    let cases: [&[u8]; 6] = [
        b"GET / HTTP/1.1\nHost: a.test\n\n",
        b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        b"GET / HTTP/1.1\r\n\r\n",
        // HTTP/2 is spoken where TLS has agreed on it, and nowhere else.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        // What a load balancer would say before a request is no part of one.
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
    ];
    for case in cases {
        let shown = String::from_utf8_lossy(case);
        let answer = ask_in_clear(&edge, case).await;
        assert!((400..=505).contains(&status(&answer)), "{shown:?}: {answer}");
        assert!(answer.contains("application/problem+json"), "{shown:?}: {answer}");
    }
    // A client that speaks TLS here is refused, too, and hears it in clear.
    assert_eq!(status(&ask_in_clear(&edge, b"\x16\x03\x01\0\x05\x01\0\0\x01\x03\r\n\r\n").await), 400);
    assert_eq!(application.arrived.load(Ordering::SeqCst), 0);
    let lines = edge.stop().await;
    assert_eq!(lines.len(), cases.len() + 1, "one line each: {lines:?}");
    assert!(lines.iter().all(|line| line["event.reason"].is_string()), "{lines:?}");
}

#[tokio::test]
async fn no_upgrade_leads_to_http2_in_clear() {
    let application = application(true).await;
    let edge = start(vec![application.address]);
    let upgrade = b"GET /x HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade, HTTP2-Settings\r\n\
                    Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n\
                    GET /y HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    for answer in [ask_in_clear(&edge, upgrade).await, edge.ask(upgrade).await] {
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
    }
    let heads = application.heads.lock().unwrap().join("\n");
    assert!(!heads.contains("h2c") && !heads.contains("http2-settings"), "{heads}");
    edge.stop().await;
}

#[tokio::test]
async fn a_client_in_clear_has_the_same_limits_as_over_tls() {
    let application = application(false).await;
    let edge = Arc::new(start(vec![application.address]));
    let mut asked = tokio::task::JoinSet::new();
    for number in 0..60 {
        let edge = Arc::clone(&edge);
        asked.spawn(async move {
            let request = request("/slow");
            if number % 2 == 0 { edge.ask(&request).await } else { ask_in_clear(&edge, &request).await }
        });
    }
    for _ in 0..10 {
        assert_eq!(status(&asked.join_next().await.unwrap().unwrap()), 429);
    }
    until("fifty are with the application", || application.arrived.load(Ordering::SeqCst) == 50).await;
    application.answer.send_replace(true);
    let answers = asked.join_all().await;
    assert!(answers.iter().all(|answer| status(answer) == 200), "{answers:?}");
    // Who is banned is cut on every listener, and not let in by any.
    let mut idle = TcpStream::connect(edge.clear).await.unwrap();
    idle.write_all(b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n").await.unwrap();
    assert_eq!(idle.read(&mut [0; 512]).await.unwrap().min(1), 1);
    let us = "127.0.0.1/32".parse().unwrap();
    edge.banned.ban(us, u64::MAX);
    edge.connections.cut(us);
    let mut rest = Vec::new();
    assert!(timeout(PATIENCE, idle.read_to_end(&mut rest)).await.unwrap().is_err());
    // The reset may come before the connection is known to stand, or after its first bytes.
    if let Ok(mut late) = TcpStream::connect(edge.clear).await {
        let _ = late.write_all(&request("/x")).await;
        assert!(!matches!(timeout(PATIENCE, late.read(&mut [0; 512])).await.unwrap(), Ok(1..)));
    }
    Arc::into_inner(edge).unwrap().stop().await;
}

#[tokio::test]
async fn what_a_trusted_proxy_says_of_the_scheme_is_believed_and_nobody_else() {
    let said = |scheme: &str| {
        format!(
            "GET /x HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: {scheme}\r\n\
             Connection: close\r\n\r\n"
        )
    };
    for (trusted, scheme, told) in [
        (&["127.0.0.1/32"][..], "https", "https"),
        (&["127.0.0.1/32"], "gopher", "http"),
        (&["127.0.0.1/32"], "https\r\nX-Forwarded-Proto: http", "http"),
        (&[], "https", "http"),
    ] {
        let application = application(true).await;
        let edge = Limits { trusted, ..Limits::default() }.start(settings(), vec![application.address]);
        assert_eq!(status(&ask_in_clear(&edge, said(scheme).as_bytes()).await), 200);
        let head = application.heads.lock().unwrap().concat();
        assert!(head.contains(&format!("\r\nx-forwarded-proto: {told}\r\n")), "{scheme}: {head}");
        let lines = edge.stop().await;
        assert_eq!(lines[0]["url.scheme"], told);
    }
}

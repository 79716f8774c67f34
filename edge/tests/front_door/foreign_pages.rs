//! What the ban engine hears of requests that a page of another origin may have caused, and how those
//! who are throttled for them are answered. In one process; the stories tell the rest.

use super::*;

/// Everybody here.
const US: &str = "127.0.0.1/32";

async fn ask_plainly(edge: &Edge) -> String {
    let mut plain = TcpStream::connect(edge.plain).await.unwrap();
    plain.write_all(b"GET /x HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, plain.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

/// Reason, mark, and whether it was refused as a visitor's, of all that was heard.
fn heard(edge: &Edge) -> Vec<(String, bool, bool)> {
    let heard = edge.heard.lock().unwrap();
    heard.iter().map(|one| (one.reason.clone().unwrap_or_default(), one.cross_site, one.spared)).collect()
}

#[tokio::test]
async fn plain_requests_are_held_to_the_same_table_and_rates_as_others() {
    let once = Rate::new(0.02, 1).unwrap();
    let limits = Limits { offender: once, ..Limits::default() };
    let edge = limits.start(settings(), vec![application(true).await.address]);
    for _ in 0..3 {
        assert_eq!(status(&ask_plainly(&edge).await), 301, "who is free is held to no rate here");
    }
    edge.banned.throttle_visitor(US.parse().unwrap(), u64::MAX);
    assert_eq!(status(&ask_plainly(&edge).await), 301);
    let refused = ask_plainly(&edge).await;
    assert_eq!(status(&refused), 429, "{refused}");
    assert!(refused.contains("\r\nRetry-After: ") && refused.contains("too_many_requests"), "{refused}");
    // The other listener asks the same.
    let request = b"GET /x HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&edge.ask(request).await), 429);
    // A jail's throttle goes before, and is its own fault.
    edge.banned.throttle(US.parse().unwrap(), u64::MAX);
    assert_eq!((status(&ask_plainly(&edge).await), status(&edge.ask(request).await)), (429, 429));
    assert_eq!(edge.rejected("throttled"), 4);
    let heard: Vec<_> = heard(&edge).into_iter().filter(|(reason, ..)| !reason.is_empty()).collect();
    let told: Vec<_> = heard.iter().map(|(_, cross_site, spared)| (*cross_site, *spared)).collect();
    assert_eq!(told, [(true, true), (false, true), (true, false), (false, false)], "{heard:?}");
    assert!(heard[..2].iter().all(|(reason, ..)| reason.starts_with("throttled for foreign pages: ")));
    assert!(heard[2..].iter().all(|(reason, ..)| reason.starts_with("throttled: ")), "{heard:?}");
    edge.stop().await;
}

#[tokio::test]
async fn plain_requests_through_a_trusted_proxy_are_not_held_to_its_rate() {
    let once = Rate::new(0.02, 1).unwrap();
    let limits = Limits { trusted: &["127.0.0.1/32"], client: Some(once), ..Limits::default() };
    let edge = limits.start(settings(), vec![application(true).await.address]);
    for _ in 0..3 {
        assert_eq!(status(&ask_plainly(&edge).await), 301);
    }
    edge.stop().await;
}

/// A literal header that no limit takes, cut into frames as a browser does; `ends` or goes on.
fn too_large(length: [u8; 4], sent: usize, ends: bool) -> Vec<u8> {
    let block = [&[0x00, 0x01, b'x'], &length[..], &vec![b'~'; sent]].concat();
    let last = block.chunks(16_384).count() - 1;
    let kind = |at| if at == 0 { 1 } else { 9 };
    let flags = |at| if ends && at == last { 4 } else { 0 };
    block.chunks(16_384).enumerate().flat_map(|(at, part)| frame(kind(at), flags(at), 1, part)).collect()
}

/// A header block of one full frame that is no request.
fn large(stream: u32) -> Vec<u8> {
    // 16,378 bytes and six before them.
    let block: Vec<u8> = [0x00, 0x01, b'x', 0x7f, 0xfb, 0x7e].into_iter().chain([b'~'; 16_378]).collect();
    frame(1, 5, stream, &block)
}

#[tokio::test]
async fn only_the_head_that_is_too_large_itself_can_be_a_pages_on_http2() {
    let edge = start(vec![application(true).await.address]);
    let small = || frame(1, 5, 3, &block(&[("x", "no request")]));
    let cases = [
        // Lengths as RFC 7541, section 5.1 writes them.
        (
            "too large",
            vec![too_large([0x7f, 0xb1, 0xda, 0x06], 110_000, true)],
            "request refused",
            vec![true],
        ),
        (
            "endless",
            vec![too_large([0x7f, 0xff, 0xff, 0x7f], 200_000, false)],
            "connection error ENHANCE",
            vec![true],
        ),
        (
            "then nonsense",
            vec![large(1), frame(0, 0, 0, b"data")],
            "connection error PROTOCOL_ERROR",
            vec![false],
        ),
        (
            "then a bad frame",
            vec![large(1), frame(6, 0, 0, b"ping")],
            "connection error PROTOCOL_ERROR",
            vec![false],
        ),
        ("no request, twice", vec![large(1), small()], "request refused", vec![true, false]),
    ];
    for (what, frames, reason, marks) in cases {
        edge.heard.lock().unwrap().clear();
        let client = speak_h2(&edge, &frames).await;
        // edge ends a connection with an error; one with refused requests is the client's to end.
        let (mut reader, mut writer) = tokio::io::split(client);
        let _ = timeout(Duration::from_millis(500), reader.read_to_end(&mut Vec::new())).await;
        let _ = writer.shutdown().await;
        drop((reader, writer));
        until(what, || heard(&edge).len() >= marks.len()).await;
        let heard = heard(&edge);
        assert!(heard.iter().all(|(told, ..)| told.starts_with(reason)), "{what}: {heard:?}");
        assert_eq!(heard.iter().map(|(_, mark, _)| *mark).collect::<Vec<_>>(), marks, "{what}: {heard:?}");
    }
}

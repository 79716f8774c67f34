//! The failing-over client against a pair of real TLS servers that die and misbehave.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use shared::api::client::{Body, Client, ClientError, Limits, ServedBy};
use tokio::sync::Notify;

use crate::pair::{Behaviour, Pair, hash, noise};

/// Deadlines long enough that only a dead connection, never a slow machine, ends an attempt.
fn patient() -> Limits {
    let minute = Duration::from_secs(60);
    Limits {
        connect: minute,
        attempt: minute,
        upload_attempt: minute,
        total: minute * 5,
        ..Limits::default()
    }
}

fn client(pair: &Pair, limits: Limits) -> Client {
    Client::with_limits(pair.addresses(), pair.caller(), limits).unwrap()
}

fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::Empty).unwrap()
}

#[tokio::test]
async fn a_killed_vault_is_replaced_by_the_other_at_once() {
    let mut pair = Pair::start().await;
    let client = client(&pair, patient());
    assert_eq!(client.reserve("INV", "one").await.unwrap().number, 1);
    pair.vaults[0].kill().await;
    assert_eq!(client.reserve("INV", "two").await.unwrap().number, 2);
    assert_eq!(client.failovers(), 1);
    assert_eq!(client.vaults().iter().map(|vault| vault.up).collect::<Vec<_>>(), [false, true]);
    // The one that answers goes first now: no further attempt at the dead one.
    assert_eq!(client.reserve("INV", "three").await.unwrap().number, 3);
    assert_eq!(client.failovers(), 1);
    assert_eq!(pair.asked(), [1, 2]);
}

#[tokio::test]
async fn a_vault_that_came_back_is_found_by_the_probe() {
    let mut pair = Pair::start().await;
    let client = client(&pair, patient());
    pair.vaults[0].kill().await;
    client.reserve("INV", "one").await.unwrap();
    pair.vaults[0].start_again().await;
    tokio::time::timeout(Duration::from_secs(60), async {
        while !client.vaults().iter().all(|vault| vault.up) {
            client.probe(Duration::from_secs(60)).await;
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the probe finds it");
    pair.vaults[1].kill().await;
    assert_eq!(client.reserve("INV", "two").await.unwrap().number, 2);
}

#[tokio::test]
async fn a_write_repeated_at_the_other_vault_acts_once() {
    let pair = Pair::start().await;
    let client = client(&pair, patient());
    // A kept connection may be stale, so its loss is tried again there before going on.
    pair.vaults[0].will([Behaviour::ActAndCut]);
    assert_eq!(client.reserve("INV", "one").await.unwrap().number, 1);
    assert_eq!(pair.asked(), [1, 1]);
    assert_eq!(pair.deeds.lock().unwrap().acts["one"], 1);
}

#[tokio::test]
async fn a_post_without_a_key_gets_one_and_keeps_it_over_attempts() {
    let pair = Pair::start().await;
    let client = client(&pair, patient());
    pair.vaults[0].will([Behaviour::ActAndCut]);
    let request = Request::post("/v1/series/INV/numbers").body(Body::Empty).unwrap();
    let response = client.call(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    assert_eq!(response.extensions().get::<ServedBy>(), Some(&ServedBy("vault-b".to_owned())));
    let deeds = pair.deeds.lock().unwrap();
    let keys: Vec<_> = deeds.asked.iter().map(|(.., key)| key.clone().unwrap()).collect();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[0], keys[1]);
    assert_eq!(deeds.acts.values().copied().collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn a_vault_that_hangs_is_left_after_the_first_attempt() {
    let pair = Pair::start().await;
    let client = client(&pair, Limits { attempt: Duration::from_millis(100), ..patient() });
    pair.vaults[0].will([Behaviour::Hang]);
    assert_eq!(client.reserve("INV", "one").await.unwrap().number, 1);
    assert_eq!(pair.asked(), [1, 1]);
    assert_eq!(client.failovers(), 1);
}

#[tokio::test]
async fn a_small_upload_waits_for_a_slow_vault_that_is_alive() {
    let pair = Pair::start().await;
    let client = client(&pair, Limits { attempt: Duration::from_millis(100), ..patient() });
    let word = Arc::new(Notify::new());
    pair.vaults[0].will([Behaviour::Wait(Arc::clone(&word))]);
    let upload = client.upload("one", "application/pdf", "Rechnung 1", noise(1000));
    let release = async {
        // The second connection is the question whether it lives.
        pair.vaults[0].connected(2).await;
        word.notify_one();
    };
    let (file, ()) = tokio::join!(upload, release);
    assert_eq!(file.unwrap().size, 1000);
    assert_eq!(pair.asked(), [1, 0]);
}

#[tokio::test]
async fn a_refusal_of_both_comes_back_with_its_retry_after() {
    let pair = Pair::start().await;
    let client = client(&pair, patient());
    pair.vaults[0].will([Behaviour::Refuse("peer_away")]);
    pair.vaults[1].will([Behaviour::Refuse("peer_away")]);
    match client.reserve("INV", "one").await {
        Err(ClientError::Refused { problem, retry_after }) => {
            assert_eq!(problem.code, "peer_away");
            assert_eq!(retry_after, Some(Duration::from_secs(7)));
        }
        other => panic!("refused by both, but: {other:?}"),
    }
    assert_eq!(pair.asked(), [1, 1]);
}

#[tokio::test]
async fn a_refusal_of_one_is_no_refusal_of_the_pair() {
    let pair = Pair::start().await;
    let client = client(&pair, patient());
    pair.vaults[0].will([Behaviour::Refuse("stopping")]);
    assert_eq!(client.reserve("INV", "one").await.unwrap().number, 1);
    assert_eq!(pair.asked(), [1, 1]);
}

#[tokio::test]
async fn a_refusal_survives_the_death_of_the_other_vault() {
    let mut pair = Pair::start().await;
    let client = client(&pair, patient());
    pair.vaults[1].kill().await;
    pair.vaults[0].will([Behaviour::Refuse("peer_away")]);
    assert!(matches!(client.reserve("INV", "one").await, Err(ClientError::Refused { .. })));
}

#[tokio::test]
async fn both_dead_is_said_of_each_by_name() {
    let mut pair = Pair::start().await;
    let client = client(&pair, patient());
    for vault in &mut pair.vaults {
        vault.kill().await;
    }
    let error = client.reserve("INV", "one").await.unwrap_err().to_string();
    assert!(
        error.contains("vault-a: cannot connect") && error.contains("vault-b: cannot connect"),
        "{error}"
    );
}

#[tokio::test]
async fn a_small_upload_broken_half_way_is_repeated_whole() {
    let pair = Pair::start().await;
    let client = client(&pair, patient());
    let content = noise(1 << 20);
    pair.vaults[0].will([Behaviour::CutUpload(1000)]);
    let file = client.upload("one", "application/pdf", "", content.clone()).await.unwrap();
    assert_eq!(file.id, hash(&content));
    assert_eq!(pair.deeds.lock().unwrap().acts["one"], 1);
    assert_eq!(client.download(&file.id, content.len()).await.unwrap(), content);
}

fn streamed(content: &Bytes, ends_well: bool) -> Body {
    let mut frames: Vec<_> =
        content.chunks(16 << 10).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
    if !ends_well {
        frames.push(Err(std::io::Error::other("handler left")));
    }
    Body::streamed(StreamBody::new(futures_util::stream::iter(frames)))
}

fn upload(body: Body) -> Request<Body> {
    Request::post("/v1/files").header("idempotency-key", "one").body(body).unwrap()
}

#[tokio::test]
async fn a_streamed_upload_broken_half_way_is_the_callers_to_repeat_with_its_key() {
    let pair = Pair::start().await;
    let client = client(&pair, patient());
    let content = noise(4 << 20);
    pair.vaults[0].will([Behaviour::CutUpload(100_000)]);
    match client.call(upload(streamed(&content, true))).await {
        Err(ClientError::BrokenUpload { vault, .. }) => assert_eq!(vault, "vault-a"),
        other => panic!("broken, but: {:?}", other.map(|response| response.status())),
    }
    assert_eq!(pair.asked(), [1, 0]);
    let response = client.call(upload(streamed(&content, true))).await.unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    // The vault that broke is not asked first again.
    assert_eq!(pair.asked(), [1, 1]);
    assert_eq!(pair.deeds.lock().unwrap().files[&hash(&content)], content);
}

#[tokio::test]
async fn a_streamed_upload_goes_to_the_other_vault_while_no_byte_is_out() {
    let mut pair = Pair::start().await;
    let client = client(&pair, patient());
    pair.vaults[0].kill().await;
    let response = client.call(upload(streamed(&noise(100_000), true))).await.unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    assert_eq!(pair.asked(), [0, 1]);
}

#[tokio::test]
async fn a_source_that_fails_blames_no_vault() {
    let pair = Pair::start().await;
    let client = client(&pair, patient());
    let done = client.call(upload(streamed(&noise(100_000), false))).await;
    assert!(matches!(done, Err(ClientError::BrokenSource(_))));
    client.reserve("INV", "one").await.unwrap();
    assert_eq!(client.failovers(), 0);
    assert!(pair.deeds.lock().unwrap().files.is_empty());
}

#[tokio::test]
async fn a_download_broken_several_times_is_byte_identical() {
    let pair = Pair::start().await;
    let client = client(&pair, patient());
    let content = noise(1 << 20);
    let id = pair.store(content.clone());
    pair.vaults[0].will([Behaviour::CutDownload(100_000), Behaviour::CutDownload(0)]);
    pair.vaults[1].will([Behaviour::CutDownload(1), Behaviour::CutDownload(300_000)]);
    assert_eq!(client.download(&id, content.len()).await.unwrap(), content);
    let [a, b] = pair.asked();
    assert!(a >= 1 && b >= 1 && a + b >= 3, "{a} {b}");
    assert_eq!(client.failovers(), (a + b - 1) as u64, "each part that was asked for again is counted");
}

#[tokio::test]
async fn a_part_broken_in_the_middle_is_continued_to_its_own_end() {
    let pair = Pair::start().await;
    let client = client(&pair, patient());
    let content = noise(500_000);
    let id = pair.store(content.clone());
    for (range, wanted) in [("bytes=1000-300000", 1000..300_001), ("bytes=1000-", 1000..500_000)] {
        pair.vaults[0].will([Behaviour::CutDownload(50_000)]);
        pair.vaults[1].will([Behaviour::CutDownload(50_000)]);
        let mut request = get(&format!("/v1/files/{id}"));
        request.headers_mut().insert(header::RANGE, range.parse().unwrap());
        let response = client.call(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), content.slice(wanted));
    }
}

#[tokio::test]
async fn a_download_that_cannot_be_continued_ends_with_an_error() {
    let mut pair = Pair::start().await;
    let client = client(&pair, patient());
    let content = noise(1 << 20);
    let id = pair.store(content.clone());
    pair.vaults[0].will([Behaviour::CutDownload(100_000)]);
    let mut body = client.call(get(&format!("/v1/files/{id}"))).await.unwrap().into_body();
    for vault in &mut pair.vaults {
        vault.kill().await;
    }
    let mut taken = 0;
    let error = loop {
        match body.frame().await {
            Some(Ok(frame)) => taken += frame.into_data().unwrap().len(),
            Some(Err(error)) => break error,
            None => panic!("ended after {taken} bytes as if it were whole"),
        }
    };
    assert!(taken < content.len());
    assert!(matches!(error, ClientError::Unreachable(_)), "{error}");
}

#[tokio::test]
async fn a_head_and_a_missing_file_are_answers_like_any_other() {
    let pair = Pair::start().await;
    let client = client(&pair, patient());
    let id = pair.store(noise(1234));
    let mut request = get(&format!("/v1/files/{id}"));
    *request.method_mut() = Method::HEAD;
    let response = client.call(request).await.unwrap();
    assert_eq!(response.headers()[header::CONTENT_LENGTH], "1234");
    assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
    match client.download(&"0".repeat(64), 10).await {
        Err(ClientError::Refused { problem, .. }) => assert_eq!(problem.code, "not_found"),
        other => panic!("missing, but: {other:?}"),
    }
    assert_eq!(pair.asked(), [2, 0]);
}

#[tokio::test]
async fn a_connection_is_kept_and_a_stale_one_replaced_without_a_failover() {
    let mut pair = Pair::start().await;
    let client = client(&pair, patient());
    // The connection is given back a moment after the answer: ask until it is used again.
    let mut asked = 0;
    while pair.vaults[0].connections() == asked {
        asked += 1;
        client.reserve("INV", &format!("key{asked}")).await.unwrap();
        tokio::task::yield_now().await;
        assert!(asked < 100, "no connection is ever used twice");
    }
    pair.vaults[0].kill().await;
    pair.vaults[0].start_again().await;
    client.reserve("INV", "after").await.unwrap();
    assert_eq!(client.failovers(), 0);
    assert_eq!(pair.asked()[1], 0);
}

#[tokio::test]
async fn a_vault_under_another_name_is_not_trusted() {
    let pair = Pair::start().await;
    let mut addresses = pair.addresses();
    let (left, right) = (addresses[0].address, addresses[1].address);
    (addresses[0].address, addresses[1].address) = (right, left);
    let client = Client::with_limits(addresses, pair.caller(), patient()).unwrap();
    let error = client.reserve("INV", "one").await.unwrap_err().to_string();
    assert!(error.contains("vault-a: TLS: ") && error.contains("vault-b: TLS: "), "{error}");
    assert_eq!(pair.asked(), [0, 0]);
}

#[tokio::test]
async fn a_kill_among_many_calls_loses_none_and_doubles_none() {
    let mut pair = Pair::start().await;
    let client = client(&pair, patient());
    let calls: Vec<_> = (0..60)
        .map(|index| {
            let client = client.clone();
            tokio::spawn(async move { client.reserve("INV", &format!("key{index}")).await })
        })
        .collect();
    while pair.asked()[0] < 20 {
        tokio::task::yield_now().await;
    }
    pair.vaults[0].kill().await;
    let mut numbers = Vec::new();
    for call in calls {
        numbers.push(call.await.unwrap().unwrap().number);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=60).collect::<Vec<u64>>());
    assert!(pair.deeds.lock().unwrap().acts.values().all(|acts| *acts == 1));
}

#[tokio::test]
async fn a_vault_that_takes_no_handshake_is_left_after_the_connect_deadline() {
    let pair = Pair::start().await;
    let mut addresses = pair.addresses();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    addresses[0].address = silent.local_addr().unwrap();
    let limits = Limits { connect: Duration::from_millis(300), ..patient() };
    let client = Client::with_limits(addresses, pair.caller(), limits).unwrap();
    assert_eq!(client.reserve("INV", "one").await.unwrap().number, 1);
    let why = client.vaults()[0].why.clone().unwrap();
    assert!(why.starts_with("no connection within"), "{why}");
}

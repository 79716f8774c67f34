//! Tickets between handlers and vaults: what the client and the gateway send, to whom and when.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{Method, Request, StatusCode};
use shared::api::client::{self, Client, Life, Limits, Tickets};
use shared::api::{IDEMPOTENCY_KEY, Number, Problem, VAULT_TICKET};

use crate::gateway::{Body, Door, json, request};
use crate::pair::{Behaviour, Pair};

const NUMBERS: &str = "/v1/series/INV/numbers";

/// A book in memory: the client's side of the bargain alone is under test.
#[derive(Default)]
struct Book(Mutex<Vec<(String, Life)>>);

impl Tickets for Book {
    fn write_down(&self, _series: &str, keys: Vec<String>, life: Life) -> BoxFuture<'_, Vec<Option<Life>>> {
        let mut book = self.0.lock().unwrap();
        let lives = keys.into_iter().map(|key| {
            let known = book.iter().find(|(written, _)| *written == key).map(|(_, life)| *life);
            if known.is_none() {
                book.push((key, life));
            }
            Some(known.unwrap_or(life))
        });
        Box::pin(std::future::ready(lives.collect()))
    }
}

fn client(pair: &Pair) -> Client {
    let minute = Duration::from_secs(60);
    let limits = Limits { connect: minute, attempt: minute, total: minute * 5, ..Limits::default() };
    let client = Client::with_limits(pair.addresses(), pair.caller(), limits).unwrap();
    client.with_tickets(Arc::new(Book::default()))
}

fn seen(pair: &Pair) -> Vec<(String, Option<Life>)> {
    std::mem::take(&mut pair.deeds.lock().unwrap().tickets)
}

fn at(vault: &str, life: Life) -> (String, Option<Life>) {
    (vault.to_owned(), Some(life))
}

#[tokio::test]
async fn a_key_carries_the_life_of_the_vault_it_went_to_first_wherever_it_goes_on() {
    let mut pair = Pair::start().await;
    let client = client(&pair);
    let [first, second] = [0, 1].map(|vault| pair.vaults[vault].life());
    pair.vaults[0].will([Behaviour::ActAndCut, Behaviour::ActAndCut]);
    client.reserve("INV", "k").await.unwrap();
    let tickets = seen(&pair);
    assert!(tickets.len() >= 2 && tickets.iter().all(|(_, life)| *life == Some(first)), "{tickets:?}");
    assert_eq!(tickets.last(), Some(&at("vault-b", first)));
    // The other goes first now, and gets fresh keys of its own.
    client.reserve("INV", "l").await.unwrap();
    client.reserve("INV", "k").await.unwrap();
    assert_eq!(seen(&pair), [at("vault-b", second), at("vault-b", first)]);
    // The dead vault was never spoken to: the key is the living one's.
    pair.vaults[1].kill().await;
    pair.vaults[0].kill().await;
    pair.vaults[0].start_again().await;
    client.reserve("INV", "m").await.unwrap();
    assert_eq!(seen(&pair), [at("vault-a", pair.vaults[0].life())]);
}

#[tokio::test]
async fn a_life_from_before_the_connection_broke_is_given_to_no_fresh_key() {
    let mut pair = Pair::start().await;
    let client = client(&pair);
    client.reserve("INV", "before").await.unwrap();
    let former = pair.vaults[0].life();
    pair.vaults[0].kill().await;
    pair.vaults[0].start_again().await;
    let life = pair.vaults[0].life();
    assert_ne!(life, former);
    pair.vaults[1].kill().await;
    client.reserve("INV", "after").await.unwrap();
    assert_eq!(seen(&pair), [at("vault-a", former), at("vault-a", life)]);
}

#[tokio::test]
async fn a_vault_that_knows_no_lives_is_sent_none() {
    let pair = Pair::start().await;
    let client = client(&pair);
    pair.vaults.iter().for_each(|vault| vault.forget_life());
    client.reserve("INV", "k").await.unwrap();
    assert_eq!(seen(&pair), [("vault-a".to_owned(), None)]);
}

#[tokio::test]
async fn of_two_refusals_the_doubt_is_told() {
    let pair = Pair::start().await;
    let client = client(&pair);
    for codes in [["in_doubt", "peer_away"], ["peer_away", "in_doubt"]] {
        for (vault, code) in pair.vaults.iter().zip(codes) {
            vault.will([Behaviour::Refuse(code)]);
        }
        let refused = client.reserve("INV", "k").await.unwrap_err();
        let client::ClientError::Refused { problem, retry_after } = refused else { panic!("{refused}") };
        assert_eq!((problem.code.as_str(), retry_after), ("in_doubt", Some(Duration::from_secs(7))));
    }
    // One that is alone refuses what the other may answer.
    pair.vaults[0].will([Behaviour::Refuse("peer_away")]);
    assert_eq!(client.reserve("INV", "k").await.unwrap().number, 1);
}

fn reserve(key: &str) -> Request<Body> {
    let mut request = request(Method::POST, NUMBERS, "");
    request.headers_mut().insert(IDEMPOTENCY_KEY, key.parse().unwrap());
    request
}

/// A door whose store has seen both vaults give a number.
async fn settled() -> Door {
    let door = Door::open().await;
    settle(&door).await;
    door
}

async fn settle(door: &Door) {
    for count in 0..100 {
        let response = door.call(reserve(&format!("settles-{count}"))).await;
        assert_eq!(response.status(), StatusCode::CREATED);
        if seen(&door.pair).pop().unwrap().1.is_some() {
            return;
        }
    }
    panic!("tickets are never written");
}

#[tokio::test]
async fn handlers_keys_are_written_down_and_known_after_a_restart() {
    let door = settled().await;
    let life = door.pair.vaults[0].life();
    door.call(reserve("k")).await;
    assert_eq!(seen(&door.pair), [at("vault-a", life)]);
    let Door { mut pair, shutdown, running, .. } = door;
    shutdown.cancel();
    running.await.unwrap();
    // Its vault starts anew, and so does edge: the key's ticket is of the former life.
    pair.vaults[0].kill().await;
    pair.vaults[0].start_again().await;
    let door = Door::before(pair).await;
    let response = door.call(reserve("k")).await;
    assert!(response.status().is_success());
    assert_eq!(seen(&door.pair), [at("vault-a", life)]);
    assert_eq!(door.metric("edge_gateway_tickets_total", "known"), 1.0);
    assert!(door.vaults.tickets().contains("kept"), "{}", door.vaults.tickets());
}

#[tokio::test]
async fn a_batch_gets_a_ticket_for_each_key() {
    let door = settled().await;
    let life = door.pair.vaults[0].life();
    door.call(reserve("k")).await;
    door.pair.deeds.lock().unwrap().tickets.clear();
    let body = serde_json::json!({"keys": ["a", "k", "b"]}).to_string();
    let response = door.call(request(Method::POST, &format!("{NUMBERS}/batch"), body)).await;
    assert!(response.status().is_success());
    assert_eq!(seen(&door.pair), vec![at("vault-a", life); 3]);
    assert_eq!(door.metric("edge_gateway_tickets_total", "known"), 1.0);
}

#[tokio::test]
async fn a_ticket_of_the_handlers_own_is_refused() {
    let door = Door::open().await;
    let mut own = reserve("k");
    own.headers_mut().insert(VAULT_TICKET, Life(7).to_string().parse().unwrap());
    let batch = serde_json::json!({"keys": ["k"], "tickets": [null]}).to_string();
    for refused in [own, request(Method::POST, &format!("{NUMBERS}/batch"), batch)] {
        let problem = door.refused(refused).await;
        assert_eq!((problem.status, problem.code.as_str()), (400, "ticket_refused"));
    }
    assert_eq!(door.pair.asked(), [0, 0]);
}

#[tokio::test]
async fn a_batch_that_is_too_long_to_be_kept_is_told_what_to_do() {
    let door = Door::open().await;
    let keys: Vec<_> = (0..10_000).map(|number| format!("key-number-{number}")).collect();
    let body = serde_json::json!({ "keys": keys }).to_string();
    assert!(body.len() > 64 << 10, "more than this door keeps");
    let problem = door.refused(request(Method::POST, &format!("{NUMBERS}/batch"), body)).await;
    assert_eq!((problem.status, problem.code.as_str()), (413, "too_large"));
    assert!(problem.detail.contains("gateway.max_kept_body"), "{}", problem.detail);
}

#[tokio::test]
async fn a_refusal_for_good_passes_to_the_handler_as_it_is() {
    let door = settled().await;
    door.pair.vaults[0].will([Behaviour::Gone("key_lost")]);
    let response = door.call(reserve("k")).await;
    assert_eq!(response.status(), StatusCode::GONE);
    assert_eq!(json::<Problem>(response).await.code, "key_lost");
    assert_eq!(door.pair.asked()[1], 0, "the other vault can say nothing else");
}

#[tokio::test]
async fn many_handlers_share_the_commits_of_their_tickets() {
    let door = settled().await;
    let before = door.metric("edge_gateway_ticket_commits_total", "");
    // Another's transaction holds the file until every handler waits.
    let busy = rusqlite::Connection::open(door.pair.folder().join("tickets.db")).unwrap();
    busy.execute_batch("BEGIN IMMEDIATE").unwrap();
    let keys: Vec<String> = (0..200).map(|number| format!("k{number}")).collect();
    let calls = futures_util::future::join_all(keys.iter().map(|key| door.call(reserve(key))));
    let release = async {
        while door.pair.vaults[0].connections() < 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        busy.execute_batch("ROLLBACK").unwrap();
    };
    let (answers, ()) = tokio::join!(calls, release);
    assert!(answers.iter().all(|answer| answer.status() == StatusCode::CREATED));
    let mut numbers = std::collections::HashSet::new();
    for answer in answers {
        numbers.insert(json::<Number>(answer).await.number);
    }
    assert_eq!(numbers.len(), 200);
    assert!(seen(&door.pair).iter().all(|(_, ticket)| ticket.is_some()));
    let commits = door.metric("edge_gateway_ticket_commits_total", "") - before;
    assert!(commits <= 20.0, "{commits} commits for 200 reserves");
}

#[tokio::test]
async fn without_a_store_numbers_go_on_without_tickets() {
    let door = settled().await;
    let Door { pair, shutdown, running, .. } = door;
    shutdown.cancel();
    running.await.unwrap();
    for file in ["tickets.db", "tickets.db-wal", "tickets.db-shm"] {
        let _absent = std::fs::remove_file(pair.folder().join(file));
    }
    std::fs::create_dir(pair.folder().join("tickets.db")).unwrap();
    let door = Door::before(pair).await;
    let response = door.call(reserve("k")).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    assert_eq!(seen(&door.pair), [("vault-a".to_owned(), None)]);
    assert_eq!(door.metric("edge_gateway_tickets_total", "without"), 1.0);
    assert_eq!(door.metric("edge_gateway_tickets_failing", ""), 1.0);
    assert!(door.vaults.tickets().contains("NOT written"), "{}", door.vaults.tickets());
}

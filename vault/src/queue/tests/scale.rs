//! Many messages and many senders: what is waiting must cost nothing but disk. `MESSAGES` sets how
//! many there are; the figures are printed.

use std::time::Instant;

use futures_util::FutureExt as _;

use super::super::message::AROUND;
use super::*;

fn many() -> usize {
    std::env::var("MESSAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000)
}

/// Of this process, in KiB: at its highest, and now.
fn resident() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let of = |key| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    (of("VmHWM:"), of("VmRSS:"))
}

async fn fill(queues: &Queues, orders: &Destination, count: usize) {
    let (session, _) = queues.connect();
    let body = message("m", 1_024);
    let mut last = None;
    for number in 0..count {
        let message = Message { name: number.to_string().into(), ..(*body).clone() };
        let send = Send { message: Arc::new(message), ..to(orders, "") };
        last = Some(session.send(send, None).await.unwrap());
    }
    last.unwrap().await.unwrap();
}

#[tokio::test]
async fn what_waits_is_neither_read_nor_counted_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders, count) = (open(folder.path()), queue("orders"), many());
    let began = Instant::now();
    fill(&queues, &orders, count).await;
    eprintln!("{count} messages sent in {:?}", began.elapsed());
    queues.close().await;
    let before = resident();
    let began = Instant::now();
    let queues = open(folder.path());
    let opened = began.elapsed();
    let (session, mut deliveries) = queues.connect();
    consumer(&session, &orders, 1_000).await;
    assert_eq!(&*next(&mut deliveries).await.message.name, "0");
    eprintln!("opened in {opened:?}, first message after {:?}, {before:?} KiB before", began.elapsed());
    assert!(opened < Duration::from_secs(1), "{opened:?}");
    let status = queues.list().await.unwrap();
    let state = &status.iter().find(|queue| queue.state.destination == orders).unwrap().state;
    let names: usize = (0..count).map(|number| number.to_string().len()).sum();
    assert_eq!((state.depth, state.bytes), (count as u64, ((1_024 + AROUND) * count + names) as u64));
    let began = Instant::now();
    let mut held = 1;
    for number in 1..count {
        let delivery = next(&mut deliveries).await;
        held += 1;
        if held == 500 || number + 1 == count {
            let range = (None, delivery.id);
            let ack = session.acknowledge(delivery.consumer, range, AckKind::Standard, None).await.unwrap();
            drop(ack);
            held = 0;
        }
    }
    session.sync().await.unwrap().await.unwrap();
    eprintln!("received in {:?}, {:?} KiB after", began.elapsed(), resident());
    let status = queues.list().await.unwrap();
    assert!(status.iter().all(|queue| queue.state.depth == 0), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_of_many_connections_arrives_once() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders, count) = (open(folder.path()), queue("orders"), many() / 16);
    for connections in [1, 16] {
        let began = Instant::now();
        let count = count / if connections == 1 { 2 } else { 1 };
        let sender = |number: usize| {
            let (queues, orders) = (queues.clone(), orders.clone());
            tokio::spawn(async move {
                let (session, _) = queues.connect();
                for turn in 0..count {
                    // As a JMS client does: one after the other is answered.
                    let message = message(&format!("{number}-{turn}"), 1_024);
                    keep(&session, Send { message, ..to(&orders, "") }).await;
                }
            })
        };
        let senders: Vec<_> = (0..connections).map(sender).collect();
        for sender in senders {
            sender.await.unwrap();
        }
        let rate = (connections * count) as f64 / began.elapsed().as_secs_f64();
        eprintln!("{connections} connections: {rate:.0} sends a second");
        let began = Instant::now();
        let share = connections * count / connections;
        let reader = |_| {
            let (queues, orders) = (queues.clone(), orders.clone());
            tokio::spawn(async move {
                let (session, mut deliveries) = queues.connect();
                // Together they may hold all, and none may hold more than its share.
                consumer(&session, &orders, 1_000).await;
                let mut names = Vec::new();
                while names.len() < share {
                    let delivery = next(&mut deliveries).await;
                    names.push(delivery.message.name.to_string());
                    let range = (Some(delivery.id), delivery.id);
                    let kind = AckKind::Standard;
                    drop(session.acknowledge(delivery.consumer, range, kind, None).await.unwrap());
                }
                session.sync().await.unwrap().await.unwrap();
                names
            })
        };
        let readers: Vec<_> = (0..connections).map(reader).collect();
        let mut names = std::collections::BTreeSet::new();
        let mut received = 0;
        for reader in readers {
            let own = reader.await.unwrap();
            received += own.len();
            names.extend(own);
        }
        assert_eq!((received, names.len()), (connections * count, connections * count), "each once");
        let rate = received as f64 / began.elapsed().as_secs_f64();
        eprintln!("{connections} connections: {rate:.0} receives a second");
    }
}

#[tokio::test]
async fn who_declines_very_many_gets_what_is_its_own_and_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders, count) = (open(folder.path()), queue("orders"), many());
    let (session, _) = queues.connect();
    let passed = Marks::new(None, 0, ["ID:far"]);
    let mut last = None;
    for _ in 0..count {
        let message = Message { marks: passed.clone(), ..(*message("theirs", 100)).clone() };
        last =
            Some(session.send(Send { message: Arc::new(message), ..to(&orders, "") }, None).await.unwrap());
    }
    last.unwrap().await.unwrap();
    let (bridge, mut own) = queues.connect();
    let filter = Some(Filter::new("ID:far", -1));
    let terms = Terms { filter, ..Terms::from(10) };
    bridge.subscribe(bridge.consumer(), orders.clone(), terms).await.unwrap().await.unwrap();
    let began = Instant::now();
    for number in 0..20 {
        let name = number.to_string();
        keep(&session, to(&orders, &name)).await;
        let delivery = next(&mut own).await;
        assert_eq!(*delivery.message.name, name);
        acknowledge(&bridge, &delivery).await;
    }
    eprintln!("20 behind {count} that are declined: {:?}", began.elapsed());
    let (other, mut others) = queues.connect();
    consumer(&other, &orders, 3).await;
    assert_eq!(names(&mut others, 3).await, ["theirs"; 3]);
}

#[tokio::test]
async fn who_has_many_messages_rolled_back_again_and_again_leaves_others_their_turns() {
    const MESSAGES: usize = 20_000;
    let folder = tempfile::tempdir().unwrap();
    let (queues, orders) = (open(folder.path()), queue("orders"));
    let (greedy, mut deliveries) = queues.connect();
    let (honest, _others) = queues.connect();
    for number in 0..MESSAGES {
        drop(
            greedy.send(Send { persistent: false, ..to(&orders, &number.to_string()) }, None).await.unwrap(),
        );
    }
    let key = consumer(&greedy, &orders, MESSAGES).await;
    let first = next(&mut deliveries).await.id;
    let mut last = first;
    for _ in 1..MESSAGES {
        last = next(&mut deliveries).await.id;
    }
    let mut flood = Vec::new();
    for number in 0..40 {
        flood.push(greedy.begin(number).await.unwrap());
        let range = (Some(first), last);
        flood.push(greedy.acknowledge(key, range, AckKind::Standard, Some(number)).await.unwrap());
        flood.push(greedy.rollback(number).await.unwrap());
        flood.push(greedy.acknowledge(key, range, AckKind::Redelivered, None).await.unwrap());
    }
    for _ in 0..3 {
        keep(&honest, to(&queue("other"), "a")).await;
    }
    let mut last_of_flood = flood.pop().unwrap();
    assert!((&mut last_of_flood).now_or_never().is_none(), "it is served in between");
    for answer in flood {
        answer.await.unwrap();
    }
    last_of_flood.await.unwrap();
    // Nothing of it is lost, and none is with anybody else.
    let all = greedy.acknowledge(key, (None, last), AckKind::Standard, None).await.unwrap();
    all.await.unwrap();
    let state = queues.list().await.unwrap().into_iter().find(|queue| queue.state.destination == orders);
    let state = state.unwrap().state;
    assert_eq!((state.depth, state.in_flight, state.dequeued), (0, 0, MESSAGES as u64));
}

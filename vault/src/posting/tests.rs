//! Two vaults' posts without a socket: real queues and books in folders, and a link that can be cut.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::openwire::Body;
use crate::openwire::properties::Properties;
use crate::queue::Settings;
use crate::queue::message::{Destination, Id};

/// Where a vault is asked, as long as it runs.
type Door = Arc<Mutex<Option<Posting>>>;

struct Vault {
    folder: PathBuf,
    name: &'static str,
    queues: Queues,
    posting: Posting,
    door: Door,
    /// The other vault's, and whether the link is up.
    peer: (Door, Arc<AtomicBool>),
}

impl Vault {
    async fn open(folder: &Path, name: &'static str, door: Door, peer: (Door, Arc<AtomicBool>)) -> Self {
        let queues = Queues::open(Settings::new(folder.join(format!("{name}-queue.db")))).unwrap();
        let posting =
            Posting::open(&folder.join(format!("{name}-posts.db")), name, queues.clone()).await.unwrap();
        let (asked, up) = peer.clone();
        posting.set_peer(Arc::new(move |question| {
            let asked = lock(&asked).clone().filter(|_| up.load(Ordering::Relaxed));
            Box::pin(async move {
                match asked {
                    Some(asked) => asked.answer(&question).await,
                    None => Err("it is away".to_owned()),
                }
            })
        }));
        *lock(&door) = Some(posting.clone());
        Self { folder: folder.to_owned(), name, queues, posting, door, peer }
    }

    /// As after a restart.
    async fn reopened(self) -> Self {
        let Self { folder, name, queues, posting, door, peer } = self;
        drop(posting);
        *lock(&door) = None;
        queues.close().await;
        Self::open(&folder, name, door, peer).await
    }

    async fn post(&self, key: &str, text: &str, first: bool) -> Result<Posted, PostError> {
        self.posting.post(post(text), ("erp", key), first, 1, ()).await
    }

    async fn texts(&self) -> Vec<String> {
        let orders = Destination::queue("orders").unwrap();
        let Ok(page) = self.queues.browse(orders, Id::default(), 1_000, 1 << 20).await else {
            return Vec::new();
        };
        let read = |placed: crate::queue::message::Placed| {
            let message = crate::openwire::Message::from_bytes(placed.message.body.clone()).unwrap();
            match message.body(100).unwrap() {
                Body::Text(text) => text,
                other => panic!("{other:?}"),
            }
        };
        page.into_iter().map(read).collect()
    }
}

fn post(text: &str) -> Post {
    Post {
        destination: Destination::queue("orders").unwrap(),
        persistent: true,
        priority: 4,
        time_to_live: None,
        correlation_id: None,
        jms_type: None,
        group: None,
        reply_to: None,
        properties: Properties::default(),
        body: Body::Text(text.to_owned()),
    }
}

async fn pair(folder: &Path) -> ([Vault; 2], Arc<AtomicBool>) {
    let (doors, up) = ([Door::default(), Door::default()], Arc::new(AtomicBool::new(true)));
    let vault = |name, own: usize| {
        Vault::open(folder, name, doors[own].clone(), (doors[1 - own].clone(), Arc::clone(&up)))
    };
    let vaults = [vault("a", 0).await, vault("b", 1).await];
    (vaults, up)
}

#[tokio::test]
async fn a_repeated_key_is_answered_what_it_was_first_and_keeps_nothing_more_at_either_vault() {
    let folder = tempfile::tempdir().unwrap();
    let ([a, b], _) = pair(folder.path()).await;
    let first = a.post("k", "1", true).await.unwrap();
    assert!(first.fresh);
    for again in [a.post("k", "1", true).await, a.post("k", "1", false).await, b.post("k", "1", false).await]
    {
        assert_eq!(again.unwrap(), Posted { fresh: false, ..first.clone() });
    }
    for other in [a.post("k", "2", true).await, b.post("k", "2", false).await] {
        assert!(matches!(other, Err(PostError::KeyReused)));
    }
    assert_eq!((a.texts().await, b.texts().await), (vec!["1".to_owned()], vec![]));
    let other_owner = a.posting.post(post("2"), ("crm", "k"), true, 1, ()).await.unwrap();
    assert!(other_owner.fresh, "another owner's key is another key");
}

#[tokio::test]
async fn two_senders_who_each_think_they_are_first_keep_it_once_while_the_vaults_are_together() {
    let folder = tempfile::tempdir().unwrap();
    let ([a, b], up) = pair(folder.path()).await;
    let first = a.post("k", "1", true).await.unwrap();
    assert_eq!(b.post("k", "1", true).await.unwrap(), Posted { fresh: false, ..first });
    up.store(false, Ordering::Relaxed);
    a.post("apart", "1", true).await.unwrap();
    // It was left to a when it came there.
    assert!(matches!(b.post("k", "1", true).await, Err(PostError::InDoubt { .. })));
    assert!(b.texts().await.is_empty());
}

#[tokio::test]
async fn apart_only_a_key_that_came_here_first_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let ([a, b], up) = pair(folder.path()).await;
    a.post("taken", "1", true).await.unwrap();
    up.store(false, Ordering::Relaxed);
    assert!(b.post("new", "2", true).await.unwrap().fresh);
    for key in ["taken", "unknown"] {
        assert!(matches!(b.post(key, "1", false).await, Err(PostError::InDoubt { .. })), "{key}");
    }
    up.store(true, Ordering::Relaxed);
    assert!(!b.post("taken", "1", false).await.unwrap().fresh);
    assert!(b.post("unknown", "1", false).await.unwrap().fresh);
}

#[tokio::test]
async fn what_was_left_to_the_other_vault_is_not_taken_here_without_asking() {
    let folder = tempfile::tempdir().unwrap();
    let ([a, b], up) = pair(folder.path()).await;
    // It was on its way to a, which was slow; b went on with it.
    assert!(b.post("k", "1", false).await.unwrap().fresh);
    up.store(false, Ordering::Relaxed);
    assert!(matches!(a.post("k", "1", true).await, Err(PostError::InDoubt { .. })));
    let a = a.reopened().await;
    assert!(matches!(a.post("k", "1", true).await, Err(PostError::InDoubt { .. })), "nor after a restart");
    assert!(a.texts().await.is_empty());
}

#[tokio::test]
async fn a_crash_before_or_after_the_queue_kept_it_is_told_apart_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let ([a, _b], _) = pair(folder.path()).await;
    let hash = |key: &str| {
        let digest = Sha256::new().chain_update("erp").chain_update([0]).chain_update(key);
        Hash::from(digest.finalize())
    };
    let inner = &a.posting.inner;
    let producer = ProducerId { connection: Text::shortened(&inner.run), value: 9, session: 1 };
    let print = post("1").print();
    let begin = |key: &str, producer: &ProducerId| {
        let (key, owner, producer) = (hash(key), "erp".to_owned(), producer.to_string());
        inner.book.begin(Begin { key, owner, print, producer, now: 1 })
    };
    let number = begin("kept", &producer).await.unwrap();
    inner.send(&post("1"), &producer, number, 1).await.unwrap();
    let producer = ProducerId { value: 10, ..producer };
    begin("lost", &producer).await.unwrap();
    let a = a.reopened().await;
    assert_eq!(a.posting.inner.book.unsettled().await.unwrap(), []);
    assert!(!a.post("kept", "1", true).await.unwrap().fresh);
    assert!(a.post("lost", "1", true).await.unwrap().fresh);
    assert_eq!(a.texts().await.len(), 2);
}

#[tokio::test]
async fn many_at_once_under_few_keys_are_each_kept_once() {
    let folder = tempfile::tempdir().unwrap();
    let ([a, b], _) = pair(folder.path()).await;
    let mut posts = tokio::task::JoinSet::new();
    for number in 0..300 {
        let vault = if number % 3 == 0 { &b } else { &a };
        let (posting, key, first) = (vault.posting.clone(), format!("k{}", number % 50), number % 3 != 0);
        posts.spawn(async move {
            loop {
                match posting.post(post(&key), ("erp", &key), first, 1, ()).await {
                    Err(PostError::UnderWay | PostError::Busy) => {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    answered => return answered.unwrap(),
                }
            }
        });
    }
    let answers = posts.join_all().await;
    assert_eq!(answers.iter().filter(|posted| posted.fresh).count(), 50);
    let mut texts = a.texts().await;
    texts.extend(b.texts().await);
    texts.sort();
    texts.dedup();
    assert_eq!((texts.len(), a.texts().await.len() + b.texts().await.len()), (50, 50));
    assert_eq!(lock(&a.posting.inner.free).len(), SEATS as usize);
}

#[tokio::test]
async fn who_asks_for_a_key_that_is_under_way_does_not_free_it() {
    let folder = tempfile::tempdir().unwrap();
    let ([a, _b], _) = pair(folder.path()).await;
    let inner = &a.posting.inner;
    let held = inner.hold([1; 32]).unwrap();
    for _ in 0..2 {
        assert!(inner.hold([1; 32]).is_none());
    }
    drop(held);
    assert!(inner.hold([1; 32]).is_some());
}

#[test]
fn a_vault_that_kept_messages_once_does_not_leave_their_keys_to_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let book = file(folder.path());
    assert!(answer_without(&book).is_ok());
    drop(Book::open(&book, Counts::new().unwrap().early).unwrap());
    assert!(answer_without(&book).is_err());
}

/// What may happen to two vaults and their link.
#[derive(Debug, Clone, Copy)]
enum Step {
    Post { at: usize, key: u8 },
    Link(bool),
    Restart(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_usize..2, 0_u8..4).prop_map(|(at, key)| Step::Post { at, key }),
        1 => any::<bool>().prop_map(Step::Link),
        1 => (0_usize..2).prop_map(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_is_cut_and_restarted_no_key_is_kept_twice(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let ([a, b], up) = pair(folder.path()).await;
            let (mut vaults, mut lives) = ([Some(a), Some(b)], [0_u32; 2]);
            // As the gateway writes it down: where a key was sent first, and to which life.
            let mut tickets = BTreeMap::new();
            let mut answers: BTreeMap<u8, String> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Link(is_up) => up.store(is_up, Ordering::Relaxed),
                    Step::Restart(at) => {
                        vaults[at] = Some(vaults[at].take().unwrap().reopened().await);
                        lives[at] += 1;
                    }
                    Step::Post { at, key } => {
                        let ticket = *tickets.entry(key).or_insert((at, lives[at]));
                        let vault = vaults[at].as_ref().unwrap();
                        let text = key.to_string();
                        match vault.post(&text, &text, ticket == (at, lives[at])).await {
                            Ok(posted) => {
                                let first = answers.entry(key).or_insert_with(|| posted.id.clone());
                                assert_eq!(*first, posted.id);
                            }
                            Err(error) => assert!(matches!(error, PostError::InDoubt { .. }), "{error}"),
                        }
                    }
                }
            }
            let mut kept = Vec::new();
            for vault in vaults.iter().flatten() {
                kept.extend(vault.texts().await);
            }
            kept.sort();
            let answered: Vec<String> = answers.keys().map(u8::to_string).collect();
            assert_eq!(kept, answered, "each answered key's message once, and no other");
        });
    }

    #[test]
    fn whoever_thinks_to_be_first_no_key_is_kept_twice_while_the_vaults_are_together(
        steps in proptest::collection::vec((0_usize..2, 0_u8..3, any::<bool>(), 0_u8..8), 1..30)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let ([a, b], _) = pair(folder.path()).await;
            let mut vaults = [Some(a), Some(b)];
            let mut ids: BTreeMap<u8, String> = BTreeMap::new();
            for (at, key, first, restart) in steps {
                if restart == 0 {
                    vaults[at] = Some(vaults[at].take().unwrap().reopened().await);
                }
                let text = key.to_string();
                let posted = vaults[at].as_ref().unwrap().post(&text, &text, first).await.unwrap();
                assert_eq!(posted.fresh, !ids.contains_key(&key));
                assert_eq!(*ids.entry(key).or_insert_with(|| posted.id.clone()), posted.id);
            }
        });
    }
}

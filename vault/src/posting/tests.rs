//! Two vaults' posts without a socket: real queues and books in folders, and a link that can be cut.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::openwire::Body;
use crate::openwire::properties::Properties;
use crate::queue::Settings;
use crate::queue::message::{Destination, Id};

/// Each start of a vault is another life.
static LIVES: AtomicU64 = AtomicU64::new(1);

/// Where a vault is asked, as long as it runs.
type Door = Arc<Mutex<Option<Posting>>>;

struct Vault {
    folder: PathBuf,
    name: &'static str,
    life: Life,
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
        let life = Life::from(LIVES.fetch_add(1, Ordering::Relaxed));
        let ask: AskPeer = Arc::new(move |question| {
            let asked = lock(&asked).clone().filter(|_| up.load(Ordering::Relaxed));
            Box::pin(async move {
                match asked {
                    Some(asked) => asked.answer(&question).await,
                    None => Err("it is away".to_owned()),
                }
            })
        });
        posting.join(life, ask).await.unwrap();
        *lock(&door) = Some(posting.clone());
        Self { folder: folder.to_owned(), name, life, queues, posting, door, peer }
    }

    /// As after a restart.
    async fn reopened(self) -> Self {
        self.reopened_after(|_| ()).await
    }

    /// As after one before which something happened to its files.
    async fn reopened_after(self, change: impl FnOnce(&Files)) -> Self {
        let files = self.files();
        let Self { folder, name, queues, posting, door, peer, .. } = self;
        drop(posting);
        *lock(&door) = None;
        queues.close().await;
        files.closed().await;
        change(&files);
        Self::open(&folder, name, door, peer).await
    }

    fn files(&self) -> Files {
        let place = |what: &str| self.folder.join(format!("{}-{what}", self.name));
        Files { book: place("posts.db"), copy: place("copy.db") }
    }

    /// `first`: its ticket names this life.
    async fn post(&self, key: &str, text: &str, first: bool) -> Result<Posted, PostError> {
        self.post_with(key, text, first.then_some(self.life)).await
    }

    async fn post_with(&self, key: &str, text: &str, ticket: Option<Life>) -> Result<Posted, PostError> {
        self.posting.post(post(text), ("erp", key), ticket, 1, ()).await
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

/// Of one vault.
struct Files {
    book: PathBuf,
    copy: PathBuf,
}

impl Files {
    /// The book's thread has ended: SQLite removes the log then.
    async fn closed(&self) {
        for _ in 0..60_000 {
            if !PathBuf::from(format!("{}-wal", self.book.display())).exists() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("{} stays open", self.book.display());
    }

    /// A copy of the book as it is, which an operator may put back.
    fn save(&self) {
        let _none = std::fs::remove_file(&self.copy);
        let book = rusqlite::Connection::open(&self.book).unwrap();
        book.execute("VACUUM INTO ?1", [self.copy.to_str().unwrap()]).unwrap();
    }

    fn put_back(&self) {
        self.lose();
        if self.copy.exists() {
            std::fs::copy(&self.copy, &self.book).unwrap();
        }
    }

    fn lose(&self) {
        for suffix in ["", "-wal", "-shm"] {
            let file = format!("{}{suffix}", self.book.display());
            let _none = std::fs::remove_file(file);
        }
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
    let other_owner = a.posting.post(post("2"), ("crm", "k"), Some(a.life), 1, ()).await.unwrap();
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
        let (posting, key) = (vault.posting.clone(), format!("k{}", number % 50));
        let ticket = (number % 3 != 0).then_some(vault.life);
        posts.spawn(async move {
            loop {
                match posting.post(post(&key), ("erp", &key), ticket, 1, ()).await {
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
    std::fs::rename(&book, memory::witness_of(&book)).unwrap();
    assert!(answer_without(&book).is_err(), "its witness tells of it");
}

#[tokio::test]
async fn a_key_of_before_the_book_was_lost_is_refused_at_both_vaults_and_a_new_one_taken() {
    let folder = tempfile::tempdir().unwrap();
    let ([a, b], _) = pair(folder.path()).await;
    let ticket = Some(a.life);
    a.post_with("k", "1", ticket).await.unwrap();
    let a = a.reopened_after(Files::lose).await;
    for vault in [&a, &b, &a] {
        assert!(matches!(vault.post_with("k", "1", ticket).await, Err(PostError::KeyLost)));
    }
    assert!(a.post("new", "2", true).await.unwrap().fresh);
    assert_eq!((a.texts().await.len(), b.texts().await.len()), (2, 0));
}

#[tokio::test]
async fn a_key_that_was_left_to_a_vault_whose_book_was_lost_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ([a, b], _) = pair(folder.path()).await;
    // It went to a first, which was slow; b went on with it.
    let ticket = Some(a.life);
    b.post_with("k", "1", ticket).await.unwrap();
    let b = b.reopened_after(Files::lose).await;
    for vault in [&a, &b, &a] {
        assert!(matches!(vault.post_with("k", "1", ticket).await, Err(PostError::KeyLost)));
    }
    assert_eq!((a.texts().await.len(), b.texts().await.len()), (0, 1));
}

#[tokio::test]
async fn a_key_that_came_to_an_earlier_life_first_is_taken_apart_as_long_as_the_book_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let ([a, _b], up) = pair(folder.path()).await;
    let ticket = Some(a.life);
    let a = a.reopened().await;
    up.store(false, Ordering::Relaxed);
    assert!(a.post_with("k", "1", ticket).await.unwrap().fresh);
    let a = a.reopened_after(Files::lose).await;
    assert!(matches!(a.post_with("l", "1", ticket).await, Err(PostError::InDoubt { .. })));
}

/// What may happen to two vaults, their link and their files.
#[derive(Debug, Clone, Copy)]
enum Step {
    Post {
        at: usize,
        key: u8,
    },
    Link(bool),
    Restart(usize),
    /// A copy of the book is made under the running vault,
    Save(usize),
    /// and put back; without one it is as lost.
    PutBack(usize),
    Lose(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0_usize..2, 0_u8..4).prop_map(|(at, key)| Step::Post { at, key }),
        2 => any::<bool>().prop_map(Step::Link),
        2 => (0_usize..2).prop_map(Step::Restart),
        1 => (0_usize..2).prop_map(Step::Save),
        1 => (0_usize..2).prop_map(Step::PutBack),
        1 => (0_usize..2).prop_map(Step::Lose),
    ]
}

/// Runs it; gives the texts of all that was answered and of all that was kept, sorted.
/// `pretending`: a book says that it remembers all its vault's lives, whatever became of it.
async fn run(steps: &[Step], pretending: bool) -> (Vec<String>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let ([a, b], up) = pair(folder.path()).await;
    let mut lives = [&a, &b].map(|vault| vec![vault.life]);
    let mut vaults = [Some(a), Some(b)];
    // As the gateway writes it down: to which life a key was sent first.
    let mut tickets = BTreeMap::new();
    let mut answers: BTreeMap<u8, String> = BTreeMap::new();
    for step in steps {
        match *step {
            Step::Link(is_up) => up.store(is_up, Ordering::Relaxed),
            Step::Save(at) => vaults[at].as_ref().unwrap().files().save(),
            Step::Restart(at) | Step::PutBack(at) | Step::Lose(at) => {
                let change = |files: &Files| {
                    match step {
                        Step::PutBack(_) => files.put_back(),
                        Step::Lose(_) => files.lose(),
                        _ => {}
                    }
                    if pretending {
                        memory::pretend(&files.book, &lives[at]);
                    }
                };
                let vault = vaults[at].take().unwrap().reopened_after(change).await;
                lives[at].push(vault.life);
                vaults[at] = Some(vault);
            }
            Step::Post { at, key } => {
                let vault = vaults[at].as_ref().unwrap();
                let ticket = *tickets.entry(key).or_insert(vault.life);
                let text = key.to_string();
                match vault.post_with(&text, &text, Some(ticket)).await {
                    Ok(posted) => drop(answers.entry(key).or_insert(posted.id)),
                    Err(PostError::InDoubt { .. } | PostError::KeyLost) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
    let mut kept = Vec::new();
    for vault in vaults.iter().flatten() {
        kept.extend(vault.texts().await);
    }
    kept.sort();
    (answers.keys().map(u8::to_string).collect(), kept)
}

#[tokio::test]
async fn control_a_book_that_pretends_to_remember_doubles_a_message_once_it_was_lost() {
    let post = |at| Step::Post { at, key: 1 };
    for at in [0, 1] {
        let together = vec![post(0), Step::Lose(0), post(at)];
        let apart = vec![Step::Link(false), post(0), Step::Lose(0), Step::Link(true), post(at)];
        for steps in [together, apart] {
            assert_eq!(run(&steps, false).await.1, ["1"], "{steps:?}");
            assert_eq!(run(&steps, true).await.1, ["1", "1"], "{steps:?}");
        }
    }
}

#[tokio::test]
async fn control_a_book_that_pretends_to_remember_doubles_a_message_once_it_was_put_back() {
    let post = |key| Step::Post { at: 0, key };
    // Put back within the life that wrote on, or over a restart.
    for between in [vec![], vec![Step::Restart(0)]] {
        let mut steps = vec![post(1), Step::Save(0)];
        steps.extend(between);
        steps.extend([post(2), Step::PutBack(0), post(2)]);
        assert_eq!(run(&steps, false).await.1, ["1", "2"], "{steps:?}");
        assert_eq!(run(&steps, true).await.1, ["1", "2", "2"], "{steps:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_is_cut_restarted_lost_and_put_back_no_key_is_kept_twice(
        steps in proptest::collection::vec(step(), 1..40)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (answered, kept) = runtime.block_on(run(&steps, false));
        assert_eq!(kept, answered, "each answered key's message once, and no other");
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

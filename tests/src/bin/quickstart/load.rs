//! Callers that upload, draw numbers and write invoices as fast as they are answered, and
//! keep book of every answer. A call that fails or is refused is repeated with the same key,
//! as the contract says, until it is answered or the load is told to stop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use harness::cluster::Cluster;
use harness::curl::Answer;
use harness::wait;

use crate::content::document;

/// The series that the number callers draw from.
pub(crate) const SERIES: &str = "CHECK";
/// The series that the sample application draws from.
pub(crate) const INVOICES: &str = "INV";
/// One attempt takes no longer.
const ATTEMPT: Duration = Duration::from_secs(20);
/// Pause before a refused call is repeated.
const PAUSE: Duration = Duration::from_millis(150);

/// A file whose upload was acknowledged.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) key: String,
    pub(crate) document: u64,
    pub(crate) size: usize,
}

/// What a caller did with its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Left as it is.
    Reserved,
    /// Confirmed for this document.
    Confirmed(String),
    /// Declared void for this reason.
    Void(String),
}

/// A number that was acknowledged.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    pub(crate) number: u64,
    /// What was asked for.
    pub(crate) fate: Fate,
    /// Was that acknowledged too?
    pub(crate) settled: bool,
}

/// An invoice that was acknowledged.
#[derive(Debug, Clone)]
pub(crate) struct Invoice {
    pub(crate) number: u64,
    pub(crate) file: String,
}

/// Every answer so far.
#[derive(Debug, Default, Clone)]
pub(crate) struct Book {
    /// By file id.
    pub(crate) files: BTreeMap<String, Stored>,
    /// By key.
    pub(crate) numbers: BTreeMap<String, Given>,
    /// By key.
    pub(crate) invoices: BTreeMap<String, Invoice>,
    /// Every key that was ever sent for a number, answered or not.
    pub(crate) asked: BTreeSet<String>,
    /// Answers that break the contract; there must be none.
    pub(crate) broken: Vec<String>,
}

/// The callers' common ground.
pub(crate) struct Load<'c> {
    tap: &'c Tap<'c>,
    book: Mutex<Book>,
    stopping: AtomicBool,
    documents: AtomicU64,
}

/// The two doors the callers use.
pub(crate) type Tap<'c> = dyn Fn(Door, &str) -> harness::curl::Curl + Sync + 'c;

/// Which door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// Through edge, as browsers do.
    Edge,
    /// Through edge's gateway, as handlers do.
    Gateway,
}

/// The doors of a cluster, without borrowing its programs.
pub(crate) fn doors(cluster: &Cluster) -> impl Fn(Door, &str) -> harness::curl::Curl + Sync + use<> {
    let edge = cluster.edge.call("");
    let gateway = cluster.handler("");
    move |door, path| match door {
        Door::Edge => edge.clone().to(path),
        Door::Gateway => gateway.clone().to(path),
    }
}

impl<'c> Load<'c> {
    pub(crate) fn new(tap: &'c Tap<'c>) -> Self {
        Self { tap, book: Mutex::default(), stopping: AtomicBool::new(false), documents: AtomicU64::new(1) }
    }

    /// The book as it stands.
    pub(crate) fn book(&self) -> Book {
        self.lock().clone()
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Waits until `count` gives at least `more` than it gives now.
    pub(crate) fn wait_for(
        &self,
        what: &str,
        more: usize,
        count: impl Fn(&Book) -> usize,
    ) -> anyhow::Result<usize> {
        let target = count(&self.lock()) + more;
        wait::until(what, Duration::from_secs(90), || {
            let now = count(&self.lock());
            anyhow::ensure!(now >= target, "{now} of {target}");
            Ok(now)
        })
    }

    /// One caller that uploads files through the gateway.
    pub(crate) fn upload_files(&self, caller: u64) {
        for turn in 0_usize.. {
            // Every fifth is larger than what the gateway keeps for a retry.
            let size = if turn % 5 == 4 { 1_500_000 } else { 2_000 + (turn % 7) * 37_000 };
            let number = self.documents.fetch_add(1, Ordering::Relaxed);
            let body = document(number, size);
            let key = format!("file-{caller}-{turn}");
            let Some(answer) = self.repeat(|tap| {
                tap(Door::Gateway, "/v1/files")
                    .key(&key)
                    .header("Content-Type", "application/octet-stream")
                    .body(body.clone())
            }) else {
                return;
            };
            match answer.word("id") {
                Ok(id) => {
                    self.lock().files.insert(id, Stored { key, document: number, size });
                }
                Err(error) => self.broken(format!("upload {key}: {error:#}")),
            }
        }
    }

    /// One caller that draws numbers and settles every second and third of three.
    pub(crate) fn draw_numbers(&self, caller: u64) {
        for turn in 0_u64.. {
            let key = format!("number-{caller}-{turn}");
            self.lock().asked.insert(key.clone());
            let path = format!("/v1/series/{SERIES}/numbers");
            let Some(answer) = self.repeat(|tap| tap(Door::Gateway, &path).key(&key).method("POST")) else {
                return;
            };
            let number = match number_of(&answer) {
                Ok(number) => number,
                Err(error) => {
                    self.broken(format!("number {key}: {error:#}"));
                    continue;
                }
            };
            let fate = match turn % 3 {
                0 => Fate::Reserved,
                1 => Fate::Confirmed(format!("document-of-{key}")),
                _ => Fate::Void(format!("spoiled by {key}")),
            };
            let given = Given { number, settled: fate == Fate::Reserved, fate: fate.clone() };
            self.lock().numbers.insert(key.clone(), given);
            self.settle(&key, number, &fate);
        }
    }

    fn settle(&self, key: &str, number: u64, fate: &Fate) {
        let (verb, body) = match fate {
            Fate::Reserved => return,
            Fate::Confirmed(hash) => ("confirm", serde_json::json!({ "document_hash": hash })),
            Fate::Void(reason) => ("void", serde_json::json!({ "reason": reason })),
        };
        let path = format!("/v1/series/{SERIES}/numbers/{number}/{verb}");
        let done = self.repeat(|tap| {
            tap(Door::Gateway, &path)
                .key(format!("{verb}-{key}"))
                .header("Content-Type", "application/json")
                .body(body.to_string())
        });
        if done.is_some()
            && let Some(given) = self.lock().numbers.get_mut(key)
        {
            given.settled = true;
        }
    }

    /// One browser that writes invoices: document, number, confirmation in one call.
    pub(crate) fn write_invoices(&self, caller: u64) {
        for turn in 0_usize.. {
            let number = self.documents.fetch_add(1, Ordering::Relaxed);
            let size = 3_000 + (turn % 5) * 11_000;
            let body = document(number, size);
            let key = format!("invoice-{caller}-{turn}");
            self.lock().asked.insert(key.clone());
            let Some(answer) = self.repeat(|tap| {
                tap(Door::Edge, "/invoices")
                    .key(&key)
                    .header("Content-Type", "application/octet-stream")
                    .body(body.clone())
            }) else {
                return;
            };
            match invoice_of(&answer) {
                Ok(invoice) => {
                    let stored = Stored { key: key.clone(), document: number, size };
                    let mut book = self.lock();
                    book.files.insert(invoice.file.clone(), stored);
                    book.invoices.insert(key, invoice);
                }
                Err(error) => self.broken(format!("invoice {key}: {error:#}")),
            }
        }
    }

    /// Sends the same call until it is answered for good; `None` when the load stops first.
    fn repeat(&self, call: impl Fn(&Tap<'_>) -> harness::curl::Curl) -> Option<Answer> {
        while !self.stopping.load(Ordering::SeqCst) {
            match call(self.tap).within(ATTEMPT).send() {
                Ok(answer) if matches!(answer.status, 200 | 201) => return Some(answer),
                Ok(answer) if matches!(answer.status, 429 | 502 | 503 | 504) => {
                    if answer.status == 503 && answer.header("retry-after").is_none() {
                        self.broken(format!("503 without Retry-After: {}", answer.text().trim()));
                    }
                }
                Ok(answer) => {
                    self.broken(format!("status {}: {}", answer.status, answer.text().trim()));
                }
                // Cut off or too late: outcome unknown, so the same key again.
                Err(_) => {}
            }
            std::thread::sleep(PAUSE);
        }
        None
    }

    fn broken(&self, what: String) {
        self.lock().broken.push(what);
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The `number` of an answer.
pub(crate) fn number_of(answer: &Answer) -> anyhow::Result<u64> {
    let json = answer.json()?;
    json.get("number").and_then(serde_json::Value::as_u64).with_context(|| format!("no number in {json}"))
}

/// `number` and `file` of the application's answer.
pub(crate) fn invoice_of(answer: &Answer) -> anyhow::Result<Invoice> {
    Ok(Invoice { number: number_of(answer)?, file: answer.word("file")? })
}

//! The ledger in etcd: blocks of entries, and one key that tells where it ends, moved in the same
//! transaction, which compares that key first. Never etcd's locks, which are not safe. Spoken over
//! etcd's JSON gateway (etcd's documentation, "gRPC gateway"), where keys and values are base64.
//!
//! A block is kept under the index of its last entry, so that the block which holds an entry is
//! the first one not below it.
//!
//! Where etcd is the ledger itself, the key that tells the end says so too: since which entry, whose,
//! and which etcd it is, so that another one is known. Whoever would write a copy compares that key as a copy has it, and so writes nothing any more.

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::super::entry::{BATCH, Entry, Tail};
use super::lineage::Lineage;
use super::tls::{Tls, dial, password, place};
use super::{DatabaseError, Host, Ledger, Mark, Place, Role, Settings, VERSION};

/// No answer is longer: a block, and base64 of it.
const LONGEST: usize = 16 << 20;
/// Blocks that are read at once: at first, and where they are short. A block is at most 1.5 MiB.
const BLOCKS: u64 = 4;
const MOST_BLOCKS: u64 = 128;
const SHORT: usize = 256 << 10;
/// gRPC's codes, as the gateway passes them on.
const INVALID_ARGUMENT: u64 = 3;
const PERMISSION_DENIED: u64 = 7;
const RESOURCE_EXHAUSTED: u64 = 8;
const FAILED_PRECONDITION: u64 = 9;
const DATA_LOSS: u64 = 15;
const UNAUTHENTICATED: u64 = 16;

/// The value of the key that tells the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    version: i32,
    #[serde(flatten)]
    tail: Tail,
    /// It is the ledger itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    truth: Option<Mark>,
}

/// A connection to one member.
pub struct Etcd {
    place: String,
    authority: String,
    user: String,
    prefix: String,
    sender: SendRequest<Full<Bytes>>,
    connection: JoinHandle<()>,
    token: Option<String>,
    lineage: Option<Lineage>,
    role: Role,
    /// As the end said when it was last read.
    truth: Option<Mark>,
    /// So many blocks are read at once.
    blocks: u64,
    /// What an append has found in its place.
    found: Option<(Tail, Vec<Entry>)>,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// What came back.
struct Answer {
    status: StatusCode,
    body: Value,
}

impl Etcd {
    /// Connects to one member.
    ///
    /// # Errors
    /// It is away, or refuses the account.
    pub async fn connect(settings: &Settings, host: &(String, u16)) -> Result<Self, DatabaseError> {
        let place = place(host);
        let away = |why: String| DatabaseError::Away { place: place.clone(), why };
        let stream = dial(host).await?;
        let (sender, connection) = match &settings.authority_file {
            Some(authority) => {
                let stream =
                    Tls::new(authority, host)?.over(stream).await.map_err(|error| away(error.to_string()))?;
                let (sender, connection) = handshake::<_, Full<Bytes>>(TokioIo::new(stream))
                    .await
                    .map_err(|error| away(error.to_string()))?;
                (sender, tokio::spawn(async move { drop(connection.await) }))
            }
            None => {
                let (sender, connection) = handshake::<_, Full<Bytes>>(TokioIo::new(stream))
                    .await
                    .map_err(|error| away(error.to_string()))?;
                (sender, tokio::spawn(async move { drop(connection.await) }))
            }
        };
        let mut etcd = Self {
            authority: place.clone(),
            user: settings.user.clone(),
            prefix: format!("{}/", settings.database.trim_end_matches('/')),
            place,
            sender,
            connection,
            token: None,
            lineage: None,
            role: settings.role,
            truth: None,
            blocks: BLOCKS,
            found: None,
        };
        if let Some(password) = password(settings, &etcd.place)? {
            let asked = json!({ "name": settings.user, "password": password });
            let answer = etcd.ask("/v3/auth/authenticate", &asked).await?;
            etcd.token = answer["token"].as_str().map(str::to_owned);
        }
        Ok(etcd)
    }

    async fn ask(&mut self, path: &str, question: &Value) -> Result<Value, DatabaseError> {
        let Answer { status, body } = self.exchange(path, question).await?;
        if status.is_success() {
            return Ok(body);
        }
        let what = body["message"].as_str().or(body["error"].as_str()).unwrap_or("no reason").to_owned();
        let place = self.place.clone();
        let next = match body["code"].as_u64() {
            Some(PERMISSION_DENIED) => format!(
                "write: etcdctl role grant-permission ROLE --prefix=true readwrite {}, and give {} that role",
                self.prefix, self.user
            ),
            // A token has ended, or an account was changed: the next connection brings a new one.
            Some(UNAUTHENTICATED) if self.token.is_some() => {
                return Err(DatabaseError::Away { place, why: what });
            }
            Some(INVALID_ARGUMENT) if what.contains("revision of auth store is old") => {
                return Err(DatabaseError::Away { place, why: what });
            }
            Some(UNAUTHENTICATED) => format!("look at the account {} in etcd", self.user),
            Some(INVALID_ARGUMENT) if what.contains("auth") || what.contains("user name is empty") => {
                "look at sequence.database.user and password_file".to_owned()
            }
            Some(FAILED_PRECONDITION) if what.contains("authentication is not enabled") => {
                "write: etcdctl auth enable, or take user and password_file out of [sequence.database]".to_owned()
            }
            Some(RESOURCE_EXHAUSTED) if what.contains("space exceeded") => {
                "make room as README says under \"The ledger in etcd\" (compact, defrag, alarm disarm), or start etcd with a larger --quota-backend-bytes and write: etcdctl alarm disarm".to_owned()
            }
            Some(INVALID_ARGUMENT | RESOURCE_EXHAUSTED)
                if what.contains("too large") || what.contains("larger than max") =>
            {
                "start etcd's members with --max-request-bytes=1572864, which is its default, or more".to_owned()
            }
            Some(DATA_LOSS) => {
                "find the member whose data is damaged (etcdctl endpoint hashkv --cluster), make it anew, then write: etcdctl alarm disarm".to_owned()
            }
            _ => return Err(DatabaseError::Away { place, why: format!("{what} ({status})") }),
        };
        Err(DatabaseError::Unfit { place, what, next })
    }

    async fn exchange(&mut self, path: &str, question: &Value) -> Result<Answer, DatabaseError> {
        let place = self.place.clone();
        let away = |why: String| DatabaseError::Away { place: place.clone(), why };
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let body = Full::new(Bytes::from(question.to_string()));
        let request = request.body(body).map_err(|error| away(error.to_string()))?;
        self.sender.ready().await.map_err(|error| away(error.to_string()))?;
        let answer = self.sender.send_request(request).await.map_err(|error| away(error.to_string()))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LONGEST).collect().await;
        let body = body.map_err(|error| away(error.to_string()))?.to_bytes();
        let body =
            serde_json::from_slice(&body).map_err(|error| away(format!("it answers no JSON: {error}")))?;
        Ok(Answer { status, body })
    }

    fn end_key(&self) -> String {
        STANDARD.encode(format!("{}end", self.prefix))
    }

    fn block_key(&self, last: u64) -> String {
        STANDARD.encode(format!("{}entry/{last:020}", self.prefix))
    }

    /// Goes through the members' agreement, so it is never an old value.
    async fn end(&mut self) -> Result<Option<End>, DatabaseError> {
        let asked = json!({ "key": self.end_key() });
        let found = self.ask("/v3/kv/range", &asked).await?;
        self.read_end(&found)
    }

    fn read_end(&self, found: &Value) -> Result<Option<End>, DatabaseError> {
        let Some(value) = found["kvs"][0]["value"].as_str() else { return Ok(None) };
        let end = STANDARD.decode(value).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        end.map(Some).ok_or_else(|| self.foreign("its end is not what this program writes"))
    }

    /// The entries of the blocks that were found, from `from` on.
    fn read_blocks(&self, found: &Value, from: u64) -> Result<Vec<Entry>, DatabaseError> {
        let mut entries: Vec<Entry> = Vec::new();
        for block in found["kvs"].as_array().into_iter().flatten() {
            let block = block["value"].as_str().and_then(|block| STANDARD.decode(block).ok());
            let block = block.and_then(|bytes| serde_json::from_slice::<Vec<Entry>>(&bytes).ok());
            let Some(block) = block else {
                return Err(DatabaseError::Damaged { place: self.place.clone(), index: from });
            };
            entries.extend(block.into_iter().filter(|entry| entry.index >= from));
        }
        Ok(entries)
    }

    /// Asks for the block that holds this entry, and those after it.
    fn blocks_from(&self, from: u64, limit: u64) -> Value {
        json!({
            "key": self.block_key(from),
            "range_end": self.block_key(u64::MAX),
            "limit": limit.to_string(),
            "sort_order": "ASCEND",
            "sort_target": "KEY",
        })
    }

    fn value(&self, tail: Tail, truth: Option<&Mark>) -> String {
        let truth = truth.cloned();
        STANDARD.encode(json!(End { version: VERSION, tail, truth }).to_string())
    }

    fn foreign(&self, what: impl Into<String>) -> DatabaseError {
        DatabaseError::Unfit {
            place: self.place.clone(),
            what: what.into(),
            next: format!("give the vault another prefix than {} in sequence.database.database", self.prefix),
        }
    }

    /// What a transaction came to; `Err` of what it found where its comparison did not hold.
    async fn transact(&mut self, transaction: &Value) -> Result<Result<u64, Value>, DatabaseError> {
        let mut done = self.ask("/v3/kv/txn", transaction).await?;
        Ok(match done["succeeded"] == true {
            true => Ok(whole(&done["header"]["revision"])),
            false => Err(done["responses"].take()),
        })
    }
}

#[async_trait]
impl Ledger for Etcd {
    fn place(&self) -> &str {
        &self.place
    }

    fn lineage(&self) -> Option<&Lineage> {
        self.lineage.as_ref()
    }

    async fn look(&mut self) -> Result<Host, DatabaseError> {
        let status = self.ask("/v3/maintenance/status", &json!({})).await?;
        let leads = status["leader"].as_str().filter(|leader| *leader != "0");
        let Some(leader) = leads else {
            let why = "it knows no leader: no quorum of the members stands".to_owned();
            let away = DatabaseError::Away { place: self.place.clone(), why };
            return Ok(Host { leads: Some(false), ..Host::closed(self.place.clone(), &away) });
        };
        let own = status["header"]["member_id"].as_str() == Some(leader);
        let holds = match self.end().await? {
            Some(end) => Some(self.fitting(end)?),
            None => None,
        };
        let lineage = Lineage {
            system: status["header"]["cluster_id"].as_str().unwrap_or_default().to_owned(),
            timeline: 1,
            forks: Some(Vec::new()),
            at: whole(&status["header"]["revision"]),
        };
        self.lineage = Some(lineage.clone());
        let version = status["version"].as_str().unwrap_or("of an unknown version");
        Ok(Host {
            host: self.place.clone(),
            place: Place::Primary,
            why: None,
            lineage: Some(lineage),
            lag_bytes: None,
            replication: vec![
                Some(format!("etcd {version}, in term {}", status["raftTerm"].as_str().unwrap_or("0"))),
                self.truth.as_ref().map(|mark| {
                    let Mark { since, vaults: [one, two], .. } = mark;
                    format!("the ledger itself of {one} and {two} since entry {since}")
                }),
            ]
            .into_iter()
            .flatten()
            .collect(),
            holds,
            fenced: false,
            leads: Some(own),
        })
    }

    async fn prepare(&mut self) -> Result<Tail, DatabaseError> {
        if let Some(end) = self.end().await? {
            return self.fitting(end);
        }
        let (key, value) = (self.end_key(), self.value(Tail::default(), None));
        let make = json!({
            "compare": [{ "key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0" }],
            "success": [{ "request_put": { "key": key, "value": value } }],
        });
        // Whoever was first, it is there now.
        let _made = self.transact(&make).await?;
        let made = self.end().await?.ok_or_else(|| self.foreign("its end is gone"))?;
        self.fitting(made)
    }

    async fn tail(&mut self) -> Result<Tail, DatabaseError> {
        match self.end().await? {
            Some(end) => self.fitting(end),
            // Where it is the ledger, who asks knows what it must hold.
            None if self.role == Role::Truth => Ok(Tail::default()),
            None => Err(self.foreign("its end is gone")),
        }
    }

    async fn append(&mut self, after: Tail, entries: &[Entry]) -> Result<(), DatabaseError> {
        let Some(tail) = entries.last().map(Entry::tail) else { return Ok(()) };
        self.found = None;
        let truth = self.truth.as_ref();
        // Not by way of a `Value`, which holds no number of 128 bits.
        let block = serde_json::to_vec(entries).map(|block| STANDARD.encode(block));
        let block = block.map_err(|error| self.foreign(format!("entries cannot be written: {error}")))?;
        let transaction = json!({
            "compare": [{
                "key": self.end_key(), "target": "VALUE", "result": "EQUAL", "value": self.value(after, truth)
            }],
            "success": [
                { "request_put": { "key": self.end_key(), "value": self.value(tail, truth) } },
                { "request_put": { "key": self.block_key(tail.index), "value": block } },
            ],
            "failure": [
                { "request_range": { "key": self.end_key() } },
                { "request_range": self.blocks_from(after.index + 1, BLOCKS) },
            ],
        });
        let found = match self.transact(&transaction).await? {
            Ok(revision) => {
                if let Some(lineage) = &mut self.lineage {
                    lineage.at = revision;
                }
                return Ok(());
            }
            Err(found) => found,
        };
        let end = self.read_end(&found[0]["response_range"])?;
        let end = self.fitting(end.ok_or_else(|| self.foreign("its end is gone"))?)?;
        let entries = self.read_blocks(&found[1]["response_range"], after.index + 1)?;
        self.found = Some((end, entries));
        Err(DatabaseError::Moved { place: self.place.clone(), found: end.index })
    }

    async fn entries(&mut self, after: u64) -> Result<Vec<Entry>, DatabaseError> {
        let mut entries: Vec<Entry> = Vec::new();
        while entries.len() < BATCH {
            let from = entries.last().map_or(after, |entry| entry.index) + 1;
            let found = self.ask("/v3/kv/range", &self.blocks_from(from, self.blocks)).await?;
            let more = self.read_blocks(&found, from)?;
            let blocks = found["kvs"].as_array().map_or(&[][..], Vec::as_slice);
            if blocks.is_empty() {
                break;
            }
            let bytes: usize = blocks.iter().filter_map(|block| block["value"].as_str()).map(str::len).sum();
            self.blocks = if bytes < SHORT { MOST_BLOCKS.min(self.blocks * 2) } else { BLOCKS };
            if more.is_empty() {
                return Err(DatabaseError::Damaged { place: self.place.clone(), index: from });
            }
            entries.extend(more);
        }
        entries.truncate(BATCH);
        Ok(entries)
    }

    async fn would_append(&mut self) -> Result<(), DatabaseError> {
        let key = self.end_key();
        let absent = |result: &str| json!({ "key": key, "target": "CREATE", "result": result, "create_revision": "0" });
        // It cannot be both, so nothing is put; whether it could be is looked at first all the same.
        let attempt = json!({
            "compare": [absent("EQUAL"), absent("GREATER")],
            "success": [{ "request_put": { "key": key, "value": "" } }],
        });
        self.transact(&attempt).await.map(drop)
    }

    fn begun(&self) -> Option<&Mark> {
        self.truth.as_ref()
    }

    async fn identity(&mut self) -> Result<String, DatabaseError> {
        let key = STANDARD.encode(format!("{}id", self.prefix));
        let mut id = [0; 16];
        let no_chance = |error: getrandom::Error| self.foreign(format!("no randomness: {error}"));
        getrandom::fill(&mut id).map_err(no_chance)?;
        let id = format!("{:032x}", u128::from_be_bytes(id));
        let make = json!({
            "compare": [{ "key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0" }],
            "success": [{ "request_put": { "key": key, "value": STANDARD.encode(&id) } }],
            "failure": [{ "request_range": { "key": key } }],
        });
        let Err(found) = self.transact(&make).await? else { return Ok(id) };
        let found = found[0]["response_range"]["kvs"][0]["value"].as_str();
        let found = found.and_then(|id| String::from_utf8(STANDARD.decode(id).ok()?).ok());
        found.ok_or_else(|| self.foreign("its id is not what this program writes"))
    }

    async fn begin(&mut self, at: Tail, mark: Mark) -> Result<(), DatabaseError> {
        let truth = Some(&mark);
        let begin = json!({
            "compare": [{
                "key": self.end_key(), "target": "VALUE", "result": "EQUAL", "value": self.value(at, None)
            }],
            "success": [{ "request_put": { "key": self.end_key(), "value": self.value(at, truth) } }],
        });
        if self.transact(&begin).await?.is_ok() {
            self.truth = Some(mark);
            return Ok(());
        }
        let found = Ledger::tail(self).await?.index;
        Err(DatabaseError::Moved { place: self.place.clone(), found })
    }

    fn found(&mut self) -> Option<(Tail, Vec<Entry>)> {
        self.found.take()
    }
}

impl Etcd {
    fn fitting(&mut self, end: End) -> Result<Tail, DatabaseError> {
        if end.version != VERSION {
            let version = end.version;
            return Err(self
                .foreign(format!("its layout is version {version}, this program writes version {VERSION}")));
        }
        self.truth = end.truth;
        match &self.truth {
            Some(Mark { since, vaults: [one, two], .. }) if self.role == Role::Copy => Err(DatabaseError::Unfit {
                place: self.place.clone(),
                what: format!("it is the ledger itself of {one} and {two} since entry {since}, and no copy any more"),
                next: "write role = \"truth\" in [sequence.database] of both, and another prefix for other vaults".to_owned(),
            }),
            _ => Ok(end.tail),
        }
    }
}

/// The gateway writes 64-bit numbers as text.
fn whole(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

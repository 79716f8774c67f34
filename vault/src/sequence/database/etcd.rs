//! The ledger in etcd: blocks of entries, and one key that tells where it ends, moved in the same
//! transaction, which compares that key first. Never etcd's locks, which are not safe. Spoken over
//! etcd's JSON gateway (etcd's documentation, "gRPC gateway"), where keys and values are base64.
//!
//! A block is kept under the index of its last entry, so that the block which holds an entry is
//! the first one not below it.

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
use super::{DatabaseError, Host, Ledger, Place, Settings, VERSION};

/// No answer is longer: a block, and base64 of it.
const LONGEST: usize = 16 << 20;
/// gRPC's codes, as the gateway passes them on.
const PERMISSION_DENIED: u64 = 7;
const INVALID_ARGUMENT: u64 = 3;
const UNAUTHENTICATED: u64 = 16;

/// The value of the key that tells the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    version: i32,
    #[serde(flatten)]
    tail: Tail,
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
            Some(UNAUTHENTICATED) => format!("look at the account {} in etcd", self.user),
            Some(INVALID_ARGUMENT) if what.contains("auth") || what.contains("user name is empty") => {
                "look at sequence.database.user and password_file".to_owned()
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
        let Some(value) = found["kvs"][0]["value"].as_str() else { return Ok(None) };
        let end = STANDARD.decode(value).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        end.map(Some).ok_or_else(|| self.foreign("its end is not what this program writes"))
    }

    fn foreign(&self, what: impl Into<String>) -> DatabaseError {
        DatabaseError::Unfit {
            place: self.place.clone(),
            what: what.into(),
            next: format!("give the vault another prefix than {} in sequence.database.database", self.prefix),
        }
    }

    /// What a transaction came to: `None` where its comparison did not hold.
    async fn transact(&mut self, transaction: &Value) -> Result<Option<u64>, DatabaseError> {
        let done = self.ask("/v3/kv/txn", transaction).await?;
        Ok((done["succeeded"] == true).then(|| whole(&done["header"]["revision"])))
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
            let why = "no quorum of the members stands".to_owned();
            return Err(DatabaseError::Away { place: self.place.clone(), why });
        };
        let own = status["header"]["member_id"].as_str() == Some(leader);
        let holds = self.end().await?.map(|end| end.tail);
        let lineage = Lineage {
            system: status["header"]["cluster_id"].as_str().unwrap_or_default().to_owned(),
            timeline: 1,
            forks: Some(Vec::new()),
            at: whole(&status["header"]["revision"]),
        };
        self.lineage = Some(lineage.clone());
        let version = status["version"].as_str().unwrap_or("of an unknown version");
        let role = if own { "leads" } else { "follows" };
        Ok(Host {
            host: self.place.clone(),
            place: Place::Primary,
            why: None,
            lineage: Some(lineage),
            lag_bytes: None,
            replication: vec![format!(
                "etcd {version}, {role} in term {}",
                status["raftTerm"].as_str().unwrap_or("0")
            )],
            holds,
            fenced: false,
        })
    }

    async fn prepare(&mut self) -> Result<Tail, DatabaseError> {
        if let Some(end) = self.end().await? {
            return self.fitting(end);
        }
        let key = self.end_key();
        let fresh = End { version: VERSION, tail: Tail::default() };
        let value = STANDARD.encode(json!(fresh).to_string());
        let make = json!({
            "compare": [{ "key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0" }],
            "success": [{ "request_put": { "key": key, "value": value } }],
        });
        self.transact(&make).await?;
        let made = self.end().await?;
        made.ok_or_else(|| self.foreign("its end is gone")).and_then(|end| self.fitting(end))
    }

    async fn tail(&mut self) -> Result<Tail, DatabaseError> {
        let end = self.end().await?.ok_or_else(|| self.foreign("its end is gone"))?;
        self.fitting(end)
    }

    async fn append(&mut self, after: Tail, entries: &[Entry]) -> Result<(), DatabaseError> {
        let Some(tail) = entries.last().map(Entry::tail) else { return Ok(()) };
        let value = |tail| STANDARD.encode(json!(End { version: VERSION, tail }).to_string());
        // Not by way of a `Value`, which holds no number of 128 bits.
        let block = serde_json::to_vec(entries).map(|block| STANDARD.encode(block));
        let block = block.map_err(|error| self.foreign(format!("entries cannot be written: {error}")))?;
        let transaction = json!({
            "compare": [{ "key": self.end_key(), "target": "VALUE", "result": "EQUAL", "value": value(after) }],
            "success": [
                { "request_put": { "key": self.end_key(), "value": value(tail) } },
                { "request_put": { "key": self.block_key(tail.index), "value": block } },
            ],
        });
        match self.transact(&transaction).await? {
            Some(revision) => {
                if let Some(lineage) = &mut self.lineage {
                    lineage.at = revision;
                }
                Ok(())
            }
            None => {
                let found = Ledger::tail(self).await?.index;
                Err(DatabaseError::Moved { place: self.place.clone(), found })
            }
        }
    }

    async fn entries(&mut self, after: u64) -> Result<Vec<Entry>, DatabaseError> {
        let mut entries: Vec<Entry> = Vec::new();
        while entries.len() < BATCH {
            let from = entries.last().map_or(after, |entry| entry.index) + 1;
            let asked = json!({
                "key": self.block_key(from),
                "range_end": self.block_key(u64::MAX),
                "limit": "1",
                "sort_order": "ASCEND",
                "sort_target": "KEY",
            });
            let found = self.ask("/v3/kv/range", &asked).await?;
            let Some(block) = found["kvs"][0]["value"].as_str() else { break };
            let block = STANDARD.decode(block).ok();
            let block = block.and_then(|bytes| serde_json::from_slice::<Vec<Entry>>(&bytes).ok());
            let Some(block) = block else {
                return Err(DatabaseError::Damaged { place: self.place.clone(), index: from });
            };
            let before = entries.len();
            entries.extend(block.into_iter().filter(|entry| entry.index >= from));
            if entries.len() == before {
                return Err(DatabaseError::Damaged { place: self.place.clone(), index: from });
            }
        }
        entries.truncate(BATCH);
        Ok(entries)
    }
}

impl Etcd {
    fn fitting(&self, end: End) -> Result<Tail, DatabaseError> {
        if end.version == VERSION {
            return Ok(end.tail);
        }
        Err(self
            .foreign(format!("its layout is version {}, this program writes version {VERSION}", end.version)))
    }
}

/// The gateway writes 64-bit numbers as text.
fn whole(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

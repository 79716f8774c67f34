//! Tickets: to which vault's life a key was first sent. Knows which calls are reserves or posts, what is
//! written down before a key is first sent, and how a call carries it; must not know where it is
//! written. It exists because a vault that is alone may give a number, or take a message, only under a
//! key that nobody else can have answered: one that was first sent to this very process.
//!
//! What a ticket belongs to is the series, its period and the key, as the vault reads them. Another
//! way to write the same call (an encoded letter, a query that says what goes without saying) must
//! not get a second ticket; one ticket for two owners costs nothing but an answer alone.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::body::Load;
use super::{ClientError, Head};
use crate::api::{CONTENT_DIGEST, IDEMPOTENCY_KEY, MAX_BATCH, MAX_NUMBER_KEY, VAULT_LIFE, VAULT_TICKET};
use crate::tls::is_name;

/// Longest period: a year and a month.
const MAX_PERIOD: usize = 7;

/// One run of a vault's process, from its start to its end: 32 lower-case hex digits on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Life(pub u128);

/// No life: not 32 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a life has 32 hex digits")]
pub struct NoLife;

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Life {
    type Err = NoLife;

    fn from_str(text: &str) -> Result<Self, NoLife> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NoLife);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| NoLife)
    }
}

impl TryFrom<String> for Life {
    type Error = NoLife;

    fn try_from(text: String) -> Result<Self, NoLife> {
        text.parse()
    }
}

impl From<Life> for String {
    fn from(life: Life) -> Self {
        life.to_string()
    }
}

/// Where a caller of the client keeps its tickets; see [`super::Client::with_tickets`].
pub trait Tickets: Send + Sync {
    /// These keys of `series` (`INV`, or `INV/2026` where the call names a period) go to `life`,
    /// unless an earlier life is written down for them. Tells for each, in order, the life that was
    /// written down first, once it would survive a crash; `None` where nothing can be: such a key
    /// goes out without a ticket, which is safe, but a vault that is alone refuses it. Must answer
    /// in bounded time.
    fn write_down(&self, series: &str, keys: Vec<String>, life: Life) -> BoxFuture<'_, Vec<Option<Life>>>;

    /// Whoever cannot be sure to know every key that was sent before (its store is new, or may be
    /// an older state of itself) writes nothing down until both vaults were together after that
    /// doubt arose, for then each knows what the other had given alone. Tells the doubt, by a
    /// number of its own.
    fn doubt(&self) -> Option<u64> {
        None
    }

    /// Both vaults were together at a moment after [`Tickets::doubt`] told this.
    fn were_together(&self, _doubt: u64) {}
}

/// The life that an answer names.
pub(super) fn life_of(headers: &HeaderMap) -> Option<Life> {
    headers.get(VAULT_LIFE)?.to_str().ok()?.parse().ok()
}

/// What a call still needs before it may be sent, and what is learnt from its answer.
pub(super) struct Stamp {
    tickets: Arc<dyn Tickets>,
    reserve: Reserve,
    state: State,
    /// What was not sure before the call went out.
    doubt: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing has been sent.
    Due,
    /// It carries what was written down.
    Carried,
    /// It goes without.
    Without,
}

impl Stamp {
    /// The stamp of a call that is a reserve.
    ///
    /// # Errors
    /// The call carries a ticket already, which its caller cannot know.
    pub(super) fn of(
        tickets: &Arc<dyn Tickets>,
        head: &Head,
        load: &Load,
    ) -> Result<Option<Self>, ClientError> {
        if head.headers.contains_key(VAULT_TICKET) {
            return Err(ClientError::ForeignTicket);
        }
        let Some(reserve) = Reserve::of(head, load) else { return Ok(None) };
        if matches!(&reserve, Reserve::Many { batch, .. } if batch.tickets.is_some()) {
            return Err(ClientError::ForeignTicket);
        }
        let (tickets, doubt) = (Arc::clone(tickets), tickets.doubt());
        Ok(Some(Self { tickets, reserve, state: State::Due, doubt }))
    }

    /// Is the vault's life needed, to which the call goes first?
    pub(super) fn is_due(&self) -> bool {
        self.state == State::Due
    }

    /// The call goes to this life now; `None` where the vault does not tell it.
    pub(super) async fn put(&mut self, life: Option<Life>, head: &mut Head, load: &mut Load) {
        self.state = State::Without;
        let Some(life) = life else { return };
        let (series, keys) = self.reserve.keys();
        let count = keys.len();
        let lives = self.tickets.write_down(series, keys, life).await;
        if lives.len() == count && self.reserve.carry(lives, head, load) {
            self.state = State::Carried;
        }
    }

    /// The call was answered so.
    pub(super) fn answered(&self, status: StatusCode) {
        // Without a ticket only both together give a new number, and only a single reserve tells it
        // from one that was given before.
        let is_new = status == StatusCode::CREATED && matches!(self.reserve, Reserve::One { .. });
        if let Some(doubt) = self.doubt.filter(|_| is_new && self.state == State::Without) {
            self.tickets.were_together(doubt);
        }
    }
}

/// A call that gives numbers to keys.
#[derive(Debug)]
enum Reserve {
    One {
        series: String,
        key: String,
    },
    Many {
        series: String,
        batch: Batch,
    },
    /// A message that is posted: its key is the owner's, whatever queue it names.
    Post {
        key: String,
    },
}

/// What stands for the series where a message is posted; no series has such a name.
const MESSAGES: &str = "/v1/messages";

/// The body of a batch; fields that are unknown here stay as they are.
#[derive(Debug, Serialize, Deserialize)]
struct Batch {
    keys: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tickets: Option<Vec<Option<Life>>>,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

impl Reserve {
    /// `None` for every other call, and for one that no vault would take.
    fn of(head: &Head, load: &Load) -> Option<Self> {
        if head.method != Method::POST {
            return None;
        }
        let key = || {
            let mut keys = head.headers.get_all(IDEMPOTENCY_KEY).iter();
            let (key, None) = (keys.next()?.to_str().ok()?.to_owned(), keys.next()) else { return None };
            is_key(&key).then_some(key)
        };
        let posted = head.path.path().strip_prefix(MESSAGES).and_then(|rest| rest.strip_prefix('/'));
        if posted.is_some_and(|destination| !destination.is_empty()) {
            return Some(Self::Post { key: key()? });
        }
        let (series, what) = head.path.path().strip_prefix("/v1/series/")?.split_once('/')?;
        let series = decoded(series, false).filter(|series| is_name(series))?;
        let series = match period(head.path.query().unwrap_or_default())? {
            Some(period) => format!("{series}/{period}"),
            None => series,
        };
        match what {
            "numbers" => Some(Self::One { series, key: key()? }),
            "numbers/batch" => {
                let batch: Batch = serde_json::from_slice(load.kept()?).ok()?;
                let fits = batch.keys.len() <= MAX_BATCH && batch.keys.iter().all(|key| is_key(key));
                fits.then_some(Self::Many { series, batch })
            }
            _ => None,
        }
    }

    fn keys(&self) -> (&str, Vec<String>) {
        match self {
            Self::One { series, key } => (series, vec![key.clone()]),
            Self::Many { series, batch } => (series, batch.keys.clone()),
            Self::Post { key } => (MESSAGES, vec![key.clone()]),
        }
    }

    /// Puts the tickets into the call; `false`: there is none.
    fn carry(&mut self, lives: Vec<Option<Life>>, head: &mut Head, load: &mut Load) -> bool {
        if lives.iter().all(Option::is_none) {
            return false;
        }
        match self {
            Self::One { .. } | Self::Post { .. } => {
                let life = lives.into_iter().flatten().next();
                let Some(Ok(value)) = life.map(|life| HeaderValue::try_from(life.to_string())) else {
                    return false;
                };
                head.headers.insert(VAULT_TICKET, value);
            }
            Self::Many { batch, .. } => {
                batch.tickets = Some(lives);
                let Ok(body) = serde_json::to_vec(batch) else { return false };
                *load = Load::Kept(Bytes::from(body));
                // It was the digest of another body.
                head.headers.remove(CONTENT_DIGEST);
            }
        }
        true
    }
}

fn is_key(key: &str) -> bool {
    (1..=MAX_NUMBER_KEY).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The period that the query names, if it names one; `None` for a query that no vault would take.
fn period(query: &str) -> Option<Option<String>> {
    let mut found = None;
    for field in query.split('&') {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        if decoded(name, true)? != "period" {
            continue;
        }
        // Years and months, as the vault writes them; two of them are no period.
        let value = decoded(value, true)?;
        let is_plain = value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        if !is_plain || !(1..=MAX_PERIOD).contains(&value.len()) || found.replace(value).is_some() {
            return None;
        }
    }
    Some(found)
}

/// A path's segment without its percent-encoding, RFC 3986; with `form`, a query's name or value,
/// where a plus is a blank.
fn decoded(segment: &str, form: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(if form && byte == b'+' { b' ' } else { byte });
            continue;
        }
        let high = char::from(rest.next()?).to_digit(16)?;
        let low = char::from(rest.next()?).to_digit(16)?;
        bytes.push(u8::try_from(high << 4 | low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http::uri::PathAndQuery;
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Book(Mutex<Vec<(String, Vec<String>, Life)>>);

    impl Tickets for Book {
        fn write_down(
            &self,
            series: &str,
            keys: Vec<String>,
            life: Life,
        ) -> BoxFuture<'_, Vec<Option<Life>>> {
            let lives = keys.iter().map(|key| (key != "full").then_some(life)).collect();
            self.0.lock().unwrap().push((series.to_owned(), keys, life));
            Box::pin(std::future::ready(lives))
        }
    }

    fn head(path: &str, key: &str) -> Head {
        let mut headers = HeaderMap::new();
        headers.insert(IDEMPOTENCY_KEY, key.parse().unwrap());
        Head { method: Method::POST, path: PathAndQuery::try_from(path).unwrap(), headers }
    }

    async fn sent(path: &str, key: &str, body: &'static str) -> Option<(HeaderMap, Bytes)> {
        let tickets: Arc<dyn Tickets> = Arc::new(Book::default());
        let (mut head, mut load) = (head(path, key), Load::Kept(Bytes::from_static(body.as_bytes())));
        let mut stamp = Stamp::of(&tickets, &head, &load).unwrap()?;
        stamp.put(Some(Life(7)), &mut head, &mut load).await;
        Some((head.headers, load.kept().unwrap().clone()))
    }

    #[tokio::test]
    async fn a_reserve_carries_the_life_that_was_written_down() {
        let (headers, _) = sent("/v1/series/INV/numbers?period=2026", "k", "").await.unwrap();
        assert_eq!(headers[VAULT_TICKET], "00000000000000000000000000000007");
        let (headers, _) = sent("/v1/series/INV/numbers", "full", "").await.unwrap();
        assert!(!headers.contains_key(VAULT_TICKET));
    }

    #[tokio::test]
    async fn a_posted_message_carries_its_ticket_whatever_its_queue() {
        let book = Arc::new(Book::default());
        let tickets: Arc<dyn Tickets> = Arc::clone(&book) as Arc<dyn Tickets>;
        for path in ["/v1/messages/orders", "/v1/messages/b%C3%BCcher?x"] {
            let (mut head, mut load) = (head(path, "k"), Load::Kept(Bytes::from_static(b"hello")));
            let mut stamp = Stamp::of(&tickets, &head, &load).unwrap().unwrap();
            stamp.put(Some(Life(7)), &mut head, &mut load).await;
            assert_eq!(head.headers[VAULT_TICKET], Life(7).to_string());
        }
        let asked = ("/v1/messages".to_owned(), vec!["k".to_owned()], Life(7));
        assert_eq!(*book.0.lock().unwrap(), [asked.clone(), asked]);
    }

    #[tokio::test]
    async fn a_batch_carries_a_ticket_for_each_key_and_keeps_its_other_fields() {
        let body = r#"{"keys":["a","full","b"],"more":[1,{"x":"y"}]}"#;
        let (headers, body) = sent("/v1/series/INV/numbers/batch", "k", body).await.unwrap();
        assert!(!headers.contains_key(VAULT_TICKET));
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let life = Life(7).to_string();
        assert_eq!(
            body,
            serde_json::json!({"keys": ["a", "full", "b"], "tickets": [life, null, life], "more": [1, {"x": "y"}]})
        );
    }

    #[tokio::test]
    async fn other_calls_and_those_that_no_vault_takes_get_no_ticket() {
        for (path, body) in [
            ("/v1/files", ""),
            ("/v1/series/INV/numbers/7/confirm", "{}"),
            ("/v1/messages", ""),
            ("/v1/messages/", ""),
            ("/v1/messagesx/q", ""),
            ("/v1/series/I%20NV/numbers", ""),
            ("/v1/series/%4/numbers", ""),
            ("/v1/series/INV/numbers/batch", "no json"),
            ("/v1/series/INV/numbers/batch", r#"{"keys":["with blank"," "]}"#),
        ] {
            assert!(sent(path, "k", body).await.is_none(), "{path} {body}");
        }
    }

    #[test]
    fn a_ticket_of_the_callers_own_is_refused() {
        let tickets: Arc<dyn Tickets> = Arc::new(Book::default());
        let mut own = head("/v1/series/INV/numbers", "k");
        own.headers.insert(VAULT_TICKET, HeaderValue::from_static("x"));
        let none = Load::Kept(Bytes::new());
        assert!(matches!(Stamp::of(&tickets, &own, &none), Err(ClientError::ForeignTicket)));
        let batch = Load::Kept(Bytes::from_static(br#"{"keys":["a"],"tickets":[null]}"#));
        let head = head("/v1/series/INV/numbers/batch", "k");
        assert!(matches!(Stamp::of(&tickets, &head, &batch), Err(ClientError::ForeignTicket)));
    }

    #[tokio::test]
    async fn however_a_series_is_written_its_key_has_one_ticket() {
        let book = Arc::new(Book::default());
        let tickets: Arc<dyn Tickets> = Arc::clone(&book) as Arc<dyn Tickets>;
        for path in
            ["/v1/series/INV/numbers", "/v1/series/I%4eV/numbers", "/v1/series/%49NV/numbers?owner=erp"]
        {
            let (mut head, mut load) = (head(path, "k"), Load::Kept(Bytes::new()));
            let mut stamp = Stamp::of(&tickets, &head, &load).unwrap().unwrap();
            stamp.put(Some(Life(1)), &mut head, &mut load).await;
        }
        let book = book.0.lock().unwrap();
        assert!(book.len() == 3 && book.iter().all(|asked| *asked == book[0]), "{book:?}");
    }

    #[tokio::test]
    async fn each_period_of_a_key_has_a_ticket_of_its_own_however_it_is_written() {
        let series = |query: &str| {
            let head = head(&format!("/v1/series/INV/numbers{query}"), "k");
            Reserve::of(&head, &Load::Kept(Bytes::new())).map(|reserve| reserve.keys().0.to_owned())
        };
        for query in
            ["?period=2026", "?owner=erp&period=2026", "?%70eriod=%32026&owner=erp", "?&period=2026&"]
        {
            assert_eq!(series(query).as_deref(), Some("INV/2026"), "{query}");
        }
        assert_eq!(series("?period=2026-03").as_deref(), Some("INV/2026-03"));
        for query in ["", "?", "?owner=erp", "?Period=2026", "?owner=period%3D2026"] {
            assert_eq!(series(query).as_deref(), Some("INV"), "{query}");
        }
        // No vault takes these: they get no ticket, which is safe whatever comes of them.
        for query in
            ["?period=", "?period", "?period=2026&period=2027", "?period=2026/1", "?period=%zz", "?%=x"]
        {
            assert_eq!(series(query), None, "{query}");
        }
        let body = Load::Kept(Bytes::from_static(br#"{"keys":["a"]}"#));
        let batch = Reserve::of(&head("/v1/series/INV/numbers/batch?period=2026", "k"), &body).unwrap();
        assert_eq!(batch.keys().0, "INV/2026");
    }

    #[test]
    fn a_life_is_32_hex_digits() {
        for bad in ["", "7", "+0000000000000000000000000000007", "g0000000000000000000000000000007"] {
            assert_eq!(bad.parse::<Life>(), Err(NoLife), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_life_reads_back(life: u128) {
            prop_assert_eq!(Life(life).to_string().parse(), Ok(Life(life)));
        }

        #[test]
        fn no_path_and_no_body_make_the_stamp_panic(path in "/v1/series/(INV/numbers[?])?[ -~]{0,20}", body in "\\PC{0,60}") {
            let Ok(path) = PathAndQuery::try_from(path.as_str()) else { return Ok(()) };
            let head = Head { path, ..head("/", "k") };
            let _ = Reserve::of(&head, &Load::Kept(Bytes::from(body)));
        }
    }
}

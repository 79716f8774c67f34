//! Those who ask: they keep each key with the life it was first sent to, ask again elsewhere when
//! they are not answered, confirm and spoil numbers, bid for records against each other, and want a
//! lease. Know the API's forms; take down every call and judge none.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use harness::wait::{self, Deadline};
use serde_json::{Value, json};

use crate::answers::USED_UP;
use crate::dice::Dice;
use crate::door::{Address, Door, Reply};
use crate::history::{Act, Ending, History, Line, Outcome};
use crate::leases::TTL;

/// How patient callers are: the impatient ones make for calls of which nobody knows the end.
const PATIENCE: [u64; 4] = [250, 1_000, 3_000, 7_000];
/// Most numbers offered to whoever confirms or spoils one.
const OFFERED: usize = 200;
/// Most keys of one call; each is checked as if it were called alone.
const MOST_OF_A_BATCH: usize = 12;
/// How soon every key must be decided once both vaults are together.
const DECIDED: Duration = Duration::from_secs(40);
/// So many numbers at once are taken at the end to reach what lies ahead.
const AT_THE_END: usize = 250;

/// What those who bid for records also want to hold.
const LEASE: &str = "nightly";

/// How a vault says alone that nothing is left of what was set aside for it.
const WORDS_USED_UP: &str = "set aside for this vault are used up";

/// What is asked for.
pub(crate) struct Callers<'a> {
    pub(crate) addresses: [Address; 2],
    pub(crate) series: Vec<String>,
    pub(crate) records: Vec<String>,
    pub(crate) history: &'a History,
    keys: AtomicU64,
    offered: Mutex<Vec<(String, u64)>>,
}

/// A key whose number is not known.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    series: String,
    key: String,
    ticket: Option<String>,
}

impl Pending {
    fn act(&self) -> Act {
        let Self { series, key, ticket } = self.clone();
        Act::Reserve { series, key, ticket }
    }
}

/// One of them.
struct Caller<'a> {
    all: &'a Callers<'a>,
    doors: [Door; 2],
    dice: Dice,
    pending: Vec<Pending>,
    answered: Vec<Pending>,
    seen: BTreeMap<String, u64>,
    /// A write of which nobody knows the end: record, version replaced, value.
    unsure: Option<(String, u64, String)>,
    /// As whom it wants the lease; another one each time it gave it up.
    token: String,
    /// The epoch in which it holds the lease, as far as it knows.
    epoch: Option<u64>,
}

impl<'a> Callers<'a> {
    pub(crate) fn new(
        addresses: [Address; 2],
        series: &[&str],
        records: &[&str],
        history: &'a History,
    ) -> Self {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            addresses,
            series: own(series),
            records: own(records),
            history,
            keys: AtomicU64::new(0),
            offered: Mutex::default(),
        }
    }

    /// Asks with so many callers until `stop`; returns the keys whose numbers are not known.
    pub(crate) fn ask(&self, seed: u64, count: usize, pause: Duration, stop: &AtomicBool) -> Vec<Pending> {
        let work = |place: usize| {
            let patience = PATIENCE.get(place % PATIENCE.len()).copied().unwrap_or(1_000);
            let mut caller = self.caller(Duration::from_millis(patience), Dice::new(seed, 1 + place as u64));
            while !stop.load(Ordering::Relaxed) {
                if self.records.is_empty() || place % 3 != 2 {
                    caller.number()
                } else if caller.dice.chance(35) {
                    caller.lease()
                } else {
                    caller.record()
                }
                let pause = caller.dice.between(pause / 4, pause);
                std::thread::sleep(pause);
            }
            caller.pending
        };
        let work = &work;
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..count).map(|place| scope.spawn(move || work(place))).collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    }

    /// Both vaults are together for good: every key is decided, numbers are taken until all that
    /// were given lie behind, and both vaults tell each series as a whole.
    ///
    /// # Errors
    /// A key that stays undecided, a vault that does not answer.
    pub(crate) fn settle(&self, pending: Vec<Pending>) -> anyhow::Result<()> {
        let mut caller = self.caller(Duration::from_secs(7), Dice::new(0, 0));
        for (place, one) in pending.iter().enumerate() {
            wait::until(&format!("{} {} is decided", one.series, one.key), DECIDED, || {
                let outcome = caller.reserve(place % 2, one);
                anyhow::ensure!(is_decided(&outcome), "{outcome:?}");
                Ok(())
            })?;
        }
        for series in &self.series {
            let upto = self.highest(series);
            let deadline = Deadline::after(DECIDED);
            // One is enough unless numbers lie ahead that were set aside.
            let one = self.fresh(series, &caller.doors[0]);
            let mut outcomes = vec![caller.reserve(0, &one)];
            let lies_ahead =
                |outcome: &Outcome| matches!(outcome, Outcome::Number(line) if line.number > upto);
            while !outcomes.iter().any(lies_ahead) {
                anyhow::ensure!(!deadline.passed(), "{series}: numbers up to {upto} are not used up");
                outcomes = caller.many(0, series, AT_THE_END);
            }
            let listed = [caller.list(0, series)?, caller.list(1, series)?];
            let unaccounted = caller.unaccounted(series)?;
            let ending = Ending { listed, unaccounted, upto };
            self.history.change(|story| story.ending.insert(series.clone(), ending));
        }
        for record in &self.records {
            for place in [0, 1] {
                wait::until(&format!("{record} is read"), DECIDED, || match caller.read(place, record) {
                    Outcome::Version { .. } | Outcome::Nothing => Ok(()),
                    other => anyhow::bail!("{other:?}"),
                })?;
            }
        }
        Ok(())
    }

    /// The highest number of a series that anybody was told.
    fn highest(&self, series: &str) -> u64 {
        self.history.change(|story| {
            let lines = story.calls.iter().filter_map(|call| call.line());
            lines.filter(|(own, _)| *own == series).map(|(_, line)| line.number).max().unwrap_or(0)
        })
    }

    fn caller(&self, patience: Duration, dice: Dice) -> Caller<'_> {
        let doors = self.addresses.each_ref().map(|address| Door::new(address, patience));
        let (pending, answered, seen) = (Vec::new(), Vec::new(), BTreeMap::new());
        let (unsure, token, epoch) = (None, self.token(), None);
        Caller { all: self, doors, dice, pending, answered, seen, unsure, token, epoch }
    }

    fn token(&self) -> String {
        format!("t{}", self.keys.fetch_add(1, Ordering::Relaxed))
    }

    /// A new key, to be sent through `door` first: its ticket is kept from now on.
    fn fresh(&self, series: &str, door: &Door) -> Pending {
        let key = format!("k{}", self.keys.fetch_add(1, Ordering::Relaxed));
        Pending { series: series.to_owned(), key, ticket: door.life.clone() }
    }
}

impl Caller<'_> {
    fn number(&mut self) {
        let vault = self.dice.below(2);
        match self.dice.below(100) {
            0..45 => {
                let series = self.all.series[self.dice.below(self.all.series.len())].clone();
                self.learn_life(vault);
                let one = self.all.fresh(&series, &self.doors[vault]);
                self.first(vault, one);
            }
            45..50 => self.batch(vault),
            50..75 if !self.pending.is_empty() => {
                let one = self.pending.swap_remove(self.dice.below(self.pending.len()));
                self.first(vault, one);
            }
            75..80 if !self.answered.is_empty() => {
                let one = self.answered[self.dice.below(self.answered.len())].clone();
                self.reserve(vault, &one);
            }
            80..88 if !self.answered.is_empty() => {
                let one = self.answered[self.dice.below(self.answered.len())].clone();
                self.lookup(vault, &one);
            }
            _ => self.decide(vault),
        }
    }

    /// Many fresh keys in one call.
    fn batch(&mut self, vault: usize) {
        let series = self.all.series[self.dice.below(self.all.series.len())].clone();
        self.learn_life(vault);
        let count = 1 + self.dice.below(MOST_OF_A_BATCH);
        self.many(vault, &series, count);
    }

    fn many(&mut self, vault: usize, series: &str, count: usize) -> Vec<Outcome> {
        let door = &mut self.doors[vault];
        let all: Vec<_> = (0..count).map(|_| self.all.fresh(series, door)).collect();
        let keys: Vec<_> = all.iter().map(|one| one.key.as_str()).collect();
        let tickets: Vec<_> = all.iter().map(|one| one.ticket.as_deref()).collect();
        let body = json!({ "keys": keys, "tickets": tickets });
        let acts = all.iter().map(Pending::act).collect();
        let outcomes = self.all.history.call_many(vault, acts, |acts| {
            let path = format!("/v1/series/{series}/numbers/batch");
            let reply = door.ask("POST", &path, &[], Some(&body));
            (0..acts.len()).map(|place| item(&reply, place)).collect()
        });
        for (one, outcome) in all.into_iter().zip(&outcomes) {
            self.note(one, outcome);
        }
        outcomes
    }

    /// A key is asked for.
    fn first(&mut self, vault: usize, one: Pending) {
        let outcome = self.reserve(vault, &one);
        self.note(one, &outcome);
    }

    /// Unless it is decided, a key stays pending.
    fn note(&mut self, one: Pending, outcome: &Outcome) {
        match outcome {
            Outcome::Number(line) => {
                let mut offered = self.all.offered.lock().unwrap_or_else(PoisonError::into_inner);
                if offered.len() < OFFERED {
                    offered.push((one.series.clone(), line.number));
                }
                drop(offered);
                self.answered.push(one);
            }
            outcome if is_decided(outcome) => {}
            _ => self.pending.push(one),
        }
    }

    fn learn_life(&mut self, vault: usize) {
        if self.doors[vault].life.is_none() {
            // Without an answer there is no ticket, and then no number from a vault alone.
            let _ = self.doors[vault].ask("GET", "/v1/life", &[], None);
        }
    }

    fn reserve(&mut self, vault: usize, one: &Pending) -> Outcome {
        let (door, history) = (&mut self.doors[vault], self.all.history);
        let invoked = history.now();
        let outcome = history.call(vault, one.act(), || {
            let mut headers = vec![("Idempotency-Key", one.key.as_str())];
            headers.extend(one.ticket.as_deref().map(|ticket| ("Vault-Ticket", ticket)));
            number(door.ask("POST", &format!("/v1/series/{}/numbers", one.series), &headers, None))
        });
        if let Some(life) = &self.doors[vault].answered_by {
            history.saw_life(life, invoked);
        }
        outcome
    }

    fn lookup(&mut self, vault: usize, one: &Pending) {
        let act = Act::Lookup { series: one.series.clone(), key: one.key.clone() };
        let door = &mut self.doors[vault];
        self.all.history.call(vault, act, || {
            number(door.ask("GET", &format!("/v1/series/{}/numbers?key={}", one.series, one.key), &[], None))
        });
    }

    /// Confirms or spoils a number that anybody has; two may want different things of one.
    fn decide(&mut self, vault: usize) {
        let mut offered = self.all.offered.lock().unwrap_or_else(PoisonError::into_inner);
        if offered.is_empty() {
            return;
        }
        let place = self.dice.below(offered.len());
        // Most are taken away, so that they are decided once; the others again and again.
        let given = if self.dice.chance(60) { offered.swap_remove(place) } else { offered[place].clone() };
        drop(offered);
        let (series, number_) = given;
        let path = format!("/v1/series/{series}/numbers/{number_}");
        let door = &mut self.doors[vault];
        if self.dice.chance(70) {
            let hash = format!("h{}", self.dice.below(3));
            let act = Act::Confirm { series, number: number_, hash: hash.clone() };
            let body = json!({ "document_hash": hash });
            self.all
                .history
                .call(vault, act, || number(door.ask("POST", &format!("{path}/confirm"), &[], Some(&body))));
        } else {
            let act = Act::Void { series, number: number_ };
            let body = json!({ "reason": "spoiled" });
            self.all
                .history
                .call(vault, act, || number(door.ask("POST", &format!("{path}/void"), &[], Some(&body))));
        }
    }

    /// Bids for a record: reads it, or writes it over the version seen last.
    fn record(&mut self) {
        let vault = self.dice.below(2);
        let record = self.all.records[self.dice.below(self.all.records.len())].clone();
        if self.dice.chance(50)
            && let Some((record, base, value)) = self.unsure.take()
        {
            return self.write(vault, &record, base, value);
        }
        match self.seen.get(&record).copied() {
            Some(base) if self.dice.chance(60) => {
                let value = format!("v{}", self.all.keys.fetch_add(1, Ordering::Relaxed));
                self.write(vault, &record, base, value);
            }
            _ => {
                self.read(vault, &record);
            }
        }
    }

    fn read(&mut self, vault: usize, record: &str) -> Outcome {
        let act = Act::Read { record: record.to_owned() };
        let door = &mut self.doors[vault];
        let outcome = self.all.history.call(vault, act, || {
            version(door.ask("GET", &format!("/v1/records/{record}"), &[], None), false)
        });
        match &outcome {
            Outcome::Version { version, .. } => self.seen.insert(record.to_owned(), *version),
            Outcome::Nothing => self.seen.insert(record.to_owned(), 0),
            _ => None,
        };
        outcome
    }

    fn write(&mut self, vault: usize, record: &str, base: u64, value: String) {
        let act = Act::Write { record: record.to_owned(), base, value: value.clone() };
        let door = &mut self.doors[vault];
        let outcome = self.all.history.call(vault, act, || {
            let tag = format!("\"{base}\"");
            let condition = if base == 0 { ("If-None-Match", "*") } else { ("If-Match", tag.as_str()) };
            let headers = [condition, ("Idempotency-Key", value.as_str())];
            let path = format!("/v1/records/{record}");
            version(door.ask("PUT", &path, &headers, Some(&json!({ "value": value }))), true)
        });
        match outcome {
            Outcome::Version { version, .. } => {
                self.seen.insert(record.to_owned(), version);
            }
            Outcome::Refused { status: 412, .. } => {
                self.seen.remove(record);
            }
            _ => self.unsure = Some((record.to_owned(), base, value)),
        }
    }

    /// Holds the lease, or tries to; gives it up sometimes, or leaves it without a word.
    fn lease(&mut self) {
        let vault = self.dice.below(2);
        let (lease, token) = (LEASE.to_owned(), self.token.clone());
        let path = format!("/v1/leases/{LEASE}");
        let door = &mut self.doors[vault];
        let history = self.all.history;
        let Some(epoch) = self.epoch else {
            let body = json!({ "token": token, "ttl_seconds": TTL.as_secs() });
            let act = Act::Acquire { lease, token };
            let outcome = history.call(vault, act, || held(door.ask("POST", &path, &[], Some(&body))));
            if let Outcome::Held { epoch } = outcome {
                self.epoch = Some(epoch);
            }
            return;
        };
        match self.dice.below(100) {
            0..80 => {
                let body = json!({ "token": token, "epoch": epoch });
                let act = Act::Renew { lease, token, epoch };
                let outcome = history.call(vault, act, || held(door.ask("PUT", &path, &[], Some(&body))));
                if !matches!(outcome, Outcome::Refused { status: 409, .. }) {
                    return;
                }
            }
            80..93 => {
                let path = format!("{path}?token={token}&epoch={epoch}");
                let act = Act::Release { lease, token, epoch };
                history.call(vault, act, || held(door.ask("DELETE", &path, &[], None)));
            }
            _ => {}
        }
        // What was given up may yet arrive: nobody asks again by that name.
        (self.token, self.epoch) = (self.all.token(), None);
    }

    fn list(&mut self, vault: usize, series: &str) -> anyhow::Result<Vec<Line>> {
        let (mut lines, mut after) = (Vec::new(), String::from("0"));
        loop {
            let path = format!("/v1/series/{series}/numbers?after={after}&limit=1000");
            let reply = wait::until(&format!("{series} is listed"), DECIDED, || {
                let reply = self.doors[vault].ask("GET", &path, &[], None)?;
                anyhow::ensure!(reply.status == 200, "{} {}", reply.status, reply.body);
                Ok(reply)
            })?;
            let items = reply.body.get("items").and_then(Value::as_array);
            lines.extend(items.into_iter().flatten().filter_map(line));
            match reply.body.get("next").and_then(Value::as_str) {
                Some(next) => after = next.to_owned(),
                None => return Ok(lines),
            }
        }
    }

    /// Numbers of the series that the ledger calls unaccounted.
    fn unaccounted(&mut self, series: &str) -> anyhow::Result<Vec<(u64, u64)>> {
        let count = wait::until(&format!("{series} is told of"), DECIDED, || {
            let reply = self.doors[0].ask("GET", &format!("/v1/series/{series}"), &[], None)?;
            reply
                .body
                .pointer("/counts/0")
                .cloned()
                .with_context(|| format!("{} {}", reply.status, reply.body))
        })?;
        let spans = count.get("unaccounted").and_then(Value::as_array);
        let end = |span: &Value, name: &str| span.get(name).and_then(Value::as_u64);
        let span = |span: &Value| Some((end(span, "from")?, end(span, "to")?));
        spans
            .into_iter()
            .flatten()
            .map(|it| span(it).with_context(|| format!("{series}: no span: {it}")))
            .collect()
    }
}

/// Will the key never be answered otherwise? Whether it might be answered so, the checker says.
fn is_decided(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Number(_) | Outcome::Refused { status: 409 | 410, .. })
}

fn number(reply: anyhow::Result<Reply>) -> Outcome {
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) => return Outcome::Unknown(format!("{error:#}")),
    };
    match (reply.status, line(&reply.body)) {
        (200 | 201, Some(line)) => Outcome::Number(line),
        _ => refused(&reply),
    }
}

/// What one key of a batch came to.
fn item(reply: &anyhow::Result<Reply>, place: usize) -> Outcome {
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) => return Outcome::Unknown(format!("{error:#}")),
    };
    let item = reply.body.get("items").and_then(|items| items.get(place));
    let Some(item) = item.filter(|_| reply.status == 200) else { return refused(reply) };
    if let Some(line) = item.get("number").and_then(line) {
        return Outcome::Number(line);
    }
    let status = item.pointer("/problem/status").and_then(Value::as_u64);
    let status = status.and_then(|status| u16::try_from(status).ok()).unwrap_or(500);
    Outcome::Refused { status, code: item.get("problem").map(code).unwrap_or_default() }
}

fn version(reply: anyhow::Result<Reply>, wrote: bool) -> Outcome {
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) => return Outcome::Unknown(format!("{error:#}")),
    };
    let version = reply.header("etag").and_then(|tag| tag.trim_matches('"').parse().ok());
    match (reply.status, version) {
        (200 | 201 | 204, Some(version)) => {
            let value = reply.body.get("value").and_then(Value::as_str);
            Outcome::Version { version, value: value.filter(|_| !wrote).map(str::to_owned) }
        }
        _ => refused(&reply),
    }
}

/// What was said of a lease.
fn held(reply: anyhow::Result<Reply>) -> Outcome {
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) => return Outcome::Unknown(format!("{error:#}")),
    };
    match (reply.status, reply.body.get("epoch").and_then(Value::as_u64)) {
        (200 | 201, Some(epoch)) => Outcome::Held { epoch },
        (204, _) => Outcome::Done,
        _ => refused(&reply),
    }
}

fn refused(reply: &Reply) -> Outcome {
    match reply.status {
        404 => Outcome::Nothing,
        status if status >= 400 => Outcome::Refused { status, code: code(&reply.body) },
        status => Outcome::Unknown(format!("{status} {}", reply.body)),
    }
}

/// A problem's code, and apart from others of the same code that nothing is left to give alone.
fn code(problem: &Value) -> String {
    let text = |name: &str| problem.get(name).and_then(Value::as_str).unwrap_or_default();
    let is_used_up = text("code") == "peer_away" && text("detail").contains(WORDS_USED_UP);
    if is_used_up { USED_UP } else { text("code") }.to_owned()
}

fn line(body: &Value) -> Option<Line> {
    let text = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
    let number = body.get("number").and_then(Value::as_u64)?;
    Some(Line { number, key: text("key")?, state: text("state")?, hash: text("document_hash") })
}

//! `/v1/records`: named values with versions. Paths, headers and statuses ↔ wishes and outcomes;
//! decides who may touch whose records, not what becomes of one. File names and leases, which are
//! records too, take their words from here.

use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Deserialize;
use shared::api::record::{Record, VAULT_STALE, WrittenRecord};
use shared::api::{MAX_PAGE, Page};
use shared::tls::{Role, is_name};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::caller::Caller;
use super::files::none_match;
use super::key::IdempotencyKey;
use super::refusal::Refusal;
use crate::sequence::Sequence;
use crate::sequence::journal::Leaf;
use crate::sequence::record::front::Seen;
use crate::sequence::record::name::{NameFault, checked, checked_prefix};
use crate::sequence::record::{
    Content, Done, Held, Kind, MAX_VALUE, RecordError, RecordName, Refused, Wish, Written,
};

mod condition;

pub(super) use condition::expected_of;
pub use condition::fuzz_condition;

/// The routes under `/v1/records`.
pub fn routes(sequence: Sequence) -> Router {
    Router::new()
        .route("/v1/records", get(list))
        .route("/v1/records/{*name}", get(read).put(write).delete(remove))
        .with_state(sequence)
}

/// The query of a call about one record.
#[derive(Debug, Deserialize)]
pub(super) struct One {
    pub(super) owner: Option<String>,
    pub(super) version: Option<u64>,
    #[serde(default)]
    pub(super) history: bool,
    pub(super) after: Option<u64>,
    pub(super) limit: Option<usize>,
    #[serde(default)]
    pub(super) stale: bool,
}

/// The query of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Window {
    owner: Option<String>,
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    after: String,
    limit: Option<usize>,
    #[serde(default)]
    stale: bool,
}

async fn list(
    State(sequence): State<Sequence>,
    caller: Caller,
    Query(window): Query<Window>,
) -> Result<Response, Refusal> {
    let Seen { found: (items, next), stale } = page(&sequence, &caller, Kind::Record, window).await?;
    let items = items.iter().map(shown).collect();
    Ok(marked(Json(Page { items, next }).into_response(), stale))
}

async fn read(
    State(sequence): State<Sequence>,
    caller: Caller,
    Path(name): Path<String>,
    Query(one): Query<One>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let name = named(&caller, one.owner.clone(), Kind::Record, name)?;
    if one.history {
        let Seen { found: (items, next), stale } = history(&sequence, name, &one).await?;
        let items = items.iter().map(shown).collect();
        return Ok(marked(Json(Page { items, next }).into_response(), stale));
    }
    let Seen { found, stale } = version(&sequence, name, &one).await?;
    let Some(Written { content, .. }) = found.written() else { return Err(Refusal::internal()) };
    let tag = etag(found.version);
    let mut answer = Response::default();
    if none_match(&headers, &tag) {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        let kind = if content.json { "application/json" } else { "text/plain; charset=utf-8" };
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        *answer.body_mut() = content.value.into();
    }
    Ok(marked(tagged(answer, found.version), stale))
}

async fn write(
    State(sequence): State<Sequence>,
    caller: Caller,
    Path(name): Path<String>,
    Query(one): Query<One>,
    IdempotencyKey(key): IdempotencyKey,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let name = named(&caller, one.owner, Kind::Record, name)?;
    let expect = expected_of(&sequence, &name, &headers).await?;
    let content = content(&headers, &body)?;
    let wish = Wish::Put { written: Written { content, by: by(&caller), key }, expect };
    written(sequence.write_record(name.clone(), wish).await, name)
}

async fn remove(
    State(sequence): State<Sequence>,
    caller: Caller,
    Path(name): Path<String>,
    Query(one): Query<One>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let name = named(&caller, one.owner, Kind::Record, name)?;
    let wish = Wish::Remove { expect: expected_of(&sequence, &name, &headers).await? };
    removed(sequence.write_record(name, wish).await)
}

/// A value is UTF-8; one that is sent as JSON must be JSON.
fn content(headers: &HeaderMap, body: &Bytes) -> Result<Content, Refusal> {
    let bad = |detail: String| Refusal::new(StatusCode::BAD_REQUEST, "bad_value", detail);
    if body.len() > MAX_VALUE {
        let detail = format!("a value has at most {MAX_VALUE} bytes; store a file, and put its id here");
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail));
    }
    let value = std::str::from_utf8(body)
        .map_err(|error| bad(format!("a value is UTF-8 text: {error}; store other bytes as a file")))?;
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let json = kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json");
    if json && let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(value) {
        return Err(bad(format!("the value is sent as application/json and is none: {error}")));
    }
    Ok(Content { value: value.to_owned(), json })
}

fn shown(held: &Held) -> Record {
    let written = held.written();
    Record {
        name: held.name.clone(),
        version: held.version,
        json: written.as_ref().is_some_and(|written| written.content.json),
        by: written.as_ref().map(|written| written.by.clone()),
        value: written.map(|written| written.content.value),
        changed: changed(held.at),
    }
}

/// Names one record of the caller's owner, or of whomever an operator names.
pub(super) fn named(
    caller: &Caller,
    owner: Option<String>,
    kind: Kind,
    name: String,
) -> Result<RecordName, Refusal> {
    let name = whose(caller, owner, kind, name)?;
    checked(kind, &name.name).map_err(bad_name)?;
    Ok(name)
}

fn whose(caller: &Caller, owner: Option<String>, kind: Kind, name: String) -> Result<RecordName, Refusal> {
    caller.must_be(&[Role::Edge, Role::Admin])?;
    let owner = match (caller.0.role, owner) {
        (Role::Admin, None) => {
            let detail = "an operator must say whose record is meant; add ?owner=NAME";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_owner", detail));
        }
        (_, Some(owner)) => owner,
        (_, None) => caller.0.owner.clone(),
    };
    if !is_name(&owner) {
        let detail = format!("{owner:?} is no owner's name");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad_owner", detail));
    }
    if !caller.may_touch(&owner) {
        let detail = format!("this certificate acts for {}, not for {owner}", caller.0.owner);
        return Err(Refusal::new(StatusCode::FORBIDDEN, "owner_refused", detail));
    }
    Ok(RecordName { owner, kind, name })
}

fn bad_name(fault: NameFault) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "bad_name", fault.to_string())
}

/// Who writes: role, owner and name of the certificate.
pub(super) fn by(caller: &Caller) -> String {
    format!("{}/{}/{}", caller.0.role, caller.0.owner, caller.0.name)
}

/// A page of what a list asks for.
pub(super) async fn page(
    sequence: &Sequence,
    caller: &Caller,
    kind: Kind,
    window: Window,
) -> Result<Seen<Leaf>, Refusal> {
    let after = whose(caller, window.owner, kind, window.after)?;
    checked_prefix(&window.prefix).and_then(|()| checked_prefix(&after.name)).map_err(bad_name)?;
    let limit = window.limit.unwrap_or(100).clamp(1, MAX_PAGE);
    sequence.records(after, window.prefix, limit, window.stale).await.map_err(refusal)
}

/// A page of a record's versions.
pub(super) async fn history(sequence: &Sequence, name: RecordName, one: &One) -> Result<Seen<Leaf>, Refusal> {
    let limit = one.limit.unwrap_or(100).clamp(1, MAX_PAGE);
    // SQLite's integers end where i64 does, and so do the versions.
    let after = one.after.unwrap_or(0).min(i64::MAX as u64);
    sequence.record_versions(name, after, limit, one.stale).await.map_err(refusal)
}

/// The version asked for, or the present one; 404 where that says nothing.
pub(super) async fn version(sequence: &Sequence, name: RecordName, one: &One) -> Result<Seen<Held>, Refusal> {
    let Seen { found, stale } = match one.version {
        Some(version) => {
            let before = version.saturating_sub(1).min(i64::MAX as u64);
            let seen = sequence.record_versions(name, before, 1, one.stale).await.map_err(refusal)?;
            let found = seen.found.0.into_iter().next().filter(|held| held.version == version);
            Seen { found, stale: seen.stale }
        }
        None => sequence.record(name, one.stale).await.map_err(refusal)?,
    };
    match found.filter(|held| held.text.is_some()) {
        Some(found) => Ok(Seen { found, stale }),
        None => Err(refusal(Refused::Absent.into())),
    }
}

/// The answer to a write.
pub(super) fn written(outcome: Result<Done, RecordError>, name: RecordName) -> Result<Response, Refusal> {
    match outcome {
        Ok(Done { version, fresh, .. }) => {
            let status = if fresh { StatusCode::CREATED } else { StatusCode::OK };
            let body = Json(WrittenRecord { name: name.name, version });
            Ok(tagged((status, body).into_response(), version))
        }
        Err(error) => differs(error),
    }
}

/// The answer to a removal.
pub(super) fn removed(outcome: Result<Done, RecordError>) -> Result<Response, Refusal> {
    match outcome {
        Ok(_) => Ok(StatusCode::NO_CONTENT.into_response()),
        Err(error) => differs(error),
    }
}

/// A refusal that names the present version carries it as its ETag.
fn differs(error: RecordError) -> Result<Response, Refusal> {
    match error {
        RecordError::Refused(Refused::Differs { present: Some(present) }) => {
            Ok(tagged(refusal(error).into_response(), present))
        }
        error => Err(refusal(error)),
    }
}

fn etag(version: u64) -> String {
    format!("\"{version}\"")
}

/// With the version as ETag.
pub(super) fn tagged(mut answer: Response, version: u64) -> Response {
    answer.headers_mut().extend(HeaderValue::try_from(etag(version)).ok().map(|tag| (header::ETAG, tag)));
    answer
}

/// What may be old says so.
pub(super) fn marked(mut answer: Response, stale: bool) -> Response {
    if stale {
        let name = HeaderName::from_static(VAULT_STALE);
        answer.headers_mut().insert(name, HeaderValue::from_static("true"));
    }
    answer
}

/// An entry's label as people read it.
pub(super) fn changed(at: i64) -> String {
    OffsetDateTime::from_unix_timestamp(at.div_euclid(1000))
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// The public text of why a record is neither read nor written.
pub(super) fn refusal(error: RecordError) -> Refusal {
    let text = error.to_string();
    let conflict = |code| Refusal::new(StatusCode::CONFLICT, code, &*text);
    match error {
        RecordError::Refused(refused) => match refused {
            Refused::Differs { .. } => Refusal::new(StatusCode::PRECONDITION_FAILED, "version_differs", text),
            Refused::Absent => Refusal::not_found(text),
            Refused::KeyReused => conflict("key_reused"),
            Refused::Full { .. } => conflict("too_many_records"),
            Refused::Exhausted => conflict("versions_exhausted"),
            Refused::Held { .. } => conflict("lease_held"),
            Refused::Lost => conflict("lease_lost"),
        },
        RecordError::Apart(_) => Refusal::later("peer_away", text, Duration::from_secs(2)),
        RecordError::NoLedger(_) => Refusal::later("ledger_away", text, Duration::from_secs(2)),
        RecordError::Closed(_) => Refusal::later("numbering_closed", text, Duration::from_secs(60)),
        RecordError::InDoubt => Refusal::later("in_doubt", text, Duration::from_secs(1)),
        RecordError::Busy => Refusal::later("busy", text, Duration::from_secs(1)),
        RecordError::Unreadable => Refusal::internal(),
    }
}

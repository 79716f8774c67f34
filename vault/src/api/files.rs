//! `/v1/files`: upload, download, list, delete. Knows headers, statuses and who may what;
//! leaves everything that lasts to `storage`. What a caller may not touch does not exist for it.

use std::pin::Pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt, try_unfold};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use shared::api::{File, MAX_PAGE, OwedReplica, Page, Verdict, VerifiedFile, VerifiedReplica};
use shared::tls::{Role, is_name};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::caller::Caller;
use super::refusal::Refusal;
use crate::storage::{
    BodyError, Checked, Entry, FileServerError, Found, KeyError, Listed, ObjectId, Slots, SpoolError,
    State as ObjectState, Storage, StorageError, Stored, Upload, Wanted,
};

mod conditions;
mod digest;
mod headers;

pub use conditions::{Asked, none_match, range_of};
pub use digest::{Digests, digests_of, fuzz_digests};
pub use headers::{idempotency_key, label_of, media_type_of};

const FILE_LABEL: HeaderName = HeaderName::from_static(shared::api::FILE_LABEL);
const FILE_WAS: HeaderName = HeaderName::from_static(shared::api::FILE_WAS);
/// When trying again may help.
const SOON: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(5);

/// What the handlers need.
#[derive(Clone)]
pub(super) struct Files {
    storage: Storage,
    idle: Duration,
}

impl Files {
    pub(super) fn new(storage: Storage, idle: Duration) -> Self {
        Self { storage, idle }
    }
}

/// The files part of the API. A body or an answer that makes no progress for `idle` is ended.
pub fn routes(storage: Storage, idle: Duration) -> Router {
    Router::new()
        .route("/v1/files", post(upload).get(list))
        .route("/v1/files/owed", get(owed))
        .route("/v1/files/{id}", get(download).delete(delete))
        .route("/v1/files/{id}/description", get(describe_file))
        .route("/v1/files/{id}/verify", post(verify))
        .with_state(Files { storage, idle })
}

/// `?owner=`
#[derive(Debug, Deserialize)]
struct Whose {
    owner: Option<String>,
}

/// `?limit=`
#[derive(Debug, Deserialize)]
struct Limit {
    limit: Option<usize>,
}

/// `?after=&limit=&owner=&label=&deleted=`
#[derive(Debug, Deserialize)]
struct Window {
    after: Option<String>,
    limit: Option<usize>,
    owner: Option<String>,
    label: Option<String>,
    #[serde(default)]
    deleted: bool,
}

async fn upload(
    State(files): State<Files>,
    caller: Caller,
    Query(whose): Query<Whose>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    // What is left unread of a refused body is the connection's to deal with.
    let (upload, digests) = announced(&files, &caller, whose, &headers)?;
    let stored = files.storage.put(upload, digests.check(body_of(body, files.idle))).await;
    let Stored { entry, new } = stored.map_err(|error| refuse(&error))?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    let place = [(header::LOCATION, format!("/v1/files/{}", entry.id)), (header::ETAG, etag(&entry.id))];
    Ok((status, place, axum::Json(file_of(&entry))).into_response())
}

/// What an upload's head says of it.
fn announced(
    files: &Files,
    caller: &Caller,
    whose: Whose,
    headers: &HeaderMap,
) -> Result<(Upload, Digests), Refusal> {
    caller.must_be(&[Role::Edge, Role::Admin])?;
    let digests = digests_of(headers)?;
    let upload = Upload {
        owner: owner_of(caller, whose.owner)?,
        key: idempotency_key(headers)?,
        label: label_of(headers)?,
        media_type: media_type_of(headers)?,
    };
    let most = files.storage.max_file();
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > most.0) {
        return Err(refuse(&StorageError::TooLarge(most)));
    }
    Ok((upload, digests))
}

pub(super) async fn download(
    State(files): State<Files>,
    caller: Caller,
    method: Method,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let entry = look_up(&files, &caller, &id).await?;
    let etag = etag(&entry.id);
    let mut answer = Response::new(Body::empty());
    describe(answer.headers_mut(), &entry, &etag);
    if none_match(&headers, &etag) {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(answer);
    }
    let size = entry.metadata.size;
    let range = match range_of(&headers, &etag, size) {
        // HEAD describes the whole file: RFC 9110, 14.2 defines ranges for GET alone.
        _ if method == Method::HEAD => None,
        Asked::Whole => None,
        Asked::Part(range) => Some(range),
        Asked::Nothing => {
            *answer.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            return Ok(not_satisfiable(size));
        }
    };
    let length = range.as_ref().map_or(size, |range| range.end - range.start);
    answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    if let Some(range) = &range {
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        let text = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        answer
            .headers_mut()
            .extend(HeaderValue::try_from(text).ok().map(|text| (header::CONTENT_RANGE, text)));
    }
    if method != Method::HEAD {
        let read = files.storage.read(&entry, range).await;
        let (_, plaintext) = read.map_err(|error| refuse(&error))?;
        // An error after the head can only cut the body short; the length tells the client.
        let logged = plaintext.inspect(|piece| {
            if let Err(error) = piece {
                tracing::error!("{error}; the download is cut off");
            }
        });
        *answer.body_mut() = Body::from_stream(logged);
    }
    Ok(answer)
}

async fn delete(
    State(files): State<Files>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<(StatusCode, [(HeaderName, &'static str); 1]), Refusal> {
    let id = parse_id(&id, &caller)?;
    let was = match files.storage.find(&id).await.map_err(|error| refuse(&error))? {
        Found::Stored(entry) if caller.may_touch(&entry.metadata.owner) => {
            files.storage.delete(&id).await.map_err(|error| refuse(&error))?;
            tracing::info!(object = %id, by = %caller.0.name, "deleted");
            "stored"
        }
        Found::Deleted(entry) if caller.may_touch(&entry.metadata.owner) => match entry.state {
            ObjectState::Purged => "purged",
            _ => "deleted",
        },
        _ => return Err(no_such_file(&caller)),
    };
    Ok((StatusCode::NO_CONTENT, [(FILE_WAS, was)]))
}

async fn list(
    State(files): State<Files>,
    caller: Caller,
    Query(window): Query<Window>,
) -> Result<axum::Json<Page<File>>, Refusal> {
    caller.must_be(&[Role::Edge, Role::Admin])?;
    let owner = match (caller.0.role, window.owner) {
        (Role::Admin, owner) => owner,
        (_, owner) => Some(owner_of(&caller, owner)?),
    };
    if window.deleted || window.label.is_some() {
        // The one is not for its owner any more, the other reads every file's label.
        caller.must_be(&[Role::Admin])?;
    }
    let wanted = Wanted { owner, label: window.label, deleted: window.deleted };
    let after = window.after.filter(|after| !after.is_empty()).map(|after| {
        after.parse::<ObjectId>().map_err(|why| Refusal::new(StatusCode::BAD_REQUEST, "bad_after", why))
    });
    let limit = window.limit.unwrap_or(100).clamp(1, MAX_PAGE);
    let listed = files.storage.list(wanted, after.transpose()?, limit + 1).await;
    let mut items: Vec<_> = listed.map_err(|error| refuse(&error))?.iter().map(file_listed).collect();
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|last| last.id.clone());
    Ok(axum::Json(Page { items, next }))
}

/// What is known of a file, without a byte of it.
async fn describe_file(
    State(files): State<Files>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<axum::Json<File>, Refusal> {
    Ok(axum::Json(file_of(&look_up(&files, &caller, &id).await?)))
}

/// Operators only: it reads every replica from end to end.
async fn verify(
    State(files): State<Files>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<axum::Json<VerifiedFile>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let entry = look_up(&files, &caller, &id).await?;
    let found = files.storage.verify(&entry).await.map_err(|error| refuse(&error))?;
    // One that could not be read may be whole.
    let lost = found.iter().all(|replica| replica.refused.as_ref().is_some_and(|why| why.shows().is_some()));
    let replicas: Vec<_> = found.into_iter().map(|replica| verdict(replica, lost)).collect();
    let whole = replicas.iter().all(|replica| replica.state == Verdict::Whole);
    Ok(axum::Json(VerifiedFile { id: entry.id.to_string(), whole, lost, replicas }))
}

/// `lost`: there is no other replica to heal this one from.
fn verdict(found: Checked, lost: bool) -> VerifiedReplica {
    let (state, why) = match (&found.refused, found.slots) {
        (None, Slots::Whole) => (Verdict::Whole, None),
        (None, Slots::Mended) => {
            let why = "one of its two records had rotted; written anew from the other";
            (Verdict::Whole, Some(why.to_owned()))
        }
        (None, Slots::Rotten(why)) => {
            let why = format!(
                "one of its two records has rotted and cannot be written anew: {why}; \
                 the file is read with the other, and the scrub tries again"
            );
            (Verdict::Damaged, Some(why))
        }
        (Some(error), _) => {
            let state = match error {
                FileServerError::Absent { .. } => Verdict::Absent,
                FileServerError::Damaged { .. } | FileServerError::Unreadable { .. } => Verdict::Damaged,
                _ => Verdict::Unknown,
            };
            let why = match error {
                FileServerError::Damaged { why, .. } if lost => format!("{why}; set aside in quarantine/"),
                FileServerError::Unreadable { source, .. } if lost => format!("cannot be read: {source}"),
                error => error.to_string(),
            };
            (state, Some(why))
        }
    };
    VerifiedReplica { file_server: found.server, state, why }
}

/// Operators only: debts are the file servers', not an owner's.
async fn owed(
    State(files): State<Files>,
    caller: Caller,
    Query(window): Query<Limit>,
) -> Result<axum::Json<Page<OwedReplica>>, Refusal> {
    caller.must_be(&[Role::Admin])?;
    let limit = window.limit.unwrap_or(100).clamp(1, MAX_PAGE);
    let debts = files.storage.owed(limit).await.map_err(|error| refuse(&error))?;
    let items = debts.into_iter().map(|debt| OwedReplica {
        id: debt.id.to_string(),
        what: match (debt.removal, debt.is_lost()) {
            (true, _) => "removal",
            (false, true) => "lost",
            (false, false) => "replica",
        }
        .to_owned(),
        file_server: debt.server,
        since: rfc_3339(debt.since),
        failed: debt.tried,
        why: debt.why,
    });
    // What is owed changes while it is paid: it is told from its start, without a next page.
    Ok(axum::Json(Page { items: items.collect(), next: None }))
}

/// On whose behalf a caller acts: edges on their own owner's, operators on anybody's.
fn owner_of(caller: &Caller, asked: Option<String>) -> Result<String, Refusal> {
    let owner = asked.unwrap_or_else(|| caller.0.owner.clone());
    if !is_name(&owner) {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "bad_owner",
            format!("{owner:?} is no owner's name"),
        ));
    }
    if !caller.may_touch(&owner) {
        let detail = format!("a certificate of owner {} may not act for {owner}", caller.0.owner);
        return Err(Refusal::new(StatusCode::FORBIDDEN, "owner_refused", detail));
    }
    Ok(owner)
}

async fn look_up(files: &Files, caller: &Caller, id: &str) -> Result<Entry, Refusal> {
    let id = parse_id(id, caller)?;
    match files.storage.find(&id).await.map_err(|error| refuse(&error))? {
        Found::Stored(entry) if caller.may_touch(&entry.metadata.owner) => Ok(*entry),
        Found::Deleted(entry) if caller.may_touch(&entry.metadata.owner) => Err(match entry.state {
            ObjectState::Purged => {
                let detail = "this file was deleted, and is purged: it is gone for good";
                Refusal::new(StatusCode::GONE, "purged", detail)
            }
            _ => Refusal::new(StatusCode::GONE, "deleted", "this file has been deleted"),
        }),
        _ => Err(no_such_file(caller)),
    }
}

/// What is no id names no file.
pub(super) fn parse_id(text: &str, caller: &Caller) -> Result<ObjectId, Refusal> {
    text.parse().map_err(|_| no_such_file(caller))
}

/// An operator's files are everybody's.
fn no_such_file(caller: &Caller) -> Refusal {
    Refusal::not_found(match caller.0.role {
        Role::Admin => "there is no such file",
        _ => "there is no such file, or it belongs to another owner",
    })
}

fn not_satisfiable(size: u64) -> Response {
    let detail = format!("the range starts behind the end of {size} bytes");
    let mut refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "bad_range", detail).into_response();
    let text = HeaderValue::try_from(format!("bytes */{size}"));
    refusal.headers_mut().extend(text.ok().map(|text| (header::CONTENT_RANGE, text)));
    refusal
}

fn etag(id: &ObjectId) -> String {
    format!("\"{id}\"")
}

fn describe(headers: &mut HeaderMap, entry: &Entry, etag: &str) {
    let octets = HeaderValue::from_static("application/octet-stream");
    headers.insert(header::CONTENT_TYPE, HeaderValue::try_from(&entry.metadata.media_type).unwrap_or(octets));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.extend(HeaderValue::try_from(etag).ok().map(|etag| (header::ETAG, etag)));
    if !entry.metadata.label.is_empty() {
        let label = headers::encode_label(&entry.metadata.label);
        headers.extend(HeaderValue::try_from(label).ok().map(|label| (FILE_LABEL, label)));
    }
}

fn file_of(entry: &Entry) -> File {
    let known = &entry.metadata;
    File {
        id: entry.id.to_string(),
        owner: known.owner.clone(),
        label: known.label.clone(),
        media_type: known.media_type.clone(),
        size: known.size,
        created: known.created.clone(),
        replicas: entry.stored_on(),
        owed: entry.owed_to(),
        deleted: None,
        purged_after: None,
    }
}

fn file_listed(listed: &Listed) -> File {
    File {
        deleted: listed.deletion.map(|deletion| rfc_3339(deletion.since)),
        purged_after: listed.deletion.map(|deletion| rfc_3339(deletion.purged_after)),
        ..file_of(&listed.entry)
    }
}

/// Unix seconds in words; empty for what no calendar has.
fn rfc_3339(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}

/// The body's bytes; no byte for `idle` ends it.
fn body_of(body: Body, idle: Duration) -> BoxStream<'static, Result<Bytes, BodyError>> {
    let pieces: Pin<Box<_>> = Box::pin(body.into_data_stream());
    try_unfold(pieces, move |mut pieces| async move {
        match tokio::time::timeout(idle, pieces.next()).await {
            Err(_) => Err(BodyError::Idle(idle)),
            Ok(None) => Ok(None),
            Ok(Some(Ok(bytes))) => Ok(Some((bytes, pieces))),
            Ok(Some(Err(error))) => Err(broken_off(&error, idle)),
        }
    })
    .boxed()
}

/// The connection keeps the same deadline, and may be the first to say so.
fn broken_off(error: &axum::Error, idle: Duration) -> BodyError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if kind == Some(std::io::ErrorKind::TimedOut) {
            return BodyError::Idle(idle);
        }
        cause = error.source();
    }
    BodyError::Broken(error.to_string())
}

/// The public text of storage's refusals; the log keeps the cause where it is not the caller's.
pub(super) fn refuse(error: &StorageError) -> Refusal {
    let plain = |status, code: &str| Refusal::new(status, code, error.to_string());
    match error {
        StorageError::TooLarge(_) => plain(StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
        StorageError::KeyReused { .. } => plain(StatusCode::CONFLICT, "key_reused"),
        StorageError::KeyDeleted { .. } => plain(StatusCode::GONE, "deleted"),
        StorageError::TooLate { .. } => plain(StatusCode::GONE, "too_late"),
        StorageError::Purged { .. } => plain(StatusCode::GONE, "purged"),
        // Only operators ask for what is not looked for on the file servers.
        StorageError::Unknown { .. } => Refusal::not_found("there is no such file"),
        StorageError::Range { .. } => plain(StatusCode::RANGE_NOT_SATISFIABLE, "bad_range"),
        StorageError::Body(BodyError::Idle(_)) => plain(StatusCode::REQUEST_TIMEOUT, "body_idle"),
        StorageError::Body(BodyError::Broken(_)) => plain(StatusCode::BAD_REQUEST, "body_broken"),
        StorageError::Body(BodyError::Digest(_)) => {
            plain(StatusCode::UNPROCESSABLE_ENTITY, "digest_mismatch")
        }
        StorageError::Busy(_) => Refusal::later("busy", error.to_string(), SOON),
        StorageError::Spool(SpoolError::Full { .. }) => {
            tracing::error!("{error}");
            let detail = "this vault's spool is full; the operator makes room, then repeat with the same key";
            Refusal::new(StatusCode::INSUFFICIENT_STORAGE, "spool_full", detail)
        }
        StorageError::NotDurable { full: true, .. } | StorageError::NoPlace { full: true, .. } => {
            tracing::error!("{error}");
            let detail = "no space is left; the operator makes room, then repeat with the same key";
            Refusal::new(StatusCode::INSUFFICIENT_STORAGE, "storage_full", detail)
        }
        StorageError::NotDurable { .. } | StorageError::NoPlace { .. } => {
            tracing::error!("{error}");
            let detail = "too few file servers answer to keep the file safe; repeat with the same key";
            Refusal::later("not_durable", detail, LATER)
        }
        StorageError::Unsure { .. } => {
            tracing::warn!("{error}");
            let detail = "not every file server answers, so it is not sure that there is no such file";
            Refusal::later("file_server_away", detail, LATER)
        }
        StorageError::Unreadable { .. } => {
            tracing::error!("{error}");
            Refusal::later("unreadable", "no replica of the file can be read at present", LATER)
        }
        StorageError::Stopping => Refusal::later("stopping", "this vault is stopping; ask the other", SOON),
        StorageError::Catalog(_) => {
            tracing::error!("{error}");
            Refusal::later("catalog", "the catalog does not answer; repeat with the same key", LATER)
        }
        StorageError::NoKey { .. } => {
            tracing::error!("{error}");
            let detail = "this vault has no storage key in use; try again, or ask the other vault";
            Refusal::later("no_key", detail, LATER)
        }
        StorageError::NotActive { .. } => plain(StatusCode::CONFLICT, "key_not_active"),
        StorageError::NotEmpty => plain(StatusCode::CONFLICT, "not_empty"),
        StorageError::Listing(_) => Refusal::later("file_server_away", error.to_string(), LATER),
        StorageError::Key(KeyError::NoIdentity) => plain(StatusCode::BAD_REQUEST, "no_identity"),
        StorageError::FileServer(_) | StorageError::NotRemoved { .. } => {
            Refusal::later("file_server_away", error.to_string(), LATER)
        }
        StorageError::NoSuchServer { .. } => plain(StatusCode::NOT_FOUND, "no_such_file_server"),
        StorageError::SamePlace { .. } => plain(StatusCode::CONFLICT, "same_place"),
        StorageError::NotAdopted { .. } | StorageError::OtherPlace { .. } => {
            plain(StatusCode::CONFLICT, "not_adopted")
        }
        StorageError::Key(_) | StorageError::Spool(_) | StorageError::Start(_) => {
            tracing::error!("{error}");
            Refusal::internal()
        }
    }
}

#[cfg(test)]
mod tests;

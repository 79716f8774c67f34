//! `/v1/names`: file names with versions, which are records whose value is a file's id. Looks up
//! what became of the file; a name is never removed because its file was.

use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::stream::{self, StreamExt as _};
use http::{HeaderMap, Method};
use shared::api::Page;
use shared::api::record::{FileName, NamedFile, PointAt};

use super::body::JsonBody;
use super::caller::Caller;
use super::files::{self, Files, parse_id};
use super::key::IdempotencyKey;
use super::records::{
    One, Window, by, changed, expected_of, history, marked, named, page, removed, tagged, version, written,
};
use super::refusal::Refusal;
use crate::sequence::Sequence;
use crate::sequence::record::front::Seen;
use crate::sequence::record::{Content, Held, Kind, Wish, Written};
use crate::storage::{Found, ObjectId, State as ObjectState, Storage};

/// The last segment of a path that asks for the file itself.
const CONTENT: &str = "/content";
/// So many files of a page are looked up at once.
const ABREAST: usize = 8;

/// What the handlers need.
#[derive(Clone)]
struct Names {
    sequence: Sequence,
    storage: Storage,
    idle: Duration,
}

/// The routes under `/v1/names`. A download that makes no progress for `idle` is ended.
pub fn routes(sequence: Sequence, storage: Storage, idle: Duration) -> Router {
    Router::new()
        .route("/v1/names", get(list))
        .route("/v1/names/{*path}", get(read).put(write).delete(remove))
        .with_state(Names { sequence, storage, idle })
}

async fn list(
    State(names): State<Names>,
    caller: Caller,
    Query(window): Query<Window>,
) -> Result<Response, Refusal> {
    let Seen { found: (items, next), stale } = page(&names.sequence, &caller, Kind::Name, window).await?;
    let items = names.shown(items).await;
    Ok(marked(Json(Page { items, next }).into_response(), stale))
}

async fn read(
    State(names): State<Names>,
    caller: Caller,
    method: Method,
    Path(path): Path<String>,
    Query(one): Query<One>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    if let Some(name) = path.strip_suffix(CONTENT) {
        let name = named(&caller, one.owner.clone(), Kind::Name, name.to_owned())?;
        let Seen { found, stale } = version(&names.sequence, name, &one).await?;
        let Some(file) = file_of(&found) else { return Err(Refusal::internal()) };
        let files = State(Files::new(names.storage, names.idle));
        return Ok(marked(files::download(files, caller, method, Path(file), headers).await?, stale));
    }
    let name = named(&caller, one.owner.clone(), Kind::Name, path)?;
    if one.history {
        let Seen { found: (items, next), stale } = history(&names.sequence, name, &one).await?;
        let items = names.shown(items).await;
        return Ok(marked(Json(Page { items, next }).into_response(), stale));
    }
    let Seen { found, stale } = version(&names.sequence, name, &one).await?;
    let version = found.version;
    Ok(marked(tagged(Json(names.show(found).await).into_response(), version), stale))
}

async fn write(
    State(names): State<Names>,
    caller: Caller,
    Path(path): Path<String>,
    Query(one): Query<One>,
    IdempotencyKey(key): IdempotencyKey,
    headers: HeaderMap,
    JsonBody(PointAt { file }): JsonBody<PointAt>,
) -> Result<Response, Refusal> {
    let name = named(&caller, one.owner, Kind::Name, path)?;
    let expect = expected_of(&names.sequence, &name, &headers).await?;
    let id = parse_id(&file, &caller)?;
    match names.storage.find(&id).await.map_err(|error| files::refuse(&error))? {
        Found::Stored(entry) if entry.metadata.owner == name.owner => {}
        _ => return Err(Refusal::not_found(format!("{} has no stored file of this id", name.owner))),
    }
    let content = Content { value: id.to_string(), json: false };
    let wish = Wish::Put { written: Written { content, by: by(&caller), key }, expect };
    written(names.sequence.write_record(name.clone(), wish).await, name)
}

async fn remove(
    State(names): State<Names>,
    caller: Caller,
    Path(path): Path<String>,
    Query(one): Query<One>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let name = named(&caller, one.owner, Kind::Name, path)?;
    let wish = Wish::Remove { expect: expected_of(&names.sequence, &name, &headers).await? };
    removed(names.sequence.write_record(name, wish).await)
}

fn file_of(held: &Held) -> Option<String> {
    held.written().map(|written| written.content.value)
}

impl Names {
    async fn shown(&self, items: Vec<Held>) -> Vec<FileName> {
        stream::iter(items).map(|held| self.show(held)).buffered(ABREAST).collect().await
    }

    async fn show(&self, held: Held) -> FileName {
        let file = file_of(&held);
        let state = match file.as_ref().and_then(|file| file.parse::<ObjectId>().ok()) {
            Some(id) => Some(self.state_of(&id).await),
            None => None,
        };
        let by = held.written().map(|written| written.by);
        FileName { name: held.name, version: held.version, file, state, by, changed: changed(held.at) }
    }

    async fn state_of(&self, id: &ObjectId) -> NamedFile {
        match self.storage.find(id).await {
            Ok(Found::Stored(_)) => NamedFile::Stored,
            Ok(Found::Deleted(entry)) if entry.state == ObjectState::Purged => NamedFile::Purged,
            Ok(Found::Deleted(_)) => NamedFile::Deleted,
            Ok(Found::Absent) => NamedFile::Absent,
            Err(error) => {
                tracing::warn!("{error}; a name is shown without its file's state");
                NamedFile::Unknown
            }
        }
    }
}

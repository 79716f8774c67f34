//! The files part of the contract, through the router alone.

use std::path::Path as Folder;

use axum::http::Request;
use http_body_util::BodyExt;
use shared::config::ByteSize;
use shared::tls::Identity;
use tower::ServiceExt;

use super::*;
use crate::storage::{FileServerSettings, Settings, key};

type Header<'a> = (&'a str, &'a str);

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn code(&self) -> String {
        let problem: shared::api::Problem = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(self.header("content-type"), shared::api::PROBLEM_JSON);
        assert_eq!(problem.status, self.status.as_u16());
        problem.code
    }

    fn file(&self) -> File {
        serde_json::from_slice(&self.body).unwrap()
    }
}

struct Api {
    router: Router,
    folder: tempfile::TempDir,
}

fn settings(folder: &Folder) -> Settings {
    key::create(&folder.join("key"), std::time::SystemTime::UNIX_EPOCH).unwrap();
    reopened(folder)
}

fn reopened(folder: &Folder) -> Settings {
    let server = |name: &str| FileServerSettings::directory(name, folder.join(name));
    Settings {
        catalog: folder.join("catalog.db"),
        spool: folder.join("spool"),
        key_file: folder.join("key"),
        escrow_recipient: key::load(&folder.join("key")).unwrap()[0].recipient().to_string(),
        min_replicas: 1,
        max_file: ByteSize::kib(256),
        max_uploads: 4,
        undelete_within: Duration::from_secs(60),
        retry_every: Duration::from_secs(10),
        file_server_timeout: Duration::from_secs(20),
        peer: "vault-b".to_owned(),
        sync_every: Duration::ZERO,
        scrub_every: Duration::ZERO,
        scrub_rate: ByteSize::gib(1),
        inventory_every: Duration::ZERO,
        keep_free: ByteSize(0),
        file_servers: vec![server("one"), server("two")],
    }
}

impl Api {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::open(settings(folder.path()), "vault-a").await.unwrap();
        Self { router: routes(storage, Duration::from_millis(50)), folder }
    }

    async fn call(
        &self,
        who: (Role, &str),
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(body).unwrap();
        request.extensions_mut().insert(Identity {
            role: who.0,
            owner: who.1.to_owned(),
            name: "host".to_owned(),
            serial: "1".to_owned(),
        });
        let (parts, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    async fn upload(&self, key: &str, text: &'static str) -> Answer {
        let headers =
            [("idempotency-key", key), ("content-type", "text/plain"), ("file-label", "R%C3%A4%20.txt")];
        self.call(ERP, "POST", "/v1/files", &headers, Body::from(text)).await
    }

    /// On no file server an object, and nothing in the spool.
    fn must_hold_nothing(&self) {
        for server in ["one", "two"] {
            let left: Vec<_> = std::fs::read_dir(self.folder.path().join(server))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| !["marker", "tmp", "quarantine"].contains(&name.as_str()))
                .collect();
            assert!(left.is_empty(), "{left:?}");
        }
        assert_eq!(std::fs::read_dir(self.folder.path().join("spool")).unwrap().count(), 0);
    }

    async fn get(&self, who: (Role, &str), path: &str, headers: &[(&str, &str)]) -> Answer {
        self.call(who, "GET", path, headers, Body::empty()).await
    }
}

const ERP: (Role, &str) = (Role::Edge, "erp");
const SHOP: (Role, &str) = (Role::Edge, "shop");
const ADMIN: (Role, &str) = (Role::Admin, "control");

#[tokio::test]
async fn a_file_goes_up_and_comes_down_as_the_contract_says() {
    let api = Api::new().await;
    let up = api.upload("k", "0123456789").await;
    assert_eq!(up.status, StatusCode::CREATED);
    let file = up.file();
    let path = format!("/v1/files/{}", file.id);
    assert_eq!(
        (up.header("location"), up.header("etag")),
        (path.as_str(), format!("\"{}\"", file.id).as_str())
    );
    assert_eq!((file.owner.as_str(), file.label.as_str(), file.size), ("erp", "Rä .txt", 10));
    assert_eq!((file.replicas.len(), file.owed.len()), (2, 0));
    let again = api.upload("k", "0123456789").await;
    assert_eq!((again.status, again.file()), (StatusCode::OK, file.clone()));
    let other = api.upload("k", "other").await;
    assert_eq!((other.status, other.code().as_str()), (StatusCode::CONFLICT, "key_reused"));

    let down = api.get(ERP, &path, &[]).await;
    assert_eq!((down.status, &down.body[..]), (StatusCode::OK, &b"0123456789"[..]));
    let expected = [
        ("content-type", "text/plain"),
        ("content-length", "10"),
        ("accept-ranges", "bytes"),
        ("x-content-type-options", "nosniff"),
        ("file-label", "R%C3%A4%20.txt"),
        ("etag", up.header("etag")),
    ];
    let head = api.call(ERP, "HEAD", &path, &[("range", "bytes=0-1")], Body::empty()).await;
    assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
    for (name, value) in expected {
        assert_eq!(down.header(name), value, "{name}");
        assert_eq!(head.header(name), value, "{name}");
    }
    let same = api.get(ERP, &path, &[("if-none-match", up.header("etag"))]).await;
    assert_eq!((same.status, same.body.len()), (StatusCode::NOT_MODIFIED, 0));
    let part = api.get(ERP, &path, &[("range", "bytes=2-4")]).await;
    assert_eq!((part.status, &part.body[..]), (StatusCode::PARTIAL_CONTENT, &b"234"[..]));
    assert_eq!((part.header("content-range"), part.header("content-length")), ("bytes 2-4/10", "3"));
    let behind = api.get(ERP, &path, &[("range", "bytes=10-")]).await;
    assert_eq!(
        (behind.status, behind.header("content-range")),
        (StatusCode::RANGE_NOT_SATISFIABLE, "bytes */10")
    );
}

#[tokio::test]
async fn what_belongs_to_another_owner_does_not_exist() {
    let api = Api::new().await;
    let path = format!("/v1/files/{}", api.upload("k", "text").await.file().id);
    for method in ["GET", "HEAD", "DELETE"] {
        assert_eq!(api.call(SHOP, method, &path, &[], Body::empty()).await.status, StatusCode::NOT_FOUND);
        let vault = (Role::Vault, "erp");
        assert_eq!(api.call(vault, method, &path, &[], Body::empty()).await.status, StatusCode::NOT_FOUND);
    }
    assert_eq!(api.get(SHOP, "/v1/files?owner=erp", &[]).await.code(), "owner_refused");
    let key = [("idempotency-key", "k")];
    assert_eq!(
        api.call(SHOP, "POST", "/v1/files?owner=erp", &key, Body::empty()).await.code(),
        "owner_refused"
    );
    let vault = api.call((Role::Vault, "erp"), "POST", "/v1/files", &key, Body::empty()).await;
    assert_eq!((vault.status, vault.code().as_str()), (StatusCode::FORBIDDEN, "role_refused"));
    assert_eq!(api.get(ADMIN, &path, &[]).await.status, StatusCode::OK);
    let mine: Page<File> = serde_json::from_slice(&api.get(SHOP, "/v1/files", &[]).await.body).unwrap();
    assert!(mine.items.is_empty());
    // The same key of another owner is another key.
    assert_eq!(
        api.call(SHOP, "POST", "/v1/files", &key, Body::from("text")).await.status,
        StatusCode::CREATED
    );
}

#[tokio::test]
async fn a_deleted_file_is_gone_to_its_owner_and_unknown_to_others() {
    let api = Api::new().await;
    let path = format!("/v1/files/{}", api.upload("k", "text").await.file().id);
    for _ in 0..2 {
        assert_eq!(api.call(ERP, "DELETE", &path, &[], Body::empty()).await.status, StatusCode::NO_CONTENT);
    }
    let gone = api.get(ERP, &path, &[]).await;
    assert_eq!((gone.status, gone.code().as_str()), (StatusCode::GONE, "deleted"));
    assert_eq!(api.get(SHOP, &path, &[]).await.status, StatusCode::NOT_FOUND);
    assert_eq!(api.upload("k", "text").await.status, StatusCode::GONE);
    for unknown in
        ["/v1/files/x", "/v1/files/..%2f..%2fetc", "/v1/files/%00", &format!("/v1/files/{}", "0".repeat(64))]
    {
        assert_eq!(api.get(ERP, unknown, &[]).await.code(), "not_found", "{unknown}");
    }
}

#[tokio::test]
async fn bad_uploads_are_refused_with_a_reason_and_leave_nothing() {
    let api = Api::new().await;
    let many = "x".repeat(300 * 1024);
    let cases: [(&[Header], Body, u16, &str); 6] = [
        (&[], Body::empty(), 400, "bad_idempotency_key"),
        (&[("idempotency-key", "a b")], Body::empty(), 400, "bad_idempotency_key"),
        (&[("idempotency-key", "k"), ("file-label", "%ff")], Body::empty(), 400, "bad_label"),
        (&[("idempotency-key", "k"), ("content-type", "x")], Body::empty(), 400, "bad_content_type"),
        (&[("idempotency-key", "k"), ("content-length", "999999")], Body::empty(), 413, "too_large"),
        (&[("idempotency-key", "k")], Body::from(many), 413, "too_large"),
    ];
    for (headers, body, status, code) in cases {
        let refused = api.call(ERP, "POST", "/v1/files", headers, body).await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (status, code));
    }
    let silent = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
    let idle = api.call(ERP, "POST", "/v1/files", &[("idempotency-key", "k")], silent).await;
    assert_eq!((idle.status, idle.code().as_str()), (StatusCode::REQUEST_TIMEOUT, "body_idle"));
    // The connection keeps the same deadline, and whichever is first gives the same answer.
    let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "the body stopped coming");
    let late = Body::from_stream(futures_util::stream::iter([Ok(Bytes::from_static(b"x")), Err(late)]));
    let late = api.call(ERP, "POST", "/v1/files", &[("idempotency-key", "k")], late).await;
    assert_eq!((late.status, late.code().as_str()), (StatusCode::REQUEST_TIMEOUT, "body_idle"));
    api.must_hold_nothing();
}

fn streamed(pieces: Vec<Result<&'static [u8], std::io::Error>>) -> Body {
    let pieces = pieces.into_iter().map(|piece| piece.map(Bytes::from_static));
    Body::from_stream(futures_util::stream::iter(pieces))
}

/// RFC 9530, B.1: the digest of `{"hello": "world"}` and a line feed.
const HELLO: &str = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:";

#[tokio::test]
async fn a_body_that_is_not_what_its_digest_says_is_refused_and_leaves_nothing() {
    let api = Api::new().await;
    let put = async |digest: &'static str, body: Body| {
        api.call(ERP, "POST", "/v1/files", &[("idempotency-key", "k"), ("content-digest", digest)], body)
            .await
    };
    let wrong = put(HELLO, Body::from("{\"hello\": \"World\"}\n")).await;
    assert_eq!((wrong.status.as_u16(), wrong.code().as_str()), (422, "digest_mismatch"));
    let short = put(HELLO, streamed(vec![Ok(b"{\"hello\": "), Ok(b"\"world\"}")])).await;
    assert_eq!((short.status.as_u16(), short.code().as_str()), (422, "digest_mismatch"));
    let unread = put("sha-256=x", Body::from("x")).await;
    assert_eq!((unread.status.as_u16(), unread.code().as_str()), (422, "bad_digest"));
    api.must_hold_nothing();
    // The key is still free; a repeated upload is checked like the first.
    let right = put(HELLO, Body::from("{\"hello\": \"world\"}\n")).await;
    assert_eq!(right.status, StatusCode::CREATED);
    assert_eq!(put(HELLO, Body::from("{\"hello\": \"world\"}\n")).await.file(), right.file());
    assert_eq!(put(HELLO, Body::from("{\"hello\": \"World\"}\n")).await.code(), "digest_mismatch");
}

#[tokio::test]
async fn an_upload_broken_off_leaves_nothing_and_the_key_is_free() {
    let api = Api::new().await;
    let key = [("idempotency-key", "k")];
    let reset = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    for body in [vec![Err(reset())], vec![Ok(&b"half"[..]), Err(reset())]] {
        let broken = api.call(ERP, "POST", "/v1/files", &key, streamed(body)).await;
        assert_eq!((broken.status, broken.code().as_str()), (StatusCode::BAD_REQUEST, "body_broken"));
        api.must_hold_nothing();
    }
    assert_eq!(api.call(ERP, "POST", "/v1/files", &key, Body::from("x")).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn empty_files_and_empty_pieces_are_files_like_others() {
    let api = Api::new().await;
    let bodies = [
        ("a", Body::empty(), &b""[..]),
        ("b", streamed(vec![Ok(b""), Ok(b"")]), b""),
        ("c", streamed(vec![Ok(b""), Ok(b"a"), Ok(b""), Ok(b"b"), Ok(b"")]), b"ab"),
    ];
    for (key, body, text) in bodies {
        let up = api.call(ERP, "POST", "/v1/files", &[("idempotency-key", key)], body).await;
        assert_eq!((up.status, up.file().size), (StatusCode::CREATED, text.len() as u64));
        let down = api.get(ERP, &format!("/v1/files/{}", up.file().id), &[]).await;
        assert_eq!((down.status, &down.body[..]), (StatusCode::OK, text));
        let path = format!("/v1/files/{}/verify", up.file().id);
        let checked = api.call(ADMIN, "POST", &path, &[], Body::empty());
        assert!(serde_json::from_slice::<VerifiedFile>(&checked.await.body).unwrap().whole);
    }
}

#[tokio::test]
async fn a_label_of_any_utf8_up_to_its_limit_comes_back_wherever_it_is_shown() {
    let api = Api::new().await;
    let most = shared::api::MAX_LABEL;
    let labels =
        ["\u{1f5c4}".repeat(most / 4), "\n\0\u{1b}\"\\".repeat(most / 5), "\u{202e}ä%, ;".to_owned()];
    for (key, label) in ["a", "b", "c"].into_iter().zip(&labels) {
        let sent = headers::encode_label(label);
        let headers = [("idempotency-key", key), ("file-label", &sent)];
        let up = api.call(ERP, "POST", "/v1/files", &headers, Body::from("text")).await;
        assert_eq!((up.status, &up.file().label), (StatusCode::CREATED, label));
        let path = format!("/v1/files/{}", up.file().id);
        assert_eq!(api.call(ERP, "HEAD", &path, &[], Body::empty()).await.header("file-label"), sent);
        assert_eq!(api.get(ERP, &format!("{path}/description"), &[]).await.file(), up.file());
        let listed: Page<File> = serde_json::from_slice(&api.get(ERP, "/v1/files", &[]).await.body).unwrap();
        assert!(listed.items.contains(&up.file()));
    }
    let long = "a".repeat(most + 1);
    let headers = [("idempotency-key", "d"), ("file-label", long.as_str())];
    assert_eq!(api.call(ERP, "POST", "/v1/files", &headers, Body::empty()).await.code(), "bad_label");
    // Another catalog, and only the file servers to fill it from: the label comes out of the body.
    let folder = api.folder.path();
    std::fs::create_dir(folder.join("empty")).unwrap();
    let settings = Settings { catalog: folder.join("empty/catalog.db"), ..reopened(folder) };
    let storage = Storage::open(settings, "vault-b").await.unwrap();
    let other =
        Api { router: routes(storage, Duration::from_millis(50)), folder: tempfile::tempdir().unwrap() };
    for file in
        serde_json::from_slice::<Page<File>>(&api.get(ERP, "/v1/files", &[]).await.body).unwrap().items
    {
        let found = other.get(ERP, &format!("/v1/files/{}/description", file.id), &[]).await;
        assert_eq!(found.file().label, file.label);
    }
}

#[tokio::test]
async fn an_upload_beyond_the_limit_is_cut_off_at_the_limit() {
    let api = Api::new().await;
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&sent);
    // Five gibibytes, if anybody took them.
    let pieces = (0..80_u64 << 10).map(move |_| {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok::<_, std::io::Error>(Bytes::from_static(&[0; 64 << 10]))
    });
    let body = Body::from_stream(futures_util::stream::iter(pieces));
    let refused = api.call(ERP, "POST", "/v1/files", &[("idempotency-key", "k")], body).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (413, "too_large"));
    // 256 KiB are allowed, and the piece beyond them tells that it is too much.
    assert_eq!(sent.load(std::sync::atomic::Ordering::Relaxed), 5);
    api.must_hold_nothing();
}

#[tokio::test]
async fn verifying_tells_what_is_whole_where_and_what_is_bad_is_owed() {
    let api = Api::new().await;
    let file = api.upload("k", "text").await.file();
    let path = format!("/v1/files/{}/verify", file.id);
    let verify = async || {
        let answer = api.call(ADMIN, "POST", &path, &[], Body::empty()).await;
        serde_json::from_slice::<VerifiedFile>(&answer.body).unwrap()
    };
    let owed = async || {
        serde_json::from_slice::<Page<OwedReplica>>(&api.get(ADMIN, "/v1/files/owed", &[]).await.body)
            .unwrap()
            .items
    };
    assert!(verify().await.whole);
    assert!(owed().await.is_empty());
    let replica = |server: &str| {
        let (first, second) = (&file.id[..2], &file.id[2..4]);
        api.folder.path().join(server).join(first).join(second).join(&file.id)
    };
    std::fs::remove_file(replica("one")).unwrap();
    let mut bytes = std::fs::read(replica("two")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let damaged = replica("two");
    std::fs::remove_file(&damaged).unwrap();
    std::fs::write(&damaged, bytes).unwrap();
    let found = verify().await;
    let states: Vec<_> =
        found.replicas.iter().map(|replica| (replica.file_server.as_str(), replica.state)).collect();
    assert_eq!((found.whole, states), (false, vec![("one", Verdict::Absent), ("two", Verdict::Damaged)]));
    let debts = owed().await;
    assert_eq!(debts.len(), 2);
    assert!(
        debts
            .iter()
            .all(|debt| debt.id == file.id && debt.what == "lost" && debt.why.contains("quarantine/"))
    );
    assert!(found.lost && !found.replicas[1].why.as_ref().unwrap().contains("healed"), "{found:?}");
    for (who, status) in [(ERP, StatusCode::FORBIDDEN), (SHOP, StatusCode::FORBIDDEN)] {
        assert_eq!(api.call(who, "POST", &path, &[], Body::empty()).await.status, status);
        assert_eq!(api.get(who, "/v1/files/owed", &[]).await.status, status);
    }
}

#[tokio::test]
async fn lists_come_in_pages() {
    let api = Api::new().await;
    for key in ["a", "b", "c", "d", "e"] {
        assert_eq!(api.upload(key, "text").await.status, StatusCode::CREATED);
    }
    let (mut listed, mut path) = (Vec::new(), "/v1/files?limit=2".to_owned());
    loop {
        let page: Page<File> = serde_json::from_slice(&api.get(ERP, &path, &[]).await.body).unwrap();
        assert!(page.items.len() <= 2);
        listed.extend(page.items.into_iter().map(|file| file.id));
        let Some(next) = page.next else { break };
        path = format!("/v1/files?limit=2&after={next}");
    }
    assert_eq!(listed.len(), 5);
    assert!(listed.is_sorted());
    assert_eq!(api.get(ERP, "/v1/files?after=x", &[]).await.code(), "bad_after");
}

#[tokio::test]
async fn nothing_durable_is_503_and_tells_when_to_come_back() {
    let api = Api::new().await;
    let path = format!("/v1/files/{}", api.upload("k", "text").await.file().id);
    for server in ["one", "two"] {
        std::fs::rename(api.folder.path().join(server), api.folder.path().join(format!("{server}-away")))
            .unwrap();
    }
    for refused in [api.upload("k2", "text").await, api.get(ERP, &path, &[]).await] {
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.header("retry-after"), "5");
    }
    let unsure = api.get(ERP, &format!("/v1/files/{}", "0".repeat(64)), &[]).await;
    assert_eq!(unsure.code(), "file_server_away");
}

#[tokio::test]
async fn operators_find_deleted_files_and_are_told_what_a_deletion_met() {
    let api = Api::new().await;
    let [first, second] = [api.upload("a", "text").await.file(), api.upload("b", "other").await.file()];
    let path = format!("/v1/files/{}", first.id);
    for was in ["stored", "deleted"] {
        let answer = api.call(ADMIN, "DELETE", &path, &[], Body::empty()).await;
        assert_eq!(
            (answer.status, answer.headers["file-was"].to_str().unwrap()),
            (StatusCode::NO_CONTENT, was)
        );
    }
    let list = async |query: &str| {
        let answer = api.get(ADMIN, &format!("/v1/files?{query}"), &[]).await;
        serde_json::from_slice::<Page<File>>(&answer.body).unwrap().items
    };
    let deleted = list("deleted=true").await;
    assert_eq!(deleted.iter().map(|file| &file.id).collect::<Vec<_>>(), [&first.id]);
    let times = (deleted[0].deleted.as_ref().unwrap(), deleted[0].purged_after.as_ref().unwrap());
    assert!(times.0 < times.1 && times.1.ends_with('Z'), "{times:?}");
    assert_eq!(list("").await.iter().map(|file| &file.id).collect::<Vec<_>>(), [&second.id]);
    assert!(list("label=no%20such%20label").await.is_empty());
    for query in ["deleted=true", "label=a"] {
        let refused = api.get(ERP, &format!("/v1/files?{query}"), &[]).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{query}");
    }
    let unknown = api.get(ADMIN, &format!("/v1/files/{}", "0".repeat(64)), &[]).await;
    assert!(!String::from_utf8_lossy(&unknown.body).contains("owner"), "nothing belongs to others there");
}

//! The whole way of a certificate, through the real listener: authority, token, enrolment,
//! calls, revocation; and everybody who must be turned away.

#![expect(clippy::unwrap_used, reason = "what a helper cannot set up fails its test")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use shared::api::{Problem, TokenRequest};
use shared::enrol::{EnrolError, Enrolled, Enrolment, Token, enrol};
use shared::shutdown::Shutdown;
use shared::tls::{Files, Role};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;
use vault::Vault;
use vault::command::{self, Output};
use vault::config::Config;

/// A vault that runs inside this test, with an authority of its own.
struct Running {
    folder: tempfile::TempDir,
    config: Config,
    address: SocketAddr,
    admin: SocketAddr,
    reload: Arc<Notify>,
    shutdown: Shutdown,
    serving: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = configuration(folder.path());
        let mut sink = Vec::new();
        let mut output = Output { to: &mut sink, json: false };
        command::pki_init(&config, "acme", &[], &mut output).await.unwrap();
        let vault = Vault::open(config.clone()).await.unwrap();
        let (address, admin) = (vault.address().unwrap(), vault.admin_address().unwrap());
        let (shutdown, reload) = (Shutdown::new(), Arc::new(Notify::new()));
        let serving = tokio::spawn(vault.run(shutdown.clone(), Arc::clone(&reload)));
        Self { folder, config, address, admin, reload, shutdown, serving }
    }

    async fn token(&self, role: Role, owner: &str, name: &str) -> String {
        let asked = TokenRequest { role, owner: owner.to_owned(), name: name.to_owned() };
        let said = self
            .say(async |output| command::pki_token(&self.config.api.control_socket, &asked, output).await);
        said.await["token"].as_str().unwrap().to_owned()
    }

    async fn revoke(&self, serial: &str) {
        let said = self
            .say(async |output| command::pki_revoke(&self.config.api.control_socket, serial, output).await);
        assert_eq!(said.await["revoked"], true);
    }

    async fn say(
        &self,
        command: impl AsyncFnOnce(&mut Output<'_>) -> Result<(), command::CommandError>,
    ) -> serde_json::Value {
        let mut printed = Vec::new();
        command(&mut Output { to: &mut printed, json: true }).await.unwrap();
        serde_json::from_slice(&printed).unwrap()
    }

    fn files(&self, who: &str) -> Files {
        let at = |end: &str| self.folder.path().join(who).join(end);
        Files { certificate: at("own.crt"), key: at("own.key"), authority: at("authority.crt") }
    }

    async fn enrolled(&self, role: Role, owner: &str, name: &str) -> Enrolled {
        let token = self.token(role, owner, name).await;
        enrol("vault-a", self.address, &token, &self.files(name)).await.unwrap()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.serving).await.unwrap().unwrap();
    }
}

fn configuration(folder: &Path) -> Config {
    let file = folder.join("vault.toml");
    let at = |name: &str| folder.join(name).display().to_string();
    let made = |name: &str| {
        vault::storage::key::create(&PathBuf::from(at(name)), std::time::SystemTime::UNIX_EPOCH).unwrap()
    };
    let (_, escrow) = (made("storage.key"), made("escrow.key"));
    let text = format!(
        r#"
name = "vault-a"
state = "{state}"
[api]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
control_socket = "{control}"
[pair]
peer = "vault-b"
address = "127.0.0.1:1"
[sequence]
owner = "vault-a"
[storage]
key_file = "{key}"
escrow_recipient = "{escrow}"
[[file_server]]
name = "paris"
path = "{paris}"
[[file_server]]
name = "lyon"
path = "{lyon}"
"#,
        state = at("state"),
        control = at("control.sock"),
        key = at("storage.key"),
        paris = at("paris"),
        lyon = at("lyon"),
    );
    for name in ["paris", "lyon"] {
        std::fs::create_dir(folder.join(name)).unwrap();
    }
    std::fs::write(&file, text).unwrap();
    Config::read(&file).unwrap_or_else(|faults| panic!("{faults}"))
}

/// A live HTTP session, as edge's gateway keeps one.
struct Session(SendRequest<Empty<Bytes>>);

impl Session {
    async fn open(address: SocketAddr, tls: rustls::ClientConfig) -> std::io::Result<Self> {
        let name = ServerName::try_from("vault-a").unwrap();
        let socket = TcpStream::connect(address).await?;
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, socket).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    async fn of(address: SocketAddr, files: &Files) -> std::io::Result<Self> {
        Self::open(address, shared::tls::client(files, &[b"http/1.1"]).unwrap()).await
    }

    async fn get(&mut self, path: &str) -> Result<(StatusCode, Bytes), hyper::Error> {
        let request = Request::get(path).header("host", "vault-a").body(Empty::new()).unwrap();
        self.0.ready().await?;
        let response = self.0.send_request(request).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }
}

fn code(body: &[u8]) -> String {
    serde_json::from_slice::<Problem>(body).unwrap().code
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_works_from_enrolment_to_revocation_and_not_a_moment_longer() {
    let vault = Running::start().await;
    let edge = vault.enrolled(Role::Edge, "erp", "www1").await;
    assert_eq!((edge.identity.role, edge.identity.owner.as_str()), (Role::Edge, "erp"));
    let mut live = Session::of(vault.address, &edge.files).await.unwrap();
    assert_eq!(live.get("/v1/openapi.yaml").await.unwrap().0, StatusCode::OK);
    let (status, body) = live.get("/v1/status").await.unwrap();
    assert_eq!((status, code(&body).as_str()), (StatusCode::FORBIDDEN, "role_refused"));

    let admin = vault.enrolled(Role::Admin, "ops", "eve").await;
    let mut operator = Session::of(vault.address, &admin.files).await.unwrap();
    assert_eq!(operator.get("/v1/status").await.unwrap().0, StatusCode::OK);

    vault.revoke(&edge.identity.serial).await;
    // The live session ends by itself: nothing is asked over it.
    tokio::time::timeout(Duration::from_secs(10), async {
        while live.0.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let again = match Session::of(vault.address, &edge.files).await {
        Ok(mut session) => session.get("/v1/openapi.yaml").await.is_ok(),
        Err(_) => false,
    };
    assert!(!again, "a revoked certificate must not be answered");
    assert_eq!(operator.get("/v1/status").await.unwrap().0, StatusCode::OK, "others are left alone");
    let list =
        vault.say(async |output| command::pki_list(&vault.config.api.control_socket, output).await).await;
    let revoked: Vec<_> = list.as_array().unwrap().iter().map(|entry| entry["revoked"] == true).collect();
    assert_eq!(revoked, [false, true, false]);
    vault.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_once_and_only_for_who_it_was_made_for() {
    let vault = Running::start().await;
    let token = vault.token(Role::Vault, "pair", "vault-b").await;
    let other = Enrolment {
        vault: "vault-a",
        address: vault.address,
        token: &token,
        files: &vault.files("vault-c"),
        replace: false,
        expected: Some((Role::Vault, Some("vault-c"))),
    };
    assert!(matches!(other.run().await, Err(EnrolError::OtherIdentity(_))));
    assert!(!vault.files("vault-c").key.exists());
    let again = enrol("vault-a", vault.address, &token, &vault.files("vault-b")).await;
    assert!(matches!(again, Err(EnrolError::TokenRefused { .. })), "{again:?}");
    vault.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_not_hold_the_pinned_authority_is_called_an_impostor() {
    let (vault, impostor) = (Running::start().await, Running::start().await);
    let token = vault.token(Role::Edge, "erp", "www1").await;
    let files = vault.files("www1");
    let refused = enrol("vault-a", impostor.address, &token, &files).await.unwrap_err();
    assert!(matches!(refused, EnrolError::Impostor { .. }));
    assert!(refused.to_string().contains("may be an impostor; nothing was sent to it"), "{refused}");
    let misnamed = enrol("vault-b", vault.address, &token, &files).await.unwrap_err();
    assert!(matches!(misnamed, EnrolError::OtherVault { .. }), "{misnamed}");
    let mut wrong: Token = token.parse().unwrap();
    wrong.pin.0[0] ^= 1;
    let refused = enrol("vault-a", vault.address, &wrong.to_string(), &files).await;
    assert!(matches!(refused, Err(EnrolError::Impostor { .. })));
    // None of them spent the token or left a file.
    assert!(!files.key.exists());
    enrol("vault-a", vault.address, &token, &files).await.unwrap();
    let kept = enrol("vault-a", vault.address, &token, &files).await;
    assert!(matches!(kept, Err(EnrolError::KeyExists(_))));
    vault.stop().await;
    impostor.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_authority_is_offline_the_caller_is_told_where_its_key_belongs() {
    let vault = Running::start().await;
    let token = vault.token(Role::Edge, "erp", "www1").await;
    let key = &vault.config.pki.authority_key;
    std::fs::rename(key, key.with_extension("away")).unwrap();
    let refused = enrol("vault-a", vault.address, &token, &vault.files("www1")).await.unwrap_err();
    assert!(matches!(refused, EnrolError::AuthorityOffline { .. }));
    assert!(refused.to_string().contains(&key.display().to_string()), "{refused}");
    std::fs::rename(key.with_extension("away"), key).unwrap();
    enrol("vault-a", vault.address, &token, &vault.files("www1")).await.unwrap();
    vault.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_certificate_gets_no_answer_and_none_at_all_gets_401() {
    let (vault, foreign) = (Running::start().await, Running::start().await);
    let stranger = foreign.enrolled(Role::Admin, "ops", "eve").await;
    let files = Files { authority: vault.config.tls.authority.clone(), ..stranger.files };
    let answered = match Session::of(vault.address, &files).await {
        Ok(mut session) => session.get("/v1/status").await.is_ok(),
        Err(_) => false,
    };
    assert!(!answered, "another authority's certificate must not be answered");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(shared::tls::certificates(&vault.config.tls.authority).unwrap().remove(0)).unwrap();
    let nobody = rustls::ClientConfig::builder_with_provider(shared::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut session = Session::open(vault.address, nobody).await.unwrap();
    let (status, body) = session.get("/v1/status").await.unwrap();
    assert_eq!((status, code(&body).as_str()), (StatusCode::UNAUTHORIZED, "no_certificate"));
    vault.stop().await;
    foreign.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pair_link_is_for_the_configured_peer_alone() {
    let vault = Running::start().await;
    for (role, name) in [(Role::Edge, "vault-b"), (Role::Vault, "vault-x")] {
        let other = vault.enrolled(role, "pair", name).await;
        let tls = shared::tls::client(&other.files, &[b"vault-pair/1"]).unwrap();
        let socket = TcpStream::connect(vault.address).await.unwrap();
        let name = ServerName::try_from("vault-a").unwrap();
        let mut stream = TlsConnector::from(Arc::new(tls)).connect(name, socket).await.unwrap();
        let mut byte = [0];
        let read = tokio::io::AsyncReadExt::read(&mut stream, &mut byte);
        let read = tokio::time::timeout(Duration::from_secs(10), read).await.unwrap();
        assert!(matches!(read, Ok(0) | Err(_)), "the link of {role} must be closed");
        std::fs::remove_dir_all(other.files.key.parent().unwrap()).unwrap();
    }
    vault.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_of_the_vault_is_taken_over_without_a_restart() {
    let vault = Running::start().await;
    let edge = vault.enrolled(Role::Edge, "erp", "www1").await;
    let mut old = Session::of(vault.address, &edge.files).await.unwrap();
    let token = vault.token(Role::Vault, "pair", "vault-a").await;
    let files = &vault.config.tls;
    let renewal = Enrolment {
        vault: "vault-a",
        address: vault.address,
        token: &token,
        files,
        replace: true,
        expected: Some((Role::Vault, Some("vault-a"))),
    };
    let renewed = renewal.run().await.unwrap();
    vault.reload.notify_one();
    tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let tls = shared::tls::client(&edge.files, &[b"http/1.1"]).unwrap();
            let socket = TcpStream::connect(vault.address).await.unwrap();
            let name = ServerName::try_from("vault-a").unwrap();
            let stream = TlsConnector::from(Arc::new(tls)).connect(name, socket).await.unwrap();
            let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
            if shared::tls::Identity::of(&shown).unwrap().serial == renewed.identity.serial {
                break;
            }
        }
    })
    .await
    .unwrap();
    assert_eq!(old.get("/v1/openapi.yaml").await.unwrap().0, StatusCode::OK, "old sessions go on");
    vault.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_answer_in_clear() {
    let vault = Running::start().await;
    let _edge = vault.enrolled(Role::Edge, "erp", "www1").await;
    for (path, expected) in [
        ("/livez", "ok\n"),
        ("/readyz", "ok\n"),
        ("/readyz?verbose", "vault: serving\n"),
        ("/metrics", "vault_api_requests_total{class=\"2xx\"}"),
    ] {
        let socket = TcpStream::connect(vault.admin).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.unwrap();
        tokio::spawn(connection);
        let (status, body) = Session(sender).get(path).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{path}");
        assert!(String::from_utf8_lossy(&body).contains(expected), "{path}: {body:?}");
    }
    vault.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_everything_that_is_wrong_at_once() {
    let vault = Running::start().await;
    let report = command::check::check(&vault.config);
    assert_eq!(report.faults, Vec::<String>::new());
    for (found, what) in
        report.found.iter().zip(["file_server paris", "file_server lyon", "storage.spool_folder"])
    {
        assert!(found.starts_with(what) && found.contains(" free"), "{found}");
    }
    assert!(report.found[0].contains("it is place "), "{:?}", report.found);
    let mut config = vault.config.clone();
    config.name = "vault-z".to_owned();
    config.storage.file_servers[0].path = vault.folder.path().join("nowhere");
    config.storage.key_file = vault.folder.path().join("no.key");
    // Not on a disk, of which it would be warned.
    let in_memory = tempfile::tempdir_in("/dev/shm").unwrap();
    config.api.control_socket = in_memory.path().join("other.sock");
    config.api.listen = vault.address;
    // As where a mount is missing.
    config.storage.file_servers[1].path = vault.folder.path().join("empty");
    std::fs::create_dir(&config.storage.file_servers[1].path).unwrap();
    config.storage.max_file = shared::config::ByteSize(u64::MAX);
    let command::check::Report { faults, found } = command::check::check(&config);
    let expected =
        ["this vault is \"vault-z\"", "no.key", "file_server paris", "file server lyon", "api.listen"];
    assert_eq!(faults.len(), expected.len(), "{faults:#?}");
    assert!(
        ["marker is missing", "adopt-server lyon", " free there)"]
            .iter()
            .all(|part| faults[3].contains(part)),
        "{faults:#?}"
    );
    assert!(found.len() == 1 && found[0].contains("WARNING"), "{found:?}");
    for (fault, what) in faults.iter().zip(expected) {
        assert!(fault.contains(what), "{fault}");
    }
    let socket = vault.config.api.control_socket.clone();
    vault.stop().await;
    let mut sink = Vec::new();
    let gone = command::status(&socket, &mut Output { to: &mut sink, json: false }).await.unwrap_err();
    assert!(gone.to_string().starts_with("no vault answers on"), "{gone}");
}

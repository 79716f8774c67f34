//! `vault.toml` → ready settings. Knows the keys and their defaults; opens nothing but the
//! file itself. Each room owns the settings it is handed.

pub mod alike;
mod bridge;
pub mod worker;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shared::config::{ByteSize, Faults, Section, read_file};
use shared::tls::{Files, is_name};

use crate::sequence::database;
use crate::{broker, delivery, pair, pki, queue, storage};

/// Each takes up to 12 MiB of memory while it runs.
const MOST_UPLOADS: usize = 4096;
/// Repair turns and file servers' deadlines are no shorter.
const SHORTEST: Duration = Duration::from_millis(100);
/// A slower scrub would hold a session for hours on one large file.
const SLOWEST_SCRUB: ByteSize = ByteSize::kib(64);
const DAY: u64 = 86_400;
/// A broker that takes less takes no message with its headers.
const SMALLEST_MESSAGE: ByteSize = ByteSize::mib(1);
/// What it takes where nothing is said.
const USUAL_MESSAGE: ByteSize = ByteSize::mib(64);
/// Larger ones belong into files.
const LARGEST_MESSAGE: ByteSize = ByteSize::mib(256);
/// A reply that waits longer for the database would come too late for a forwarded wish.
const LONGEST_DATABASE_WAIT: Duration = Duration::from_secs(3);

/// Everything vault needs to run.
#[derive(Debug, Clone)]
pub struct Config {
    /// This vault's name, as its certificate says it.
    pub name: String,
    /// Where this vault keeps what it must not lose.
    pub state: PathBuf,
    /// The HTTP API.
    pub api: Api,
    /// Own certificate, key, and the authority's certificate.
    pub tls: Files,
    /// Issuing certificates.
    pub pki: pki::Settings,
    /// The other vault.
    pub pair: pair::Settings,
    /// Files.
    pub storage: storage::Settings,
    /// Which vault of the pair owns the numbers' ledger: its name.
    pub sequence_owner: String,
    /// Where a copy of that ledger is kept, if anywhere.
    pub database: Option<database::Settings>,
    /// The embedded broker, where there is one.
    pub broker: Option<broker::Settings>,
    /// Jobs by schedules.
    pub schedules: Vec<worker::Schedule>,
    /// Queues whose messages go to handlers.
    pub deliveries: Vec<delivery::Settings>,
    /// What the bridge carries between brokers.
    pub bridge: Vec<crate::bridge::Plan>,
}

/// `[api]`
#[derive(Debug, Clone)]
pub struct Api {
    /// mTLS, for edges, the peer and operators.
    pub listen: SocketAddr,
    /// Health and metrics in clear; loopback unless the operator says otherwise.
    pub admin: SocketAddr,
    /// Operators' commands on this host; group `vault-admin` may use it.
    pub control_socket: PathBuf,
    /// Most connections at once; further ones are closed at once.
    pub max_connections: usize,
    /// A request's head must have come within this time.
    pub head_timeout: Duration,
    /// A body or an answer that makes no progress for this long is ended.
    pub idle_timeout: Duration,
}

impl Config {
    /// Reads `file`.
    ///
    /// # Errors
    /// Every fault at once.
    pub fn read(file: &Path) -> Result<Self, Faults> {
        read_file(file, Self::from_section)
    }

    /// `storage.key_file` alone, also of a file that is not complete yet: the first key is made before
    /// its recipients can be written down.
    ///
    /// # Errors
    /// It is not there, or cannot be read; then every fault at once.
    pub fn read_key_file(file: &Path) -> Result<PathBuf, Faults> {
        let mut found = None;
        let read = read_file(file, |root| {
            found = root.section("storage").optional("key_file");
            Some(())
        });
        drop(read);
        match found {
            Some(found) => Ok(found),
            None => Self::read(file).map(|config| config.storage.key_file),
        }
    }

    /// Largest body of a message, in bytes.
    #[must_use]
    pub fn largest_message(&self) -> usize {
        self.broker.as_ref().map_or(USUAL_MESSAGE.as_usize(), |broker| broker.max_message)
    }

    fn from_section(root: &mut Section<'_>) -> Option<Self> {
        let name = name(root, "name");
        let state = root.or("state", PathBuf::from("/var/lib/vault"));
        let api = api(root.section("api"));
        let tls = tls(root.section("tls"), &state);
        let pki = pki_settings(root.section("pki"), &state);
        let pair = pair_settings(root.section("pair"), name.as_deref());
        let storage = storage_settings(root, &state, pair.as_ref());
        let mut sequence = root.section("sequence");
        let database = sequence.optional_section("database").map(database_settings);
        let mut names = worker::Names::default();
        let schedules = worker::schedules(root, &mut names, wall_clock());
        let deliveries = worker::deliveries(root, &mut names);
        let owner = sequence_owner(sequence, name.as_deref(), pair.as_ref());
        let own_name = name.as_deref().unwrap_or_default();
        let broker =
            root.optional_section("broker").map(|section| broker_settings(section, own_name, &state, &tls));
        let vaults = [name.as_deref(), pair.as_ref().map(|pair| pair.peer.as_str())];
        let bridge = bridge::plans(root, vaults);
        Some(Self {
            name: name?,
            api,
            tls,
            pki,
            pair: pair?,
            storage: storage?,
            sequence_owner: owner?,
            database: match database {
                Some(database) => Some(database?),
                None => None,
            },
            broker,
            schedules: schedules?,
            deliveries: deliveries?,
            bridge,
            state,
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "a schedule that is never due any more is a fault")]
fn wall_clock() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

fn name(section: &mut Section<'_>, key: &'static str) -> Option<String> {
    let name: String = section.required(key)?;
    if is_name(&name) {
        return Some(name);
    }
    section
        .fault(key, format!("{name:?} is no name; use 1 to 64 letters, digits, dots, dashes, underscores"));
    None
}

fn api(mut section: Section<'_>) -> Api {
    let api = Api {
        listen: section.or("listen", SocketAddr::from(([0, 0, 0, 0], 7443))),
        admin: section.or("admin", SocketAddr::from(([127, 0, 0, 1], 7444))),
        control_socket: section.or("control_socket", PathBuf::from("/run/vault/control.sock")),
        max_connections: section.or("max_connections", 1024),
        head_timeout: section.or("head_timeout", Duration::from_secs(10)),
        idle_timeout: section.or("idle_timeout", Duration::from_secs(30)),
    };
    if api.max_connections == 0 {
        section.fault("max_connections", "0 lets nobody in; write how many connections may be open at once");
    }
    for (key, limit) in [("head_timeout", api.head_timeout), ("idle_timeout", api.idle_timeout)] {
        if limit.is_zero() {
            section.fault(key, "must be longer than 0, or every connection ends at once");
        }
    }
    if api.listen == api.admin && api.listen.port() != 0 {
        section.fault("admin", "is the same as listen; write another port");
    }
    api
}

fn tls(mut section: Section<'_>, state: &Path) -> Files {
    Files {
        certificate: section.or("certificate_file", state.join("tls/vault.crt")),
        key: section.or("key_file", state.join("tls/vault.key")),
        authority: section.or("authority_file", state.join("tls/authority.crt")),
    }
}

fn pki_settings(mut section: Section<'_>, state: &Path) -> pki::Settings {
    let settings = pki::Settings {
        database: state.join("pki.db"),
        authority_key: section.or("authority_key_file", state.join("pki/authority.key")),
        token_lifetime: section.or("token_lifetime", Duration::from_secs(3600)),
        certificate_lifetime: section.or("certificate_lifetime", Duration::from_secs(397 * 86_400)),
    };
    if settings.token_lifetime.is_zero() || settings.token_lifetime > pki::LONGEST_TOKEN {
        section.fault("token_lifetime", "must be longer than 0 and at most \"7d\"; write \"1h\"");
    }
    if settings.certificate_lifetime < Duration::from_secs(3600) {
        section.fault("certificate_lifetime", "must be at least \"1h\", or hosts enrol without end");
    }
    settings
}

fn pair_settings(mut section: Section<'_>, own: Option<&str>) -> Option<pair::Settings> {
    let peer = name(&mut section, "peer");
    if peer.is_some() && peer.as_deref() == own {
        section.fault("peer", "is this vault's own name; write the other vault's");
    }
    let address = section.required("address");
    let beat = section.or("beat", Duration::from_millis(500));
    let silence = section.or("silence", Duration::from_secs(2));
    if beat < Duration::from_millis(10) {
        section.fault("beat", "must be at least \"10ms\", or the link carries nothing but beats");
    }
    if silence < beat.saturating_mul(2) {
        section.fault("silence", "must be at least twice beat, or a healthy peer counts as away");
    }
    Some(pair::Settings { own: own?.to_owned(), peer: peer?, address: address?, beat, silence })
}

fn storage_settings(
    root: &mut Section<'_>,
    state: &Path,
    pair: Option<&pair::Settings>,
) -> Option<storage::Settings> {
    let servers: Vec<_> = root
        .sections("file_server")
        .into_iter()
        .map(|mut section| {
            let server_name = name(&mut section, "name");
            let path = section.required("path");
            let kind =
                if section.has("kind") { section.optional("kind") } else { Some("directory".to_owned()) };
            let kind = match kind.as_deref() {
                Some("directory") => Some(storage::Kind::Directory),
                Some("sftp") => sftp_settings(&mut section).map(storage::Kind::Sftp),
                other => {
                    if let Some(other) = other {
                        let why =
                            format!("{other:?} is no kind of file server; write \"sftp\" or \"directory\"");
                        section.fault("kind", why);
                    }
                    // Which other keys belong here depends on it.
                    section.leave_rest();
                    None
                }
            };
            Some(storage::FileServerSettings { name: server_name?, path: path?, kind: kind? })
        })
        .collect();
    let count = servers.len();
    let servers: Option<Vec<_>> = servers.into_iter().collect();
    if count != 2 {
        root.fault("file_server", format!("{count} configured; write exactly two [[file_server]] sections"));
    }
    if let Some([left, right]) = servers.as_deref()
        && (left.name == right.name || is_same_place(left, right))
    {
        root.fault("file_server", "both are the same; two replicas need two names and two paths");
    }
    let mut section = root.section("storage");
    let key_file = section.required("key_file");
    let escrow = section.required::<String>("escrow_recipient");
    let min_replicas = section.or("min_replicas", 1_usize);
    if !(1..=2).contains(&min_replicas) {
        section.fault("min_replicas", "write 1 (answer when one replica is safe) or 2");
    }
    let max_file = section.or("max_file", ByteSize::gib(4));
    if max_file.0 == 0 {
        section.fault("max_file", "0 takes no file; write the largest that is accepted, such as \"4GiB\"");
    }
    let max_uploads = section.or("max_uploads", 64);
    if !(1..=MOST_UPLOADS).contains(&max_uploads) {
        section.fault("max_uploads", format!("write how many may run at once, from 1 to {MOST_UPLOADS}"));
    }
    let retry_every = section.or("retry_every", Duration::from_secs(10));
    let file_server_timeout = section.or("file_server_timeout", Duration::from_secs(30));
    let undelete_within = section.or("undelete_within", Duration::from_secs(7 * 86_400));
    for (key, time) in [("retry_every", retry_every), ("file_server_timeout", file_server_timeout)] {
        if time < SHORTEST {
            section.fault(key, "must be at least \"100ms\"");
        }
    }
    let scrub_rate = section.or("scrub_rate", ByteSize::mib(20));
    if scrub_rate < SLOWEST_SCRUB {
        section.fault(
            "scrub_rate",
            "must be at least \"64KiB\" a second; to switch it off, write scrub_every = \"0s\"",
        );
    }
    let sync_every = section.or("sync_every", Duration::from_secs(DAY));
    let scrub_every = section.or("scrub_every", Duration::from_secs(30 * DAY));
    let inventory_every = section.or("inventory_every", Duration::from_secs(600));
    let keep_free = section.or("keep_free", ByteSize::gib(1));
    let spool = section.or("spool_folder", state.join("spool"));
    // Every key has been read by now: one that nobody asked for would count as unknown.
    Some(storage::Settings {
        peer: pair?.peer.clone(),
        sync_every,
        scrub_every,
        scrub_rate,
        inventory_every,
        keep_free,
        catalog: state.join("catalog.db"),
        spool,
        key_file: key_file?,
        escrow_recipient: escrow?,
        min_replicas,
        max_file,
        max_uploads,
        retry_every,
        undelete_within,
        file_server_timeout,
        file_servers: servers?,
    })
}

fn is_same_place(left: &storage::FileServerSettings, right: &storage::FileServerSettings) -> bool {
    left.path == right.path
        && match (&left.kind, &right.kind) {
            (storage::Kind::Directory, storage::Kind::Directory) => true,
            (storage::Kind::Sftp(left), storage::Kind::Sftp(right)) => left.address() == right.address(),
            _ => false,
        }
}

/// `[[file_server]]` with `kind = "sftp"`, beyond name and path.
fn sftp_settings(section: &mut Section<'_>) -> Option<storage::SftpSettings> {
    let address: Option<String> = section.required("address");
    let user = section.required("user");
    let known_hosts = section.required("known_hosts_file");
    let key_file: Option<PathBuf> = section.optional("key_file");
    let agent = section.or("agent", false);
    let sessions = section.or("sessions", storage::file_server::SESSIONS);
    let parsed = address.as_deref().and_then(storage::file_server::parse_address);
    if let (Some(address), None) = (&address, &parsed) {
        section.fault("address", format!("{address:?} is no address; write \"host:22\" or \"[address]:22\""));
    }
    if !(1..=storage::file_server::MOST_SESSIONS).contains(&sessions) {
        let most = storage::file_server::MOST_SESSIONS;
        section.fault(
            "sessions",
            format!("write 1 to {most}; one more carries control, and hosts allow about 10"),
        );
    }
    let login = match (key_file, agent) {
        (Some(file), false) => Some(storage::Login::KeyFile(file)),
        (None, true) => Some(storage::Login::Agent),
        _ => {
            section.fault("key_file", "write either key_file = \"…\" or agent = true");
            None
        }
    };
    let (host, port) = parsed?;
    Some(storage::SftpSettings {
        host,
        port,
        user: user?,
        known_hosts: known_hosts?,
        login: login?,
        sessions,
    })
}

/// `[sequence.database]`
fn database_settings(mut section: Section<'_>) -> Option<database::Settings> {
    let kind: Option<String> = section.required("kind");
    let kind = kind.and_then(|kind| match kind.as_str() {
        "postgres" => Some((database::Kind::Postgres, 5432)),
        "mariadb" => Some((database::Kind::Mariadb, 3306)),
        "etcd" => Some((database::Kind::Etcd, 2379)),
        other => {
            let why =
                format!("{other:?} is no kind of database; write \"postgres\", \"mariadb\" or \"etcd\"");
            section.fault("kind", why);
            None
        }
    });
    let role = section.or("role", "copy".to_owned());
    let role = match (role.as_str(), kind) {
        ("copy", _) => Some(database::Role::Copy),
        ("truth", None | Some((database::Kind::Etcd, _))) => Some(database::Role::Truth),
        ("truth", Some(_)) => {
            let why = "etcd alone can be the ledger itself: a standby of this kind may be promoted without what was answered last; write \"copy\"";
            section.fault("role", why);
            None
        }
        (other, _) => {
            section.fault("role", format!("{other:?} is no role; write \"copy\" or \"truth\""));
            None
        }
    };
    let texts: Vec<String> = section.list("hosts");
    let mut hosts = Vec::new();
    for text in &texts {
        match (database_host(text), kind) {
            (Some((host, port)), Some((_, usual))) => hosts.push((host, port.unwrap_or(usual))),
            (Some(_), None) => {}
            (None, _) => {
                let why =
                    format!("{text:?} is no address; write \"host\", \"host:5432\" or \"[address]:5432\"");
                section.fault("hosts", why);
            }
        }
    }
    if texts.is_empty() {
        section.fault("hosts", "name at least one server, such as [\"10.0.0.7\", \"10.0.0.8\"]");
    }
    let name = section.or("database", "vault".to_owned());
    let user = section.or("user", "vault".to_owned());
    let password_file = section.optional("password_file");
    let authority_file: Option<PathBuf> = section.optional("authority_file");
    let in_clear = section.or("in_clear", false);
    if authority_file.is_some() == in_clear {
        section.fault(
            "authority_file",
            "write who signs the servers' certificates, or in_clear = true where the network is trusted",
        );
    }
    let wait = section.or("wait", Duration::from_secs(1));
    if wait.is_zero() || wait > LONGEST_DATABASE_WAIT {
        section.fault("wait", "must be longer than 0 and at most \"3s\": callers give up at 4s");
    }
    Some(database::Settings {
        kind: kind?.0,
        role: role?,
        hosts,
        database: name,
        user,
        password_file,
        authority_file,
        wait,
    })
}

/// `[broker]`
fn broker_settings(mut section: Section<'_>, name: &str, state: &Path, tls: &Files) -> broker::Settings {
    let users: Option<PathBuf> = section.optional("users_file");
    if section.or("anonymous", false) == users.is_some() {
        let why = "write who may connect, or anonymous = true where everybody on the network may";
        section.fault("users_file", why);
    }
    let pair = broker::encryption::Pair {
        certificate: section.or("certificate_file", tls.certificate.clone()),
        key: section.or("key_file", tls.key.clone()),
    };
    let in_clear = section.or("in_clear", false);
    let max_connections = section.or("max_connections", 1024_usize);
    if max_connections == 0 {
        section.fault("max_connections", "0 lets nobody in; write how many connections may be open at once");
    }
    let max_message = section.or("max_message", USUAL_MESSAGE);
    if !(SMALLEST_MESSAGE..=LARGEST_MESSAGE).contains(&max_message) {
        section.fault("max_message", format!("write {SMALLEST_MESSAGE} to {LARGEST_MESSAGE}"));
    }
    let silence = section.or("silence", Duration::from_secs(30));
    if silence < Duration::from_secs(1) {
        section.fault("silence", "must be at least \"1s\", or healthy clients are given up");
    }
    let mut queues = queue::Settings::new(state.join("queue.db"));
    queues.journal_bytes = section.or("journal_size", ByteSize(queues.journal_bytes)).0;
    queues.memory_bytes = section.or("memory", ByteSize(queues.memory_bytes as u64)).as_usize();
    queues.hold = section.or("hold", queues.hold);
    if queues.journal_bytes < max_message.0 {
        section.fault("journal_size", "must hold at least one message of max_message");
    }
    if queues.memory_bytes < SMALLEST_MESSAGE.as_usize() {
        section.fault("memory", format!("must be at least \"{SMALLEST_MESSAGE}\""));
    }
    broker::Settings {
        name: name.to_owned(),
        listen: section.or("listen", SocketAddr::from(([0, 0, 0, 0], 61616))),
        tls: (!in_clear).then_some(pair),
        users,
        max_connections,
        max_message: max_message.as_usize(),
        silence,
        queues,
    }
}

/// `host`, `host:port` or `[address]:port`.
fn database_host(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, rest.strip_prefix(':'))
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map(str::parse).transpose().ok()?;
    let fine = !host.is_empty() && !host.contains(|letter: char| letter.is_whitespace() || letter == '/');
    fine.then(|| (host.to_owned(), port))
}

fn sequence_owner(
    mut section: Section<'_>,
    own: Option<&str>,
    pair: Option<&pair::Settings>,
) -> Option<String> {
    let owner: String = section.required("owner")?;
    let (own, pair) = (own?, pair?);
    if owner != own && owner != pair.peer {
        section.fault(
            "owner",
            format!("{owner:?} is neither {own:?} nor {:?}; both vaults must name the same", pair.peer),
        );
        return None;
    }
    Some(owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_nothing_can_work_with_are_faults() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vault.toml");
        let text = "[pair]\nbeat = \"0s\"\n[storage]\nmax_file = \"0\"\nmax_uploads = 0\n\
            retry_every = \"0s\"\nfile_server_timeout = \"0s\"\nscrub_rate = \"1B\"\n";
        std::fs::write(&file, text).unwrap();
        let told = Config::read(&file).unwrap_err().to_string();
        for key in [
            "pair.beat",
            "storage.max_file",
            "storage.max_uploads",
            "storage.retry_every",
            "storage.file_server_timeout",
            "storage.scrub_rate",
        ] {
            assert!(told.contains(&format!("{key}: ")), "{key}: {told}");
        }
        std::fs::write(&file, "[storage]\nmax_uploads = 9223372036854775807\n").unwrap();
        let told = Config::read(&file).unwrap_err().to_string();
        assert!(told.contains("storage.max_uploads: write how many"), "{told}");
    }

    #[test]
    fn etcd_alone_can_be_the_ledger_itself() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vault.toml");
        let told = |kind: &str, role: &str| {
            let text = format!("[sequence.database]\nkind = \"{kind}\"\nrole = \"{role}\"\n");
            std::fs::write(&file, text).unwrap();
            Config::read(&file).unwrap_err().to_string()
        };
        assert!(!told("etcd", "truth").contains("sequence.database.role"));
        for kind in ["postgres", "mariadb"] {
            assert!(told(kind, "truth").contains("sequence.database.role: etcd alone can be the ledger"));
            assert!(!told(kind, "copy").contains("sequence.database.role"));
        }
        assert!(told("etcd", "first").contains("is no role"));
    }

    #[test]
    fn the_first_key_goes_where_an_unfinished_configuration_says() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vault.toml");
        std::fs::write(&file, "[storage]\nkey_file = \"/srv/keys/storage.key\"\n").unwrap();
        assert_eq!(Config::read_key_file(&file).unwrap(), Path::new("/srv/keys/storage.key"));
        std::fs::write(&file, "[storage]\nmin_replicas = 7\n").unwrap();
        let told = Config::read_key_file(&file).unwrap_err().to_string();
        assert!(told.contains("storage.key_file: missing"), "{told}");
    }

    #[test]
    fn a_bad_value_is_one_fault_and_makes_no_other_key_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vault.toml");
        let sample = include_str!("../../conf/vault.toml");
        let sample: Vec<_> = sample.lines().filter(|line| !line.contains("escrow_recipient =")).collect();
        let sample = sample.join("\n").replace("\n[storage]", "\n[storage]\nescrow_recipient = \"age1\"");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Config::read(&file).map_or_else(|faults| faults.0, |_| Vec::new())
        };
        assert_eq!(read(&sample), []);
        let whole = format!("{sample}\n");
        for (key, bad) in [
            ("retry_every", "10"),
            ("keep_free", "\"much\""),
            ("peer", "\"no name!\""),
            ("kind", "\"sfpt\""),
            ("kind", "7"),
            ("beat", "true"),
        ] {
            let line =
                whole.lines().find(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
            let text = whole.replacen(line.unwrap(), &format!("{key} = {bad}"), 1);
            let told = read(&text);
            assert!(told.len() == 1 && told[0].what.contains(&format!("{key}: ")), "{key} = {bad}: {told:?}");
        }
    }

    #[test]
    fn the_brokers_sample_is_whole_and_says_who_may_connect() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vault.toml");
        let sample = include_str!("../../conf/vault.toml");
        let (before, rest) = sample.split_once("#[broker]\n").unwrap();
        let (section, after) = rest.split_once("\n[storage]").unwrap();
        let key = |line: &&str| line.starts_with('#') && !line.starts_with("# ");
        let section: Vec<_> = section.lines().filter(key).map(|line| &line[1..]).collect();
        let whole = |section: &str| {
            let text = format!("{before}[broker]\n{section}\n[storage]{after}");
            text.replace("escrow_recipient = \"\"", "escrow_recipient = \"age1\"")
        };
        std::fs::write(&file, whole(&section.join("\n"))).unwrap();
        let broker = Config::read(&file).unwrap().broker.unwrap();
        assert!(broker.tls.is_some() && broker.users.is_some());
        std::fs::write(&file, whole("")).unwrap();
        assert!(Config::read(&file).unwrap_err().to_string().contains("users_file: write who may connect"));
    }

    #[test]
    fn what_an_sftp_server_needs_is_asked_for_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vault.toml");
        let text = "[[file_server]]\nname = \"paris\"\nkind = \"sftp\"\naddress = \"paris:ssh\"\nsessions = 10\n\
            key_file = \"k\"\nagent = true\n[[file_server]]\nname = \"lyon\"\nkind = \"ftp\"\npath = \"/srv\"\n";
        std::fs::write(&file, text).unwrap();
        let told = Config::read(&file).unwrap_err().to_string();
        for words in [
            "paris:ssh",
            "[address]:22",
            "write 1 to 9",
            "either key_file",
            "user",
            "known_hosts_file",
            "path",
            "\"ftp\" is no kind of file server",
        ] {
            assert!(told.contains(words), "{words}: {told}");
        }
    }
}

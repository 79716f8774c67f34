//! One edge on loopback: its `edge.toml`, a certificate that curl can be told to trust, and
//! the running program. Alone with a few neighbours, or in front of a pair.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::browser::{Authority, Pair};
use crate::curl::Curl;
use crate::program::{Program, Recipe, run};
use crate::vault_host::READY;
use crate::{binaries, plain, ports, wait};

/// The cluster's host name, for which edge has a certificate.
pub const NAME: &str = "www.example.test";
/// This host's own name, for health checks.
pub const DIRECT_NAME: &str = "www1.example.test";

/// What stands in `edge.toml` besides the listeners and the certificate.
#[derive(Debug, Clone, Default)]
pub struct EdgePlan {
    /// `(name, servers)`: `127.0.0.1:9000` or `unix:/run/app.sock`.
    pub upstreams: Vec<(String, Vec<String>)>,
    /// `[[route]]` sections as they stand.
    pub routes: String,
    /// Further lines for `[listen]`.
    pub listen: String,
    /// Further lines for `[clients]`.
    pub clients: String,
    /// `combined` unless it says otherwise.
    pub log_format: Option<&'static str>,
    /// The `[gateway]` section and what belongs to it, as it stands.
    pub gateway: String,
    /// Also listens on the IPv6 loopback.
    pub ipv6: bool,
    /// Listens where the firewall redirects to: 8443 and 8080 of every address, in both families.
    /// For an edge in a namespace of its own.
    pub everywhere: bool,
    /// `[bans]`, `[[filter]]` and `[[jail]]` sections as they stand; empty bans without a kernel,
    /// into a file of its own.
    pub bans: String,
}

/// The running edge.
#[derive(Debug)]
pub struct Edge {
    /// Its `edge.toml`.
    pub config: PathBuf,
    /// HTTPS on IPv4.
    pub https: SocketAddr,
    /// HTTPS on IPv6, where the plan asked for it.
    pub https6: Option<SocketAddr>,
    /// HTTP, which redirects.
    pub http: SocketAddr,
    /// Health and metrics, in clear.
    pub admin: SocketAddr,
    /// Its access log.
    pub access_log: PathBuf,
    /// The certificate it shows for [`NAME`].
    pub certificate: Pair,
    /// Who signed it.
    pub authority: Authority,
    /// The running program.
    pub program: Program,
    folder: PathBuf,
}

impl Edge {
    /// Writes the configuration into `folder`, without starting anything.
    ///
    /// # Errors
    /// The folder cannot be written, or no port is free.
    pub fn write(folder: &Path, plan: &EdgePlan) -> anyhow::Result<Draft> {
        std::fs::create_dir_all(folder)?;
        let authority = Authority::new(folder, "browser-authority")?;
        let certificate = authority.issue(folder, "www", &[NAME, DIRECT_NAME])?;
        let (any4, any6) = (IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED));
        let (https, https6, http) = if plan.everywhere {
            (SocketAddr::new(any4, 8443), Some(SocketAddr::new(any6, 8443)), SocketAddr::new(any4, 8080))
        } else {
            let loopback6 = IpAddr::from(Ipv6Addr::LOCALHOST);
            let https6 = plan.ipv6.then(|| ports::free_on(loopback6)).transpose()?;
            (ports::free()?, https6, ports::free()?)
        };
        let draft = Draft {
            config: folder.join("edge.toml"),
            https,
            https6,
            http,
            http6: plan.everywhere.then_some(SocketAddr::new(any6, 8080)),
            admin: ports::free()?,
            access_log: folder.join("access.log"),
            folder: folder.to_owned(),
            certificate,
            authority,
        };
        let text = draft.text(plan);
        std::fs::write(&draft.config, text).with_context(|| format!("{}", draft.config.display()))?;
        Ok(draft)
    }

    /// An edge of its own with these neighbours, in `folder`.
    ///
    /// # Errors
    /// It does not become ready; with the end of its log.
    pub fn start(folder: &Path, plan: &EdgePlan) -> anyhow::Result<Self> {
        Self::write(folder, plan)?.start()
    }

    /// A call of `https://www.example.test…` by a client that trusts this edge's authority.
    #[must_use]
    pub fn call(&self, path: &str) -> Curl {
        self.call_host(NAME, path)
    }

    /// As [`Self::call`], by another name.
    #[must_use]
    pub fn call_host(&self, host: &str, path: &str) -> Curl {
        Curl::new(format!("https://{host}:{}{path}", self.https.port()))
            .at(self.https)
            .trust(&self.authority.certificate)
    }

    /// The access log's lines so far.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn log_lines(&self) -> anyhow::Result<Vec<String>> {
        let bytes =
            std::fs::read(&self.access_log).with_context(|| format!("{}", self.access_log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect())
    }

    /// Waits until the access log holds a line that satisfies `wanted`, and returns it.
    ///
    /// # Errors
    /// The deadline; the text shows the log's last line.
    pub fn wait_log(&self, what: &str, wanted: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        wait::until(what, READY, || {
            let lines = self.log_lines()?;
            let last = lines.last().cloned().unwrap_or_default();
            lines.into_iter().find(|line| wanted(line)).with_context(|| format!("no such line; last: {last}"))
        })
    }

    /// Waits until it is ready for work.
    ///
    /// # Errors
    /// The deadline, with the end of its log.
    pub fn wait_ready(&self) -> anyhow::Result<()> {
        wait::until("edge answers /readyz", READY, || plain::expect_ok(self.admin, "/readyz?verbose"))
            .with_context(|| self.program.log_tail(30))
            .map(drop)
    }

    /// The folder of its configuration.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// A configured edge that does not run yet.
#[derive(Debug)]
pub struct Draft {
    /// Its `edge.toml`.
    pub config: PathBuf,
    /// HTTPS on IPv4.
    pub https: SocketAddr,
    https6: Option<SocketAddr>,
    http: SocketAddr,
    http6: Option<SocketAddr>,
    admin: SocketAddr,
    access_log: PathBuf,
    folder: PathBuf,
    certificate: Pair,
    authority: Authority,
}

impl Draft {
    /// Runs `edge enrol` for it.
    ///
    /// # Errors
    /// What the command said.
    pub fn enrol(&self, vault: &str, token: &str) -> anyhow::Result<()> {
        let words: [OsString; 7] = [
            "enrol".into(),
            "--vault".into(),
            vault.into(),
            "--token".into(),
            token.into(),
            "--config".into(),
            self.config.clone().into(),
        ];
        run(&binaries::find("edge")?, &words)?.well().context("edge enrol").map(drop)
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// It does not become ready; with the end of its log.
    pub fn start(self) -> anyhow::Result<Edge> {
        let arguments: [OsString; 3] = ["serve".into(), "--config".into(), self.config.clone().into()];
        let recipe = Recipe::new("edge", binaries::find("edge")?, arguments, &self.folder);
        let edge = Edge {
            program: Program::start(recipe)?,
            config: self.config,
            https: self.https,
            https6: self.https6,
            http: self.http,
            admin: self.admin,
            access_log: self.access_log,
            certificate: self.certificate,
            authority: self.authority,
            folder: self.folder,
        };
        edge.wait_ready()?;
        Ok(edge)
    }

    fn text(&self, plan: &EdgePlan) -> String {
        let https = quoted(&[Some(self.https), self.https6]);
        let http = quoted(&[Some(self.http), self.http6]);
        let bans = format!(
            "[bans]\nstore = \"{}\"\nfirewall = \"none\"\njails_folder = \"none\"\n",
            self.folder.join("bans.db").display()
        );
        let mut text = format!(
            r#"name = "{NAME}"
direct_name = "{DIRECT_NAME}"
threads = 2

[listen]
https = [{https}]
http = [{http}]
{more_listen}
[[certificate]]
names = ["{NAME}", "{DIRECT_NAME}"]
certificate_file = "{certificate}"
key_file = "{key}"

[clients]
{clients}
[access_log]
file = "{access_log}"
format = "{format}"

[admin]
listen = "{admin}"
control_socket = "{control}"

{gateway}
{routes}
{bans}
"#,
            more_listen = plan.listen,
            certificate = self.certificate.certificate.display(),
            key = self.certificate.key.display(),
            clients = plan.clients,
            access_log = self.access_log.display(),
            format = plan.log_format.unwrap_or("combined"),
            admin = self.admin,
            control = self.folder.join("control.sock").display(),
            gateway = plan.gateway,
            routes = plan.routes,
            bans = if plan.bans.is_empty() { bans } else { plan.bans.clone() },
        );
        for (name, servers) in &plan.upstreams {
            let servers: Vec<_> = servers.iter().map(|server| format!("\"{server}\"")).collect();
            let _ = writeln!(text, "[[upstream]]\nname = \"{name}\"\nservers = [{}]\n", servers.join(", "));
        }
        text
    }
}

/// The addresses as a TOML list holds them.
fn quoted(addresses: &[Option<SocketAddr>]) -> String {
    let each: Vec<_> = addresses.iter().flatten().map(|address| format!("\"{address}\"")).collect();
    each.join(", ")
}

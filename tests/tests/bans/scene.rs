//! The scene of every story: a street of hosts, on the guarded one the firewall's helper, edge and
//! a neighbour behind it. Knows how to start, ask and look; must not know what is right.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use edge::ban::words::{Answer as Word, BanLine, Receipt, Summary, VisitLine};
use harness::cluster::temporary_folder;
use harness::crowd::Crowd;
use harness::curl::{Answer, Curl};
use harness::edge_host::{Edge, EdgePlan, NAME};
use harness::netns::{Host, Lab};
use harness::program::{Program, Ran, Recipe, run};
use harness::raw::Raw;
use harness::upstream::Upstream;
use harness::{binaries, plain, wait};
use tempfile::TempDir;

/// For whatever happens by itself.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// How long a packet may go unanswered until it counts as dropped.
const SILENCE: Duration = Duration::from_millis(700);
/// A path that no browser sends.
pub(crate) const CLIMB: &str = "/..%2f..%2fetc/passwd";

/// How a scene differs from the usual one.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Made already, empty.
    pub(crate) folder: PathBuf,
    /// Further lines for `[bans]`.
    pub(crate) bans: String,
    /// Sections after it: `[[jail]]`, `[throttle]`, …
    pub(crate) sections: String,
    /// Further lines for `[clients]`.
    pub(crate) clients: String,
    /// Further lines at the top of `firewall.toml`.
    pub(crate) firewall: String,
    /// The helper is started later, by the story.
    pub(crate) helper_later: bool,
}

impl Plan {
    /// Changes or adds a jail.
    pub(crate) fn jail(&mut self, name: &str, keys: &str) {
        let _ = writeln!(self.sections, "[[jail]]\nname = \"{name}\"\n{keys}");
    }

    /// A jail that reads `log` with the filter of path traversal.
    pub(crate) fn jail_of(&mut self, name: &str, log: &Path, keys: &str) {
        let keys = format!("filter = \"path-traversal\"\nlogs = [\"{}\"]\n{keys}", log.display());
        self.jail(name, &keys);
    }
}

/// Everything that runs; stops in this order.
pub(crate) struct Scene {
    pub(crate) edge: Edge,
    pub(crate) helper: Option<Program>,
    upstream: Option<Upstream>,
    pub(crate) lab: Lab,
    folder: TempDir,
}

impl Scene {
    /// Raises the curtain.
    pub(crate) fn build(change: impl FnOnce(&mut Plan)) -> Self {
        let folder = temporary_folder().unwrap();
        let mut plan = Plan { folder: folder.path().to_owned(), ..Plan::default() };
        change(&mut plan);
        let lab = Lab::build().unwrap();
        std::fs::create_dir(folder.path().join("firewall")).unwrap();
        std::fs::write(helper_file(folder.path()), helper_text(folder.path(), &plan)).unwrap();
        let helper = (!plan.helper_later).then(|| start_helper(&lab, folder.path()).unwrap());
        let (upstream, edge) = lab
            .inside(Host::Edge, || {
                let upstream = Upstream::start().unwrap();
                let plan = edge_plan(folder.path(), &plan, &upstream);
                let edge = Edge::start(&folder.path().join("edge"), &plan).unwrap();
                (upstream, edge)
            })
            .unwrap();
        let scene = Self { edge, helper, upstream: Some(upstream), lab, folder };
        if scene.helper.is_some() {
            scene.wait_kernel(true);
        }
        scene
    }

    /// The neighbour behind edge.
    pub(crate) fn upstream(&self) -> &Upstream {
        self.upstream.as_ref().unwrap()
    }

    /// The folder of this scene.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    // The programs.

    /// Starts the helper for the first time.
    pub(crate) fn bring_helper(&mut self) {
        self.helper = Some(start_helper(&self.lab, self.folder.path()).unwrap());
    }

    /// SIGKILL for the helper.
    pub(crate) fn kill_helper(&mut self) {
        self.helper.as_mut().unwrap().kill().unwrap();
    }

    /// Starts it again.
    pub(crate) fn restart_helper(&mut self) {
        let helper = self.helper.as_mut().unwrap();
        self.lab.inside(Host::Edge, || helper.restart()).unwrap().unwrap();
        wait_helper(self.folder.path()).unwrap();
    }

    /// Starts edge again after its end.
    pub(crate) fn restart_edge(&mut self) {
        let edge = &mut self.edge;
        self.lab
            .inside(Host::Edge, || {
                edge.program.restart()?;
                edge.wait_ready()
            })
            .unwrap()
            .unwrap();
    }

    // What clients see.

    /// Where clients of edge knock: behind the firewall's redirection, or at edge itself.
    pub(crate) fn door(&self) -> SocketAddr {
        self.door_of(Host::Edge.address())
    }

    /// The same in IPv6.
    pub(crate) fn door6(&self) -> SocketAddr {
        self.door_of(Host::Edge.address6())
    }

    fn door_of(&self, address: IpAddr) -> SocketAddr {
        SocketAddr::new(address, if self.helper.is_some() { 443 } else { 8443 })
    }

    /// Where plain requests are redirected.
    pub(crate) fn plain_door(&self) -> SocketAddr {
        SocketAddr::new(Host::Edge.address(), if self.helper.is_some() { 80 } else { 8080 })
    }

    /// A call in the making; send it with [`Self::send`].
    pub(crate) fn call(&self, path: &str) -> Curl {
        self.call_at(self.door(), path)
    }

    /// As [`Self::call`], at one of edge's doors.
    pub(crate) fn call_at(&self, door: SocketAddr, path: &str) -> Curl {
        Curl::new(format!("https://{NAME}{path}"))
            .at(door)
            .trust(&self.edge.authority.certificate)
            .within(SOON)
    }

    /// Sends it from `host`.
    pub(crate) fn send(&self, host: Host, call: &Curl) -> anyhow::Result<Answer> {
        self.lab.inside(host, || call.send())?
    }

    /// `GET path` of `host` over IPv4: the status.
    pub(crate) fn get(&self, host: Host, path: &str) -> anyhow::Result<u16> {
        Ok(self.send(host, &self.call(path))?.status)
    }

    /// The same over IPv6.
    pub(crate) fn get6(&self, host: Host, path: &str) -> anyhow::Result<u16> {
        Ok(self.send(host, &self.call_at(self.door6(), path))?.status)
    }

    /// Must be served, now.
    pub(crate) fn assert_served(&self, host: Host) {
        assert_eq!(self.get(host, "/quick").unwrap(), 200, "{host:?}");
    }

    /// Waits until it is served.
    pub(crate) fn wait_served(&self, host: Host) {
        wait::until(&format!("{host:?} is served"), SOON, || {
            let status = self.send(host, &self.call("/quick").within(Duration::from_secs(2)))?.status;
            anyhow::ensure!(status == 200, "{status}");
            Ok(())
        })
        .unwrap();
    }

    /// A whole TLS connection of `host`, over which it can say anything.
    pub(crate) fn raw(&self, host: Host, source: Option<IpAddr>) -> anyhow::Result<Raw> {
        self.raw_of(host, source, b"http/1.1")
    }

    /// The same, for HTTP/2.
    pub(crate) fn raw_h2(&self, host: Host) -> anyhow::Result<Raw> {
        self.raw_of(host, None, b"h2")
    }

    fn raw_of(&self, host: Host, source: Option<IpAddr>, protocol: &[u8]) -> anyhow::Result<Raw> {
        let (door, authority) = (self.door(), &self.edge.authority.certificate);
        self.lab.inside(host, || {
            let socket = harness::crowd::dial(source, door, SOON)?;
            Raw::over(socket, NAME, authority, protocol)
        })?
    }

    /// Asks twice for what nobody may have, which is once too often.
    pub(crate) fn attack(&self, host: Host) {
        self.attack_with(host, &self.call(CLIMB));
    }

    /// As [`Self::attack`], in these words.
    pub(crate) fn attack_with(&self, host: Host, call: &Curl) {
        for _ in 0..2 {
            // The second answer may be cut off by the ban already.
            let _ = self.send(host, &call.clone().within(Duration::from_secs(5)));
        }
    }

    /// Does the kernel leave a new connection of `host` unanswered?
    pub(crate) fn is_ignored(&self, host: Host, door: SocketAddr) -> bool {
        Crowd::open(&self.lab, host, None, door, 1, SILENCE).unwrap().silent == 1
    }

    // What operators see.

    /// Runs `edge --config … words`.
    pub(crate) fn command(&self, words: &[&str]) -> Ran {
        let config = self.edge.config.display().to_string();
        let words: Vec<&str> = ["--config", &config].into_iter().chain(words.iter().copied()).collect();
        let binary = binaries::find("edge").unwrap();
        self.lab.inside(Host::Edge, || run(&binary, &words)).unwrap().unwrap()
    }

    /// The same, which must go well: what it says.
    pub(crate) fn say(&self, words: &[&str]) -> String {
        self.command(words).well().unwrap()
    }

    /// The same in JSON.
    pub(crate) fn ask(&self, words: &[&str]) -> Word {
        let words: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
        serde_json::from_str(&self.say(&words)).unwrap()
    }

    /// `edge bans list`
    pub(crate) fn bans(&self) -> Vec<BanLine> {
        match self.ask(&["bans", "list", "--limit", "100000"]) {
            Word::Bans { bans, .. } => bans,
            other => panic!("{other:?}"),
        }
    }

    /// The ban that covers this address.
    pub(crate) fn ban_of(&self, address: IpAddr) -> Option<BanLine> {
        self.bans().into_iter().find(|ban| ban.network.contains(&address))
    }

    /// Waits for that ban.
    pub(crate) fn wait_ban(&self, address: IpAddr) -> BanLine {
        wait::until(&format!("{address} is banned"), SOON, || self.ban_of(address).context("it is not"))
            .map_err(|late| late.context(self.edge.program.log_tail(20)))
            .unwrap()
    }

    /// `edge why`
    pub(crate) fn why(&self, address: IpAddr) -> Receipt {
        match self.ask(&["why", &address.to_string()]) {
            Word::Why(receipt) => *receipt,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until it is let in slowly for what foreign pages may have asked.
    pub(crate) fn wait_visitor(&self, address: IpAddr) -> VisitLine {
        wait::until(&format!("{address} is throttled"), SOON, || {
            self.why(address).visits.pop().context("it is not")
        })
        .map_err(|late| late.context(self.edge.program.log_tail(20)))
        .unwrap()
    }

    /// `edge bans status`
    pub(crate) fn summary(&self) -> Summary {
        match self.ask(&["bans", "status"]) {
            Word::Summary(summary) => *summary,
            other => panic!("{other:?}"),
        }
    }

    /// One of edge's metrics.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let admin = self.edge.admin;
        self.lab.inside(Host::Edge, || plain::metric(admin, name)).unwrap().unwrap()
    }

    /// Waits until a metric satisfies `wanted`.
    pub(crate) fn wait_metric(&self, name: &str, wanted: impl Fn(f64) -> bool) {
        wait::until(name, SOON, || {
            let value = self.metric(name);
            anyhow::ensure!(wanted(value), "{value}");
            Ok(())
        })
        .unwrap();
    }

    /// Waits until bans reach the kernel, or no longer do, by edge's own words.
    pub(crate) fn wait_kernel(&self, works: bool) {
        self.wait_metric("edge_firewall_up", |up| (up > 0.5) == works);
    }

    /// Does the kernel's own set hold this address?
    pub(crate) fn in_kernel(&self, address: IpAddr) -> bool {
        let (set, element) = match address {
            IpAddr::V4(v4) => ("ban4", v4.to_string()),
            IpAddr::V6(v6) => {
                let network = u128::from(v6) & !u128::from(u64::MAX);
                ("ban6", std::net::Ipv6Addr::from(network).to_string())
            }
        };
        let mut nft = self.lab.command(Host::Edge, "nft");
        let done = nft.args(["get", "element", "inet", "edge", set, &format!("{{ {element} }}")]).output();
        done.unwrap().status.success()
    }

    /// Every single IPv4 address that the kernel's own set holds.
    pub(crate) fn kernel_set(&self) -> BTreeSet<IpAddr> {
        let mut nft = self.lab.command(Host::Edge, "nft");
        let listed = nft.args(["list", "set", "inet", "edge", "ban4"]).output().unwrap();
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        let elements = text.split_once("elements = {").map_or("", |(_, elements)| elements);
        elements.split([' ', ',', '\n', '\t', '}']).filter_map(|word| word.parse().ok()).collect()
    }

    /// Waits until the kernel's set holds it, or does not.
    pub(crate) fn wait_in_kernel(&self, address: IpAddr, held: bool) {
        wait::until(&format!("{address} in the kernel: {held}"), SOON, || {
            anyhow::ensure!(self.in_kernel(address) == held, "it is not so");
            Ok(())
        })
        .unwrap();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // What is still open is the story's own; nobody waits for it. It may have ended already.
        let _ = self.edge.program.kill();
        // The neighbour's end is a call of itself, which must come from where it is.
        let upstream = self.upstream.take();
        let _ = self.lab.inside(Host::Edge, move || drop(upstream));
    }
}

fn edge_plan(folder: &Path, plan: &Plan, upstream: &Upstream) -> EdgePlan {
    let at = |name: &str| folder.join(name).display().to_string();
    EdgePlan {
        upstreams: vec![("neighbour".to_owned(), vec![upstream.address.to_string()])],
        routes: format!("[[route]]\nhost = \"{NAME}\"\nupstream = \"neighbour\"\n"),
        clients: plan.clients.clone(),
        everywhere: true,
        bans: format!(
            "[bans]\nstore = \"{}\"\njails_folder = \"{}\"\nfirewall_socket = \"{}\"\n{}\n{}",
            at("bans.db"),
            at("jails.d"),
            helper_socket(folder).display(),
            plan.bans,
            plan.sections,
        ),
        ..EdgePlan::default()
    }
}

fn helper_file(folder: &Path) -> PathBuf {
    folder.join("firewall/firewall.toml")
}

fn helper_socket(folder: &Path) -> PathBuf {
    folder.join("firewall/firewall.sock")
}

fn helper_text(folder: &Path, plan: &Plan) -> String {
    format!(
        "admin_networks = [\"{}\", \"{}\"]\nedge_user = \"root\"\nsocket = \"{}\"\nstate_folder = \"{}\"\n{}\n\
         [sizes]\nbans = 65536\nwide_bans = 1024\nclients = 65536\n",
        Host::Admin.address(),
        Host::Admin.address6(),
        helper_socket(folder).display(),
        folder.join("firewall/state").display(),
        plan.firewall,
    )
}

fn start_helper(lab: &Lab, folder: &Path) -> anyhow::Result<Program> {
    let binary = binaries::find("edge-firewall")?;
    let words = ["serve".into(), "--config".into(), helper_file(folder).into_os_string()];
    let helper =
        lab.inside(Host::Edge, || Program::start(Recipe::new("edge-firewall", binary, words, folder)))??;
    wait_helper(folder).map_err(|late| late.context(helper.log_tail(20)))?;
    Ok(helper)
}

fn wait_helper(folder: &Path) -> anyhow::Result<()> {
    wait::until("edge-firewall listens", SOON, || {
        UnixStream::connect(helper_socket(folder)).context("nobody answers").map(drop)
    })
}

/// `[10/Oct/2000:13:55:36 +0000]`, of this moment.
#[expect(clippy::disallowed_methods, reason = "a log line says when it was written")]
pub(crate) fn stamp() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let text = edge::ban::words::clock(now);
    // 2026-01-31 23:59:00Z
    let month = text.get(5..7).and_then(|month| month.parse::<usize>().ok()).unwrap();
    let names = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    format!("[{}/{}/{}:{} +0000]", &text[8..10], names[month - 1], &text[0..4], &text[11..19])
}

/// A line of an access log in the combined format, about a path traversal of this client.
pub(crate) fn offence(client: impl std::fmt::Display) -> String {
    format!("{client} - - {} \"GET {CLIMB} HTTP/1.1\" 404 153 \"-\" \"curl/8\"\n", stamp())
}

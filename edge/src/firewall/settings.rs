//! `firewall.toml` → ready settings. Knows the keys, their defaults and who may own the file; must
//! not know nftables' syntax. Read by the helper, which trusts nothing else, and by `edge firewall
//! print`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use shared::config::{Fault, Faults, Section, read_text};

/// Where the helper and `edge firewall` look, unless told otherwise.
pub const DEFAULT_FILE: &str = "/etc/edge/firewall.toml";
/// Where the helper listens by default.
pub const DEFAULT_SOCKET: &str = "/run/edge-firewall/firewall.sock";

/// Everything the helper needs to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallSettings {
    /// From where this host is administered; never banned.
    pub admin_networks: Vec<IpNet>,
    /// TCP ports that are open to [`FirewallSettings::admin_networks`] alone.
    pub admin_ports: Vec<u16>,
    /// HTTP in clear.
    pub http: Door,
    /// HTTPS.
    pub https: Door,
    /// Never banned, never limited.
    pub allow: Vec<IpNet>,
    /// Never banned, their connections and rate not limited: they carry many clients.
    pub trusted_proxies: Vec<IpNet>,
    /// Never banned, limited as all: the other edges, the vaults.
    pub never_ban: Vec<IpNet>,
    /// Open connections of one IPv4 address or IPv6 /64.
    pub max_connections: u32,
    /// New connections of one IPv4 address or IPv6 /64 in a second.
    pub new_connections: Rate,
    /// How many fit the kernel's sets.
    pub sizes: Sizes,
    /// Whose processes may order bans, besides root.
    pub edge_user: String,
    /// Where the helper listens.
    pub socket: PathBuf,
    /// What the helper keeps: the rules last confirmed, and a roll-back that is due.
    pub state_folder: PathBuf,
    /// No ban and no lease is longer.
    pub longest_ban: Duration,
}

/// A public TCP port and the one it is redirected to, which needs no privilege.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Door {
    /// What clients connect to.
    pub port: u16,
    /// Where edge listens.
    pub to: u16,
}

/// `[new_connections]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// In the long run.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

/// `[sizes]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Single IPv4 addresses, and IPv6 /64, banned at once; each.
    pub bans: u32,
    /// Wider networks banned at once, for each prefix length.
    pub wide_bans: u32,
    /// Clients counted at once; each of IPv4 and IPv6.
    pub clients: u32,
}

impl FirewallSettings {
    /// Reads `file` as anybody may, for `edge firewall print`. `option` names the file on the command
    /// line of whoever reads.
    ///
    /// # Errors
    /// Every fault at once.
    pub fn read(file: &Path, option: &str) -> Result<Self, Faults> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| unread(file, format!("cannot be read: {error}; name the file with {option}")))?;
        Self::parse(file, &text)
    }

    /// Reads `file` as the helper does: only if it and its folder belong to root and nobody else
    /// can write them.
    ///
    /// # Errors
    /// Every fault at once, or who else could write the file.
    pub fn read_trusted(file: &Path) -> Result<Self, Faults> {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let faults: Vec<_> = [file, folder].into_iter().filter_map(untrusted).collect();
        if !faults.is_empty() {
            return Err(Faults(faults));
        }
        Self::read(file, "--config")
    }

    /// As [`FirewallSettings::read`], from text that was read from `file` earlier.
    ///
    /// # Errors
    /// Every fault at once.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Faults> {
        read_text(file, text, Self::from_section)
    }

    fn from_section(root: &mut Section<'_>) -> Option<Self> {
        let admin_networks = networks(root, "admin_networks");
        let admin_ports = match root.has("admin_ports") {
            true => root.list("admin_ports"),
            false => vec![22],
        };
        let http = door(root, "http", Door { port: 80, to: 8080 });
        let https = door(root, "https", Door { port: 443, to: 8443 });
        distinct(root, http, https, &admin_ports);
        let allow = networks(root, "allow");
        let trusted_proxies = networks(root, "trusted_proxies");
        let never_ban = networks(root, "never_ban");
        let max_connections = within(root, "max_connections", 50, 1, 1_000_000);
        let mut rate = root.section("new_connections");
        let new_connections = Rate {
            per_second: within(&mut rate, "per_second", 200, 1, 1_000_000),
            burst: within(&mut rate, "burst", 400, 1, 1_000_000),
        };
        drop(rate);
        let mut sizes = root.section("sizes");
        let sizes = Sizes {
            bans: within(&mut sizes, "bans", 1_048_576, 16, 16_777_216),
            wide_bans: within(&mut sizes, "wide_bans", 16_384, 16, 1_048_576),
            clients: within(&mut sizes, "clients", 262_144, 16, 16_777_216),
        };
        let edge_user: String = root.or("edge_user", "webapps".to_owned());
        let socket = absolute(root, "socket", DEFAULT_SOCKET);
        let state_folder = absolute(root, "state_folder", "/var/lib/edge-firewall");
        let longest_ban = root.or("longest_ban", Duration::from_secs(30 * 86_400));
        if longest_ban < Duration::from_secs(1) || longest_ban > Duration::from_secs(366 * 86_400) {
            root.fault("longest_ban", "must lie between \"1s\" and \"366d\"; write \"30d\"");
        }
        Some(Self {
            admin_networks,
            admin_ports,
            http,
            https,
            allow,
            trusted_proxies,
            never_ban,
            max_connections,
            new_connections,
            sizes,
            edge_user,
            socket,
            state_folder,
            longest_ban,
        })
    }

    /// Everybody whom this file protects from bans.
    pub fn protected(&self) -> impl Iterator<Item = IpNet> + '_ {
        [&self.admin_networks, &self.allow, &self.trusted_proxies, &self.never_ban]
            .into_iter()
            .flatten()
            .copied()
    }
}

fn untrusted(path: &Path) -> Option<Fault> {
    let what = match std::fs::metadata(path) {
        Err(error) => format!("cannot be looked at: {error}; name the file with --config"),
        Ok(found) if found.uid() != 0 => {
            format!("belongs to user {}; only root may own it: write `chown root`", found.uid())
        }
        Ok(found) if found.mode() & 0o022 != 0 => {
            format!("mode {:o} lets others write; write `chmod go-w`", found.mode() & 0o7777)
        }
        Ok(_) => return None,
    };
    Some(Fault { file: path.to_owned(), line: 0, column: 0, what })
}

fn unread(file: &Path, what: String) -> Faults {
    Faults(vec![Fault { file: file.to_owned(), line: 0, column: 0, what }])
}

/// Truncated, so that `10.1.2.3/8` means what it says.
fn networks(section: &mut Section<'_>, key: &'static str) -> Vec<IpNet> {
    let networks: Vec<IpNet> = section.list(key);
    if networks.iter().any(|network| network.prefix_len() == 0) {
        section.fault(key, "a network of /0 is everybody; name the networks that are meant");
    }
    networks.iter().map(IpNet::trunc).collect()
}

fn door(root: &mut Section<'_>, key: &'static str, default: Door) -> Door {
    let mut section = root.section(key);
    let door = Door { port: section.or("port", default.port), to: section.or("to", default.to) };
    if door.port == 0 || door.to == 0 {
        section.fault("port", format!("0 is no port; write {}", default.port));
    }
    if door.port == door.to {
        section.fault(
            "to",
            format!("is the public port itself; edge listens on another, such as {}", default.to),
        );
    }
    door
}

/// A port that is two things at once would be open where it must not be.
fn distinct(root: &mut Section<'_>, http: Door, https: Door, admin_ports: &[u16]) {
    let doors = [http.port, http.to, https.port, https.to];
    if http.port == https.port || http.to == https.to || http.port == https.to || https.port == http.to {
        root.fault("https", "shares a port with http; write four different ports");
    }
    if let Some(port) = admin_ports.iter().find(|port| doors.contains(port) || **port == 0) {
        root.fault("admin_ports", format!("{port} is no port, or a port of the public doors; leave it out"));
    }
}

fn within(section: &mut Section<'_>, key: &'static str, default: u32, least: u32, most: u32) -> u32 {
    let value = section.or(key, default);
    if !(least..=most).contains(&value) {
        section.fault(key, format!("{value} is out of range; write {least} to {most}"));
    }
    value
}

fn absolute(section: &mut Section<'_>, key: &'static str, default: &str) -> PathBuf {
    let path = section.or(key, PathBuf::from(default));
    if !path.is_absolute() {
        section.fault(key, format!("must begin with /; write {default:?}"));
    }
    path
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const SAMPLE: &str = include_str!("../../../conf/firewall.toml");

    fn read(text: &str) -> Result<FirewallSettings, Faults> {
        FirewallSettings::parse(Path::new("firewall.toml"), text)
    }

    #[test]
    fn the_sample_states_the_real_defaults_and_every_key() {
        assert_eq!(read(SAMPLE).unwrap(), read("").unwrap());
        let keys = [
            "admin_networks",
            "admin_ports",
            "port",
            "to",
            "allow",
            "trusted_proxies",
            "never_ban",
            "max_connections",
            "per_second",
            "burst",
            "bans",
            "wide_bans",
            "clients",
            "edge_user",
            "socket",
            "state_folder",
            "longest_ban",
        ];
        for key in keys {
            let at = SAMPLE.lines().position(|line| line.starts_with(&format!("{key} = ")));
            let before = at.and_then(|at| SAMPLE.lines().nth(at - 1));
            assert!(before.is_some_and(|line| line.starts_with("# ")), "{key}: stands there, with its why");
        }
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let text = "admin_networks = [\"0.0.0.0/0\"]\nadmin_ports = [8443]\nmax_connections = 0\n\
                    longest_ban = \"0s\"\nsocket = \"x\"\n[sizes]\nban = 1\n[https]\nport = 80\n";
        assert_eq!(
            read(text).unwrap_err().to_string(),
            "firewall.toml:1:18: admin_networks: a network of /0 is everybody; name the networks that are meant\n\
             firewall.toml:2:15: admin_ports: 8443 is no port, or a port of the public doors; leave it out\n\
             firewall.toml:3:19: max_connections: 0 is out of range; write 1 to 1000000\n\
             firewall.toml:4:15: longest_ban: must lie between \"1s\" and \"366d\"; write \"30d\"\n\
             firewall.toml:5:10: socket: must begin with /; write \"/run/edge-firewall/firewall.sock\"\n\
             firewall.toml:7:1: sizes.ban: unknown key; did you mean bans?\n\
             firewall.toml:8:1: https: shares a port with http; write four different ports"
        );
    }

    #[test]
    fn a_file_that_others_can_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("firewall.toml");
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
        let told = FirewallSettings::read_trusted(&file).unwrap_err().to_string();
        // Run by another user than root, the owner is what is told.
        assert!(told.contains("lets others write") || told.contains("only root may own it"), "{told}");
    }

    proptest::proptest! {
        #[test]
        fn no_damage_to_the_file_makes_the_reader_panic(cut in 0_usize..4000, garbage in "(?s).{0,8}") {
            let mut text = SAMPLE.to_owned();
            if let Some(at) = (0..=cut.min(text.len())).rev().find(|at| text.is_char_boundary(*at)) {
                text.insert_str(at, &garbage);
            }
            let _either = read(&text);
        }
    }
}

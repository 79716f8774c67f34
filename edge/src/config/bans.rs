//! Reader of `[bans]`, and of the files of filters and jails that it names. Knows keys, defaults and in which
//! order the files speak: edge's own, the folder's by name, `edge.toml`. Compiles no pattern.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use shared::config::{Section, read_file, read_text};

use super::addresses::Taken;
use super::builtin;
use super::jails::{Collected, WrittenFilter};
use crate::ban::{CrossSite, JailSettings};
use crate::firewall;

/// What the kernel's sets and our tables are made for.
const MAX_BANS: usize = 1 << 24;
/// An event that waits takes a few hundred bytes.
const MAX_QUEUE: usize = 1 << 20;
/// Files of one folder.
const MAX_FILES: usize = 1024;

/// `[bans]`, `[[filter]]` and `[[jail]]`
#[derive(Clone, Debug, PartialEq)]
pub struct Bans {
    /// Does anybody get banned at all?
    pub enabled: bool,
    /// Bans that survive a restart.
    pub store: PathBuf,
    /// What carries bans out below HTTP.
    pub firewall: firewall::Settings,
    /// Bans at once; above, the one that ends first makes room.
    pub max_bans: usize,
    /// Who is never banned, besides whom edge adds by itself: its own addresses, trusted proxies, the other
    /// edges, the gateway's vaults, the default gateway.
    pub never: Vec<IpNet>,
    /// The other edges.
    pub peers: Vec<IpAddr>,
    /// Events that may wait for the engine; further ones are lost and counted.
    pub queue: usize,
    /// Idle connections of one client; above, its oldest idle one is closed.
    pub max_idle_connections: usize,
    /// Every filter, used or not, so that all are checked.
    pub filters: Vec<WrittenFilter>,
    /// The jails that are on.
    pub jails: Vec<JailSettings>,
}

/// `None` after noting what is wrong.
pub(super) fn bans(root: &mut Section<'_>, taken: &mut Taken) -> Option<Bans> {
    let mut section = root.section("bans");
    let s = &mut section;
    let enabled = s.or("enabled", true);
    let with_builtin = s.or("builtin", true);
    let store = s.or("store", PathBuf::from("/var/lib/edge/bans.db"));
    let kind = kind(s);
    let firewall_socket = s.or("firewall_socket", PathBuf::from("/run/edge-firewall/firewall.sock"));
    taken.take_socket(s, "firewall_socket", "bans.firewall_socket", &firewall_socket);
    let max_bans = limited(s, "max_bans", 1 << 20, MAX_BANS);
    let queue = limited(s, "queue", 1 << 16, MAX_QUEUE);
    let cross_site = cross_site(s);
    let max_idle_connections = limited(s, "max_idle_connections", 40, usize::MAX);
    let never: Vec<IpNet> = s.list("never");
    for network in never.iter().filter(|network| network.prefix_len() == 0) {
        s.fault("never", format!("\"{network}\" is everybody; write enabled = false, or your own networks"));
    }
    let peers: Vec<IpAddr> = s.list("peers");
    let mut collected = Collected::default();
    for (name, text) in builtin::FILES {
        let file = PathBuf::from(format!("conf/jails/{name}.toml (built in)"));
        let read = read_text(&file, text, |root| {
            collected.take(root, true);
            Some(())
        });
        s.adopt(read.err().into_iter().flat_map(|faults| faults.0));
    }
    let folder = s.or("jails_folder", PathBuf::from("/etc/edge/jails.d"));
    let folder = s.folder().join(folder);
    for file in files_of(s, &folder) {
        let read = read_file(&file, |root| {
            collected.take(root, false);
            Some(())
        });
        s.adopt(read.err().into_iter().flat_map(|faults| faults.0));
    }
    collected.take(root, false);
    let (filters, mut jails, faults) = collected.finished(with_builtin);
    root.adopt(faults);
    for jail in &mut jails {
        jail.cross_site = cross_site;
    }
    Some(Bans {
        enabled,
        store,
        firewall: firewall::Settings {
            kind: kind?,
            socket: firewall_socket,
            ..firewall::Settings::default()
        },
        max_bans,
        never,
        peers,
        queue,
        max_idle_connections,
        filters,
        jails,
    })
}

fn kind(s: &mut Section<'_>) -> Option<firewall::Kind> {
    let written = s.or("firewall", "kernel".to_owned());
    match written.as_str() {
        "kernel" => Some(firewall::Kind::Kernel),
        "rehearsal" => Some(firewall::Kind::Rehearsal),
        "none" => Some(firewall::Kind::None),
        other => {
            s.fault(
                "firewall",
                format!("{other:?} is no firewall; write \"kernel\", \"rehearsal\" or \"none\""),
            );
            None
        }
    }
}

/// The default after noting what is wrong.
fn cross_site(s: &mut Section<'_>) -> CrossSite {
    let written = s.or("cross_site", "throttle".to_owned());
    match written.as_str() {
        "throttle" => CrossSite::Throttle,
        "ban" => CrossSite::Ban,
        "ignore" => CrossSite::Ignore,
        other => {
            let what = format!("{other:?} is nothing to do; write \"throttle\", \"ban\" or \"ignore\"");
            s.fault("cross_site", what);
            CrossSite::default()
        }
    }
}

fn limited(s: &mut Section<'_>, key: &'static str, default: usize, most: usize) -> usize {
    let count = s.or(key, default);
    if count == 0 {
        s.fault(key, format!("0 is none at all; write 1 or more, usually {default}"));
    } else if count > most {
        s.fault(
            key,
            format!("{count} is more than there is room for; write at most {most}, usually {default}"),
        );
    }
    count
}

/// The folder's `*.toml`, sorted; a folder that is not there has none.
fn files_of(s: &mut Section<'_>, folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    match fs::read_dir(folder) {
        Ok(entries) => {
            let toml = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "toml");
            files.extend(
                entries.filter_map(Result::ok).map(|entry| entry.path()).filter(toml).take(MAX_FILES + 1),
            );
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            let what = format!("{} cannot be read: {error}; let edge's user read it", folder.display());
            s.fault("jails_folder", what);
        }
    }
    if files.len() > MAX_FILES {
        s.fault("jails_folder", format!("{} holds more than {MAX_FILES} files; join some", folder.display()));
    }
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Bans, String> {
        read_text(Path::new("edge.toml"), text, |root| bans(root, &mut Taken::default()))
            .map_err(|faults| faults.to_string())
    }

    fn names(bans: &Bans) -> Vec<&str> {
        bans.jails.iter().map(|jail| &*jail.name).collect()
    }

    #[test]
    fn bans_are_on_unless_it_is_said() {
        let read = read("[bans]\njails_folder = \"/nowhere\"\n").unwrap();
        assert!(read.enabled);
        assert_eq!(read.store, Path::new("/var/lib/edge/bans.db"));
        assert_eq!(read.firewall, firewall::Settings::default());
        assert_eq!((read.max_bans, read.queue, read.max_idle_connections), (1_048_576, 65_536, 40));
        assert_eq!((read.never.len(), read.peers.len()), (0, 0));
        assert!(read.jails.iter().all(|jail| jail.cross_site == CrossSite::Throttle));
    }

    #[test]
    fn the_files_of_the_folder_speak_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write(
            "10-a.toml",
            "[[filter]]\nname = \"f\"\nfailregex = ['^<HOST>']\n[[jail]]\nname = \"one\"\nfilter = \"f\"\n",
        );
        write(
            "20-b.toml",
            "[[jail]]\nname = \"one\"\nmax_offences = 7\n[[jail]]\nname = \"two\"\nfilter = \"mine\"\n",
        );
        write("30-c.toml.disabled", "nonsense");
        let mine = format!(
            "[bans]\nbuiltin = false\njails_folder = \"{}\"\n[[jail]]\nname = \"one\"\nban_time = \"1h\"\n\
             [[filter]]\nname = \"mine\"\nfailregex = ['^<HOST> x']\n",
            folder.path().display()
        );
        let bans = read(&mine).unwrap();
        assert_eq!(names(&bans), ["one", "two"]);
        let one = &bans.jails[0];
        assert_eq!((one.max_offences, one.ban_time.as_secs()), (7, 3600));
        let wrong = mine.replace("name = \"mine\"\nf", "name = \"other\"\nf");
        let told = read(&wrong).unwrap_err();
        assert!(
            told.contains("20-b.toml:6:10: jail.filter: there is no filter \"mine\"; write one of "),
            "{told}"
        );
        write("40-d.toml", "[[jail]]\nname = \"x\"\nfilter = \"f\"\nfind_tme = \"1h\"\n");
        let told = read(&mine).unwrap_err();
        assert!(
            told.contains("40-d.toml:4:1: jail.find_tme: unknown key; did you mean find_time?"),
            "{told}"
        );
    }

    #[test]
    fn what_edge_brings_along_is_without_fault() {
        let read = read("[bans]\njails_folder = \"/nowhere\"\n").unwrap();
        assert!(read.filters.len() >= builtin::FILES.len());
        for jail in &read.jails {
            assert!(read.filters.iter().any(|filter| filter.text.name == jail.filter), "{}", jail.name);
        }
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        let text = "[bans]\nfirewall = \"iptables\"\nmax_bans = 0\nqueue = 99999999\nnever = [\"::/0\"]\npeers = [\"b\"]\ncross_site = \"no\"\njails_folder = \"/dev/null\"\n";
        let told = read(text).unwrap_err();
        let expected = "\
edge.toml:2:12: bans.firewall: \"iptables\" is no firewall; write \"kernel\", \"rehearsal\" or \"none\"
edge.toml:3:12: bans.max_bans: 0 is none at all; write 1 or more, usually 1048576
edge.toml:4:9: bans.queue: 99999999 is more than there is room for; write at most 1048576, usually 65536
edge.toml:5:9: bans.never: \"::/0\" is everybody; write enabled = false, or your own networks
edge.toml:6:10: bans.peers: \"b\" is no IP address; write \"192.0.2.1\"
edge.toml:7:14: bans.cross_site: \"no\" is nothing to do; write \"throttle\", \"ban\" or \"ignore\"
edge.toml:8:16: bans.jails_folder: /dev/null cannot be read: Not a directory (os error 20); let edge's user read it";
        assert_eq!(told, expected);
    }
}

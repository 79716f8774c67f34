//! `edge.toml` → ready settings. Knows the keys and their defaults; opens nothing but the
//! file itself. Each room owns the settings it is handed.

mod addresses;
mod bans;
mod builtin;
mod door;
mod jails;
mod listeners;
mod routes;
mod sections;
mod throttle;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use shared::config::{ByteSize, Faults, Section, read_file};

pub use bans::Bans;
pub use jails::WrittenFilter;
pub use listeners::{Listener, Mode};
pub use throttle::Throttle;

use crate::{access_log, gateway, route, upstream};

/// Everything edge needs to run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's host name, which DNS round robin spreads: `www.example.org`.
    pub name: String,
    /// This host's own name, where health is answered: `www1.example.org`.
    pub direct_name: Option<String>,
    /// Sockets and their deadlines.
    pub listen: Listen,
    /// Certificates for browsers, chosen by SNI; exactly one is the default where HTTPS is served.
    pub certificates: Vec<CertificateFiles>,
    /// Who clients are and how much one may do at a time.
    pub clients: Clients,
    /// Host and path → upstream.
    pub routes: Vec<route::Route>,
    /// The upstreams that routes name.
    pub upstreams: Vec<upstream::Settings>,
    /// One line a request.
    pub access_log: access_log::Settings,
    /// Health and metrics in clear.
    pub admin: SocketAddr,
    /// Operators' commands on this host.
    pub control_socket: PathBuf,
    /// The handlers' door to the vault pair.
    pub gateway: Option<gateway::Settings>,
    /// Threads that serve clients.
    pub threads: usize,
    /// Who attacks, and what becomes of it.
    pub bans: Bans,
    /// How fast clients may ask.
    pub throttle: Throttle,
}

/// `[listen]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// `https`, `http` and `[[listener]]`.
    pub listeners: Vec<Listener>,
    /// Most client connections at once; further ones are closed at once.
    pub max_connections: usize,
    /// A TLS handshake must be over within this time.
    pub handshake_timeout: Duration,
    /// A request's whole head must have come within this time.
    pub head_timeout: Duration,
    /// A connection without a request is closed after this time.
    pub idle_timeout: Duration,
    /// A request's body that makes no progress for this long is ended.
    pub body_timeout: Duration,
    /// What an HTTP/1 request's body must bring, each second; it may fall behind by `body_timeout`.
    /// 0 demands nothing.
    pub min_rate: ByteSize,
    /// An answer that the client does not take for this long is ended.
    pub write_timeout: Duration,
    /// Largest request head.
    pub max_head: ByteSize,
    /// Most header lines of a request.
    pub max_headers: usize,
    /// Longest request target.
    pub max_uri: ByteSize,
    /// Most requests at once on one HTTP/2 connection.
    pub h2_streams: u32,
    /// How long requests in flight may go on when edge stops.
    pub drain: Duration,
}

/// `[[certificate]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// SNI names in lower case, exact or `*.x`.
    pub names: Vec<String>,
    /// The chain, PEM, leaf first.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Shown to clients that ask for no name we know.
    pub default: bool,
}

/// `[clients]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clients {
    /// Requests of one client in flight at once; further ones are answered 429.
    pub max_in_flight: u32,
    /// Connections of one client at once; further ones are closed before TLS. Trusted proxies have no such
    /// limit.
    pub max_connections: usize,
    /// The networks whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// What a 429 tells the client to wait; whole seconds.
    pub retry_after: Duration,
}

impl Config {
    /// Reads `file`.
    ///
    /// # Errors
    /// Every fault at once.
    pub fn read(file: &Path) -> Result<Self, Faults> {
        read_file(file, Self::from_section)
    }

    fn from_section(root: &mut Section<'_>) -> Option<Self> {
        let mut taken = addresses::Taken::default();
        let name = sections::host_name(root, "name");
        let direct_name = sections::direct_name(root, name.as_deref());
        let threads = sections::threads(root);
        let certificates = sections::certificates(root);
        let clients = sections::clients(root.section("clients"));
        let trusted = !clients.trusted_proxies.is_empty();
        let listen = root.section("listen");
        let more = root.sections("listener");
        let listen = listeners::listen(listen, more, certificates.count, trusted, &mut taken);
        let (admin, control_socket) = sections::admin(root.section("admin"), &mut taken);
        let gateway = root
            .optional_section("gateway")
            .map(|section| door::gateway(section, &control_socket, &mut taken));
        let upstreams = routes::upstreams(root, &taken);
        let routes = routes::routes(root, &upstreams.names);
        let access_log = sections::access_log(root.section("access_log"));
        let bans = bans::bans(root, &mut taken);
        let throttle = throttle::throttle(root.section("throttle"));
        Some(Self {
            name: name?,
            direct_name,
            listen,
            certificates: certificates.read?,
            clients,
            routes: routes?,
            upstreams: upstreams.read?,
            access_log: access_log?,
            admin,
            control_socket,
            // Absent is well; present but faulty is not.
            gateway: match gateway {
                Some(read) => Some(read?),
                None => None,
            },
            threads,
            bans: bans?,
            throttle: throttle?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::config::read_text;

    use super::*;
    use crate::access_log::Format;
    use crate::admission::Rate;
    use crate::ban;
    use crate::gateway::Address;
    use crate::route::HostPattern;
    use crate::upstream::Server;

    const SAMPLE: &str = include_str!("../../conf/edge.toml");

    /// As little as serves; tests add to it.
    const LEAST: &str = "\
name = \"www.example.org\"
[listen]
https = [\"0.0.0.0:8443\"]
[[certificate]]
names = [\"www.example.org\"]
certificate_file = \"/c\"
key_file = \"/k\"
[[upstream]]
name = \"app\"
servers = [\"127.0.0.1:9000\"]
[[route]]
upstream = \"app\"
";

    fn read(text: &str) -> Result<Config, Faults> {
        read_text(Path::new("edge.toml"), text, Config::from_section)
    }

    /// The faults of [`LEAST`] with `from` replaced, one a line, without the file's name.
    fn faults(changes: &[(&str, &str)]) -> String {
        let mut text = LEAST.to_owned();
        for (from, to) in changes {
            assert!(text.contains(from), "{from} is not in the sample");
            text = text.replacen(from, to, 1);
        }
        read(&text).unwrap_err().to_string().replace("edge.toml:", "")
    }

    /// The same with `more` at the end.
    fn faults_with(more: &str) -> String {
        read(&format!("{LEAST}{more}")).unwrap_err().to_string().replace("edge.toml:", "")
    }

    #[test]
    fn the_sample_states_the_real_defaults() {
        let sample = read(SAMPLE).unwrap();
        let least = read(LEAST).unwrap();
        let listeners = sample.listen.listeners.clone();
        assert_eq!(sample.listen, Listen { listeners, ..least.listen });
        assert_eq!(sample.clients, least.clients);
        assert_eq!(sample.access_log, least.access_log);
        assert_eq!((sample.admin, sample.control_socket), (least.admin, least.control_socket));
        assert_eq!(sample.certificates[0].default, least.certificates[0].default);
        let (said, silent) = (&sample.routes[0], &least.routes[0]);
        assert_eq!(
            (&said.path_prefix, said.max_body, said.timeout),
            (&silent.path_prefix, silent.max_body, silent.timeout)
        );
        assert_eq!(silent.host, HostPattern::Any);
        let (said, silent) = (&sample.upstreams[0], &least.upstreams[0]);
        assert_eq!((said.connect_timeout, said.fail_timeout), (silent.connect_timeout, silent.fail_timeout));
        assert_eq!(said.servers[1], Server::Unix(PathBuf::from("/run/app/app.sock")));
        let door = "[[gateway.vault]]\nname = \"vault-a\"\naddress = \"10.0.0.5:7443\"\n";
        let (said, silent) =
            (sample.gateway.unwrap(), read(&format!("{LEAST}{door}")).unwrap().gateway.unwrap());
        assert_eq!((&said.listen, &said.tls), (&silent.listen, &silent.tls));
        assert_eq!((said.max_kept_body, said.max_file), (silent.max_kept_body, silent.max_file));
        assert_eq!(said.tickets, silent.tickets);
        assert!(least.gateway.is_none());
        let Bans { filters, jails, .. } = least.bans.clone();
        let Bans { filters: said, jails: said_jails, .. } = sample.bans.clone();
        assert_eq!(sample.bans, Bans { filters: said.clone(), jails: said_jails.clone(), ..least.bans });
        assert_eq!((said.len(), said_jails.len()), (filters.len() + 1, jails.len() + 1));
        let jail = "[[jail]]\nname = \"app-login\"\nfilter = \"f\"\nescalation_factor = 2\n\
                    logs = [\"/var/log/app/*.log\"]\n[[filter]]\nname = \"f\"\nfailregex = ['x']\n";
        let silent = read(&format!("{LEAST}{jail}")).unwrap().bans;
        let (said_jail, silent_jail) = (said_jails.last().unwrap(), silent.jails.last().unwrap());
        assert_eq!(*said_jail, ban::JailSettings { filter: said_jail.filter.clone(), ..silent_jail.clone() });
        let (said, silent) = (&said.last().unwrap().text, &silent.filters.last().unwrap().text);
        assert_eq!(said.max_lines, silent.max_lines);
        assert_eq!(sample.throttle, least.throttle);
        assert_eq!((sample.routes[0].rate, least.routes[0].rate), (None, None));
        assert_eq!(least.threads, std::thread::available_parallelism().unwrap().get());
    }

    #[test]
    fn every_fault_is_told_at_once_with_its_place() {
        let text = "\
name = \"www.example.org:443\"
[listen]
https = [\"0.0.0.0:8443\", \"127.0.0.1:8443\"]
http = [\"0.0.0.0:8443\"]
max_conections = 5
head_timeout = \"0s\"
max_uri = \"64KiB\"
[clients]
max_in_flight = 0
trusted_proxies = [\"0.0.0.0/0\"]
[[upstream]]
name = \"app\"
servers = [\"app.internal:9000\", \"unix:run/app.sock\"]
[[upstream]]
name = \"app\"
servers = [\"127.0.0.1:8443\"]
[[route]]
host = \"www.example.org:443\"
path_prefix = \"/a/../b\"
upstream = \"ap\"
[[route]]
upstream = \"app\"
[[route]]
path_prefix = \"//\"
upstream = \"app\"
[access_log]
format = \"apache\"
[gateway]
listen = \"0.0.0.0:8445\"
";
        assert_eq!(
            read(text).unwrap_err().to_string(),
            "\
edge.toml:1:8: name: \"www.example.org:443\" is no host name; write one such as \"www.example.org\"
edge.toml:3:9: listen.https: \"127.0.0.1:8443\" is taken by listen.https = \"0.0.0.0:8443\"; write another port
edge.toml:3:9: listen.https: has no certificate to show; write a [[certificate]] section
edge.toml:4:8: listen.http: \"0.0.0.0:8443\" is taken by listen.https = \"0.0.0.0:8443\"; write another port
edge.toml:5:1: listen.max_conections: unknown key; did you mean max_connections?
edge.toml:6:16: listen.head_timeout: no time at all would end everything; write \"10s\" or what you need
edge.toml:7:11: listen.max_uri: 64KiB cannot come in a head of 32KiB; write at most max_head
edge.toml:9:17: clients.max_in_flight: 0 would refuse everything; write 1 or more, usually 50
edge.toml:10:19: clients.trusted_proxies: \"0.0.0.0/0\" lets every client choose its own address; write your proxies' networks
edge.toml:13:11: upstream.servers: \"app.internal:9000\" is no server; write \"127.0.0.1:9000\" or \"unix:/run/app.sock\"
edge.toml:13:11: upstream.servers: \"unix:run/app.sock\" is no server; write \"127.0.0.1:9000\" or \"unix:/run/app.sock\"
edge.toml:15:8: upstream.name: \"app\" is an upstream already; write another name
edge.toml:16:11: upstream.servers: \"127.0.0.1:8443\" is listen.https of this very edge; write where the application listens
edge.toml:18:8: route.host: \"www.example.org:443\" is no host; a route is for every port; write \"www.example.org\"
edge.toml:19:15: route.path_prefix: \"/a/../b\" is no path: the path holds a dot segment; write \"/\" or one such as \"/api\"
edge.toml:20:12: route.upstream: there is no upstream \"ap\"; write one of \"app\"
edge.toml:24:15: route.path_prefix: \"//\" for host \"*\" has a route already; write another path or host
edge.toml:27:10: access_log.format: \"apache\" is no format; write \"combined\" or \"json\"
edge.toml:28:1: gateway.tokens_file: missing: over TCP any user of this host could call; write tokens_file = \"/etc/edge/gateway.tokens\", or listen on \"unix:/run/edge/gateway.sock\"
edge.toml:28:1: gateway.vault: 0 configured; write one [[gateway.vault]] section for each vault of the pair
edge.toml:29:10: gateway.listen: \"0.0.0.0:8445\" is not loopback, and the gateway speaks in clear; write \"unix:/run/edge/gateway.sock\" or \"127.0.0.1:8445\""
        );
    }

    #[test]
    fn an_edge_that_serves_nothing_is_refused() {
        assert_eq!(
            read("name = \"a.b\"\n").unwrap_err().to_string(),
            "edge.toml:1:1: listen.https: nothing is listened on; write https = [\"0.0.0.0:8443\", \"[::]:8443\"]\n\
             edge.toml:1:1: route: missing, so every request would be answered 404; write a [[route]] section"
        );
        assert_eq!(
            faults(&[("https = [\"0.0.0.0:8443\"]", "http = [\"0.0.0.0:8080\"]")]),
            "3:8: listen.http: only redirects to HTTPS; write https = [\"0.0.0.0:8443\"] too"
        );
        assert_eq!(
            faults(&[("[\"0.0.0.0:8443\"]", "[]")]),
            "3:9: listen.https: nothing is listened on; write [\"0.0.0.0:8443\", \"[::]:8443\"]"
        );
        assert_eq!(
            faults(&[("0.0.0.0:8443", "all:8443")]),
            "3:9: listen.https: \"all:8443\" is no address with port; write \"0.0.0.0:8443\" or \"[::]:8443\""
        );
        assert_eq!(
            faults(&[("0.0.0.0:8443", "0.0.0.0:0")]),
            "3:9: listen.https: \"0.0.0.0:0\" is another port at every start; write the port"
        );
    }

    #[test]
    fn a_listener_says_what_it_speaks() {
        let listener =
            |mode: &str, port: u16| format!("[[listener]]\naddress = \"[::]:{port}\"\nmode = \"{mode}\"\n");
        let read_with = |more: &str| read(&format!("{LEAST}{more}")).unwrap().listen.listeners;
        let modes = listener("tls", 1) + &listener("redirect", 2) + &listener("clear", 3);
        let modes: Vec<_> = read_with(&modes).iter().map(|one| (one.address.port(), one.mode)).collect();
        let expected = [(8443, Mode::Tls), (1, Mode::Tls), (2, Mode::Redirect), (3, Mode::Clear)];
        assert_eq!(modes, expected);
        assert_eq!(
            faults_with(
                &(listener("h2c", 1) + &listener("clear", 8443) + &listener("clear", 8443) + "x = 1\n")
            ),
            "15:8: listener.mode: \"h2c\" is nothing to speak; write \"tls\", \"redirect\" or \"clear\"\n\
             20:11: listener.address: \"[::]:8443\" stands here twice; write it once\n\
             22:1: listener.x: unknown key; known here: address, mode, proxy"
        );
        assert_eq!(
            faults_with("[[listener]]\naddress = \"localhost:80\"\n"),
            "13:1: listener.mode: missing; write mode = \"…\"\n\
             14:11: listener.address: \"localhost:80\" is no address with port; write \"0.0.0.0:8443\" or \"[::]:8443\""
        );
        let without = |mode: &str| {
            let text = LEAST.replace("https = [\"0.0.0.0:8443\"]\n", "");
            let (head, rest) = text.split_once("[[certificate]]").unwrap();
            let (_, rest) = rest.split_once("[[upstream]]").unwrap();
            read(&format!("{head}[[upstream]]{rest}{}", listener(mode, 80)))
        };
        assert_eq!(without("clear").unwrap().listen.listeners[0].mode, Mode::Clear, "needs no certificate");
        let proxied = listener("clear", 3) + "proxy = true\n";
        assert_eq!(
            faults_with(&proxied),
            "16:9: listener.proxy: nobody may write the header; write the load balancer into clients.trusted_proxies"
        );
        let trusting = format!("{proxied}[clients]\ntrusted_proxies = [\"10.0.0.0/8\"]\n");
        let proxied: Vec<_> = read_with(&trusting).iter().map(|one| one.proxy).collect();
        assert_eq!(proxied, [false, true]);
        assert!(
            without("tls").unwrap_err().to_string().contains("listener.mode: has no certificate to show")
        );
        assert!(
            without("redirect").unwrap_err().to_string().contains("listener.mode: only redirects to HTTPS")
        );
    }

    #[test]
    fn exactly_one_certificate_is_the_default() {
        let second =
            "[[certificate]]\nnames = [\"*.example.org\"]\ncertificate_file = \"/c\"\nkey_file = \"/k\"\n";
        assert_eq!(
            faults_with(second),
            "4:1: certificate.default: no certificate is the default; write default = true at the one for clients that send no name"
        );
        assert_eq!(
            faults(&[(
                "key_file = \"/k\"",
                &format!("key_file = \"/k\"\ndefault = true\n{second}default = true")
            )]),
            "13:11: certificate.default: another certificate is the default already; write true at one only"
        );
        assert_eq!(
            faults(&[("key_file = \"/k\"", "key_file = \"/k\"\ndefault = false")]),
            "8:11: certificate.default: clients that send no name need the one certificate; write true, or leave it out"
        );
        let chosen =
            read(&LEAST.replace("[[upstream]]", &format!("default = true\n{second}[[upstream]]"))).unwrap();
        assert_eq!(chosen.certificates.iter().map(|c| c.default).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn a_name_has_one_certificate() {
        assert_eq!(
            faults(&[(
                "[\"www.example.org\"]",
                "[\"www.example.org\", \"WWW.example.org\", \"*\", \"a b\"]"
            )]),
            "5:9: certificate.names: \"*\" is no host name; write \"www.example.org\" or \"*.example.org\"\n\
             5:9: certificate.names: \"a b\" is no host name; write \"www.example.org\" or \"*.example.org\"\n\
             5:9: certificate.names: \"www.example.org\" has a certificate already; write it once"
        );
    }

    #[test]
    fn zero_is_no_limit() {
        for (key, value) in [
            ("max_connections", "0"),
            ("max_headers", "0"),
            ("h2_streams", "0"),
            ("max_head", "\"0B\""),
            ("max_uri", "\"0B\""),
        ] {
            let told = faults(&[("https =", &format!("{key} = {value}\nhttps ="))]);
            assert!(
                told.contains(&format!("listen.{key}: 0")) && told.contains("would refuse everything"),
                "{told}"
            );
        }
        for key in ["handshake_timeout", "idle_timeout", "body_timeout", "write_timeout"] {
            let told = faults(&[("https =", &format!("{key} = \"0s\"\nhttps ="))]);
            assert!(told.contains(&format!("listen.{key}: no time at all")), "{told}");
        }
        assert!(
            faults_with("[access_log]\nqueue = 0\n").contains("access_log.queue: 0 would refuse everything")
        );
        assert!(
            faults_with("[clients]\nretry_after = \"1500ms\"\n")
                .contains("clients.retry_after: goes out as whole seconds")
        );
        assert!(
            faults(&[("[listen]", "threads = 0\n[listen]")])
                .contains("threads: 0 is out of range; write 1 to 1024")
        );
    }

    #[test]
    fn no_address_is_given_out_twice() {
        assert_eq!(
            faults_with("[admin]\nlisten = \"127.0.0.1:8443\"\n"),
            "14:10: admin.listen: \"127.0.0.1:8443\" is taken by listen.https = \"0.0.0.0:8443\"; write another port"
        );
        assert_eq!(
            faults(&[("[\"0.0.0.0:8443\"]", "[\"0.0.0.0:8443\", \"0.0.0.0:8443\"]")]),
            "3:9: listen.https: \"0.0.0.0:8443\" stands here twice; write it once"
        );
        let door = "[[gateway.vault]]\nname = \"vault-a\"\naddress = \"10.0.0.5:7443\"\n";
        assert_eq!(
            faults_with(&format!("[gateway]\nlisten = \"unix:/run/edge/control.sock\"\n{door}")),
            "14:10: gateway.listen: \"/run/edge/control.sock\" is taken by admin.control_socket; write another path"
        );
        assert!(read(&LEAST.replace("\"0.0.0.0:8443\"", "\"0.0.0.0:8443\", \"[::]:8443\"")).is_ok());
    }

    #[test]
    fn the_pair_is_one_or_two_different_vaults() {
        let vault = |name: &str, port: u16| {
            format!("[[gateway.vault]]\nname = \"{name}\"\naddress = \"10.0.0.5:{port}\"\n")
        };
        assert_eq!(
            faults_with(&(vault("a", 1) + &vault("a", 1))),
            "17:8: gateway.vault.name: \"a\" stands here already; write the other vault's\n\
             18:11: gateway.vault.address: \"10.0.0.5:1\" is the other vault's already; write this one's"
        );
        assert!(faults_with(&(vault("a", 1) + &vault("b", 2) + &vault("c", 3))).contains(
            "gateway.vault: 3 configured; write one [[gateway.vault]] section for each vault of the pair"
        ));
        let tcp = format!("[gateway]\nlisten = \"[::1]:8445\"\ntokens_file = \"/t\"\n{}", vault("a", 1));
        let door = read(&format!("{LEAST}{tcp}")).unwrap().gateway.unwrap();
        assert_eq!(door.listen, Address::Tcp("[::1]:8445".parse().unwrap()));
        assert!(
            faults_with(&format!("[gateway]\ntokens_file = \"/t\"\n{}", vault("a", 1)))
                .contains("gateway.tokens_file: is for TCP; leave it out")
        );
    }

    #[test]
    fn a_route_may_have_a_rate_of_its_own() {
        let route = "[[route]]\nhost = \"a.b\"\nupstream = \"app\"\nrate = 5\n";
        let rate = |text: &str| read(&format!("{LEAST}{text}")).unwrap().routes[1].rate.unwrap();
        assert_eq!(Ok(rate(route)), Rate::new(5.0, 5));
        assert_eq!(Ok(rate(&format!("{route}burst = 9\n"))), Rate::new(5.0, 9));
        assert_eq!(
            faults_with(&route.replace("rate = 5", "burst = 5")),
            "16:9: route.burst: limits nothing without a rate; write rate = 50 too, or leave it out"
        );
    }

    #[test]
    fn the_log_can_be_json_or_none() {
        let json =
            read(&format!("{LEAST}[access_log]\nformat = \"json\"\nenabled = false\n")).unwrap().access_log;
        assert_eq!((json.format, json.file), (Format::Json, None));
    }

    proptest! {
        #[test]
        fn no_damage_to_the_file_makes_the_reader_panic(cut in 0_usize..14_000, garbage in "(?s).{0,8}") {
            let mut text = SAMPLE.to_owned();
            if let Some(at) = (0..=cut.min(text.len())).rev().find(|at| text.is_char_boundary(*at)) {
                text.insert_str(at, &garbage);
            }
            if let Err(faults) = read(&text) {
                prop_assert!(!faults.0.is_empty());
            }
        }
    }
}

//! Stories of one edge, told through its front door: what browsers, attackers, health checks
//! and operators see. Its neighbours are the harness's; no vault runs here.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use harness::cluster::temporary_folder;
use harness::curl::{Curl, count};
use harness::edge_host::{DIRECT_NAME, Edge, EdgePlan, NAME};
use harness::program::run;
use harness::raw::{Raw, in_clear};
use harness::upstream::Upstream;
use harness::{binaries, plain, wait};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);
const LIMIT: usize = 50;
const CROWD: usize = 60;

/// An edge with one neighbour behind it.
struct Host {
    edge: Edge,
    upstream: Upstream,
    _folder: TempDir,
}

fn host(change: impl FnOnce(&mut EdgePlan)) -> Host {
    let folder = temporary_folder().unwrap();
    let upstream = Upstream::start().unwrap();
    let mut plan = EdgePlan {
        upstreams: vec![("neighbour".to_owned(), vec![upstream.address.to_string()])],
        routes: format!(
            "[[route]]\nhost = \"{NAME}\"\npath_prefix = \"/\"\nupstream = \"neighbour\"\nmax_body = \"1MiB\"\n"
        ),
        ..EdgePlan::default()
    };
    change(&mut plan);
    let edge = Edge::start(&folder.path().join("edge"), &plan).unwrap();
    Host { edge, upstream, _folder: folder }
}

impl Host {
    fn raw(&self) -> Raw {
        Raw::connect(self.edge.https, NAME, &self.edge.authority.certificate, b"http/1.1").unwrap()
    }

    /// Sends a crowd, waits until its first 50 are held by the neighbour and the others are
    /// refused, runs `meanwhile`, lets go, and counts.
    fn crowd(&self, call: &Curl, meanwhile: impl FnOnce()) {
        self.upstream.hold_again();
        let refused_before = plain::metric(self.edge.admin, "edge_rejected_total").unwrap();
        std::thread::scope(|scope| {
            let crowd = scope.spawn(|| call.crowd(CROWD));
            let full = wait::until("50 in flight, 10 refused", SOON, || {
                let refused = plain::metric(self.edge.admin, "edge_rejected_total")? - refused_before;
                anyhow::ensure!(self.upstream.held() >= LIMIT, "{} held", self.upstream.held());
                anyhow::ensure!(refused > 9.5, "{refused} refused");
                Ok(())
            });
            let most = self.upstream.held();
            if full.is_ok() {
                meanwhile();
            }
            self.upstream.release();
            let outcomes = crowd.join().unwrap().unwrap();
            full.unwrap();
            assert_eq!(most, LIMIT);
            assert_eq!(
                (count(&outcomes, 200), count(&outcomes, 429)),
                (LIMIT, CROWD - LIMIT),
                "{outcomes:?}"
            );
            for refused in outcomes.iter().filter(|outcome| outcome.status == 429) {
                assert!(refused.retry_after.parse::<u32>().is_ok(), "{refused:?}");
            }
        });
    }
}

#[test]
fn fifty_requests_of_one_client_are_in_flight_and_others_have_their_own_fifty() {
    let host = host(|_| {});
    let other = IpAddr::from([127, 0, 0, 2]);
    let call = host.edge.call("/hold").http1();
    host.crowd(&call, || {
        let answer = host.edge.call("/quick").from(other).send().unwrap();
        assert_eq!(answer.status, 200, "another client is not concerned");
        let answer = host.edge.call("/quick").send().unwrap();
        assert_eq!(answer.status, 429, "one more of the same client is one too many");
        assert!(answer.header("content-type").unwrap().starts_with("application/problem+json"));
    });
    // Every place has come back, and refused requests have taken none.
    host.crowd(&call, || {});
}

#[test]
fn streams_of_one_h2_connection_count_one_each() {
    let host = host(|_| {});
    host.crowd(&host.edge.call("/hold").http2(), || {
        let answer = host.edge.call("/quick").http1().send().unwrap();
        assert_eq!(answer.status, 429, "the client is the address, not the connection");
    });
    host.crowd(&host.edge.call("/hold").http2(), || {});
}

#[test]
fn ipv6_clients_behind_a_trusted_proxy_count_by_64() {
    let host = host(|plan| plan.clients = "trusted_proxies = [\"127.0.0.1/32\"]\n".to_owned());
    let from = |address: &str| host.edge.call("/hold").http1().header("X-Forwarded-For", address);
    host.crowd(&from("2001:db8:0:1::1"), || {
        let quick = |address: &str| {
            host.edge.call("/quick").header("X-Forwarded-For", address).send().unwrap().status
        };
        assert_eq!(quick("2001:db8:0:1:ffff::9"), 429, "the same /64 is the same client");
        assert_eq!(quick("2001:db8:0:2::1"), 200, "another /64 is another");
        assert_eq!(quick("::ffff:192.0.2.1"), 200, "a mapped IPv4 address is an IPv4 client");
    });
}

#[test]
fn only_trusted_proxies_say_who_the_client_is() {
    let trusting = host(|plan| plan.clients = "trusted_proxies = [\"127.0.0.1/32\"]\n".to_owned());
    let call = trusting.edge.call("/who").header("X-Forwarded-For", "203.0.113.7, 198.51.100.9");
    assert_eq!(call.send().unwrap().status, 200);
    trusting.edge.wait_log("the real client is logged", |line| line.starts_with("198.51.100.9 ")).unwrap();
    let garbage = trusting.edge.call("/who").header("X-Forwarded-For", "not an address");
    assert_eq!(garbage.send().unwrap().status, 400);

    let wary = host(|_| {});
    let forged = wary.edge.call("/who").header("X-Forwarded-For", "203.0.113.7");
    assert_eq!(forged.header("X-Forwarded-Proto", "gopher").send().unwrap().status, 200);
    wary.edge.wait_log("the socket's address is logged", |line| line.starts_with("127.0.0.1 ")).unwrap();
    let seen = wary.upstream.seen();
    let request = seen.last().unwrap();
    assert_eq!(request.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(request.header("x-forwarded-proto").as_deref(), Some("https"));
    assert_eq!(request.header("host").unwrap().split(':').next(), Some(NAME));
}

/// Requests that must be refused: what it is, what is sent, and the statuses that say so.
fn bad_requests() -> Vec<(&'static str, Vec<u8>, &'static [u16])> {
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n");
    let with =
        |headers: &str| format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n{headers}\r\n\r\n");
    let post = |headers: &str, body: &str| {
        format!("POST /echo HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n{headers}\r\n\r\n{body}")
    };
    let many: String = (0..300).map(|n| format!("X-{n}: 1\r\n")).collect();
    let texts: Vec<(&str, String, &[u16])> = vec![
        ("no host", "GET / HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), &[400]),
        ("two hosts", with("Host: other.example"), &[400]),
        (
            "a host that is none",
            "GET / HTTP/1.1\r\nHost: a/b c\r\nConnection: close\r\n\r\n".to_owned(),
            &[400],
        ),
        ("no request line", "nonsense\r\n\r\n".to_owned(), &[400]),
        ("a method that is none", "G\u{1}T / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), &[400]),
        ("bare line feeds", format!("GET / HTTP/1.1\nHost: {NAME}\n\n"), &[400]),
        ("a folded header", with("X-One: a\r\n b"), &[400]),
        ("a header without a name", with(": x"), &[400]),
        ("a blank before the colon", with("X-One : a"), &[400]),
        ("dots that climb", get("/../etc/passwd"), &[400]),
        ("dots that climb from within", get("/a/../../etc/passwd"), &[400]),
        ("encoded dots", get("/%2e%2e/etc/passwd"), &[400]),
        ("half encoded dots", get("/a/.%2E/b"), &[400]),
        ("an encoded NUL", get("/a%00b"), &[400]),
        ("an encoded slash", get("/a%2fb"), &[400]),
        ("a backslash", get("/a\\..\\b"), &[400]),
        ("a NUL", get("/a\0b"), &[400]),
        ("a name of 9 KiB", get(&format!("/{}", "n".repeat(9 * 1024))), &[414]),
        ("a header of 40 KiB", with(&format!("X-Long: {}", "h".repeat(40 * 1024))), &[431]),
        ("300 headers", with(many.trim_end()), &[431]),
        ("a length that is no number", post("Content-Length: ten", "0123456789"), &[400]),
        ("a negative length", post("Content-Length: -1", ""), &[400]),
        ("a length with a sign", post("Content-Length: +3", "abc"), &[400]),
        ("two lengths", post("Content-Length: 3\r\nContent-Length: 4", "abc"), &[400]),
        ("a length and chunks", post("Content-Length: 3\r\nTransfer-Encoding: chunked", "0\r\n\r\n"), &[400]),
        ("an unknown encoding", post("Transfer-Encoding: squeezed", "0\r\n\r\n"), &[400, 411]),
        ("a chunk that is none", post("Transfer-Encoding: chunked", "zz\r\nabc\r\n0\r\n\r\n"), &[400]),
        ("a length over the limit", post("Content-Length: 104857600", ""), &[413]),
        (
            "chunks over the limit",
            post(
                "Transfer-Encoding: chunked",
                &format!("{:x}\r\n{}\r\n0\r\n\r\n", 1 << 21, "b".repeat(1 << 21)),
            ),
            &[413],
        ),
        ("an unknown host", get("/").replace(NAME, "unknown.example"), &[404, 421]),
    ];
    texts.into_iter().map(|(what, text, statuses)| (what, text.into_bytes(), statuses)).collect()
}

#[test]
fn bad_requests_are_refused_with_a_reason_and_one_line_each() {
    let mut host = host(|_| {});
    for (what, bytes, statuses) in bad_requests() {
        let before = host.edge.log_lines().unwrap_or_default().len();
        let mut raw = host.raw();
        raw.send(&bytes).unwrap();
        let answer = String::from_utf8_lossy(&raw.read_to_close()).into_owned();
        let status: u16 = answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        assert!(statuses.contains(&status), "{what}: {answer:?}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(!body.trim().is_empty(), "{what}: no reason in {answer:?}");
        assert_one_line(&host, before, what, &format!(" {status} "));
    }
    assert!(host.edge.program.is_running());
    assert!(!host.edge.program.log().contains("panicked"), "{}", host.edge.program.log_tail(40));
    let passed_on: Vec<_> = host.upstream.seen().into_iter().map(|seen| seen.line).collect();
    assert!(passed_on.is_empty(), "none of them may reach the neighbour: {passed_on:?}");
}

#[test]
fn connections_that_never_become_requests_leave_one_line_each() {
    let mut host = host(|_| {});
    let https = host.edge.https;
    // A record header that promises more than it brings, and no TLS at all.
    let hello: [&[u8]; 2] = [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/1.0\r\n\r\n"];
    for (what, bytes) in [("truncated TLS", hello[0]), ("no TLS", hello[1])] {
        let before = host.edge.log_lines().unwrap_or_default().len();
        in_clear(https, bytes).unwrap();
        assert_one_line(&host, before, what, "");
    }
    let before = host.edge.log_lines().unwrap().len();
    let broken = host.edge.call("/").http2().header("X-Delete", "\u{7f}").send();
    assert!(broken.is_err(), "HTTP/2 knows no such header: {broken:?}");
    assert_one_line(&host, before, "a malformed stream", "");
    let before = host.edge.log_lines().unwrap().len();
    let mut raw = host.raw();
    raw.send(format!("GET /half HTTP/1.1\r\nHost: {NAME}\r\nX-Never-").as_bytes()).unwrap();
    raw.hang_up();
    assert_one_line(&host, before, "half a head", "");
    assert!(host.edge.program.is_running());
    assert!(!host.edge.program.log().contains("panicked"), "{}", host.edge.program.log_tail(40));
}

/// The log grows by exactly one line, which holds `mark`. That it was only one shows when the
/// next, decent request is logged right behind it.
fn assert_one_line(host: &Host, before: usize, what: &str, mark: &str) {
    let probe = format!("/after-{}", what.replace(' ', "-"));
    wait::until("the line", SOON, || {
        let lines = host.edge.log_lines()?;
        lines.get(before).cloned().context("not yet")
    })
    .unwrap_or_else(|error| panic!("{what}: {error:#}"));
    // By a name of its own, so that the neighbour never sees it.
    let answer = host.edge.call_host("nobody.example", &probe).arg("--insecure").send().unwrap();
    assert!(answer.status >= 400);
    host.edge.wait_log("the probe's line", |line| line.contains(&probe)).unwrap();
    let lines = host.edge.log_lines().unwrap();
    let new = lines.get(before..).unwrap_or_default();
    assert_eq!(new.len(), 2, "{what}: {new:#?}");
    assert!(new.first().is_some_and(|line| line.contains(mark)), "{what}: {new:#?}");
}

#[test]
fn clients_cannot_forge_log_lines() {
    let host = host(|_| {});
    let agent = "evil\" 200 \\ \u{fc} 127.0.0.1 - - [forged]";
    let call = host.edge.call("/search?q=%0a%22forged").http1().header("Referer", "http://x/\"\t\"");
    assert_eq!(call.header("User-Agent", agent).send().unwrap().status, 200);
    let line = host.edge.wait_log("the line", |line| line.contains("/search")).unwrap();
    assert!(line.is_ascii() && !line.contains('\t'), "{line}");
    // Client, request, referer, agent: six quotes of ours and none of theirs.
    assert_eq!(line.matches('"').count(), 6, "{line}");
    assert!(line.contains("evil\\x22 200 \\x5C"), "{line}");

    let json = self::host(|plan| plan.log_format = Some("json"));
    assert_eq!(json.edge.call("/search").header("User-Agent", agent).send().unwrap().status, 200);
    let line = json.edge.wait_log("the line", |line| line.contains("/search")).unwrap();
    let entry: serde_json::Value = serde_json::from_str(&line).unwrap();
    let text = entry.to_string();
    assert!(text.contains("evil") && text.contains("127.0.0.1") && text.contains("200"), "{entry}");
}

#[test]
fn a_new_certificate_is_shown_without_a_restart_and_a_broken_one_is_not() {
    let mut host = host(|_| {});
    let shown = |host: &Host| host.raw().certificate();
    let first = shown(&host);
    let pid = host.edge.program.pid();
    host.edge.authority.issue(host.edge.folder(), "www", &[NAME, DIRECT_NAME]).unwrap();
    let second = wait::until("the new certificate is shown", SOON, || {
        let now = shown(&host);
        anyhow::ensure!(now != first, "still the old one");
        Ok(now)
    })
    .unwrap();
    std::fs::write(&host.edge.certificate.certificate, "-----BEGIN NONSENSE-----").unwrap();
    host.edge.program.signal(harness::program::Signal::HUP).unwrap();
    wait::until("the broken file is complained of", SOON, || {
        let log = host.edge.program.log();
        anyhow::ensure!(log.contains("www.crt"), "nothing in the log");
        Ok(())
    })
    .unwrap();
    assert_eq!(shown(&host), second, "the last good one stays");
    assert!(host.edge.program.is_running());
    assert_eq!(host.edge.program.pid(), pid);
}

#[test]
fn plain_http_leads_to_https_and_never_elsewhere() {
    let host = host(|_| {});
    let ask = |name: &str| {
        let url = format!("http://{name}:{}/a/b?c=d", host.edge.http.port());
        Curl::new(url).at(host.edge.http).send().unwrap()
    };
    let answer = ask(NAME);
    assert!([301, 308].contains(&answer.status), "{answer:?}");
    let location = answer.header("location").unwrap();
    assert!(location.starts_with(&format!("https://{NAME}")) && location.ends_with("/a/b?c=d"), "{location}");
    let foreign = ask("evil.example");
    let location = foreign.header("location").unwrap_or_default();
    assert!(!location.contains("evil.example"), "{foreign:?}");
}

#[test]
fn health_is_answered_under_the_direct_name_and_on_the_admin_listener_only() {
    let host = host(|_| {});
    for path in ["/livez", "/readyz", "/readyz?verbose"] {
        assert_eq!(host.edge.call_host(DIRECT_NAME, path).send().unwrap().status, 200, "{path}");
        assert_eq!(plain::fetch(host.edge.admin, path).unwrap().0, 200, "{path}");
    }
    let routed = host.edge.call("/livez").send().unwrap();
    assert!(
        routed.text().starts_with("GET /livez"),
        "the cluster's name routes it to the application: {routed:?}"
    );
    let metrics = plain::expect_ok(host.edge.admin, "/metrics").unwrap();
    for name in ["edge_requests_total", "edge_request_seconds", "edge_in_flight", "edge_connections"] {
        assert!(metrics.contains(name), "{name}");
    }
    assert!(!metrics.contains("127.0.0.1"), "no addresses as labels");
}

#[test]
fn bodies_stream_through_both_protocols_unchanged() {
    let host = host(|_| {});
    let body: Vec<u8> = (0..900_000_u32).flat_map(|n| n.to_le_bytes().into_iter().take(1)).collect();
    for call in [host.edge.call("/echo").http1(), host.edge.call("/echo").http2()] {
        let answer = call.clone().body(body.clone()).send().unwrap();
        assert_eq!((answer.status, answer.body.len()), (200, body.len()));
        assert!(answer.body == body);
        let chunked = call.header("Transfer-Encoding", "chunked").body(body.clone()).send().unwrap();
        assert!(chunked.body == body, "{} bytes", chunked.body.len());
    }
}

#[test]
fn an_upstream_that_is_down_is_a_502_with_a_reason() {
    let host = host(|plan| {
        let dead = harness::ports::free().unwrap();
        plan.upstreams.push(("dead".to_owned(), vec![dead.to_string()]));
        plan.routes.push_str(&format!(
            "\n[[route]]\nhost = \"{NAME}\"\npath_prefix = \"/dead\"\nupstream = \"dead\"\n"
        ));
    });
    let answer = host.edge.call("/dead/x").send().unwrap();
    assert!([502, 503].contains(&answer.status), "{answer:?}");
    assert!(!answer.word("detail").unwrap().is_empty());
    // A prefix ends at a slash: /deadline is another route's.
    assert_eq!(host.edge.call("/deadline").send().unwrap().status, 200);
}

#[test]
fn term_of_an_idle_edge_is_no_failure() {
    let mut host = host(|_| {});
    // Idle threads end at once, and which of the two edge notices first is luck.
    for _ in 0..20 {
        let status = host.edge.program.terminate().unwrap();
        assert_eq!(status.code(), Some(0), "{}", host.edge.program.log_tail(5));
        host.edge.program.restart().unwrap();
        host.edge.wait_ready().unwrap();
    }
}

#[test]
fn term_lets_the_request_in_flight_finish() {
    let mut host = host(|_| {});
    let call = host.edge.call("/hold");
    std::thread::scope(|scope| {
        let held = scope.spawn(|| call.send());
        wait::until("held", SOON, || {
            anyhow::ensure!(host.upstream.held() == 1, "not yet");
            Ok(())
        })
        .unwrap();
        host.edge.program.signal(harness::program::Signal::TERM).unwrap();
        wait::until("not ready any more", SOON, || {
            let ready = plain::fetch(host.edge.admin, "/readyz").map(|(status, _)| status);
            anyhow::ensure!(!matches!(ready, Ok(200)), "still ready");
            Ok(())
        })
        .unwrap();
        host.upstream.release();
        assert_eq!(held.join().unwrap().unwrap().status, 200);
    });
    let status = host.edge.program.wait(SOON).unwrap();
    assert_eq!((status.code(), status.signal()), (Some(0), None));
}

#[test]
fn every_fault_of_a_configuration_is_told_at_once_and_nothing_is_started() {
    let folder = temporary_folder().unwrap();
    let file = folder.path().join("edge.toml");
    let port = harness::ports::free().unwrap();
    let text = format!(
        "name = 5\nsurprise = true\n\n[listen]\nhttps = [\"{port}\"]\nhead_timeout = \"10 minuts\"\n\n\
         [clients]\nmax_in_flight = \"many\"\n\n[[route]]\nhost = \"www.example.org\"\npath_prefix = \"/\"\nupstream = \"nowhere\"\n"
    );
    std::fs::write(&file, text).unwrap();
    let edge = binaries::find("edge").unwrap();
    for verb in ["check", "serve"] {
        let ran = run(&edge, &[verb.as_ref(), "--config".as_ref(), file.as_os_str()]).unwrap();
        assert_eq!(ran.code, Some(78), "{verb}: {ran:?}");
        let said = format!("{}{}", ran.out, ran.err);
        for (line, word) in
            [(1, "name"), (2, "surprise"), (6, "head_timeout"), (9, "max_in_flight"), (14, "nowhere")]
        {
            let place = format!("{}:{line}:", file.display());
            let told = said.lines().any(|said| said.contains(&place) && said.contains(word));
            assert!(told, "{verb}: nothing about {place} {word}:\n{said}");
        }
        assert!(std::net::TcpStream::connect(port).is_err(), "{verb} started something");
    }
    let wrong_usage = run(&edge, &["serve", "--no-such-flag"]).unwrap();
    assert_eq!(wrong_usage.code, Some(2), "{wrong_usage:?}");
}

#[test]
fn what_would_fail_at_start_fails_the_check_and_nothing_is_left_behind() {
    let folder = temporary_folder().unwrap();
    let plan = EdgePlan {
        routes: "[[route]]\nupstream = \"app\"\n".to_owned(),
        upstreams: vec![("app".to_owned(), vec!["127.0.0.1:9".to_owned()])],
        ..EdgePlan::default()
    };
    let draft = Edge::write(folder.path(), &plan).unwrap();
    let edge = binaries::find("edge").unwrap();
    let check =
        |config: &Path| run(&edge, &["check".as_ref(), "--config".as_ref(), config.as_os_str()]).unwrap();
    let files = || {
        let entries = std::fs::read_dir(folder.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect::<std::collections::BTreeSet<_>>()
    };
    let before = files();
    let good = check(&draft.config);
    assert_eq!(good.code, Some(0), "{good:?}");
    assert_eq!(files(), before, "a check leaves nothing behind");

    let control = folder.path().join("control.sock");
    std::fs::write(&control, "precious").unwrap();
    std::fs::create_dir(folder.path().join("access.log")).unwrap();
    let gateway = folder.path().join("gateway.toml");
    let certificate = folder.path().join("www");
    let text = format!(
        "{}\n[gateway]\nlisten = \"unix:{}\"\nsocket_group = \"no-such-group\"\n\
         certificate_file = \"{certificate}.crt\"\nkey_file = \"{certificate}.key\"\n\
         authority_file = \"{certificate}.crt\"\n[[gateway.vault]]\nname = \"vault-a\"\naddress = \"127.0.0.1:9\"\n",
        std::fs::read_to_string(&draft.config).unwrap(),
        folder.path().join("gateway.sock").display(),
        certificate = certificate.display(),
    );
    std::fs::write(&gateway, text).unwrap();
    let before = files();
    let bad = check(&gateway);
    assert_eq!(bad.code, Some(78), "{bad:?}");
    for word in ["access.log", "control.sock", "no-such-group"] {
        assert!(bad.err.lines().any(|line| line.contains(word)), "nothing about {word}:\n{}", bad.err);
    }
    assert_eq!(files(), before);
    assert_eq!(std::fs::read_to_string(&control).unwrap(), "precious");
}

#[test]
fn a_check_names_the_file_where_each_fault_lies_and_makes_no_folder() {
    let folder = temporary_folder().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let jails = path("jails.d");
    std::fs::create_dir(&jails).unwrap();
    let own = format!("{jails}/own.toml");
    let text = "[[filter]]\nname = \"own\"\nfailregex = [\n  '<HOST> (',\n]\n[[jail]]\nname = \"own\"\nfilter = \"own\"\n";
    std::fs::write(&own, text).unwrap();
    let plan = EdgePlan {
        routes: "[[route]]\nupstream = \"app\"\n".to_owned(),
        upstreams: vec![("app".to_owned(), vec!["127.0.0.1:9".to_owned()])],
        bans: format!(
            "[bans]\nstore = \"{}\"\njails_folder = \"{jails}\"\nfirewall_socket = \"{}\"\n",
            path("bans.db"),
            path("typo.toml:/firewall.sock")
        ),
        ..EdgePlan::default()
    };
    let config = Edge::write(folder.path(), &plan).unwrap().config;
    let edge = binaries::find("edge").unwrap();
    let words = ["check".as_ref(), "--config".as_ref(), config.as_os_str(), "--json".as_ref()];
    let ran = run(&edge, &words).unwrap();
    assert_eq!(ran.code, Some(78), "{ran:?}");
    let told: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let faults = told["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 2, "{told:#}");
    assert_eq!((faults[0]["file"].as_str(), faults[0]["line"].as_u64()), (Some(own.as_str()), Some(4)));
    // A path that looks like a place is none.
    assert_eq!(faults[1]["file"].as_str(), Some(config.display().to_string().as_str()));
    assert!(faults[1]["what"].as_str().unwrap().starts_with("bans.firewall_socket: "), "{told:#}");
    assert!(ran.err.contains(&format!("{own}:4:")), "{}", ran.err);
    assert!(!folder.path().join("typo.toml:").exists());
}

#[test]
fn status_tells_the_operator_and_complains_when_edge_is_not_running() {
    let mut host = host(|_| {});
    let edge = binaries::find("edge").unwrap();
    let config = host.edge.config.clone();
    let ask = || run(&edge, &["status".as_ref(), "--config".as_ref(), config.as_os_str()]).unwrap();
    let running = ask();
    assert_eq!(running.code, Some(0), "{running:?}");
    assert!(!running.out.trim().is_empty());
    host.edge.program.kill().unwrap();
    let dead = ask();
    assert_eq!(dead.code, Some(1), "{dead:?}");
    assert!(dead.err.starts_with("edge: "), "{dead:?}");
    // A socket left behind by kill -9 does not keep it from starting again.
    host.edge.program.restart().unwrap();
    host.edge.wait_ready().unwrap();
}

//! Stories of edge's other ways in, through real clients and load balancers: the listener that serves
//! in clear.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::net::SocketAddr;

use harness::cluster::temporary_folder;
use harness::curl::{Answer, Curl};
use harness::edge_host::{Edge, EdgePlan, NAME};
use harness::ports;
use harness::raw::in_clear;
use harness::upstream::Upstream;
use tempfile::TempDir;

/// An edge with a neighbour behind it and one listener more.
struct Host {
    edge: Edge,
    upstream: Upstream,
    /// The further listener.
    door: SocketAddr,
    _folder: TempDir,
}

/// `listener`: what its section says besides the address.
fn host(listener: &str, change: impl FnOnce(&mut EdgePlan)) -> Host {
    let folder = temporary_folder().unwrap();
    let upstream = Upstream::start().unwrap();
    let door = ports::free().unwrap();
    let mut plan = EdgePlan {
        upstreams: vec![("neighbour".to_owned(), vec![upstream.address.to_string()])],
        routes: format!(
            "[[listener]]\naddress = \"{door}\"\n{listener}\n[[route]]\nupstream = \"neighbour\"\n"
        ),
        log_format: Some("json"),
        ..EdgePlan::default()
    };
    change(&mut plan);
    let edge = Edge::start(&folder.path().join("edge"), &plan).unwrap();
    Host { edge, upstream, door, _folder: folder }
}

impl Host {
    fn in_clear(&self, path: &str) -> Curl {
        Curl::new(format!("http://{NAME}:{}{path}", self.door.port())).at(self.door)
    }

    /// What the neighbour was told of the last request.
    fn told(&self, header: &str) -> Option<String> {
        self.upstream.seen().last().unwrap().header(header)
    }

    fn wait_log(&self, mark: &str) {
        self.edge.wait_log(mark, |line| line.contains(mark)).unwrap();
    }
}

fn well(answer: &Answer) {
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn a_listener_in_clear_serves_and_tells_the_truth_about_it() {
    let host = host("mode = \"clear\"", |_| {});
    let body = "x".repeat(100_000);
    let answer = host.in_clear("/echo/clear").body(body.clone()).send().unwrap();
    well(&answer);
    assert_eq!(answer.text(), body);
    assert_eq!(answer.header("strict-transport-security"), None, "never in clear");
    assert_eq!(host.told("x-forwarded-proto").as_deref(), Some("http"));
    assert_eq!(host.told("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    host.wait_log("\"url.path\":\"/echo/clear\",\"url.scheme\":\"http\"");
    // A stranger cannot make an application believe in a TLS that is not there.
    well(&host.in_clear("/forged").header("X-Forwarded-Proto", "https").send().unwrap());
    assert_eq!(host.told("x-forwarded-proto").as_deref(), Some("http"));
    let answer = host.edge.call("/echo/tls").send().unwrap();
    well(&answer);
    assert!(answer.header("strict-transport-security").is_some());
    assert_eq!(host.told("x-forwarded-proto").as_deref(), Some("https"));
    host.wait_log("\"url.path\":\"/echo/tls\",\"url.scheme\":\"https\"");
    // HTTP/2 needs TLS here: one who begins with it is refused, one who asks for it stays with HTTP/1.1.
    let upgrade = host.in_clear("/h2c").arg("--http2").send().unwrap();
    well(&upgrade);
    assert_eq!(host.told("upgrade"), None);
    let refused = in_clear(host.door, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    assert!(refused.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&refused));
}

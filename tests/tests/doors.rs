//! Stories of edge's other ways in, through real clients and load balancers: the listener that serves
//! in clear, the one behind a PROXY header; and what becomes of clients that drip, take no answers, or
//! send frames that move nothing.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]
#![expect(clippy::disallowed_methods, reason = "a story measures how long a client is borne with")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use harness::cluster::temporary_folder;
use harness::curl::{Answer, Curl};
use harness::edge_host::{Edge, EdgePlan, NAME};
use harness::program::{Program, Recipe};
use harness::raw::{Raw, in_clear};
use harness::upstream::Upstream;
use harness::{plain, ports, wait};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);
/// The load balancer's side of every connection is here; its clients' are not.
const LOAD_BALANCER: &str = "trusted_proxies = [\"127.0.0.1/32\"]\n";

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
    assert!(refused.starts_with(b"HTTP/1.1 505 "), "{}", String::from_utf8_lossy(&refused));
}

/// A real load balancer that passes TLS on to `door` and writes the header that `words` ask for.
fn haproxy(folder: &TempDir, door: SocketAddr, words: &str) -> (Program, SocketAddr) {
    let front = ports::free().unwrap();
    let file = folder.path().join(format!("{words}.cfg"));
    let text = format!(
        "defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 60s\n  timeout server 60s\n\
         frontend front\n  bind {front}\n  default_backend edge\n\
         backend edge\n  server edge {door} {words}\n"
    );
    std::fs::write(&file, text).unwrap();
    let binary = PathBuf::from("/usr/sbin/haproxy");
    let arguments = ["-db".into(), "-f".into(), file.into_os_string()];
    let program = Program::start(Recipe::new(words, binary, arguments, folder.path())).unwrap();
    wait::until("haproxy listens", SOON, || Ok(TcpStream::connect(front).map(drop)?)).unwrap();
    (program, front)
}

#[test]
fn a_real_load_balancer_says_who_the_client_is_and_its_connections_are_the_clients_own() {
    let host = host("mode = \"tls\"\nproxy = true", |plan| plan.clients = LOAD_BALANCER.to_owned());
    let folder = temporary_folder().unwrap();
    for (words, address) in [("send-proxy", "127.0.0.7"), ("send-proxy-v2", "127.0.0.8")] {
        let (_haproxy, front) = haproxy(&folder, host.door, words);
        let client: IpAddr = address.parse().unwrap();
        let call = |path: &str| host.edge.call(path).at(front).from(client);
        for call in [call("/a").http1(), call("/b").http2()] {
            well(&call.header("X-Forwarded-For", "203.0.113.9").send().unwrap());
            assert_eq!(host.told("x-forwarded-for").as_deref(), Some(address), "{words}");
            assert_eq!(host.told("x-forwarded-proto").as_deref(), Some("https"));
        }
        host.wait_log(&format!("\"source.ip\":\"{address}\""));
        // The limit in flight is the client's, not the load balancer's.
        let held = call("/hold").http1();
        std::thread::scope(|scope| {
            let crowd = scope.spawn(|| held.crowd(60));
            let full = wait::until("50 are held", SOON, || {
                anyhow::ensure!(host.upstream.held() == 50, "{} held", host.upstream.held());
                Ok(())
            });
            let other = host.edge.call("/other").at(front).from("127.0.0.9".parse().unwrap()).send();
            let same = call("/same").send();
            host.upstream.release();
            let outcomes = crowd.join().unwrap().unwrap();
            full.unwrap();
            assert_eq!((other.unwrap().status, same.unwrap().status), (200, 429), "{outcomes:?}");
        });
        host.upstream.hold_again();
    }
}

#[test]
fn a_proxy_header_is_taken_where_it_is_demanded_and_refused_everywhere_else() {
    let host = host("mode = \"clear\"\nproxy = true", |plan| plan.clients = LOAD_BALANCER.to_owned());
    let call = || host.in_clear("/announced").arg("--haproxy-protocol");
    well(&call().send().unwrap());
    assert_eq!(host.told("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    // A client that names itself an address is no load balancer.
    assert!(unanswered(&call().from("127.0.0.5".parse().unwrap())));
    host.wait_log("PROXY header: only trusted proxies may connect here");
    // Without the header nothing is answered.
    assert!(unanswered(&host.in_clear("/bare")));
    host.wait_log("PROXY header: it does not begin with one");
    let refused = plain::metric(host.edge.admin, "edge_rejected_total{reason=\"proxy_header\"}");
    assert!((refused.unwrap() - 2.0).abs() < 0.5);
    // Where none is demanded it is no request, and forges nothing.
    let forged =
        b"PROXY TCP4 192.0.2.1 127.0.0.1 4711 80\r\nGET / HTTP/1.1\r\nHost: www.example.test\r\n\r\n";
    let answer = in_clear(host.edge.http, forged).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&answer));
    let mut tls = Raw::connect(host.edge.https, NAME, &host.edge.authority.certificate, b"http/1.1").unwrap();
    tls.send(forged).unwrap();
    let answer = tls.read_to_close();
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&answer));
    assert!(host.edge.log_lines().unwrap().iter().all(|line| !line.contains("\"source.ip\":\"192.0.2.1\"")));
}

/// A call that gets no HTTP answer.
fn unanswered(call: &Curl) -> bool {
    !call.send().is_ok_and(|answer| answer.status != 0)
}

/// A frame of HTTP/2 (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A `GET` whose header block is of literals that nobody indexes.
fn get(stream: u32, path: &str) -> Vec<u8> {
    let fields = [(":method", "GET"), (":scheme", "https"), (":authority", NAME), (":path", path)];
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let block = fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat());
    frame(1, 0x5, stream, &block.collect::<Vec<u8>>())
}

/// What the program holds in memory, in KiB.
fn resident(edge: &Edge) -> anyhow::Result<usize> {
    let pid = edge.program.pid().ok_or_else(|| anyhow::anyhow!("edge has ended"))?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[test]
fn a_client_that_takes_none_of_its_many_answers_costs_a_bounded_number_of_bytes() {
    const CLIENTS: usize = 2;
    const STREAMS: u32 = 50;
    /// KiB for one answer that waits: 64 in the HTTP/2 buffer, and what the engine has on its way there.
    const EACH: usize = 800;
    let host = host("mode = \"clear\"", |plan| plan.clients = "max_in_flight = 200\n".to_owned());
    well(&host.edge.call("/warm").http2().send().unwrap());
    let before = resident(&host.edge).unwrap();
    // Windows as wide as they get: nothing but edge's own bounds holds the answers back.
    let opening = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]),
        frame(8, 0, 0, &0x7fff_0000_u32.to_be_bytes()),
    ]
    .concat();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut raw = Raw::connect(host.edge.https, NAME, &host.edge.authority.certificate, b"h2").unwrap();
        raw.send(&opening).unwrap();
        for stream in 0..STREAMS {
            raw.send(&get(2 * stream + 1, "/bytes/2000000")).unwrap();
        }
        clients.push(raw);
    }
    let answers = CLIENTS * usize::try_from(STREAMS).unwrap();
    wait::until("every answer is under way", SOON, || {
        let seen = host.upstream.seen().len();
        anyhow::ensure!(seen > answers, "{seen} seen");
        Ok(())
    })
    .unwrap();
    // Until it grows no more; how much it takes at once depends on the machine.
    let mut looks = vec![resident(&host.edge).unwrap()];
    wait::until("edge has taken what it takes", SOON, || {
        std::thread::sleep(Duration::from_millis(500));
        looks.push(resident(&host.edge)?);
        let last: Vec<_> = looks.iter().rev().take(4).collect();
        anyhow::ensure!(last.len() == 4 && last.iter().all(|look| **look <= *last[3] + 512), "{last:?}");
        Ok(())
    })
    .unwrap();
    let most = looks.iter().max().unwrap() - before;
    assert!(most < answers * EACH, "{most} KiB for {answers} answers");
    // Others are served meanwhile.
    well(&host.edge.call("/other").from("127.0.0.9".parse().unwrap()).send().unwrap());
    drop(clients);
}

impl Host {
    fn raw(&self, protocol: &[u8]) -> Raw {
        Raw::connect(self.edge.https, NAME, &self.edge.authority.certificate, protocol).unwrap()
    }

    /// Another client is served as if nothing were.
    fn serves_others(&self) {
        well(&self.edge.call("/other").from("127.0.0.9".parse().unwrap()).send().unwrap());
    }
}

/// Posts `parts` of `size` bytes, ten a second, as long as edge listens. Returns how long that was.
fn drips(host: &Host, path: &str, parts: usize, size: usize) -> (Duration, Raw) {
    let mut raw = host.raw(b"http/1.1");
    let length = parts * size;
    raw.send(format!("POST {path} HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {length}\r\n\r\n").as_bytes())
        .unwrap();
    let began = Instant::now();
    for _ in 0..parts {
        if !raw.is_open() {
            break;
        }
        raw.send(&vec![b'x'; size]).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    (began.elapsed(), raw)
}

#[test]
fn a_body_that_drips_is_ended_and_a_slow_line_is_not() {
    let host = host("mode = \"clear\"", |plan| plan.listen = "body_timeout = \"3s\"\n".to_owned());
    // 100 bytes a second, of which every one is progress.
    let (took, _) = drips(&host, "/drip", 10_000, 10);
    assert!(took >= Duration::from_secs(3) && took < SOON, "{took:?}");
    let line = host.edge.wait_log("the drip's line", |line| line.contains("\"/drip\"")).unwrap();
    assert!(line.contains("came too slowly") && line.contains("\"http.response.status_code\":408"), "{line}");
    host.serves_others();
    // A slow line, but a line.
    let (took, mut raw) = drips(&host, "/echo/slow", 60, 400);
    assert!(took >= Duration::from_secs(6), "{took:?}");
    let answer = raw.read_until(&[b'x'; 100]);
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn an_answer_that_is_sipped_is_ended_on_every_protocol() {
    let host = host("mode = \"clear\"", |plan| plan.listen = "write_timeout = \"2s\"\n".to_owned());
    // HTTP/1: a few bytes at a time, while megabytes wait.
    let mut sipping = TcpStream::connect(host.door).unwrap();
    write!(sipping, "GET /bytes/64000000 HTTP/1.1\r\nHost: {NAME}\r\n\r\n").unwrap();
    // HTTP/2: a window that opens byte by byte.
    let mut narrow = host.raw(b"h2");
    let opening = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])];
    narrow.send(&opening.concat()).unwrap();
    narrow.send(&get(1, "/bytes/100000")).unwrap();
    let ended = |path: &str| host.edge.log_lines().unwrap().iter().any(|line| line.contains(path));
    let began = Instant::now();
    while !(ended("/bytes/64000000") && ended("/bytes/100000")) {
        assert!(began.elapsed() < SOON, "{:?}", host.edge.log_lines());
        let _ = sipping.read(&mut [0; 100]);
        narrow.send(&frame(8, 0, 1, &[0, 0, 0, 1])).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    host.serves_others();
    let in_flight = || plain::metric(host.edge.admin, "edge_in_flight");
    wait::until("every place is free", SOON, || {
        anyhow::ensure!(in_flight()? < 0.5);
        Ok(())
    })
    .unwrap();
}

#[test]
fn frames_that_move_nothing_end_their_connection_when_they_are_too_many() {
    let host = host("mode = \"clear\"", |_| {});
    let floods: [(&str, Vec<u8>, usize); 5] = [
        ("ping", frame(6, 0, 0, &[1; 8]), 300),
        ("settings", frame(4, 0, 0, &[]), 100),
        ("priority", frame(2, 0, 3, &[0, 0, 0, 0, 16]), 700),
        ("window_update", frame(8, 0, 0, &[0, 0, 0, 1]), 2500),
        ("empty", frame(0x42, 0, 0, &[]), 300),
    ];
    for (kind, one, count) in floods {
        let mut raw = host.raw(b"h2");
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        raw.send(&frame(4, 0, 0, &[])).unwrap();
        // A request first: who floods is ended whatever else it does.
        raw.send(&get(1, "/asked")).unwrap();
        raw.send(&one.repeat(count)).unwrap();
        let said = raw.read_to_close();
        let calm = [&[0, 0, 8, 7, 0, 0, 0, 0, 0][..], &1_u32.to_be_bytes(), &[0, 0, 0, 0xb]].concat();
        assert!(said.ends_with(&calm), "{kind}: no GOAWAY at the end of {said:?}");
        host.wait_log(&format!("flood of {kind} frames"));
        let counted = plain::metric(host.edge.admin, &format!("edge_h2_floods_total{{kind=\"{kind}\"}}"));
        assert!((counted.unwrap() - 1.0).abs() < 0.5);
        host.serves_others();
    }
    // What a decent client sends is no flood.
    let mut raw = host.raw(b"h2");
    raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    raw.send(&[frame(4, 0, 0, &[]), frame(6, 0, 0, &[1; 8]).repeat(100), get(1, "/decent")].concat())
        .unwrap();
    let said = raw.read_until(b"GET /decent");
    assert!(said.windows(11).any(|part| part == b"GET /decent"), "{said:?}");
}

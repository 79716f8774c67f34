//! A stopwatch for bans: sends numbered packets at a fixed rate, writes one line into a log and
//! tells which packet was the first that the kernel no longer let in. Knows packets, lines and
//! one monotonic clock; must not know what reads the log or what drops the packets.
//!
//! Two halves, because two network namespaces are involved: `probe sink` on the guarded host
//! only counts what arrives, `probe drop` on the attacker's host sends, writes and measures.
//! They speak over a socket in the file system, which no namespace divides. The sink speaks
//! first on every flow (`punch`), so that a firewall that only lets answers in lets it in.
//! Needs nothing but the standard library, so that `rustc -O` alone builds it for a benchmark.
#![expect(clippy::disallowed_methods, reason = "a stopwatch reads the clock")]

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What the sink does between two looks at its queues. A socket's queue holds more than ten
/// milliseconds of the fastest sender.
const PAUSE: Duration = Duration::from_millis(1);
/// Packets that must come through before the line is written.
const BEFORE: u64 = 40;
/// How long packets go on after the line before the sink is asked; doubled until some are lost.
const WINDOW: Duration = Duration::from_millis(20);
/// Bytes of a packet, its number in front.
const PACKET: usize = 32;
/// How long the two halves wait for each other.
const PATIENCE: Duration = Duration::from_secs(5);
/// Samples that may fail for reasons of the machine (a packet lost before the line) before the
/// run is given up, as a divisor of their number.
const TOLERATED: u32 = 5;

const USAGE: &str = "usage:
  probe sink --udp ADDRESS:PORT --control SOCKET
  probe drop --control SOCKET --sink ADDRESS:PORT --log FILE --line TEXT --first IPV4
             --samples N [--rate PACKETS_A_SECOND] [--timeout SECONDS]
TEXT holds {} where the attacker's address belongs. `drop` prints, tab-separated:
  drop ADDRESS MICROSECONDS   from just before the line was written to the first lost packet
  never ADDRESS               nothing was lost within the timeout
  noise ADDRESS               a packet was lost before the line; measured again with another";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let verb = words.next().unwrap_or_default();
    let done = match (verb.as_str(), Options::read(words)) {
        ("sink", Ok(options)) => sink(&options),
        ("drop", Ok(options)) => measure(&options),
        (_, Err(error)) => Err(error),
        _ => Err(wrong("no such verb")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            eprintln!("probe: {error}\n{USAGE}");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("probe: {verb}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `--name value` pairs.
struct Options(HashMap<String, String>);

impl Options {
    fn read(mut words: impl Iterator<Item = String>) -> io::Result<Self> {
        let mut pairs = HashMap::new();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").ok_or_else(|| wrong(&format!("{word}: not an option")))?;
            let value = words.next().ok_or_else(|| wrong(&format!("{word}: its value is missing")))?;
            pairs.insert(name.to_owned(), value);
        }
        Ok(Self(pairs))
    }

    fn text(&self, name: &str) -> io::Result<&str> {
        self.0.get(name).map(String::as_str).ok_or_else(|| wrong(&format!("--{name} is missing")))
    }

    fn parsed<T: std::str::FromStr>(&self, name: &str) -> io::Result<T> {
        let text = self.text(name)?;
        text.parse().map_err(|_| wrong(&format!("--{name} {text}: cannot be read")))
    }

    fn parsed_or<T: std::str::FromStr>(&self, name: &str, default: T) -> io::Result<T> {
        if self.0.contains_key(name) { self.parsed(name) } else { Ok(default) }
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, what)
}

/// What came from one address.
#[derive(Clone, Copy, Default)]
struct Arrived {
    count: u64,
    highest: u64,
}

/// Counts what arrives until the other half hangs up.
fn sink(options: &Options) -> io::Result<()> {
    let socket = UdpSocket::bind(options.parsed::<SocketAddr>("udp")?)?;
    socket.set_nonblocking(true)?;
    let listener = UnixListener::bind(options.text("control")?)?;
    say("ready")?;
    let (control, _) = listener.accept()?;
    control.set_read_timeout(Some(PAUSE))?;
    let mut reader = BufReader::new(control.try_clone()?);
    let mut seen: HashMap<SocketAddr, Arrived> = HashMap::new();
    let mut word = String::new();
    loop {
        drain(&socket, &mut seen)?;
        match reader.read_line(&mut word) {
            Ok(0) => return Ok(()),
            Ok(_) => {
                let reply = obey(word.trim_end(), &socket, &mut seen)?;
                writeln!(&control, "{reply}")?;
                word.clear();
            }
            Err(error) if waits(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

fn obey(word: &str, socket: &UdpSocket, seen: &mut HashMap<SocketAddr, Arrived>) -> io::Result<String> {
    let (verb, address) = word.split_once(' ').unwrap_or((word, ""));
    let address: SocketAddr = address.parse().map_err(|_| wrong("the control socket speaks nonsense"))?;
    match verb {
        "punch" => {
            seen.remove(&address);
            socket.send_to(b"punch", address)?;
            Ok("ok".to_owned())
        }
        "seen" => {
            drain(socket, seen)?;
            let arrived = seen.get(&address).copied().unwrap_or_default();
            Ok(format!("{} {}", arrived.count, arrived.highest))
        }
        _ => Err(wrong("the control socket speaks nonsense")),
    }
}

fn drain(socket: &UdpSocket, seen: &mut HashMap<SocketAddr, Arrived>) -> io::Result<()> {
    let mut packet = [0; PACKET];
    loop {
        match socket.recv_from(&mut packet) {
            Ok((length, from)) if length == PACKET => {
                let [a, b, c, d, e, f, g, h, ..] = packet;
                let number = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
                let arrived = seen.entry(from).or_default();
                arrived.count += 1;
                arrived.highest = arrived.highest.max(number);
            }
            // Not one of ours, or an ICMP answer to an earlier packet.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) if waits(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// The other half's end of the control socket.
struct Sink {
    control: BufReader<UnixStream>,
}

impl Sink {
    fn connect(path: &str) -> io::Result<Self> {
        let control = UnixStream::connect(path)?;
        control.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { control: BufReader::new(control) })
    }

    fn ask(&mut self, word: &str) -> io::Result<String> {
        writeln!(self.control.get_ref(), "{word}")?;
        let mut reply = String::new();
        if self.control.read_line(&mut reply)? == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the sink has hung up"));
        }
        Ok(reply.trim_end().to_owned())
    }

    fn seen(&mut self, address: SocketAddr) -> io::Result<Arrived> {
        let reply = self.ask(&format!("seen {address}"))?;
        let mut numbers = reply.split(' ').map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(count)), Some(Ok(highest))) => Ok(Arrived { count, highest }),
            _ => Err(io::Error::new(ErrorKind::InvalidData, reply)),
        }
    }
}

/// How one sample ended.
enum Sample {
    Dropped(Duration),
    Never,
    Noise,
}

struct Shot<'a> {
    sink_address: SocketAddr,
    log: &'a File,
    line: &'a str,
    gap: Duration,
    timeout: Duration,
}

fn measure(options: &Options) -> io::Result<()> {
    let mut sink = Sink::connect(options.text("control")?)?;
    let log = OpenOptions::new().append(true).create(true).open(options.text("log")?)?;
    let rate: u32 = options.parsed_or("rate", 20_000)?;
    let shot = Shot {
        sink_address: options.parsed("sink")?,
        log: &log,
        line: options.text("line")?,
        gap: Duration::from_secs(1).checked_div(rate).ok_or_else(|| wrong("--rate 0 sends nothing"))?,
        timeout: Duration::from_secs(options.parsed_or("timeout", 2)?),
    };
    let first: Ipv4Addr = options.parsed("first")?;
    let samples: u32 = options.parsed("samples")?;
    let (mut taken, mut noise) = (0, 0);
    while taken < samples {
        let address = Ipv4Addr::from_bits(first.to_bits() + taken + noise);
        match shot.sample(address, &mut sink)? {
            Sample::Dropped(after) => {
                taken += 1;
                say(&format!("drop\t{address}\t{:.1}", after.as_secs_f64() * 1e6))?;
            }
            Sample::Never => {
                taken += 1;
                say(&format!("never\t{address}"))?;
            }
            Sample::Noise => {
                noise += 1;
                say(&format!("noise\t{address}"))?;
                if noise > samples / TOLERATED + 10 {
                    return Err(io::Error::other("packets are lost without any ban; is the path open?"));
                }
            }
        }
        // Not in step with whatever else happens each few milliseconds.
        std::thread::sleep(Duration::from_micros(u64::from(3000 + taken.wrapping_mul(7919) % 5000)));
    }
    Ok(())
}

impl Shot<'_> {
    fn sample(&self, address: Ipv4Addr, sink: &mut Sink) -> io::Result<Sample> {
        let socket = UdpSocket::bind((address, 0))?;
        socket.connect(self.sink_address)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let own = SocketAddr::new(IpAddr::V4(address), socket.local_addr()?.port());
        sink.ask(&format!("punch {own}"))?;
        socket.recv(&mut [0; PACKET])?;

        let line = format!("{}\n", self.line.replace("{}", &address.to_string()));
        let start = Instant::now();
        let mut sent: Vec<Instant> = Vec::with_capacity(4096);
        self.send_until(&socket, start, &mut sent, |sent| sent.len() as u64 >= BEFORE)?;
        if !complete(sink.seen(own)?, sent.len()) {
            return Ok(Sample::Noise);
        }
        // The pace begins anew: asking took time.
        let (start, asked) = (Instant::now(), sent.len());
        self.send_until(&socket, start, &mut sent, |sent| (sent.len() - asked) as u64 >= BEFORE)?;
        let written = Instant::now();
        let mut log = self.log;
        log.write_all(line.as_bytes())?;
        let mut window = WINDOW;
        loop {
            self.send_until(&socket, start, &mut sent, |_| written.elapsed() >= window)?;
            // What is under way inside the kernel arrives before the answer does.
            std::thread::sleep(PAUSE);
            let arrived = sink.seen(own)?;
            if !complete(arrived, sent.len()) {
                let gapless = arrived.count > 0 && arrived.highest + 1 == arrived.count;
                let first_lost = usize::try_from(arrived.count).ok().and_then(|index| sent.get(index));
                return Ok(match first_lost {
                    Some(lost) if gapless && *lost >= written => Sample::Dropped(*lost - written),
                    _ => Sample::Noise,
                });
            }
            if written.elapsed() >= self.timeout {
                return Ok(Sample::Never);
            }
            window = (written.elapsed() + WINDOW).max(window * 2);
        }
    }

    /// Sends the next packets, each at its time, until `enough`. A late packet is not made up
    /// for: after a pause of the machine the pace goes on from there.
    fn send_until(
        &self,
        socket: &UdpSocket,
        start: Instant,
        sent: &mut Vec<Instant>,
        enough: impl Fn(&[Instant]) -> bool,
    ) -> io::Result<()> {
        let mut due = sent.last().map_or(start, |last| start.max(*last + self.gap));
        while !enough(sent) {
            while Instant::now() < due {
                std::hint::spin_loop();
            }
            let mut packet = [0; PACKET];
            let number = (sent.len() as u64).to_be_bytes();
            for (place, byte) in packet.iter_mut().zip(number) {
                *place = byte;
            }
            let now = Instant::now();
            match socket.send(&packet) {
                Ok(_) => {}
                // A firewall may answer by ICMP; that packet counts as sent all the same.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            }
            sent.push(now);
            due = now + self.gap;
        }
        Ok(())
    }
}

/// Has everything arrived that was sent?
fn complete(arrived: Arrived, sent: usize) -> bool {
    usize::try_from(arrived.count) == Ok(sent)
}

fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

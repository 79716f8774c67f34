//! The benchmark's client of whole connections, which h2load does not measure: `new` makes one TLS
//! connection a request, at a rate or as fast as it goes; `hold` opens many and leaves them idle.
//! Knows TLS 1.3 and one GET; must not know who answers, nor what figure comes of it.
//!
//! As cheap as it can be, because it shares a processor with what answers behind the proxy: one thread,
//! and no look at the certificate. Connections come from many addresses of 127/8, so that ports that
//! rest after a connection's end are never wanted again.
#![expect(clippy::disallowed_methods, reason = "a stopwatch reads the clock")]

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme, version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Where the client's own addresses begin, and how many there are.
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 1);
const ADDRESSES: u32 = 16_000;
/// For one connection's whole life.
const DEADLINE: Duration = Duration::from_secs(10);
/// Connections under way at once, at a rate: above, the answering side is not up to it.
const MOST: usize = 1024;
/// Handshakes at once while many are opened to be held.
const AT_ONCE: usize = 32;
/// What begins so much later than planned is no longer at that rate.
const LATE: Duration = Duration::from_millis(20);

/// Makes TLS connections for a benchmark.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
    /// Where to.
    #[arg(long, global = true, default_value = "127.0.0.1:8443")]
    to: SocketAddr,
    /// The path asked for.
    #[arg(long, global = true, default_value = "/")]
    path: String,
    /// Further header lines, as `name: value`.
    #[arg(long = "header", global = true)]
    headers: Vec<String>,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// One connection a request. Prints `done`, `failed` and `late`, with a tab and a number each.
    New {
        /// For so many seconds.
        #[arg(long)]
        seconds: f64,
        /// So many connections a second.
        #[arg(long, conflicts_with = "clients")]
        rate: Option<f64>,
        /// So many at once, each followed by the next.
        #[arg(long, default_value_t = 32)]
        clients: usize,
        /// One line a connection, as h2load's: microseconds since the epoch, status (-1: none), and
        /// microseconds from the connection's beginning to the answer's last byte.
        #[arg(long)]
        log_file: Option<PathBuf>,
    },
    /// Opens connections, makes one request on each, says `held` and keeps them until its input ends;
    /// then says how many are still `open`.
    Hold {
        /// How many.
        #[arg(long)]
        connections: u32,
        /// How many of them from one address.
        #[arg(long, default_value_t = 40)]
        per_address: u32,
    },
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let target = Arc::new(Target::new(&arguments)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match arguments.verb {
            Verb::Hold { connections, per_address } => hold(target, connections, per_address).await,
            Verb::New { seconds, rate, clients, log_file } => {
                let length = Duration::try_from_secs_f64(seconds)?;
                let rows = match rate {
                    Some(rate) => at_rate(target, length, rate).await?,
                    None => Rows { seen: in_turn(target, length, clients).await, late: 0 },
                };
                rows.tell(log_file)
            }
        }
    })
}

/// Whom to ask, and what.
struct Target {
    to: SocketAddr,
    tls: TlsConnector,
    name: ServerName<'static>,
    request: Vec<u8>,
}

impl Target {
    fn new(arguments: &Arguments) -> anyhow::Result<Self> {
        // The one cipher suite of all that are compared.
        let mut provider = ring::default_provider();
        provider.cipher_suites = vec![ring::cipher_suite::TLS13_AES_256_GCM_SHA384];
        let mut config = ClientConfig::builder_with_provider(provider.into())
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut request = format!("GET {} HTTP/1.1\r\nhost: {}\r\n", arguments.path, arguments.to);
        for header in &arguments.headers {
            request.push_str(header);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        Ok(Self {
            to: arguments.to,
            tls: TlsConnector::from(Arc::new(config)),
            name: "bench.example.test".try_into()?,
            request: request.into_bytes(),
        })
    }

    /// Connects from the client's address number `from`.
    async fn connect(&self, from: u32) -> Result<TlsStream<TcpStream>> {
        let own = Ipv4Addr::from_bits(FIRST.to_bits() + from % ADDRESSES);
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddrV4::new(own, 0).into())?;
        let stream = socket.connect(self.to).await?;
        stream.set_nodelay(true)?;
        self.tls.connect(self.name.clone(), stream).await
    }

    /// One request on a connection; the answer's status. Its body is read and forgotten.
    async fn ask(&self, stream: &mut TlsStream<TcpStream>) -> Result<u16> {
        stream.write_all(&self.request).await?;
        stream.flush().await?;
        let mut buffer = [0; 8 << 10];
        let mut read = 0;
        let (status, mut left) = loop {
            let came = stream.read(&mut buffer[read..]).await?;
            if came == 0 {
                return Err(broken("no whole head has come"));
            }
            read += came;
            if let Some((status, head, body)) = head(&buffer[..read])? {
                break (status, (head + body).saturating_sub(read));
            }
        };
        while left > 0 {
            let came = stream.read(&mut buffer).await?;
            if came == 0 {
                return Err(broken("the answer ends too early"));
            }
            left = left.saturating_sub(came);
        }
        Ok(status)
    }

    /// A connection for one request.
    async fn once(&self, from: u32) -> Result<u16> {
        let whole = async {
            let mut stream = self.connect(from).await?;
            let status = self.ask(&mut stream).await?;
            // The answer is there; whether the goodbye arrives is nobody's concern.
            drop(stream.shutdown().await);
            Ok(status)
        };
        timeout(DEADLINE, whole).await?
    }
}

/// Status, length of the head and of the body, once the head is whole.
fn head(bytes: &[u8]) -> Result<Option<(u16, usize, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut answer = httparse::Response::new(&mut headers);
    let parsed = answer.parse(bytes).map_err(|fault| Error::new(ErrorKind::InvalidData, fault))?;
    let httparse::Status::Complete(head) = parsed else { return Ok(None) };
    let length = answer
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok())
        .ok_or_else(|| broken("the answer does not tell its length"))?;
    Ok(Some((answer.code.unwrap_or(0), head, length)))
}

fn broken(why: &str) -> Error {
    Error::new(ErrorKind::InvalidData, why)
}

/// One connection that was made.
struct Seen {
    /// Microseconds since the UNIX epoch.
    began: u128,
    status: Option<u16>,
    took: Duration,
}

impl Seen {
    async fn once(target: &Target, from: u32) -> Self {
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let start = Instant::now();
        let status = match target.once(from).await {
            Ok(status) => Some(status),
            Err(error) => {
                eprintln!("dial: {error}");
                None
            }
        };
        Self { began, status, took: start.elapsed() }
    }
}

/// All of them.
struct Rows {
    seen: Vec<Seen>,
    /// How many began too late.
    late: usize,
}

impl Rows {
    fn tell(&self, log_file: Option<PathBuf>) -> anyhow::Result<()> {
        if let Some(path) = log_file {
            let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
            for Seen { began, status, took } in &self.seen {
                let status = status.map_or(-1, i32::from);
                writeln!(file, "{began}\t{status}\t{}", took.as_micros())?;
            }
            file.flush()?;
        }
        let done = self.seen.iter().filter(|seen| seen.status == Some(200)).count();
        let (failed, late) = (self.seen.len() - done, self.late);
        write!(std::io::stdout(), "done\t{done}\nfailed\t{failed}\nlate\t{late}\n")?;
        Ok(())
    }
}

/// `clients` at once, each connection followed by the next.
async fn in_turn(target: Arc<Target>, length: Duration, clients: usize) -> Vec<Seen> {
    let end = Instant::now() + length;
    let mut callers = JoinSet::new();
    for first in (0..ADDRESSES).step_by((ADDRESSES as usize / clients.max(1)).max(1)).take(clients) {
        let target = Arc::clone(&target);
        callers.spawn(async move {
            let mut seen = Vec::new();
            for from in first.. {
                if Instant::now() >= end {
                    break;
                }
                seen.push(Seen::once(&target, from).await);
            }
            seen
        });
    }
    callers.join_all().await.into_iter().flatten().collect()
}

/// `rate` a second, whatever becomes of the earlier ones.
async fn at_rate(target: Arc<Target>, length: Duration, rate: f64) -> anyhow::Result<Rows> {
    let step = Duration::try_from_secs_f64(1.0 / rate)?;
    let places = Arc::new(Semaphore::new(MOST));
    let mut callers = JoinSet::new();
    let (began, mut late) = (Instant::now(), 0);
    for number in 0_u32.. {
        let due = step * number;
        if due >= length {
            break;
        }
        sleep_until((began + due).into()).await;
        let place = Arc::clone(&places).acquire_owned().await?;
        late += usize::from(began.elapsed() > due + LATE);
        let target = Arc::clone(&target);
        callers.spawn(async move {
            let seen = Seen::once(&target, number).await;
            drop(place);
            seen
        });
    }
    Ok(Rows { seen: callers.join_all().await, late })
}

async fn hold(target: Arc<Target>, connections: u32, per_address: u32) -> anyhow::Result<()> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut opening = JoinSet::new();
    for number in 0..connections {
        let (target, place) = (Arc::clone(&target), Arc::clone(&places).acquire_owned().await?);
        opening.spawn(async move {
            let mut stream = timeout(DEADLINE, target.connect(number / per_address)).await??;
            let status = timeout(DEADLINE, target.ask(&mut stream)).await??;
            drop(place);
            anyhow::ensure!(status == 200, "connection {number} was answered {status}");
            Ok(stream)
        });
    }
    let held: Vec<_> = opening.join_all().await.into_iter().collect::<anyhow::Result<_>>()?;
    writeln!(std::io::stdout(), "held\t{}", held.len())?;
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    let open = held.iter().filter(|stream| is_open(stream.get_ref().0)).count();
    writeln!(std::io::stdout(), "open\t{open}")?;
    Ok(())
}

/// Nothing has come since the answer: neither an end nor a goodbye.
fn is_open(stream: &TcpStream) -> bool {
    matches!(stream.try_read(&mut [0; 1]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// Takes every server for the right one: this client tells how fast it answers, nothing else.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

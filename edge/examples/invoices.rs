//! A sample application handler: an invoice page behind edge. It stores a document, takes a
//! number for it and gives it back, all through edge's gateway socket. It knows HTTP and
//! nothing else: no certificate, no vault, no retry beyond passing a 503 on.
//!
//! One `Idempotency-Key` of the caller names all three steps, so repeating a POST with the
//! same key gives the same invoice, however far the first attempt came.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::Parser;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use sha2::{Digest, Sha256};
use shared::api::{Confirm, FILE_LABEL, File, IDEMPOTENCY_KEY, Number, PROBLEM_JSON, Problem};
use shared::shutdown::Shutdown;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::either::Either;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// The series this application takes its numbers from.
const SERIES: &str = "INV";
/// What the longest of the three steps adds to the caller's key; the whole fits 128 bytes.
const MAX_CALLERS_KEY: usize = 120;
/// Any answer that is read into memory.
const MAX_JSON: usize = 64 << 10;
/// The gateway's own deadlines are shorter; this one is for a gateway that hangs.
const GATEWAY_DEADLINE: Duration = Duration::from_secs(120);
/// Longest `/slow`.
const MAX_SLOW: Duration = Duration::from_secs(60);
/// What `--listen` starts with for a socket file.
const UNIX: &str = "unix:";
/// For requests under way when told to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// Connections at a time.
const MAX_CONNECTIONS: usize = 512;

type BoxError = Box<dyn Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// A sample handler for edge: upload a document, get an invoice number, download it again.
#[derive(Parser)]
struct Arguments {
    /// Where edge finds it: unix:/path/to/socket or address:port.
    #[arg(long)]
    listen: String,
    /// Edge's gateway socket.
    #[arg(long)]
    gateway: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    shared::telemetry::start("info", shared::telemetry::Format::Text);
    match serve(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("invoices: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(arguments: Arguments) -> anyhow::Result<()> {
    let shutdown = shared::shutdown::on_signals()?;
    let listener = Listener::bind(&arguments.listen)
        .await
        .with_context(|| format!("{}: cannot listen", arguments.listen))?;
    tracing::info!("invoices: listening on {}", arguments.listen);
    let gateway: Arc<Path> = arguments.gateway.into();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let tasks = TaskTracker::new();
    loop {
        let place = Arc::clone(&places).acquire_owned().await?;
        let stream = tokio::select! {
            accepted = listener.accept() => accepted?,
            () = shutdown.cancelled() => break,
        };
        let (gateway, shutdown) = (Arc::clone(&gateway), shutdown.clone());
        tasks.spawn(async move {
            connection(stream, gateway, shutdown).await;
            drop(place);
        });
    }
    drop(listener);
    if let Some(path) = arguments.listen.strip_prefix(UNIX) {
        tokio::fs::remove_file(path).await.with_context(|| format!("{path}: cannot be removed"))?;
    }
    tasks.close();
    if timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::warn!("invoices: {} requests cut after {DRAIN:?}", tasks.len());
    }
    Ok(())
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    async fn bind(listen: &str) -> std::io::Result<Self> {
        let Some(path) = listen.strip_prefix(UNIX) else {
            return Ok(Self::Tcp(TcpListener::bind(listen).await?));
        };
        // A socket left by an earlier run is in the way; anything else is not ours to remove.
        let stale = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
        if UnixStream::connect(path).await.is_err_and(stale) {
            tokio::fs::remove_file(path).await?;
        }
        Ok(Self::Unix(UnixListener::bind(path)?))
    }

    async fn accept(&self) -> std::io::Result<Either<UnixStream, TcpStream>> {
        match self {
            Self::Unix(listener) => Ok(Either::Left(listener.accept().await?.0)),
            Self::Tcp(listener) => Ok(Either::Right(listener.accept().await?.0)),
        }
    }
}

async fn connection(stream: Either<UnixStream, TcpStream>, gateway: Arc<Path>, shutdown: Shutdown) {
    let service = service_fn(move |request| {
        let gateway = Arc::clone(&gateway);
        async move { Ok::<_, std::convert::Infallible>(answer(request, gateway).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(60));
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let done = tokio::select! {
        done = &mut serving => done,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = done {
        tracing::debug!("invoices: a connection ended: {error}");
    }
}

async fn answer(request: Request<Incoming>, gateway: Arc<Path>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let answered = match (request.method(), path.as_str()) {
        (&Method::GET, "/") => Ok(page()),
        (&Method::GET, "/slow") => slow(request.uri().query()).await,
        (&Method::POST, "/invoices") => invoice(request, &gateway).await,
        (&Method::GET | &Method::HEAD, path) if path.starts_with("/files/") => file(request, &gateway).await,
        _ => Err(Fault::own(
            StatusCode::NOT_FOUND,
            "not_found",
            "there is GET /, POST /invoices and GET /files/{id}",
        )),
    };
    answered.unwrap_or_else(|fault| {
        tracing::warn!("invoices: {path:?}: {fault}");
        fault.into_response()
    })
}

/// The document, its number, and both joined.
async fn invoice(request: Request<Incoming>, gateway: &Path) -> Result<Response<Body>, Fault> {
    let key = callers_key(request.headers())?;
    let (parts, body) = request.into_parts();

    let digest = Arc::new(Mutex::new(Sha256::new()));
    let hashing = Arc::clone(&digest);
    let body = body.map_frame(move |frame| {
        if let Some(data) = frame.data_ref() {
            hashing.lock().unwrap_or_else(PoisonError::into_inner).update(data);
        }
        frame
    });
    let mut upload = post("/v1/files", &format!("{key}-file"), body.boxed_unsync())?;
    for name in [header::CONTENT_TYPE, HeaderName::from_static(FILE_LABEL)] {
        if let Some(value) = parts.headers.get(&name) {
            upload.headers_mut().insert(name, value.clone());
        }
    }
    let stored: File = json(call(gateway, upload).await?).await?;
    let document_hash = {
        let digest = digest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        digest.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    };

    let reserve = post(&format!("/v1/series/{SERIES}/numbers"), &key, empty())?;
    let number: Number = json(call(gateway, reserve).await?).await?;

    let confirm = serde_json::to_vec(&Confirm { document_hash }).map_err(|_| Fault::unreadable())?;
    let path = format!("/v1/series/{SERIES}/numbers/{}/confirm", number.number);
    let mut confirm = post(&path, &format!("{key}-use"), whole(confirm.into()))?;
    confirm.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let number: Number = json(call(gateway, confirm).await?).await?;

    let invoice = serde_json::json!({ "series": number.series, "number": number.number, "file": stored.id });
    let mut response = Response::new(whole(format!("{invoice}\n").into()));
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, text) in [(IDEMPOTENCY_KEY, key), ("location", format!("/files/{}", stored.id))] {
        headers.insert(name, HeaderValue::try_from(text).map_err(|_| Fault::unreadable())?);
    }
    Ok(response)
}

/// Streams a stored document through, ranges and conditions included.
async fn file(request: Request<Incoming>, gateway: &Path) -> Result<Response<Body>, Fault> {
    let (parts, _) = request.into_parts();
    let mut asked = Request::new(empty());
    *asked.method_mut() = parts.method;
    *asked.uri_mut() = format!("/v1{}", parts.uri.path())
        .parse()
        .map_err(|_| Fault::own(StatusCode::BAD_REQUEST, "bad_path", "that is no file's address"))?;
    for name in [header::RANGE, header::IF_RANGE, header::IF_NONE_MATCH] {
        if let Some(value) = parts.headers.get(&name) {
            asked.headers_mut().insert(name, value.clone());
        }
    }
    let mut response = call(gateway, asked).await?;
    // A stored page must not run as one of ours.
    response.headers_mut().insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    Ok(response)
}

/// Holds the request for `ms` milliseconds, to show how many may be in flight.
async fn slow(query: Option<&str>) -> Result<Response<Body>, Fault> {
    let wanted =
        query.and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("ms="))?.parse().ok());
    let wait = wanted.map(Duration::from_millis).filter(|wait| *wait <= MAX_SLOW).ok_or_else(|| {
        Fault::own(StatusCode::BAD_REQUEST, "bad_query", "write /slow?ms=N with N from 0 to 60000")
    })?;
    tokio::time::sleep(wait).await;
    Ok(Response::new(whole(format!("answered after {} ms\n", wait.as_millis()).into())))
}

/// The caller's key, or a fresh one. The steps' keys are made of it.
fn callers_key(headers: &HeaderMap) -> Result<String, Fault> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else {
        return shared::api::client::fresh_key().map_err(|_| Fault::unreadable());
    };
    key.to_str()
        .ok()
        .filter(|key| (1..=MAX_CALLERS_KEY).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()))
        .map(str::to_owned)
        .ok_or_else(|| {
            let what = "the Idempotency-Key has not 1 to 120 visible ASCII characters";
            Fault::own(StatusCode::BAD_REQUEST, "bad_key", what)
        })
}

fn post(path: &str, key: &str, body: Body) -> Result<Request<Body>, Fault> {
    Request::post(path).header(IDEMPOTENCY_KEY, key).body(body).map_err(|_| Fault::unreadable())
}

/// One request to the gateway on a connection of its own: on a local socket that costs little.
async fn call(gateway: &Path, mut request: Request<Body>) -> Result<Response<Body>, Fault> {
    request.headers_mut().insert(header::HOST, HeaderValue::from_static("gateway"));
    let exchange = async {
        let stream = UnixStream::connect(gateway).await?;
        let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = AbortOnDropHandle::new(tokio::spawn(connection));
        Ok::<_, BoxError>((sender.send_request(request).await?, driver))
    };
    match timeout(GATEWAY_DEADLINE, exchange).await {
        Ok(Ok((response, driver))) => {
            // The connection lives as long as the body that comes over it.
            let body = response.map(|body| {
                body.map_frame(move |frame| {
                    let _held = &driver;
                    frame
                })
                .boxed_unsync()
            });
            Ok(body)
        }
        Ok(Err(error)) => {
            tracing::warn!("invoices: gateway {}: {error}", gateway.display());
            Err(Fault::away("edge's gateway does not answer; repeat with the same Idempotency-Key"))
        }
        Err(_) => {
            Err(Fault::away("edge's gateway did not answer in time; repeat with the same Idempotency-Key"))
        }
    }
}

/// A success as a value; a refusal is passed on to the caller as it came.
async fn json<T: serde::de::DeserializeOwned>(response: Response<Body>) -> Result<T, Fault> {
    let (parts, body) = response.into_parts();
    let body = match Limited::new(body, MAX_JSON).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => {
            return Err(Fault::away("the gateway's answer broke off; repeat with the same Idempotency-Key"));
        }
    };
    if parts.status.is_success() {
        return serde_json::from_slice(&body).map_err(|_| Fault::unreadable());
    }
    let retry_after = parts.headers.get(header::RETRY_AFTER).cloned();
    let problem = serde_json::from_slice(&body).map_err(|_| Fault::unreadable())?;
    Err(Fault { problem, retry_after })
}

/// What the caller is told instead of an invoice.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
struct Fault {
    problem: Box<Problem>,
    retry_after: Option<HeaderValue>,
}

impl Fault {
    fn own(status: StatusCode, code: &str, detail: &str) -> Self {
        Self { problem: Box::new(Problem::new(status, code, detail)), retry_after: None }
    }

    fn away(detail: &str) -> Self {
        let retry_after = Some(HeaderValue::from_static("1"));
        Self { retry_after, ..Self::own(StatusCode::SERVICE_UNAVAILABLE, "gateway_away", detail) }
    }

    fn unreadable() -> Self {
        Self::own(StatusCode::BAD_GATEWAY, "gateway_unreadable", "edge's gateway and this handler do not fit")
    }

    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(whole(serde_json::to_vec(&self.problem).unwrap_or_default().into()));
        *response.status_mut() = StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::BAD_GATEWAY);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(after) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, after);
        }
        response
    }
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn empty() -> Body {
    whole(Bytes::new())
}

fn page() -> Response<Body> {
    let mut response = Response::new(whole(Bytes::from_static(PAGE.as_bytes())));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}

/// The browser sends the document as it is; a failed attempt is repeated with the same key.
const PAGE: &str = r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Invoices</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 36em; margin: 3em auto; padding: 0 1em }
  button { font: inherit; padding: .3em 1em }
  li, output { overflow-wrap: anywhere }
</style>
<h1>Invoices</h1>
<form>
  <p><label>Document <input type="file" name="document" required></label>
  <p><button>Store it and give it a number</button>
  <p><output></output>
</form>
<ol reversed></ol>
<script>
  const form = document.querySelector('form'), told = document.querySelector('output');
  form.addEventListener('submit', async event => {
    event.preventDefault();
    const file = form.document.files[0];
    const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), b => b.toString(16).padStart(2, '0')).join('');
    form.querySelector('button').disabled = true;
    try {
      for (let attempt = 1; ; attempt++) {
        told.value = 'storing ' + file.name + (attempt > 1 ? ', attempt ' + attempt : '');
        const answer = await fetch('/invoices', { method: 'POST', body: file, headers: {
          'Idempotency-Key': key,
          'Content-Type': file.type || 'application/octet-stream',
          'File-Label': encodeURIComponent(file.name),
        } });
        const said = await answer.json();
        if (answer.ok) {
          const link = Object.assign(document.createElement('a'), { href: '/files/' + said.file, textContent: file.name });
          const item = document.createElement('li');
          item.value = said.number;
          item.append(link);
          document.querySelector('ol').prepend(item);
          told.value = 'Invoice ' + said.series + ' ' + said.number;
          return;
        }
        if (answer.status !== 503 || attempt === 5) throw new Error(said.detail);
        await new Promise(wake => setTimeout(wake, 1000 * (answer.headers.get('Retry-After') || 1)));
      }
    } catch (error) {
      told.value = error.message;
    } finally {
      form.querySelector('button').disabled = false;
    }
  });
</script>
"#;

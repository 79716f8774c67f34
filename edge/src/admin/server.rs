//! Answers on the admin listener and the control socket: few connections, one request each,
//! five seconds for all of it. Knows HTTP; must not know what the figures mean.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use shared::api::{PROBLEM_JSON, Problem};
use shared::local_socket::LocalSocket;
use shared::shutdown::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::{Parts, Status};
use crate::ban::words::Question;

/// Most connections at once on either door; further ones are closed at once.
const MAX_CONNECTIONS: usize = 64;
/// A whole connection, from its first byte to the answer's last.
const DEADLINE: Duration = Duration::from_secs(5);
/// Nothing that is asked here needs more.
const MAX_HEAD: usize = 16 * 1024;
/// Room for a few thousand networks.
const MAX_QUESTION: usize = 256 * 1024;
/// After a failed accept, usually for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// Which listener a request came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    /// TCP: health and metrics, for anybody who can reach it.
    Health,
    /// The control socket: commands, for its owner and group.
    Control,
}

/// Serves both doors until `shutdown`, then lets answers under way end.
pub(super) async fn run(tcp: TcpListener, control: LocalSocket, parts: Arc<Parts>, shutdown: Shutdown) {
    #[expect(clippy::disallowed_methods, reason = "the uptime that status shows starts here")]
    let started = Instant::now();
    let health = Host { door: Door::Health, parts: Arc::clone(&parts), started };
    let command = Host { door: Door::Control, parts, started };
    // Apart, so that a crowd of scrapers cannot lock the operator out.
    let room = [Arc::new(Semaphore::new(MAX_CONNECTIONS)), Arc::new(Semaphore::new(MAX_CONNECTIONS))];
    let tasks = TaskTracker::new();
    loop {
        let failed = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = tcp.accept() => match accepted {
                Ok((stream, _)) => { admit(&room[0], &tasks, &health, stream); None }
                Err(error) => Some(error),
            },
            accepted = control.accept() => match accepted {
                Ok(stream) => { admit(&room[1], &tasks, &command, stream); None }
                Err(error) => Some(error),
            },
        };
        if let Some(error) = failed {
            tracing::warn!("admin: a connection was not accepted: {error}; going on in {PAUSE:?}");
            tokio::time::sleep(PAUSE).await;
        }
    }
    tasks.close();
    // Each task ends by its own deadline.
    tasks.wait().await;
}

fn admit<S>(room: &Arc<Semaphore>, tasks: &TaskTracker, host: &Host, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Ok(place) = Arc::clone(room).try_acquire_owned() else { return };
    let host = host.clone();
    tasks.spawn(async move {
        host.serve(stream).await;
        drop(place);
    });
}

#[derive(Clone)]
struct Host {
    door: Door,
    parts: Arc<Parts>,
    started: Instant,
}

impl Host {
    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) {
        let service = service_fn(|request| async move { Ok::<_, Infallible>(self.answer(request).await) });
        let connection = http1::Builder::new()
            .keep_alive(false)
            .timer(TokioTimer::new())
            .header_read_timeout(DEADLINE)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        match tokio::time::timeout(DEADLINE, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("admin: a connection broke off: {error}"),
            Err(_) => tracing::debug!("admin: a connection was closed after {DEADLINE:?}"),
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let (method, path) = (&head.method, head.uri.path());
        let reading = matches!(*method, Method::GET | Method::HEAD);
        match (self.door, path) {
            (Door::Health, "/livez" | "/readyz" | "/healthz" | "/metrics") if !reading => {
                other_method("GET, HEAD")
            }
            (Door::Health, "/metrics") => whole(StatusCode::OK, METRICS, self.metrics()),
            (Door::Health, _) => match self.parts.readiness.answer(path, verbose(head.uri.query())) {
                Some((status, text)) => {
                    whole(StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE), TEXT, text)
                }
                None => unknown(path, "/livez, /readyz, /healthz and /metrics"),
            },
            (Door::Control, "/status") if reading => self.status(),
            (Door::Control, "/status") => other_method("GET, HEAD"),
            (Door::Control, "/reload") if method == Method::POST => self.reload().await,
            (Door::Control, "/reload") => other_method("POST"),
            (Door::Control, "/bans") if method == Method::POST => self.bans(body).await,
            (Door::Control, "/bans") => other_method("POST"),
            (Door::Control, _) => unknown(path, "/status, /reload and /bans"),
        }
    }

    fn metrics(&self) -> String {
        let in_flight = i64::try_from(self.parts.in_flight.total()).unwrap_or(i64::MAX);
        self.parts.metrics.in_flight.set(in_flight);
        self.parts.metrics.text()
    }

    fn status(&self) -> Response<Full<Bytes>> {
        let status = Status::of(&self.parts, self.started.elapsed().as_secs());
        match serde_json::to_string(&status) {
            Ok(json) => whole(StatusCode::OK, JSON, json),
            Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, "status", &error.to_string()),
        }
    }

    async fn bans(&self, body: Incoming) -> Response<Full<Bytes>> {
        let question = match question(body).await {
            Ok(question) => question,
            Err(why) => {
                let why = format!("no question that this edge knows: {why}; use the same version's `edge`");
                return problem(StatusCode::BAD_REQUEST, "bad_question", &why);
            }
        };
        let bans = Arc::clone(&self.parts.bans);
        let answered = tokio::task::spawn_blocking(move || serde_json::to_string(&bans(question))).await;
        match answered {
            Ok(Ok(json)) => whole(StatusCode::OK, JSON, json),
            Ok(Err(error)) => problem(StatusCode::INTERNAL_SERVER_ERROR, "bans", &error.to_string()),
            Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, "bans", &error.to_string()),
        }
    }

    async fn reload(&self) -> Response<Full<Bytes>> {
        let reload = Arc::clone(&self.parts.reload);
        match tokio::task::spawn_blocking(move || reload()).await {
            Ok(Ok(done)) => whole(StatusCode::OK, JSON, serde_json::json!({ "reloaded": done }).to_string()),
            Ok(Err(why)) => problem(StatusCode::CONFLICT, "not_reloaded", &why),
            Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, "not_reloaded", &error.to_string()),
        }
    }
}

/// A question of an operator, as JSON.
async fn question(body: Incoming) -> Result<Question, String> {
    let whole = Limited::new(body, MAX_QUESTION).collect().await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&whole.to_bytes()).map_err(|error| error.to_string())
}

/// `?verbose`, alone or among others, with or without a value.
fn verbose(query: Option<&str>) -> bool {
    query.is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some("verbose")))
}

fn whole(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn problem(status: StatusCode, code: &str, detail: &str) -> Response<Full<Bytes>> {
    let problem = Problem::new(status, code, detail);
    // Five texts and a number always serialise.
    whole(status, PROBLEM_JSON, serde_json::to_string(&problem).unwrap_or_default())
}

fn unknown(path: &str, known: &str) -> Response<Full<Bytes>> {
    problem(StatusCode::NOT_FOUND, "not_found", &format!("{path} is not here; {known} are"))
}

fn other_method(allowed: &'static str) -> Response<Full<Bytes>> {
    let mut response =
        problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", &format!("use {allowed}"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

//! The phases of one request, as the engine calls them. Each asks a room and passes its answer
//! on; a refusal becomes an error that `fail_to_proxy` answers and `logging` writes down, so that
//! every request has exactly one line whatever became of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, StatusCode, Version, header};
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};

use tokio::time::timeout;

use crate::access_log::Entry;
use crate::admission::{Denied, let_in};
use crate::client::Client;
use crate::listen::connection::Connection;
use crate::listen::head::{Fault, absolute_authority, absolute_path};
use crate::listen::seconds_now;
use crate::proxy::cross_site::is_cross_site;
use crate::proxy::refusal::{Refusal, seconds};
use crate::proxy::request::Request;
use crate::proxy::request_id::Ids;
use crate::proxy::{Site, forward, peer};
use crate::route::{checked_path, host_of};

/// How long, and how much, an early answered HTTP/2 request may go on being sent.
const READ_ON: Duration = Duration::from_secs(1);
const READ_ON_BYTES: usize = 1024 * 1024;

/// The phases over one site.
pub(crate) struct Phases {
    site: Arc<Site>,
    /// Of this engine's one thread: the lock is never waited for.
    ids: Mutex<Ids>,
}

impl Phases {
    pub(crate) fn new(site: Arc<Site>) -> Self {
        Self { site, ids: Mutex::new(Ids::new()) }
    }

    /// Who asks, and may it ask now?
    fn admit(&self, session: &Session, request: &mut Request) -> Result<(), Refusal> {
        let head = session.req_header();
        let Some(connection) = &request.connection else {
            return Err(
                Refusal::new(500, "internal", "internal error").because("no connection state".to_owned())
            );
        };
        let client = if connection.presence.is_trusted() {
            let forwarded = head.headers.get_all("x-forwarded-for");
            self.site
                .trusted
                .client(connection.peer.ip(), forwarded.iter().map(http::HeaderValue::as_bytes))
                .map_err(|fault| Refusal::malformed("bad X-Forwarded-For").because(fault.to_string()))?
        } else {
            connection.client
        };
        request.client = Some(client);
        if request.permit.is_none() {
            self.let_in(connection, client, &mut request.generation)?;
            let permit = self.site.in_flight.admit(client.key()).map_err(|rejected| {
                self.count_rejected("in_flight");
                Refusal::new(429, "too_many_requests", "too many requests in flight from this address")
                    .because(format!("{} requests in flight", rejected.in_flight))
                    .retry_after(self.site.retry_after)
            })?;
            request.permit = Some(permit);
        }
        // HTTP/1's gate has looked at these already; HTTP/2 has no gate.
        if matches!(head.method, Method::TRACE | Method::CONNECT) {
            return Err(Refusal::new(405, "method_not_allowed", "method not allowed"));
        }
        if head.headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some() {
            return Err(Refusal::malformed("several Content-Length headers"));
        }
        if head.headers.len() > self.site.listen.max_headers {
            return Err(Refusal::new(431, "malformed_request", "too many headers"));
        }
        if head.raw_path().len() > self.site.listen.max_uri.as_usize() {
            return Err(Refusal::new(414, "malformed_request", "request target too long"));
        }
        Ok(())
    }

    /// May this client ask at all, and so soon?
    fn let_in(&self, connection: &Connection, client: Client, generation: &mut u64) -> Result<(), Refusal> {
        let banned = &self.site.banned;
        // Before the look: a ban from here on is news.
        *generation = banned.generation();
        let_in(banned, &self.site.rates, client, seconds_now()).map_err(|why| {
            if why == Denied::Banned && !connection.presence.is_trusted() {
                // It is all its own, further streams of HTTP/2 included.
                connection.presence.leave();
            }
            self.count_rejected(why.label());
            Refusal::denied(why)
        })
    }

    /// Has this client been banned since its request was let in? Where its socket carries others (a
    /// trusted proxy's), only this can end what is under way. Costs one load while nobody is banned.
    fn still_let_in(&self, request: &mut Request) -> Result<()> {
        let generation = self.site.banned.generation();
        if generation == request.generation {
            return Ok(());
        }
        request.generation = generation;
        match request.client {
            Some(client) if self.site.banned.holds(client.address, seconds_now()) => {
                self.count_rejected("banned");
                Err(refused(request, Refusal::banned()))
            }
            _ => Ok(()),
        }
    }

    fn count_rejected(&self, reason: &str) {
        self.site.metrics.rejected.with_label_values(&[reason]).inc();
    }

    /// Where does it go? `Some` is an answer that edge gives itself.
    fn place(&self, session: &mut Session, request: &mut Request) -> Result<Option<(u16, String)>, Refusal> {
        let head = session.req_header();
        let raw_host = match (head.uri.authority(), head.headers.get(header::HOST)) {
            (Some(authority), _) => authority.as_str(),
            (None, Some(host)) => host.to_str().unwrap_or("\u{0}"),
            // HTTP/1.0 may name its host in the target alone.
            (None, None) => {
                std::str::from_utf8(head.raw_path()).ok().and_then(absolute_authority).unwrap_or_default()
            }
        };
        if !raw_host.is_empty() {
            let host = host_of(raw_host)
                .map_err(|fault| Refusal::malformed("bad Host").because(format!("Host: {fault}")))?;
            request.host = host.into_owned();
        }
        let raw = head.raw_path().to_vec();
        let target = match std::str::from_utf8(&raw).ok().and_then(absolute_path) {
            Some(path) => path.as_bytes(),
            None => &raw,
        };
        let raw_path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
        let path = checked_path(raw_path)
            .map_err(|fault| Refusal::malformed("bad path").because(format!("path: {fault}")))?;
        let own_name = self.site.direct_name.as_deref().is_some_and(|own| own == request.host);
        if own_name {
            // Parts and details are for the admin listener; this name is public.
            if let Some(answer) = self.site.readiness.answer(path, false) {
                return Ok(Some(answer));
            }
        }
        let (number, route) = self.site.routes.numbered(&request.host, path).ok_or_else(|| {
            Refusal::new(404, "no_route", "nothing is served here").because("no route".to_owned())
        })?;
        let route = Arc::clone(route);
        if let Some(client) = request.client {
            self.site.rates.route(client, number).map_err(|fault| {
                self.count_rejected("route_rate");
                Refusal::too_fast("route_rate", fault)
            })?;
        }
        let length = head.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        if length.and_then(|text| text.parse::<u64>().ok()).is_some_and(|length| length > route.max_body.0) {
            return Err(too_large(&route.max_body.to_string()));
        }
        request.upstream = self.site.upstreams.find(&route.upstream).cloned();
        if request.upstream.is_none() {
            return Err(Refusal::new(500, "internal", "internal error")
                .because(format!("route to unknown upstream {:?}", route.upstream)));
        }
        if target.len() != raw.len() {
            let target = target.to_vec();
            session
                .req_header_mut()
                .set_raw_path(&target)
                .map_err(|error| Refusal::malformed("bad path").because(error.to_string()))?;
            request.target = Some(raw);
        }
        request.route = Some(route);
        Ok(None)
    }

    /// What an error of the engine means to the client and to the log.
    fn judge(&self, session: &Session, error: &Error, request: &Request) -> Refusal {
        let reason = || {
            let mut words = request.attempts.clone();
            let last = attempt(request, error);
            if words.last() != Some(&last) {
                words.push(last);
            }
            words.join("; ")
        };
        if request.connection.as_ref().is_some_and(|connection| connection.presence.is_cut()) {
            return Refusal::new(499, "banned", "banned")
                .because("banned: the connection was cut".to_owned());
        }
        if let Some(fault) = request.connection.as_ref().and_then(|connection| connection.fault()) {
            if fault == Fault::TooSlow {
                return Refusal::new(fault.status(), "request_timeout", fault.to_string());
            }
            self.site.metrics.malformed.inc();
            return Refusal::malformed(fault.to_string());
        }
        let stalled = || Refusal::new(408, "request_timeout", "the request body stopped coming");
        match (error.esource(), error.etype()) {
            (_, ErrorType::HTTPStatus(status)) => {
                Refusal::new(*status, "refused", "refused").because(reason())
            }
            (ErrorSource::Upstream, ErrorType::ReadTimedout)
                if !request.body_done && !body_empty(session) =>
            {
                stalled()
            }
            (
                ErrorSource::Upstream,
                ErrorType::ConnectTimedout | ErrorType::ReadTimedout | ErrorType::WriteTimedout,
            ) => Refusal::new(504, "upstream_timeout", "the application did not answer in time")
                .because(reason()),
            (ErrorSource::Upstream, _) => {
                Refusal::new(502, "upstream_failed", "the application could not be reached or broke off")
                    .because(reason())
            }
            (ErrorSource::Downstream, ErrorType::ReadTimedout) => stalled(),
            (ErrorSource::Downstream, ErrorType::ReadError) if found_by_us(error) => {
                if session.response_written().is_none() {
                    self.site.metrics.malformed.inc();
                }
                Refusal::malformed("malformed request body").because(short(error))
            }
            (
                ErrorSource::Downstream,
                ErrorType::ReadError
                | ErrorType::WriteError
                | ErrorType::ConnectionClosed
                | ErrorType::WriteTimedout
                | ErrorType::H2Error,
            ) if given_up(error) => Refusal::new(408, "request_timeout", "the request body stopped coming"),
            (
                ErrorSource::Downstream,
                ErrorType::ReadError
                | ErrorType::WriteError
                | ErrorType::ConnectionClosed
                | ErrorType::WriteTimedout
                | ErrorType::H2Error,
            ) => Refusal::new(499, "client_gone", "the client left")
                .because(format!("client left: {}", short(error))),
            (ErrorSource::Downstream, _) => Refusal::malformed("malformed request").because(short(error)),
            (ErrorSource::Internal | ErrorSource::Unset, _) => {
                tracing::error!("proxy: request {}: {error}; answered 500", request.id);
                Refusal::new(500, "internal", "internal error").because(short(error))
            }
        }
    }

    /// A server that could not be reached, or that took the request and gave no answer.
    fn server_failed(&self, request: &mut Request, error: &Error, unreachable: bool) {
        let (Some(upstream), Some(server)) = (request.upstream.clone(), request.server) else { return };
        let name = &upstream.settings().name;
        self.site.metrics.upstream_failures.with_label_values(&[name.as_str()]).inc();
        let why = attempt(request, error);
        let now = self.site.now();
        let news =
            if unreachable { upstream.unreachable(server, now) } else { upstream.unanswered(server, now) };
        if news {
            let pause = upstream.settings().fail_timeout;
            tracing::warn!("upstream {name}: {why}; passed over for {pause:?} while others answer");
        }
        request.attempts.push(why);
    }
}

fn attempt(request: &Request, error: &Error) -> String {
    match &request.server_name {
        Some(server) => format!("{server}: {}", short(error)),
        None => short(error),
    }
}

fn too_large(most: &str) -> Refusal {
    Refusal::new(413, "body_too_large", format!("the request body is over {most}"))
}

fn body_empty(session: &Session) -> bool {
    let headers = &session.req_header().headers;
    let length = headers.get(header::CONTENT_LENGTH).is_some_and(|value| value.as_bytes() != b"0");
    !length && !headers.contains_key(header::TRANSFER_ENCODING) && !session.is_http2()
}

/// Type and innermost cause, without the engine's chain of contexts.
fn short(error: &Error) -> String {
    let mut inner = error;
    while let Some(cause) = inner.cause.as_ref().and_then(|cause| cause.downcast_ref::<Box<Error>>()) {
        inner = cause;
    }
    let words = match (&inner.cause, &inner.context) {
        (Some(cause), _) => cause.to_string(),
        (None, Some(context)) => context.as_str().to_owned(),
        (None, None) => String::new(),
    };
    let words: String = words.chars().filter(|c| !c.is_control()).take(200).collect();
    let kind = inner.etype().as_str();
    if words.is_empty() { kind.to_owned() } else { format!("{kind}: {words}") }
}

/// Of HTTP/2: did this side find the stream's fault (a body that is not as long as announced), or
/// did the client take the stream back? The HTTP/2 library tells it in words only.
fn found_by_us(error: &Error) -> bool {
    short(error).contains("error detected")
}

/// Of HTTP/2: did `listen` end the stream because its body stood still? No client takes a stream
/// back without an error.
fn given_up(error: &Error) -> bool {
    short(error).contains("not a result of an error")
}

fn refused(request: &mut Request, refusal: Refusal) -> Box<Error> {
    let error = Error::new_in(ErrorType::HTTPStatus(refusal.status));
    request.refusal = Some(refusal);
    error
}

fn connection(session: &Session) -> Option<Arc<Connection>> {
    let digest = session.as_downstream().digest()?;
    let carried: &ProxyDigest = digest.proxy_digest.as_ref()?;
    carried.user_data.as_ref()?.downcast_ref::<Arc<Connection>>().cloned()
}

/// Sends an answer of our own. The connection is kept only where nothing of a body is on its way.
async fn send(session: &mut Session, mut head: ResponseHeader, body: Bytes, keep: bool) -> Result<()> {
    head.insert_header(header::CONTENT_LENGTH, body.len())?;
    head.insert_header(header::CACHE_CONTROL, "no-store")?;
    if !keep {
        session.set_keepalive(None);
    }
    if session.req_header().method == Method::HEAD {
        session.write_response_header(Box::new(head), true).await
    } else {
        session.write_response_header(Box::new(head), false).await?;
        session.write_response_body(Some(body), true).await
    }
}

/// After an early answer on HTTP/2: lets the client go on sending for a moment. Letting go of the
/// stream resets it, and many clients drop an answer that comes together with a reset.
async fn read_on(session: &mut Session) {
    let read = async {
        let mut seen = 0;
        while seen < READ_ON_BYTES {
            match session.read_request_body().await {
                Ok(Some(part)) => seen += part.len(),
                Ok(None) | Err(_) => break,
            }
        }
    };
    // Done or not, the stream is let go now.
    let _ = timeout(READ_ON, read).await;
}

async fn send_refusal(session: &mut Session, request: &Request, refusal: &Refusal, keep: bool) -> Result<()> {
    let mut head = ResponseHeader::build(refusal.status, Some(8))?;
    head.insert_header(header::CONTENT_TYPE, "application/problem+json")?;
    if let Some(wait) = refusal.retry_after {
        head.insert_header(header::RETRY_AFTER, seconds(wait))?;
    }
    forward::answer(&mut head, request)?;
    send(session, head, refusal.body(), keep).await
}

#[async_trait]
impl ProxyHttp for Phases {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        Request::new(self.ids.lock().unwrap_or_else(PoisonError::into_inner).next())
    }

    /// Nothing is compressed or cached here; the engine's modules cost and are left out.
    fn init_downstream_modules(&self, _: &mut pingora_core::modules::http::HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, request: &mut Request) -> Result<()> {
        let listen = &self.site.listen;
        session.set_read_timeout(Some(listen.body_timeout));
        session.set_write_timeout(Some(listen.write_timeout));
        session.set_total_drain_timeout(Some(listen.body_timeout));
        if request.connection.is_none() {
            request.connection = connection(session);
            request.busy = request.connection.as_ref().map(Connection::phases_began);
            let head = session.req_header();
            request.secure = request.connection.as_ref().is_some_and(|own| forward::is_secure(head, own));
        }
        self.admit(session, request).map_err(|refusal| refused(request, refusal))
    }

    async fn request_filter(&self, session: &mut Session, request: &mut Request) -> Result<bool> {
        let own = self.place(session, request).map_err(|refusal| refused(request, refusal))?;
        let Some((status, body)) = own else {
            if session.is_upgrade_req()
                && let Some(route) = &request.route
            {
                // A tunnel may be quiet as long as the application may be.
                session.set_read_timeout(Some(route.timeout));
            }
            return Ok(false);
        };
        let mut head = ResponseHeader::build(status, Some(8))?;
        head.insert_header(header::CONTENT_TYPE, "text/plain; charset=utf-8")?;
        forward::answer(&mut head, request)?;
        let keep = session.is_body_empty();
        send(session, head, Bytes::from(body), keep).await?;
        Ok(true)
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        request: &mut Request,
    ) -> Result<()> {
        self.still_let_in(request)?;
        request.body_done |= end;
        request.body_seen += body.as_ref().map_or(0, Bytes::len) as u64;
        let most = request.route.as_ref().map(|route| route.max_body);
        match most {
            Some(most) if request.body_seen > most.0 => Err(refused(request, too_large(&most.to_string()))),
            _ => Ok(()),
        }
    }

    async fn upstream_peer(&self, _: &mut Session, request: &mut Request) -> Result<Box<HttpPeer>> {
        let (Some(upstream), Some(route)) = (&request.upstream, &request.route) else {
            return Err(Error::explain(ErrorType::InternalError, "no route"));
        };
        let chosen = upstream.choose(self.site.now(), &request.tried);
        let Some((index, server)) = chosen else {
            return Err(Error::explain(ErrorType::ConnectError, "no server left to ask").into_up());
        };
        request.server = Some(index);
        request.server_name = Some(server.to_string());
        let write = self.site.listen.write_timeout;
        peer::peer(server, upstream.settings(), route.timeout, write).map(Box::new)
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        head: &mut RequestHeader,
        request: &mut Request,
    ) -> Result<()> {
        forward::request(head, request)
    }

    async fn upstream_response_filter(
        &self,
        _: &mut Session,
        _: &mut ResponseHeader,
        request: &mut Request,
    ) -> Result<()> {
        if let (Some(upstream), Some(server)) = (&request.upstream, request.server) {
            upstream.answered(server);
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        head: &mut ResponseHeader,
        request: &mut Request,
    ) -> Result<()> {
        self.still_let_in(request)?;
        if head.status == StatusCode::SWITCHING_PROTOCOLS
            && session.is_upgrade_req()
            && let Some(connection) = &request.connection
        {
            connection.become_tunnel();
        }
        if head.status.is_informational() {
            return Ok(());
        }
        forward::answer(head, request)
    }

    fn response_body_filter(
        &self,
        _: &mut Session,
        _: &mut Option<Bytes>,
        _: bool,
        request: &mut Request,
    ) -> Result<Option<Duration>> {
        self.still_let_in(request).map(|()| None)
    }

    /// Nothing has been sent: another server may be asked, each once.
    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        request: &mut Request,
        mut error: Box<Error>,
    ) -> Box<Error> {
        self.server_failed(request, &error, true);
        request.tried.extend(request.server);
        let servers = request.upstream.as_ref().map_or(0, |upstream| upstream.settings().servers.len());
        error.set_retry(request.tried.len() < servers);
        error
    }

    /// Something may have been sent: only what is safe to repeat, and only where a kept connection
    /// turned out to be dead.
    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        request: &mut Request,
        reused: bool,
    ) -> Box<Error> {
        let repeatable =
            session.req_header().method.is_idempotent() && !session.as_ref().retry_buffer_truncated();
        if repeatable {
            error.retry.decide_reuse(reused);
        } else {
            error.set_retry(false);
        }
        let answered = session.response_written().is_some();
        let stalled = *error.etype() == ErrorType::ReadTimedout && !request.body_done && !body_empty(session);
        if *error.esource() == ErrorSource::Upstream && !error.retry() && !answered && !stalled {
            self.server_failed(request, &error, false);
        }
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        request: &mut Request,
    ) -> FailToProxy {
        let refusal = request.refusal.take().unwrap_or_else(|| self.judge(session, error, request));
        let tunnel = request.connection.as_ref().is_some_and(|connection| connection.is_tunnel());
        // A tunnel ends when either side leaves, in whatever manner.
        request.reason = (!tunnel).then(|| refusal.reason());
        request.spared = refusal.spared;
        request.status = refusal.status;
        // Behind a 101 every byte belongs to the tunnel: an answer of ours would stand in its midst.
        let answered = session.response_written().is_some_and(|head| {
            !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS
        });
        if answered || refusal.status == 499 {
            return FailToProxy { error_code: refusal.status, can_reuse_downstream: false };
        }
        let early = request.server.is_none();
        let keep = early && session.is_body_empty() && !refusal.is_final;
        match send_refusal(session, request, &refusal, keep).await {
            Ok(()) if session.is_http2() && !session.is_body_done() && !refusal.is_final => {
                // Answered: what is still read holds no place.
                request.permit = None;
                read_on(session).await;
            }
            Ok(()) => {}
            Err(error) => {
                tracing::debug!("proxy: request {}: the refusal was not taken: {error}", request.id)
            }
        }
        FailToProxy { error_code: refusal.status, can_reuse_downstream: keep }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, request: &mut Request) {
        if std::mem::replace(&mut request.logged, true) {
            return;
        }
        let took = request.began.elapsed();
        let head = session.req_header();
        let text =
            |name: header::HeaderName| head.headers.get(name).map_or(Vec::new(), |v| v.as_bytes().to_vec());
        let written = session.response_written().map(|head| head.status.as_u16());
        let status = written.or((request.status != 0).then_some(request.status)).unwrap_or(499);
        let tunnel = request.connection.as_ref().is_some_and(|connection| connection.is_tunnel());
        let reason = request.reason.take().or_else(|| error.filter(|_| !tunnel).map(short));
        self.site.metrics.answered(status, took);
        self.site.access_log.record(Entry {
            at: began_at(took),
            client: request.address(),
            method: head.method.as_str().to_owned(),
            target: request.target.take().unwrap_or_else(|| head.raw_path().to_vec()),
            protocol: if session.is_http2() {
                "HTTP/2.0"
            } else if head.version == Version::HTTP_10 {
                "HTTP/1.0"
            } else {
                "HTTP/1.1"
            },
            scheme: request.scheme(),
            host: std::mem::take(&mut request.host),
            status,
            bytes: session.body_bytes_sent() as u64,
            duration: took,
            referer: text(header::REFERER),
            user_agent: text(header::USER_AGENT),
            upstream: request.server_name.take(),
            reason,
            request_id: request.id.clone(),
            cross_site: is_cross_site(head, request.secure),
            spared: request.spared,
        });
        // The last byte is with the client or never will be: its place is free.
        request.permit = None;
    }

    /// Every request has its line with the reason; a second one would only be noise.
    fn suppress_error_log(&self, _: &Session, _: &Request, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Request, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }
}

#[expect(clippy::disallowed_methods, reason = "this corridor stamps its log lines")]
fn began_at(took: Duration) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(took).unwrap_or(now)
}

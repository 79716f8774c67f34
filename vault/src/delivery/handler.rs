//! One handler's URL: connects, sends one request, tells what became of it. Knows HTTP/1.1 and TLS;
//! not why something is sent, nor what follows from the answer.
//!
//! Certificates are verified always. Redirects are not followed. Of an answer's body at most
//! 64 KiB are read and thrown away, so that the connection can be used again; a longer one ends it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{HOST, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::uri::Scheme;
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use super::course::Outcome;

/// A connection that was kept for longer may have been dropped by a firewall that told nobody.
const KEPT: Duration = Duration::from_secs(30);
/// So much of an answer's body is read.
const MOST_ANSWER: usize = 64 << 10;
const AGENT: HeaderValue = HeaderValue::from_static(concat!("vault/", env!("CARGO_PKG_VERSION")));

/// How long a handler may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For the connection and the TLS handshake.
    pub connect: Duration,
    /// From the request's first byte to the whole answer.
    pub answer: Duration,
}

/// Why a handler can never be called as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// No absolute `http` or `https` URL.
    #[error("{url:?} is no URL of a handler; write \"https://host/path\"")]
    Url {
        /// As configured.
        url: String,
    },
    /// A URL is shown in logs.
    #[error(
        "the URL holds a user name or a password, which logs would show; sign the events, or use a path that only the handler knows"
    )]
    Credentials,
    /// TLS cannot verify anything.
    #[error("{0}")]
    Authority(#[from] shared::tls::TlsError),
    /// A certificate of the file is no authority's.
    #[error("{}: {source}", file.display())]
    Root {
        /// The file.
        file: PathBuf,
        /// rustls's reason.
        #[source]
        source: rustls::Error,
    },
    /// The host trusts nobody.
    #[error(
        "this host has no list of authorities ({why}); install ca-certificates, or name an authority_file"
    )]
    NoRoots {
        /// What was found.
        why: String,
    },
    /// rustls refuses its own defaults.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[source] rustls::Error),
}

/// Where a handler listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
    secure: bool,
    /// As the header says it.
    authority: String,
    path: String,
}

impl Address {
    /// Reads an absolute URL.
    ///
    /// # Errors
    /// [`HandlerError::Url`], [`HandlerError::Credentials`].
    pub fn parse(url: &str) -> Result<Self, HandlerError> {
        let no_url = || HandlerError::Url { url: url.to_owned() };
        let uri: Uri = url.parse().map_err(|_| no_url())?;
        let authority = uri.authority().ok_or_else(no_url)?;
        if authority.as_str().contains('@') {
            return Err(HandlerError::Credentials);
        }
        let secure = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(no_url()),
        };
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        // http reads a port that is no number as none.
        let has_port = !authority.as_str().ends_with(authority.host());
        let port = match authority.port_u16() {
            Some(port) => port,
            None if has_port => return Err(no_url()),
            None if secure => 443,
            None => 80,
        };
        if host.is_empty() || ServerName::try_from(host.as_str()).is_err() {
            return Err(no_url());
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { host, port, secure, authority: authority.as_str().to_owned(), path })
    }
}

/// One handler, and the connections to it that wait to be used again.
pub struct Handler {
    address: Address,
    deadlines: Deadlines,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// Since when each is kept, the latest last.
    idle: Mutex<Vec<(Instant, SendRequest<Full<Bytes>>)>>,
    most_idle: usize,
}

impl Handler {
    /// Reads the authorities; connects nowhere yet. `authority`: who alone signs the handler's
    /// certificate; without it, whom the host trusts. `most_idle` connections are kept.
    ///
    /// # Errors
    /// See [`HandlerError`].
    pub fn new(
        address: Address,
        authority: Option<&Path>,
        deadlines: Deadlines,
        most_idle: usize,
    ) -> Result<Self, HandlerError> {
        let tls = match address.secure {
            true => {
                let name = ServerName::try_from(address.host.clone());
                let name = name.map_err(|_| HandlerError::Url { url: address.host.clone() })?;
                Some((connector(authority)?, name))
            }
            false => None,
        };
        Ok(Self { address, deadlines, tls, idle: Mutex::default(), most_idle })
    }

    /// Sends one POST. A kept connection that has ended meanwhile is replaced by a new one.
    pub async fn post(&self, mut headers: HeaderMap, body: Bytes, now: SystemTime) -> Outcome {
        if let Ok(host) = HeaderValue::try_from(&self.address.authority) {
            headers.insert(HOST, host);
        }
        headers.insert(USER_AGENT, AGENT);
        let mut request = Request::post(&self.address.path).body(Full::new(body)).unwrap_or_default();
        *request.headers_mut() = headers;
        if let Some(mut kept) = self.kept()
            && let Ok(Ok(())) = timeout(self.deadlines.connect, kept.ready()).await
            && let Some(outcome) = self.exchange(kept, request.clone(), now, true).await
        {
            return outcome;
        }
        match self.connect().await {
            Ok(fresh) => match self.exchange(fresh, request, now, false).await {
                Some(outcome) => outcome,
                None => Outcome::Unheard("the handler closed the connection".to_owned()),
            },
            Err(why) => Outcome::Unheard(why),
        }
    }

    /// `None`: the connection had been kept, and ended before anything came back.
    async fn exchange(
        &self,
        mut sender: SendRequest<Full<Bytes>>,
        request: Request<Full<Bytes>>,
        now: SystemTime,
        kept: bool,
    ) -> Option<Outcome> {
        let deadline = Instant::now() + self.deadlines.answer;
        match timeout_at(deadline, sender.send_request(request)).await {
            Ok(Ok(answer)) => {
                let outcome = Outcome::Answered {
                    status: answer.status(),
                    retry_after: retry_after(answer.headers(), now),
                };
                self.read_off(answer, sender, deadline).await;
                Some(outcome)
            }
            Ok(Err(_)) if kept => None,
            Ok(Err(error)) => Some(Outcome::Unheard(format!("the handler broke off: {error}"))),
            Err(_) => {
                let within = self.deadlines.answer;
                Some(Outcome::Unheard(format!("the handler does not answer within {within:?}")))
            }
        }
    }

    /// The status counts, whatever becomes of the body.
    async fn read_off(
        &self,
        answer: Response<Incoming>,
        sender: SendRequest<Full<Bytes>>,
        deadline: Instant,
    ) {
        let body = Limited::new(answer.into_body(), MOST_ANSWER).collect();
        if let Ok(Ok(_)) = timeout_at(deadline, body).await {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < self.most_idle {
                idle.push((Instant::now(), sender));
            }
        }
    }

    /// The connection that was used last, unless that is too long ago.
    fn kept(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(since, _)| since.elapsed() < KEPT);
        idle.pop().map(|(_, sender)| sender)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let within = self.deadlines.connect;
        let Address { host, port, authority, .. } = &self.address;
        let connecting = async {
            let stream = TcpStream::connect((host.as_str(), *port)).await;
            let stream = stream.map_err(|error| format!("no connection to {authority}: {error}"))?;
            match &self.tls {
                Some((connector, name)) => {
                    let stream = connector.connect(name.clone(), stream).await;
                    speak(stream.map_err(|error| format!("no TLS with {authority}: {error}"))?).await
                }
                None => speak(stream).await,
            }
        };
        timeout(within, connecting)
            .await
            .unwrap_or_else(|_| Err(format!("no connection to {authority} within {within:?}")))
    }
}

async fn speak<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) =
        handshake(TokioIo::new(stream)).await.map_err(|error| format!("no HTTP: {error}"))?;
    // It ends with its sender, or with the handler's word.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

fn connector(authority: Option<&Path>) -> Result<TlsConnector, HandlerError> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = authority {
        for certificate in shared::tls::certificates(file)? {
            let root = |source| HandlerError::Root { file: file.to_owned(), source };
            roots.add(certificate).map_err(root)?;
        }
    } else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let why = found.errors.first().map_or("it is empty".to_owned(), ToString::to_string);
            return Err(HandlerError::NoRoots { why });
        }
    }
    let config = ClientConfig::builder_with_provider(shared::tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(HandlerError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Seconds, or a date; what is neither counts as not said.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(SystemTime::from(date.timestamp()).duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_urls_without_credentials_are_handlers() {
        let parsed = Address::parse("https://shop.example/hooks?x=1").unwrap();
        assert_eq!((parsed.port, parsed.secure, &*parsed.path), (443, true, "/hooks?x=1"));
        let parsed = Address::parse("http://[::1]:8080").unwrap();
        assert_eq!((&*parsed.host, parsed.port, &*parsed.path), ("::1", 8080, "/"));
        for bad in [
            "",
            "/hooks",
            "ftp://a/",
            "shop.example",
            "https://",
            "https://a:b/",
            "https://a:99999/x",
            "https://a b/",
        ] {
            assert!(matches!(Address::parse(bad), Err(HandlerError::Url { .. })), "{bad}");
        }
        let secret = Address::parse("https://me:secret@a/").unwrap_err();
        assert!(matches!(secret, HandlerError::Credentials) && !secret.to_string().contains("me:"));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        for (text, wait) in [
            ("120", Some(120)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            assert_eq!(retry_after(&headers, now), wait.map(Duration::from_secs), "{text}");
        }
    }
}

//! Plain HTTP → HTTPS. Knows which hosts are ours; must not know routes. A host that is not ours
//! is never put into a Location: an open redirect lends our name to anybody.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use crate::admission::Denied;
use crate::listen::answer;
use crate::listen::connection::Connection;
use crate::listen::head::{self, Fault, Head, Limits, Scan};
use crate::listen::report::{Redirected, Report};
use crate::route::{HostPattern, host_of};

/// Where plain requests are sent.
#[derive(Debug)]
pub struct Redirect {
    name: String,
    hosts: Vec<HostPattern>,
}

impl Redirect {
    /// `hosts` are ours besides `name`; a pattern for any host counts for none.
    #[must_use]
    pub fn new(name: String, hosts: Vec<HostPattern>) -> Self {
        let hosts = hosts.into_iter().filter(|host| !matches!(host, HostPattern::Any)).collect();
        Self { name, hosts }
    }

    /// Status and Location. The port is left out: browsers reach HTTPS on 443, whatever edge's own.
    #[must_use]
    pub fn answer(&self, head: &Head<'_>) -> (u16, String) {
        let asked = head::absolute_authority(head.target).or(head.host);
        let host = asked.and_then(|raw| host_of(raw).ok());
        let host = host.as_deref().filter(|host| self.hosts.iter().any(|ours| ours.matches(host)));
        let host = host.unwrap_or(&self.name);
        let path = head::absolute_path(head.target).unwrap_or(head.target);
        let path = if path.starts_with('/') { path } else { "/" };
        // Other methods must not become a GET on the way.
        let status = if matches!(head.method, "GET" | "HEAD") { 301 } else { 308 };
        (status, format!("https://{host}{path}"))
    }

    /// Reads one head, asks whether its client may come in, answers it and leaves the closing to the
    /// caller.
    pub(crate) async fn serve<S>(
        &self,
        stream: &mut S,
        connection: &Connection,
        limits: &Limits,
        patience: Duration,
        report: &Report,
        let_in: impl FnOnce() -> Result<(), Denied>,
    ) where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let began = Instant::now();
        let mut held = Vec::new();
        let read = timeout(patience, read_head(stream, &mut held, limits)).await;
        let read = match read {
            Ok(Ok(read)) => read,
            // What edge itself cut for a ban is no offence of the client.
            _ if connection.presence.is_cut() => return,
            // Nothing was asked: nobody to answer, nothing to log.
            Ok(Err(None)) => return,
            Err(_) if held.is_empty() => return,
            Ok(Err(Some(fault))) => Err(fault),
            Err(_) => Err(Fault::Timeout),
        };
        let outcome = read.and_then(|end| head::parse(held.get(..end).unwrap_or_default(), limits));
        let bytes = match outcome {
            Ok(head) => {
                let denied = let_in().err();
                let (status, bytes) = match denied {
                    None => {
                        let (status, location) = self.answer(&head);
                        (status, answer::redirect(status, &location))
                    }
                    Some(Denied::TooFast { fault, .. }) => (429, answer::too_fast(fault)),
                    // Since it knocked: as its other connections, it ends without a word.
                    Some(Denied::Banned) => return,
                };
                let what = Redirected {
                    method: head.method,
                    target: head.target,
                    host: head.host.unwrap_or_default(),
                    one_one: head.one_one,
                    status,
                    denied,
                };
                report.redirected(connection, what, began.elapsed());
                bytes
            }
            Err(fault) => {
                report.malformed(connection, fault, &held, began.elapsed());
                answer::refusal(fault)
            }
        };
        let sent = timeout(patience, async {
            stream.write_all(&bytes).await?;
            stream.flush().await
        });
        if !matches!(sent.await, Ok(Ok(()))) {
            tracing::debug!("{}: the redirect was not taken", connection.peer);
        }
    }
}

/// `Ok(Ok(length))` of a whole head, `Err(None)` where the client left without a byte.
async fn read_head<S: AsyncRead + Unpin>(
    stream: &mut S,
    held: &mut Vec<u8>,
    limits: &Limits,
) -> Result<Result<usize, Fault>, Option<Fault>> {
    let mut scan = Scan::default();
    loop {
        match stream.read_buf(held).await {
            Ok(0) | Err(_) if held.is_empty() => return Err(None),
            Ok(0) | Err(_) => return Err(Some(Fault::Truncated)),
            Ok(_) => match scan.advance(held, limits) {
                Ok(Some(end)) => return Ok(Ok(end)),
                Ok(None) => {}
                Err(fault) => return Ok(Err(fault)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { head: 1024, headers: 10, uri: 200 };

    fn answer(text: &str) -> (u16, String) {
        let ours = ["shop.example.org", "*.example.net"].map(|host| HostPattern::parse(host).unwrap());
        let mut hosts = ours.to_vec();
        hosts.push(HostPattern::Any);
        let redirect = Redirect::new("www.example.org".to_owned(), hosts);
        redirect.answer(&head::parse(text.as_bytes(), &LIMITS).unwrap())
    }

    #[test]
    fn only_our_own_hosts_stand_in_a_location() {
        for (host, expected) in [
            ("shop.example.org", "shop.example.org"),
            ("SHOP.example.org:8080", "shop.example.org"),
            ("a.example.net", "a.example.net"),
            ("evil.com", "www.example.org"),
            ("shop.example.org.evil.com", "www.example.org"),
        ] {
            let (_, location) = answer(&format!("GET /a?b HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_eq!(location, format!("https://{expected}/a?b"));
        }
        assert_eq!(answer("GET / HTTP/1.0\r\n\r\n").1, "https://www.example.org/");
        let absolute = answer("GET http://evil.com/x HTTP/1.1\r\nHost: evil.com\r\n\r\n");
        assert_eq!(absolute.1, "https://www.example.org/x");
    }

    #[test]
    fn a_post_stays_a_post() {
        assert_eq!(answer("POST / HTTP/1.1\r\nHost: a\r\n\r\n").0, 308);
        assert_eq!(answer("GET / HTTP/1.1\r\nHost: a\r\n\r\n").0, 301);
    }
}

//! One caller's connection to one server: HTTP/1.1, kept alive, made anew when it breaks, with the
//! caller's own patience. Knows bytes and the life of whoever answers; not what is asked.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use harness::wait::Deadline;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;

/// The life of the vault that answers.
const LIFE: &str = "vault-life";
/// No answer is longer.
const MOST: usize = 16 << 20;
/// A vault that takes no connection for so long is away.
const CONNECT: Duration = Duration::from_millis(800);

trait Wire: Read + Write + Send {
    fn patience(&self, patience: Duration) -> std::io::Result<()>;
}

impl Wire for TcpStream {
    fn patience(&self, patience: Duration) -> std::io::Result<()> {
        self.set_read_timeout(Some(patience))?;
        self.set_write_timeout(Some(patience))
    }
}

impl Wire for StreamOwned<ClientConnection, TcpStream> {
    fn patience(&self, patience: Duration) -> std::io::Result<()> {
        self.sock.patience(patience)
    }
}

/// Where a server listens, and how it is spoken to.
#[derive(Clone)]
pub(crate) struct Address {
    pub(crate) socket: SocketAddr,
    /// Its certificate's name, and how we show ours; in clear without.
    pub(crate) tls: Option<(&'static str, Arc<ClientConfig>)>,
}

/// The connection.
pub(crate) struct Door {
    address: Address,
    patience: Duration,
    wire: Option<Box<dyn Wire>>,
    /// The life that answered last.
    pub(crate) life: Option<String>,
    /// The life that answered the last question, if it was answered.
    pub(crate) answered_by: Option<String>,
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// `null` where the body is no JSON.
    pub(crate) body: Value,
}

impl Door {
    pub(crate) fn new(address: &Address, patience: Duration) -> Self {
        Self { address: address.clone(), patience, wire: None, life: None, answered_by: None }
    }

    /// Asks, and waits for the whole answer.
    ///
    /// # Errors
    /// There was none in time; the question may have been heard.
    pub(crate) fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> anyhow::Result<Reply> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut text = format!(
            "{method} {path} HTTP/1.1\r\nHost: vault\r\nContent-Length: {}\r\n\
             Content-Type: application/json\r\n",
            body.len()
        );
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        text += &body;
        self.answered_by = None;
        // A connection that breaks is not kept.
        let mut wire = match self.wire.take() {
            Some(wire) => wire,
            None => self.connect()?,
        };
        let reply = exchange(wire.as_mut(), text.as_bytes(), self.patience)?;
        let header = |name: &str| reply.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value);
        if header("connection").is_none_or(|value| value != "close") {
            self.wire = Some(wire);
        }
        if let Some(life) = header(LIFE) {
            self.life = Some(life.clone());
            self.answered_by = Some(life.clone());
        }
        Ok(reply)
    }

    fn connect(&self) -> anyhow::Result<Box<dyn Wire>> {
        let socket = TcpStream::connect_timeout(&self.address.socket, CONNECT)?;
        socket.set_nodelay(true)?;
        socket.patience(CONNECT)?;
        let Some((name, config)) = &self.address.tls else { return Ok(Box::new(socket)) };
        let mut tls = ClientConnection::new(Arc::clone(config), ServerName::try_from(*name)?)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut &socket)?;
        }
        Ok(Box::new(StreamOwned::new(tls, socket)))
    }
}

impl Reply {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

fn exchange(wire: &mut dyn Wire, question: &[u8], patience: Duration) -> anyhow::Result<Reply> {
    let deadline = Deadline::after(patience);
    wire.patience(patience)?;
    wire.write_all(question)?;
    wire.flush()?;
    let (mut bytes, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    loop {
        if let Some(reply) = parse(&bytes)? {
            return Ok(reply);
        }
        anyhow::ensure!(!deadline.passed() && bytes.len() < MOST, "no whole answer in time");
        wire.patience(deadline.left().max(Duration::from_millis(1)))?;
        let count = wire.read(&mut buffer)?;
        anyhow::ensure!(count > 0, "hung up");
        bytes.extend(buffer.iter().take(count));
    }
}

/// The answer, once it is there as a whole.
fn parse(bytes: &[u8]) -> anyhow::Result<Option<Reply>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default());
    let body = bytes.get(end + 4..).unwrap_or_default();
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).context("no status")?;
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let header = |name: &str| headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str());
    let body = if header("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        unchunked(body)?
    } else {
        let length: usize = header("content-length").unwrap_or("0").parse()?;
        body.get(..length).map(<[u8]>::to_vec)
    };
    let Some(body) = body else { return Ok(None) };
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Ok(Some(Reply { status, headers, body }))
}

fn unchunked(mut bytes: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
        let size = std::str::from_utf8(bytes.get(..end).unwrap_or_default())?;
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)?;
        let rest = bytes.get(end + 2..).unwrap_or_default();
        let Some(chunk) = rest.get(..size + 2) else { return Ok(None) };
        if size == 0 {
            return Ok(Some(body));
        }
        body.extend(chunk.iter().take(size));
        bytes = rest.get(size + 2..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_once_it_is_whole() {
        for whole in [
            "HTTP/1.1 201 Created\r\nVault-Life: ab\r\nContent-Length: 7\r\n\r\n{\"n\":1}",
            "HTTP/1.1 201 Created\r\nvault-life: ab\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{\"n\r\n4;x\r\n\":1}\r\n0\r\n\r\n",
        ] {
            for end in 0..whole.len() {
                assert!(parse(&whole.as_bytes()[..end]).unwrap().is_none(), "{}", &whole[..end]);
            }
            let reply = parse(whole.as_bytes()).unwrap().unwrap();
            assert_eq!((reply.status, reply.header("vault-life")), (201, Some("ab")));
            assert_eq!(reply.body["n"], 1);
        }
    }
}

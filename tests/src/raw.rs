//! Bytes over TLS as no decent client would send them. Speaks no HTTP of its own: it sends
//! what it is given and hands back what came until the other side closed or fell silent.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// Longest silence that is waited for.
const SILENCE: Duration = Duration::from_secs(15);

/// A TLS connection that says anything.
pub struct Raw {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

impl Raw {
    /// Connects and shakes hands; `protocol` is the ALPN name to insist on.
    ///
    /// # Errors
    /// Nobody listens, or the handshake fails.
    pub fn connect(
        address: SocketAddr,
        name: &str,
        authority: &Path,
        protocol: &[u8],
    ) -> anyhow::Result<Self> {
        Self::over(dial(address)?, name, authority, protocol)
    }

    /// As [`Self::connect`], over a connection that stands.
    ///
    /// # Errors
    /// The handshake fails.
    pub fn over(socket: TcpStream, name: &str, authority: &Path, protocol: &[u8]) -> anyhow::Result<Self> {
        socket.set_read_timeout(Some(SILENCE))?;
        socket.set_write_timeout(Some(SILENCE))?;
        let mut roots = RootCertStore::empty();
        for certificate in shared::tls::certificates(authority)? {
            roots.add(certificate)?;
        }
        let mut config = ClientConfig::builder_with_provider(shared::tls::provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned())?)?;
        let mut socket_for_handshake = &socket;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket_for_handshake)?;
        }
        Ok(Self { stream: StreamOwned::new(connection, socket) })
    }

    /// The serial number (DER bytes) of the certificate the server showed.
    #[must_use]
    pub fn certificate(&self) -> Vec<u8> {
        let shown = self.stream.conn.peer_certificates().and_then(|chain| chain.first());
        shown.map(|certificate| certificate.to_vec()).unwrap_or_default()
    }

    /// Sends `bytes`; a server that has already hung up is no error.
    ///
    /// # Errors
    /// Any other failure of the socket.
    pub fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let sent = self.stream.write_all(bytes).and_then(|()| self.stream.flush());
        match sent {
            Err(error) if !hung_up(error.kind()) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Everything until the server closes or is silent for long.
    pub fn read_to_close(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // However it ends, what came is the answer.
        let _ = self.stream.read_to_end(&mut bytes);
        bytes
    }

    /// Everything until the answer holds `mark`, or the server closes or is silent for long.
    pub fn read_until(&mut self, mark: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        while !bytes.windows(mark.len()).any(|part| part == mark) {
            match self.stream.read(&mut buffer) {
                Ok(count) if count > 0 => bytes.extend(buffer.iter().take(count)),
                _ => break,
            }
        }
        bytes
    }

    /// Has the other side neither closed nor reset it? What it said meanwhile is passed over.
    pub fn is_open(&mut self) -> bool {
        if self.stream.sock.set_nonblocking(true).is_err() {
            return false;
        }
        let mut buffer = [0; 4096];
        let open = loop {
            match self.stream.read(&mut buffer) {
                Ok(count) if count > 0 => {}
                Ok(_) => break false,
                Err(error) => break error.kind() == ErrorKind::WouldBlock,
            }
        };
        open && self.stream.sock.set_nonblocking(false).is_ok()
    }

    /// Hangs up without a word, as a lost client does.
    pub fn hang_up(self) {
        let _ = self.stream.sock.shutdown(Shutdown::Both);
    }
}

/// Sends `bytes` over TCP without any TLS and returns what came back.
///
/// # Errors
/// Nobody listens.
pub fn in_clear(address: SocketAddr, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut socket = dial(address)?;
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    Ok(answer)
}

fn dial(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&address, SILENCE)?;
    socket.set_read_timeout(Some(SILENCE))?;
    socket.set_write_timeout(Some(SILENCE))?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

fn hung_up(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::BrokenPipe
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::NotConnected
            | ErrorKind::UnexpectedEof
    )
}

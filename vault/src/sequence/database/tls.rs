//! Connections to database servers: TCP, and TLS whose certificates one authority signs. Knows no
//! database's own words, but how PostgreSQL's driver wants TLS to be handed over.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_rustls::{TlsConnector, client};

use super::{DatabaseError, Settings};

/// `host:port`, as messages name it.
pub(super) fn place((host, port): &(String, u16)) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A connection in clear.
pub(super) async fn dial(host: &(String, u16)) -> Result<TcpStream, DatabaseError> {
    let away =
        |error: io::Error| DatabaseError::Away { place: place(host), why: format!("no connection: {error}") };
    let stream = TcpStream::connect((host.0.as_str(), host.1)).await.map_err(away)?;
    // A round is one small message each way.
    stream.set_nodelay(true).map_err(away)?;
    Ok(stream)
}

/// What the account's password is; none where no file is named.
pub(super) fn password(settings: &Settings, place: &str) -> Result<Option<String>, DatabaseError> {
    let Some(file) = &settings.password_file else { return Ok(None) };
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned())),
        Err(error) => Err(DatabaseError::Unfit {
            place: place.to_owned(),
            what: format!("its password file {} cannot be read: {error}", file.display()),
            next: "look at sequence.database.password_file".to_owned(),
        }),
    }
}

/// TLS towards one server.
pub(super) struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    /// Trusts that authority alone, and a server of that name alone.
    pub(super) fn new(authority: &Path, host: &(String, u16)) -> Result<Self, DatabaseError> {
        let unfit = |what: String| DatabaseError::Unfit {
            place: place(host),
            what,
            next: "look at sequence.database.authority_file and hosts".to_owned(),
        };
        let mut roots = RootCertStore::empty();
        for certificate in shared::tls::certificates(authority).map_err(|error| unfit(error.to_string()))? {
            roots.add(certificate).map_err(|error| unfit(format!("{}: {error}", authority.display())))?;
        }
        let config = ClientConfig::builder_with_provider(shared::tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| unfit(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(host.0.clone())
            .map_err(|_| unfit(format!("{:?} is no host name", host.0)))?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    /// The handshake.
    pub(super) async fn over(self, stream: TcpStream) -> io::Result<client::TlsStream<TcpStream>> {
        self.connector.connect(self.name, stream).await
    }
}

impl TlsConnect<TcpStream> for Tls {
    type Stream = Secure;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Secure>>;

    fn connect(self, stream: TcpStream) -> Self::Future {
        Box::pin(async move { Ok(Secure(self.over(stream).await?)) })
    }
}

/// A stream that PostgreSQL's driver takes. Its passwords are SCRAM's without channel binding:
/// whoever holds the authority's key could stand between.
pub(super) struct Secure(client::TlsStream<TcpStream>);

impl TlsStream for Secure {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Secure {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Secure {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

//! One HTTP/1.1 connection from its first request to its end: deadlines, draining, and the
//! cut when its certificate is revoked or expires. Knows no routes and no TLS.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use shared::shutdown::Shutdown;
use shared::tls::Identity;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tower::ServiceExt;

use super::lingering::{Lingering, Unread};
use super::stream::{Arriving, Progressing};

/// Longest head, in bytes; hyper answers 431 beyond it.
const MAX_HEAD: usize = 32 << 10;
/// Most header lines; hyper answers 431 beyond it.
const MAX_HEADERS: usize = 64;

/// No deadline is longer, whatever the settings say.
const LONGEST: Duration = Duration::from_secs(86_400);

/// Where a caller without a certificate comes from, for the log.
#[derive(Debug, Clone)]
pub(super) struct Origin(pub(super) String);

/// Time limits of one connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// From the end of one request to the whole head of the next.
    pub(super) head: Duration,
    /// Without progress of a body or an answer.
    pub(super) idle: Duration,
}

impl Limits {
    /// Bounded, so that no setting reaches beyond what a clock can count.
    pub(super) fn new(head: Duration, idle: Duration) -> Self {
        Self { head: head.min(LONGEST), idle: idle.min(LONGEST) }
    }
}

/// How a certificate's holder can lose the connection.
pub(super) struct Validity {
    pub(super) revocations: watch::Receiver<Arc<BTreeSet<String>>>,
    /// Until the certificate expires.
    pub(super) left: Duration,
}

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// The caller or the draining ended it, or HTTP failed.
    Closed,
    /// HTTP failed: malformed, late, or broken off.
    Failed(hyper::Error),
    /// Its certificate is revoked.
    Revoked,
    /// Its certificate is too old.
    Expired,
}

/// Everything about a connection but its bytes.
pub(super) struct Session {
    pub(super) router: Router,
    pub(super) caller: Option<Identity>,
    pub(super) origin: Origin,
    pub(super) validity: Option<Validity>,
    pub(super) limits: Limits,
    /// Finish the request under way, then close.
    pub(super) drain: Shutdown,
    /// Close now.
    pub(super) stop: Shutdown,
}

impl Session {
    /// Serves until the end. Dropping the connection closes the socket and drops the handler
    /// under way: a revoked caller gets not one byte more.
    pub(super) async fn serve<S>(self, stream: S) -> End
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { router, caller, origin, validity, limits, drain, stop } = self;
        let serial = caller.as_ref().map_or_else(String::new, |caller| caller.serial.clone());
        let known = caller.is_some();
        let unread = Unread::default();
        let left = unread.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let arriving = |body| Body::new(Arriving::new(body, limits.idle, left.clone()));
            let mut request = request.map(arriving);
            if let Some(caller) = &caller {
                request.extensions_mut().insert(caller.clone());
            }
            request.extensions_mut().insert(origin.clone());
            router.clone().oneshot(request)
        });
        let stream = TokioIo::new(Lingering::new(Progressing::new(stream, limits.idle), unread));
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_HEAD)
            // Whoever shows no certificate has one thing to ask.
            .keep_alive(known)
            .serve_connection(stream, service);
        let lost = lost(validity, serial);
        tokio::pin!(connection, lost);
        let mut draining = false;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return End::Closed,
                end = &mut lost => return end,
                () = drain.cancelled(), if !draining => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                ended = connection.as_mut() => return match ended {
                    Ok(()) => End::Closed,
                    Err(error) => End::Failed(error),
                },
            }
        }
    }
}

/// Returns when the certificate is no longer good; never without one.
async fn lost(validity: Option<Validity>, serial: String) -> End {
    let Some(Validity { mut revocations, left }) = validity else {
        return std::future::pending().await;
    };
    let revoked = async {
        // An error means that the register is gone, and with it the program.
        if revocations.wait_for(|revoked| revoked.contains(&serial)).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = revoked => End::Revoked,
        () = tokio::time::sleep(left) => End::Expired,
    }
}

//! One thread's HTTP engine: drives connections through the phases. Knows the engine's entry
//! points and options; must not know what the phases do.

use std::future::pending;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora_core::server::ShutdownWatch;
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::HttpProxy;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::listen::AsyncServe;
use crate::listen::connection::Connection;
use crate::listen::stream::EdgeStream;
use crate::proxy::Site;
use crate::proxy::phases::Phases;

/// Connections to servers that one thread keeps; fewer than it has requests at a time costs threefold.
const POOL: usize = 1024;

/// What one HTTP/2 request may send before edge has passed it on, and all of one connection together: an
/// upload over 100 ms of distance still moves at 20 Mbit/s.
const RECEIVE_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// What edge holds of one HTTP/2 answer for a client that takes nothing; the engine's own default is six
/// times as much, for each of its streams.
const SEND_BUFFER: usize = 64 * 1024;

/// What an idle HTTP/2 client that was sent a GOAWAY may take to leave.
const FAREWELL: Duration = Duration::from_secs(2);

/// One thread's engine with its own pool of upstream connections.
#[derive(Clone)]
pub struct Engine {
    site: Arc<Site>,
    proxy: Arc<HttpProxy<Phases>>,
    /// For connections that were accepted before edge drains and are ready only then: `proxy`
    /// would close them without an answer to the request that is on its way.
    late: Arc<OnceLock<Arc<HttpProxy<Phases>>>>,
    options: HttpServerOptions,
    h2: H2Options,
    /// Seconds the engine waits between requests; the stream's own deadline comes first.
    keep_alive: u64,
    draining: Arc<watch::Sender<bool>>,
}

impl Engine {
    /// An engine that asks `site`.
    #[must_use]
    pub fn new(site: Arc<Site>) -> Self {
        let listen = &site.listen;
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(listen.idle_timeout);
        let mut h2 = default_h2_options();
        h2.max_header_list_size(u32::try_from(listen.max_head.0).unwrap_or(u32::MAX));
        h2.max_concurrent_streams(listen.h2_streams);
        h2.initial_window_size(RECEIVE_WINDOW);
        h2.initial_connection_window_size(CONNECTION_WINDOW);
        h2.max_send_buffer_size(SEND_BUFFER);
        // Rapid reset and its relatives: after that many streams taken back the connection ends.
        h2.max_pending_accept_reset_streams(20);
        h2.max_local_error_reset_streams(Some(64));
        let keep_alive = (listen.idle_timeout + listen.head_timeout).as_secs() + 5;
        let proxy = proxy(Arc::clone(&site));
        Self {
            site,
            proxy,
            late: Arc::default(),
            options,
            h2,
            keep_alive,
            draining: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Lets idle connections go and keeps no other alive after its request.
    pub async fn drain(self) {
        self.draining.send_replace(true);
        self.proxy.http_cleanup().await;
    }
}

impl AsyncServe for Engine {
    async fn serve(&self, stream: EdgeStream, connection: Arc<Connection>) {
        let mut draining = self.draining.subscribe();
        let is_late = *draining.borrow();
        let proxy = if is_late {
            // It hears the word like all others: HTTP/2 would otherwise go on as if nothing were.
            draining.mark_changed();
            Arc::clone(self.late.get_or_init(|| proxy(Arc::clone(&self.site))))
        } else {
            Arc::clone(&self.proxy)
        };
        // HTTP/2 needs a word of its own: one connection may be asked to leave while others stay.
        let (word, watch) = if connection.is_h2() {
            let (word, mut told) = watch::channel(is_late);
            if is_late {
                told.mark_changed();
            }
            (Some(word), told)
        } else {
            (None, draining.clone())
        };
        let driver = Arc::new(Driver { engine: self.clone(), proxy, connection: Arc::clone(&connection) });
        // Nothing is handed back: the stream returns its remains by itself.
        let served = driver.process_new(Box::new(stream), &watch);
        tokio::select! {
            biased;
            () = dismissed(&connection, word, &mut draining) => {}
            _ = served => {}
        }
    }
}

/// Passes the word to leave on to the engine. Returns where an HTTP/2 client does not heed it.
async fn dismissed(
    connection: &Connection,
    word: Option<watch::Sender<bool>>,
    draining: &mut watch::Receiver<bool>,
) {
    let Some(word) = word else {
        // HTTP/1's stream ends by itself where a request would begin; this only wakes it up.
        connection.presence.asked_to_leave().await;
        return pending().await;
    };
    tokio::select! {
        // Whether edge drains or its engine is gone: the deadline is that of the whole draining.
        _ = draining.changed() => {
            word.send_replace(true);
            return pending().await;
        }
        () = connection.presence.asked_to_leave() => {}
    }
    word.send_replace(true);
    loop {
        sleep(FAREWELL).await;
        if connection.presence.is_idle() {
            return;
        }
    }
}

fn proxy(site: Arc<Site>) -> Arc<HttpProxy<Phases>> {
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: POOL, ..ServerConf::default() };
    let mut proxy = HttpProxy::new(Phases::new(site), Arc::new(conf));
    proxy.handle_init_modules();
    Arc::new(proxy)
}

/// One connection in the engine.
struct Driver {
    engine: Engine,
    proxy: Arc<HttpProxy<Phases>>,
    connection: Arc<Connection>,
}

#[async_trait]
impl HttpServerApp for Driver {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        self.connection.next_turn();
        if self.connection.presence.is_leaving() {
            session.set_keepalive(None);
        } else if session.get_keepalive().is_some() {
            session.set_keepalive(Some(self.engine.keep_alive));
        }
        self.proxy.process_new_http(session, shutdown).await
    }

    fn h2_options(&self) -> Option<H2Options> {
        Some(self.engine.h2.clone())
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.engine.options)
    }
}

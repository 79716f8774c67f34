//! Corridor 1: a request's phases, from its head to its line in the log. Alone knows the HTTP
//! engine's proxy; decides nothing itself: who the client is, whether it is admitted, where it
//! goes and which server answers are the rooms' decisions.

mod cross_site;
mod engine;
mod forward;
mod peer;
mod phases;
mod refusal;
mod request;
mod request_id;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::access_log::AccessLog;
use crate::admin::Readiness;
use crate::admission::{Banned, InFlight, MAX_KEYS, Rates};
use crate::client::TrustedProxies;
use crate::config::Listen;
use crate::metrics::Metrics;
use crate::route::Routes;
use crate::upstream::Upstreams;

pub use engine::Engine;

/// Directives for the log: the engine writes what any client can provoke, and edge says it in
/// the access log instead.
pub const QUIET: &str = "pingora_core=off,pingora_proxy=off,h2=off";

/// What the phases ask, shared by every thread.
#[derive(Debug)]
pub struct Site {
    /// This host's own name, under which health is answered.
    pub direct_name: Option<String>,
    /// Deadlines and limits of a client's connection.
    pub listen: Listen,
    /// Who the client is.
    pub trusted: TrustedProxies,
    /// Who gets nothing.
    pub banned: Arc<Banned>,
    /// How fast one client may ask; routes are numbered as in `routes`.
    pub rates: Arc<Rates>,
    /// How much one client may do at a time.
    pub in_flight: Arc<InFlight>,
    /// What a client that is over its limit is told to wait.
    pub retry_after: Duration,
    /// Where a request goes.
    pub routes: Routes,
    /// Who answers there.
    pub upstreams: Upstreams,
    /// Health.
    pub readiness: Arc<Readiness>,
    /// One line a request.
    pub access_log: AccessLog,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Where the clock of `upstreams` starts.
    pub started: Instant,
}

impl Site {
    /// The time of `upstreams`.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Forgets whom the rates need not remember, and brings their figures up to date. Call it about
    /// once a second.
    pub fn tidy_rates(&self) {
        self.rates.tidy();
        let metrics = &self.metrics;
        metrics.rate_clients.set(i64::try_from(self.rates.remembered()).unwrap_or(i64::MAX));
        let news = self.rates.crowded().saturating_sub(metrics.rate_crowded.get());
        if news > 0 {
            metrics.rate_crowded.inc_by(news);
            tracing::warn!(
                "admission: more than {MAX_KEYS} clients are counted by rates; newcomers share one, {news} requests \
                 did in the last second"
            );
        }
    }

    /// Tells readiness which upstreams have a server left.
    pub fn report_upstreams(&self) {
        let now = self.now();
        for upstream in self.upstreams.all() {
            let (well, all) = (upstream.well(now), upstream.settings().servers.len());
            let name = format!("upstream {}", upstream.settings().name);
            self.readiness.report(name, well > 0, format!("{well} of {all} servers answer"));
        }
    }
}

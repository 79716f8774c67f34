//! Joins the queues with readiness, metrics and status: how many wait, for how long, what is dead, and what
//! nobody serves. Decides by the configuration alone whose messages somebody takes.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use prometheus::Registry;
use serde_json::json;
use shared::shutdown::Shutdown;

use super::LOOK;
use crate::api::admin::{Health, Readiness};
use crate::api::status::StatusSource;
use crate::broker::Broker;
use crate::config::Config;
use crate::queue::Queues;
use crate::queue::overview::{Gauges, Overview, Served};
use crate::worker;

/// How often the queues are counted: of thousands, each is asked for its oldest message.
const COUNT: Duration = Duration::from_secs(5);

/// Whose messages somebody takes.
pub(crate) fn served(config: &Config) -> Served {
    match &config.broker {
        Some(_) => Served::All,
        None => Served::Only(config.deliveries.iter().map(|target| target.queue.clone()).collect()),
    }
}

/// Readiness follows the broker, and the log its senders that find no room.
pub(crate) fn look_at_broker(broker: &Broker, readiness: Readiness, shutdown: &Shutdown) {
    let broker = broker.clone();
    let look = move || -> BoxFuture<'static, ()> {
        let gate = broker.queues().gate();
        broker.look();
        let lack = gate.lack(true).or(gate.lack(false));
        let (health, detail) = match (gate.trouble, lack) {
            (Some(trouble), _) => (Health::Degraded, trouble),
            (None, Some(lack)) => {
                (Health::Degraded, format!("senders are held: {} is full; {}", lack.named(), lack.remedy()))
            }
            (None, None) => (Health::Good, "messages are taken".to_owned()),
        };
        readiness.report("broker", health, detail);
        Box::pin(std::future::ready(()))
    };
    worker::every(LOOK, look, shutdown.clone());
}

/// Readiness and gauges follow the queues.
///
/// # Errors
/// A metric is named twice.
pub(crate) fn look_at_queues(
    queues: &Queues,
    served: Served,
    (registry, readiness): (&Registry, Readiness),
    shutdown: &Shutdown,
) -> Result<(), prometheus::Error> {
    let (queues, gauges) = (queues.clone(), Arc::new(Gauges::register(registry)?));
    let look = move || -> BoxFuture<'static, ()> {
        let (queues, gauges, served) = (queues.clone(), Arc::clone(&gauges), served.clone());
        let readiness = readiness.clone();
        Box::pin(async move {
            match queues.overview(&served).await {
                Ok((overview, all)) => {
                    let (health, detail) = health(&overview);
                    readiness.report("queues", health, detail);
                    gauges.show(&overview, all, now());
                }
                Err(error) => readiness.report("queues", Health::Degraded, error.to_string()),
            }
        })
    };
    worker::every(COUNT, look, shutdown.clone());
    Ok(())
}

/// What `vault status` shows of the queues.
pub(crate) fn status(queues: &Queues, served: Served) -> (&'static str, StatusSource) {
    let queues = queues.clone();
    let source: StatusSource = Arc::new(move || {
        let (queues, served) = (queues.clone(), served.clone());
        Box::pin(async move {
            match queues.overview(&served).await {
                Ok((overview, _)) => json!(overview),
                Err(error) => json!({ "error": error.to_string() }),
            }
        })
    });
    ("queues", source)
}

fn health(overview: &Overview) -> (Health, String) {
    match overview.troubles.as_slice() {
        [] => (Health::Good, format!("{} messages in {} queues", overview.messages, overview.queues)),
        troubles => (Health::Degraded, troubles.join("; ")),
    }
}

/// In ms since 1970, as messages tell when they came.
#[expect(clippy::disallowed_methods, reason = "ages are told by the calendar's clock")]
fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_letters_and_what_nobody_serves_degrade() {
        let mut overview = Overview { messages: 3, queues: 2, ..Overview::default() };
        assert_eq!(health(&overview), (Health::Good, "3 messages in 2 queues".to_owned()));
        overview.troubles = vec!["4 dead letters".to_owned(), "3 messages wait".to_owned()];
        assert_eq!(health(&overview), (Health::Degraded, "4 dead letters; 3 messages wait".to_owned()));
    }
}

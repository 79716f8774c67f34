//! Named upstreams and their servers: whose turn it is, and who failed lately. Knows servers and
//! times that it is given; must not know clients, HTTP or how a connection is made.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Requests in a row that a server took and did not answer until it is passed over: one slow page
/// says little about a server.
const STRIKES: u32 = 3;

/// `[[upstream]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// As routes name it.
    pub name: String,
    /// Asked in turn.
    pub servers: Vec<Server>,
    /// Until a connection stands.
    pub connect_timeout: Duration,
    /// How long a server that failed is passed over.
    pub fail_timeout: Duration,
}

/// One server of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// `"127.0.0.1:9000"`
    Tcp(SocketAddr),
    /// `"unix:/run/app.sock"`
    Unix(PathBuf),
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Server::Tcp(address) => address.fmt(f),
            Server::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Every upstream, shared by all threads: what one of them learns of a server, all know.
#[derive(Debug)]
pub struct Upstreams {
    named: HashMap<String, Arc<Upstream>>,
}

/// One upstream.
#[derive(Debug)]
pub struct Upstream {
    settings: Settings,
    next: AtomicUsize,
    health: Vec<Health>,
}

/// What is known of one server.
#[derive(Debug, Default)]
struct Health {
    /// Passed over until then, in milliseconds of the caller's clock; 0 is never.
    failed_until: AtomicU64,
    /// Requests in a row without an answer.
    strikes: AtomicU32,
}

impl Upstreams {
    /// All servers count as well until they fail.
    #[must_use]
    pub fn new(settings: Vec<Settings>) -> Self {
        let named =
            settings.into_iter().map(|one| (one.name.clone(), Arc::new(Upstream::new(one)))).collect();
        Self { named }
    }

    /// The upstream that a route names.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.named.get(name)
    }

    /// All of them, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.named.values()
    }
}

impl Upstream {
    fn new(settings: Settings) -> Self {
        let health = settings.servers.iter().map(|_| Health::default()).collect();
        Self { settings, next: AtomicUsize::new(0), health }
    }

    /// `[[upstream]]`
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The next server in turn that has not been `tried` for this request; those that failed
    /// lately come last, since asking one of them is better than asking none.
    #[must_use]
    pub fn choose(&self, now: Duration, tried: &[usize]) -> Option<(usize, &Server)> {
        let count = self.settings.servers.len();
        if count == 0 {
            return None;
        }
        let start = self.next.fetch_add(1, Ordering::Relaxed) % count;
        let in_turn = || (0..count).map(|step| (start + step) % count).filter(|index| !tried.contains(index));
        let index = in_turn().find(|index| self.is_well(*index, now)).or_else(|| in_turn().next())?;
        self.settings.servers.get(index).map(|server| (index, server))
    }

    /// No connection could be made. Returns whether the server counted as well before.
    pub fn unreachable(&self, index: usize, now: Duration) -> bool {
        let until = milliseconds(now.saturating_add(self.settings.fail_timeout)).max(1);
        self.health
            .get(index)
            .is_some_and(|health| health.failed_until.swap(until, Ordering::Relaxed) <= milliseconds(now))
    }

    /// The server took a request and did not answer it. Returns whether it is passed over from now on.
    pub fn unanswered(&self, index: usize, now: Duration) -> bool {
        let strikes =
            self.health.get(index).map_or(0, |health| health.strikes.fetch_add(1, Ordering::Relaxed));
        strikes.saturating_add(1) >= STRIKES && self.unreachable(index, now)
    }

    /// The server answered.
    pub fn answered(&self, index: usize) {
        let Some(health) = self.health.get(index) else { return };
        // Read first: the usual answer changes nothing and must not fight over a cache line.
        if health.strikes.load(Ordering::Relaxed) != 0 {
            health.strikes.store(0, Ordering::Relaxed);
        }
        if health.failed_until.load(Ordering::Relaxed) != 0 {
            health.failed_until.store(0, Ordering::Relaxed);
        }
    }

    /// How many of the servers are well.
    #[must_use]
    pub fn well(&self, now: Duration) -> usize {
        (0..self.health.len()).filter(|index| self.is_well(*index, now)).count()
    }

    fn is_well(&self, index: usize, now: Duration) -> bool {
        let until = self.health.get(index).map(|health| health.failed_until.load(Ordering::Relaxed));
        until.is_some_and(|until| until <= milliseconds(now))
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(100);

    fn upstream(servers: u16) -> Upstream {
        Upstream::new(Settings {
            name: "app".to_owned(),
            servers: (1..=servers)
                .map(|port| Server::Tcp(SocketAddr::from(([127, 0, 0, 1], port))))
                .collect(),
            connect_timeout: Duration::from_secs(1),
            fail_timeout: Duration::from_secs(10),
        })
    }

    fn turns(upstream: &Upstream, now: Duration, count: usize) -> Vec<usize> {
        (0..count).filter_map(|_| upstream.choose(now, &[]).map(|(index, _)| index)).collect()
    }

    #[test]
    fn servers_are_asked_in_turn() {
        assert_eq!(turns(&upstream(3), START, 6), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_failed_server_is_passed_over_until_its_time_is_up() {
        let upstream = upstream(2);
        assert!(upstream.unreachable(0, START));
        assert!(!upstream.unreachable(0, START), "it is news only once");
        assert_eq!(turns(&upstream, START, 4), [1, 1, 1, 1]);
        assert_eq!(upstream.well(START), 1);
        assert!(turns(&upstream, START + Duration::from_secs(11), 4).contains(&0));
    }

    #[test]
    fn one_slow_answer_says_little_and_three_in_a_row_say_enough() {
        let upstream = upstream(2);
        assert!(!upstream.unanswered(0, START) && !upstream.unanswered(0, START));
        upstream.answered(0);
        assert!(!upstream.unanswered(0, START) && !upstream.unanswered(0, START));
        assert_eq!(upstream.well(START), 2);
        assert!(upstream.unanswered(0, START));
        assert_eq!(upstream.well(START), 1);
    }

    #[test]
    fn an_answer_brings_a_server_back_at_once() {
        let upstream = upstream(2);
        upstream.unreachable(1, START);
        upstream.answered(1);
        assert_eq!(upstream.well(START), 2);
    }

    #[test]
    fn with_all_failed_one_is_asked_all_the_same_and_none_twice() {
        let upstream = upstream(2);
        upstream.unreachable(0, START);
        upstream.unreachable(1, START);
        let (first, _) = upstream.choose(START, &[]).unwrap();
        let (second, _) = upstream.choose(START, &[first]).unwrap();
        assert_ne!(first, second);
        assert!(upstream.choose(START, &[0, 1]).is_none());
    }
}

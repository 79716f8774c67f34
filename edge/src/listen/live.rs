//! Which client connections live now, from accept to close, so that a ban can cut them and an office
//! keeps room below the kernel's limit. Knows sockets' addresses and who is idle; must not know
//! requests, nor why somebody is banned.
//!
//! A connection is idle while its handshake is done and no request is in flight. Of a client with
//! more connections than it may keep, those that have rested the longest are asked to leave: HTTP/1 is
//! closed, HTTP/2 gets its GOAWAY first. One that has just been opened or used is left alone: its next
//! request may be on the way. Trusted proxies carry many clients: they are neither cut nor asked.

use std::collections::hash_map::{Entry, RandomState};
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::client::{Client, ClientKey, TrustedProxies, of_whole_clients};
use crate::listen::connection::Connection;
use crate::listen::wire::Wire;
use crate::metrics::Metrics;

/// When idle connections of one client are asked to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    /// So many connections a client may keep, busy ones included, while some of them are idle.
    pub most: usize,
    /// Only who has been idle for so long is asked.
    pub rest: Duration,
}

impl Default for Idle {
    /// The kernel refuses a client's fifty-first connection, busy or not; below that there is room for
    /// a page that loads.
    fn default() -> Self {
        Self { most: 40, rest: Duration::from_secs(1) }
    }
}

/// A client has as many connections as it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// Threads rarely meet on one of these.
const SHARDS: usize = 64;

/// Every live client connection. Shared by all threads.
#[derive(Debug)]
pub struct Connections {
    idle: Idle,
    /// A client's further connections are refused.
    most: usize,
    trusted: TrustedProxies,
    metrics: Arc<Metrics>,
    /// Where the clock of idle times starts.
    began: Instant,
    /// Keyed by chance, so that clients cannot choose to collide.
    hasher: RandomState,
    shards: Vec<Mutex<Shard>>,
    count: AtomicUsize,
    clients: AtomicUsize,
}

type Shard = HashMap<ClientKey, Crowd>;

/// The connections of one client, oldest first.
#[derive(Debug, Default)]
struct Crowd {
    next: u64,
    members: BTreeMap<u64, Member>,
    tally: Arc<Tally>,
}

#[derive(Debug)]
struct Member {
    connection: Arc<Connection>,
    wire: Wire,
}

/// Of one client: connections that were not asked to leave, and the idle ones among them.
#[derive(Debug, Default)]
struct Tally {
    staying: AtomicUsize,
    idle: AtomicUsize,
}

/// One connection's part in the list.
#[derive(Debug)]
pub struct Presence {
    key: ClientKey,
    /// Where the clock of [`Connections`] starts.
    began: Instant,
    tally: Arc<Tally>,
    trusted: bool,
    state: Mutex<State>,
    told: Notify,
    cut: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
struct State {
    /// Handshakes and requests under way.
    busy: u32,
    leaving: bool,
    /// By the clock of [`Connections`].
    idle_since: Duration,
}

/// While it lives, its connection is not idle.
#[derive(Debug)]
#[must_use = "the connection is idle again when this is dropped"]
pub struct Busy(Arc<Connection>);

/// A connection's place in the list; leaves it on drop.
#[derive(Debug)]
pub(crate) struct Listed {
    home: Arc<Connections>,
    connection: Arc<Connection>,
    id: u64,
}

impl Connections {
    /// An empty list. A client may have `most` connections at once, trusted proxies any number.
    #[must_use]
    pub fn new(idle: Idle, most: usize, trusted: TrustedProxies, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            idle,
            most,
            trusted,
            metrics,
            began: Instant::now(),
            hasher: RandomState::new(),
            shards: std::iter::repeat_with(Mutex::default).take(SHARDS).collect(),
            count: AtomicUsize::new(0),
            clients: AtomicUsize::new(0),
        })
    }

    /// Resets every connection of `network` now, whatever it is in the midst of: nothing that was
    /// queued for it is sent. Ban first and cut then, so that none slips in between. Connections of
    /// trusted proxies stay: their clients are refused request by request. Returns how many were cut.
    pub fn cut(&self, network: IpNet) -> usize {
        let network = of_whole_clients(network);
        let mut found = Vec::new();
        let mut look = |crowd: &Crowd| {
            let of_it = crowd.members.values().filter(|member| {
                !member.connection.presence.trusted && network.contains(&member.connection.client.address)
            });
            found.extend(of_it.map(|member| (Arc::clone(&member.connection), member.wire.clone())));
        };
        let one_client = network.prefix_len() == network.max_prefix_len() || network.prefix_len() == 64;
        if one_client {
            let key = Client::new(network.addr()).key();
            self.shard(key).get(&key).into_iter().for_each(&mut look);
        } else {
            self.shards.iter().for_each(|shard| whole(shard).values().for_each(&mut look));
        }
        let mut cut = 0;
        // Not under the lock: others come and go meanwhile.
        for (connection, wire) in found {
            if !connection.presence.cut.swap(true, Ordering::AcqRel) {
                wire.reset();
                cut += 1;
            }
        }
        self.metrics.connections_cut.inc_by(cut);
        usize::try_from(cut).unwrap_or(usize::MAX)
    }

    /// Asks the oldest idle connections of every client with more than it may keep to leave. Returns
    /// how many were asked. Call it about once a second; a client's own next connection does the same
    /// for that client.
    pub fn thin(&self) -> usize {
        self.idle_over(self.idle.most)
    }

    /// As [`Connections::thin`], for clients with more than `limit` connections.
    pub fn idle_over(&self, limit: usize) -> usize {
        let thin = |shard: &Mutex<Shard>| -> usize {
            whole(shard).values().map(|crowd| self.thin_out(crowd, limit)).sum()
        };
        self.shards.iter().map(thin).sum()
    }

    /// Live connections of one client.
    #[must_use]
    pub fn of(&self, client: Client) -> usize {
        self.shard(client.key()).get(&client.key()).map_or(0, |crowd| crowd.members.len())
    }

    /// Live connections, those in their handshake and those that are closing included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Clients with at least one connection.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// Does this peer speak for many clients?
    #[must_use]
    pub(crate) fn trusts(&self, peer: SocketAddr) -> bool {
        self.trusted.contains(peer.ip())
    }

    /// Enters an accepted connection, busy with its handshake. A trusted proxy may have any number.
    ///
    /// # Errors
    /// Its client has as many as it may have.
    pub(crate) fn enter(
        self: &Arc<Self>,
        peer: SocketAddr,
        secure: bool,
        wire: &Wire,
    ) -> Result<(Listed, Busy), Full> {
        let trusted = self.trusts(peer);
        let key = Client::new(peer.ip()).key();
        let mut shard = self.shard(key);
        let crowd = shard.entry(key).or_insert_with(|| {
            self.clients.fetch_add(1, Ordering::Relaxed);
            Crowd::default()
        });
        if crowd.members.len() >= self.most && !trusted {
            return Err(Full);
        }
        let id = crowd.next;
        crowd.next += 1;
        let presence = Presence {
            key,
            began: self.began,
            tally: Arc::clone(&crowd.tally),
            trusted,
            state: Mutex::new(State { busy: 1, leaving: false, idle_since: Duration::ZERO }),
            told: Notify::new(),
            cut: AtomicBool::new(false),
        };
        crowd.tally.staying.fetch_add(1, Ordering::AcqRel);
        let connection = Arc::new(Connection::new(peer, secure, presence));
        crowd.members.insert(id, Member { connection: Arc::clone(&connection), wire: wire.clone() });
        self.count.fetch_add(1, Ordering::Relaxed);
        self.thin_out(crowd, self.idle.most);
        drop(shard);
        let home = Arc::clone(self);
        Ok((Listed { home, connection: Arc::clone(&connection), id }, Busy(connection)))
    }

    /// Where a client has more connections than it may keep: its oldest idle ones go.
    fn thin_out(&self, crowd: &Crowd, limit: usize) -> usize {
        let Tally { staying, idle } = &*crowd.tally;
        let excess = staying.load(Ordering::Acquire).saturating_sub(limit);
        if excess == 0 || idle.load(Ordering::Acquire) == 0 {
            return 0;
        }
        let now = self.began.elapsed();
        let mut idle: Vec<(Duration, &Member)> = crowd
            .members
            .values()
            .filter(|member| !member.connection.presence.trusted)
            .filter_map(|member| Some((member.connection.presence.idle_since()?, member)))
            .filter(|(since, _)| now.saturating_sub(*since) >= self.idle.rest)
            .collect();
        idle.sort_by_key(|(since, _)| *since);
        let asked = idle.iter().take(excess).filter(|(_, member)| member.connection.presence.ask_if_idle());
        let asked = asked.count();
        self.metrics.idle_closed.inc_by(asked.try_into().unwrap_or(u64::MAX));
        asked
    }

    fn shard(&self, key: ClientKey) -> MutexGuard<'_, Shard> {
        // The map inside takes other bits of its own hash; any bits serve here.
        let index = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or(0);
        whole(&self.shards[index])
    }
}

impl Listed {
    /// The connection itself.
    pub(crate) const fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let presence = &self.connection.presence;
        presence.leave();
        let mut shard = self.home.shard(presence.key);
        if let Entry::Occupied(mut crowd) = shard.entry(presence.key) {
            let was_there = crowd.get_mut().members.remove(&self.id).is_some();
            debug_assert!(was_there, "a connection stands in the list until this is dropped");
            if crowd.get().members.is_empty() {
                crowd.remove();
                self.home.clients.fetch_sub(1, Ordering::Relaxed);
            }
        }
        drop(shard);
        self.home.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Presence {
    /// Has it been cut for a ban?
    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// Is the other end a trusted proxy?
    pub(crate) const fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// Was it asked to leave?
    pub(crate) fn is_leaving(&self) -> bool {
        whole(&self.state).leaving
    }

    /// Is nothing under way?
    pub(crate) fn is_idle(&self) -> bool {
        whole(&self.state).busy == 0
    }

    /// Returns when it is asked to leave. One may wait.
    pub(crate) async fn asked_to_leave(&self) {
        self.told.notified().await;
    }

    /// Asks it to leave when what is under way is done.
    pub(crate) fn leave(&self) {
        let mut state = whole(&self.state);
        self.goes(&mut state);
    }

    /// Asks it to leave, unless something is under way or it was asked before.
    fn ask_if_idle(&self) -> bool {
        let mut state = whole(&self.state);
        state.busy == 0 && self.goes(&mut state)
    }

    fn goes(&self, state: &mut State) -> bool {
        if std::mem::replace(&mut state.leaving, true) {
            return false;
        }
        self.tally.staying.fetch_sub(1, Ordering::AcqRel);
        if state.busy == 0 {
            self.tally.idle.fetch_sub(1, Ordering::AcqRel);
        }
        self.told.notify_one();
        true
    }

    fn idle_since(&self) -> Option<Duration> {
        let state = whole(&self.state);
        (state.busy == 0 && !state.leaving).then_some(state.idle_since)
    }

    fn begin(&self) {
        let mut state = whole(&self.state);
        state.busy += 1;
        if state.busy == 1 && !state.leaving {
            self.tally.idle.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn end(&self) {
        let mut state = whole(&self.state);
        debug_assert!(state.busy > 0, "what ends has begun");
        state.busy = state.busy.saturating_sub(1);
        if state.busy > 0 || state.leaving {
            return;
        }
        state.idle_since = self.began.elapsed();
        self.tally.idle.fetch_add(1, Ordering::AcqRel);
    }
}

impl Busy {
    /// Something begins on `connection`.
    pub(crate) fn new(connection: &Arc<Connection>) -> Self {
        connection.presence.begin();
        Self(Arc::clone(connection))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.presence.end();
    }
}

/// Nothing under these locks can panic half-way, so a poisoned one is still whole.
fn whole<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{Ipv4Addr, TcpStream as StdStream};

    use tokio::net::TcpListener;

    use super::*;

    /// A list and a listener whose connections are entered under whatever address a test says.
    struct Hall {
        list: Arc<Connections>,
        listener: TcpListener,
    }

    struct Guest {
        listed: Listed,
        busy: Option<Busy>,
        client: StdStream,
    }

    impl Guest {
        fn leaving(&self) -> bool {
            self.listed.connection().presence.is_leaving()
        }
    }

    const AT_ONCE: Duration = Duration::ZERO;

    async fn hall(most: usize, rest: Duration) -> Hall {
        hall_for(200, most, rest).await
    }

    async fn hall_for(each: usize, most: usize, rest: Duration) -> Hall {
        let trusted = TrustedProxies::new(vec!["10.9.0.0/16".parse().unwrap()]);
        let list = Connections::new(Idle { most, rest }, each, trusted, Metrics::new());
        Hall { list, listener: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap() }
    }

    impl Hall {
        async fn enter(&self, address: &str) -> Guest {
            let client = StdStream::connect(self.listener.local_addr().unwrap()).unwrap();
            let wire = Wire::new(self.listener.accept().await.unwrap().0);
            let peer = SocketAddr::new(address.parse().unwrap(), 4711);
            let (listed, busy) = self.list.enter(peer, true, &wire).unwrap();
            Guest { listed, busy: Some(busy), client }
        }
    }

    #[tokio::test]
    async fn a_cut_resets_the_banned_network_alone() {
        let hall = hall(40, AT_ONCE).await;
        let mut guests = Vec::new();
        for address in
            ["192.0.2.7", "::ffff:192.0.2.7", "192.0.2.8", "2001:db8::1", "2001:db8::2:1", "10.9.0.1"]
        {
            guests.push(hall.enter(address).await);
        }
        assert_eq!((hall.list.len(), hall.list.clients()), (6, 4));
        let cut = |network: &str| hall.list.cut(network.parse().unwrap());
        assert_eq!(cut("192.0.2.7/32"), 2);
        assert_eq!(cut("192.0.2.7/32"), 0, "once");
        assert_eq!(cut("2001:db8::5/128"), 2, "a /64 is one client");
        assert_eq!(cut("10.9.0.1/32"), 0, "a trusted proxy carries others");
        let was_cut = |guest: &mut Guest| {
            guest.client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let error = guest.client.read(&mut [0]).unwrap_err();
            (error.kind() == std::io::ErrorKind::ConnectionReset, guest.listed.connection().presence.is_cut())
        };
        let seen: Vec<(bool, bool)> = guests.iter_mut().map(was_cut).collect();
        let expected = [true, true, false, true, true, false].map(|cut| (cut, cut));
        assert_eq!(seen, expected);
        assert_eq!(cut("192.0.0.0/16"), 1, "what is left of a wider network");
        drop(guests);
        assert_eq!((hall.list.len(), hall.list.clients()), (0, 0));
    }

    #[tokio::test]
    async fn above_the_limit_the_oldest_idle_one_is_asked_to_leave() {
        let hall = hall(3, AT_ONCE).await;
        let mut guests = Vec::new();
        for _ in 0..3 {
            guests.push(hall.enter("192.0.2.7").await);
        }
        // The second and the third are idle, in that order; the first has a request.
        guests[1].busy = None;
        tokio::time::sleep(Duration::from_millis(5)).await;
        guests[2].busy = None;
        let other = hall.enter("192.0.2.8").await;
        assert!(guests.iter().all(|guest| !guest.leaving()), "three may stay");
        guests.push(hall.enter("192.0.2.7").await);
        let leaving = |guests: &[Guest]| guests.iter().map(Guest::leaving).collect::<Vec<_>>();
        assert_eq!(leaving(&guests), [false, true, false, false]);
        guests.push(hall.enter("192.0.2.7").await);
        assert_eq!(leaving(&guests), [false, true, true, false, false]);
        // Nobody is idle: nobody is asked, until somebody is.
        guests.push(hall.enter("192.0.2.7").await);
        assert_eq!(leaving(&guests), [false, true, true, false, false, false]);
        guests[0].busy = None;
        assert_eq!((hall.list.thin(), hall.list.thin()), (1, 0));
        assert_eq!(leaving(&guests), [true, true, true, false, false, false]);
        assert_eq!(hall.list.metrics.idle_closed.get(), 3);
        assert!(!other.leaving());
        guests.clear();
        assert_eq!(hall.list.len(), 1);
    }

    #[tokio::test]
    async fn a_client_has_no_more_connections_than_it_may_and_a_trusted_proxy_any_number() {
        let hall = hall_for(2, 40, AT_ONCE).await;
        let mut guests = Vec::new();
        for address in ["192.0.2.7", "192.0.2.7", "192.0.2.8", "10.9.1.1", "10.9.1.1", "10.9.1.1"] {
            guests.push(hall.enter(address).await);
        }
        let client = StdStream::connect(hall.listener.local_addr().unwrap()).unwrap();
        let wire = Wire::new(hall.listener.accept().await.unwrap().0);
        let third =
            |address: &str| hall.list.enter(SocketAddr::new(address.parse().unwrap(), 1), true, &wire);
        assert_eq!(third("192.0.2.7").unwrap_err(), Full);
        assert_eq!(third("::ffff:192.0.2.7").unwrap_err(), Full, "the same client");
        assert_eq!((hall.list.len(), hall.list.clients()), (6, 3), "who is refused is not counted");
        drop(third("192.0.2.8").unwrap());
        drop(guests.remove(0));
        drop(third("192.0.2.7").unwrap());
        drop(client);
    }

    #[tokio::test]
    async fn who_was_just_opened_or_used_is_left_alone() {
        let hall = hall(1, Duration::from_secs(3600)).await;
        let mut guests = Vec::new();
        for _ in 0..5 {
            guests.push(hall.enter("192.0.2.7").await);
        }
        guests.iter_mut().for_each(|guest| guest.busy = None);
        assert_eq!(hall.list.thin(), 0);
        assert!(guests.iter().all(|guest| !guest.leaving()));
    }

    #[tokio::test]
    async fn a_trusted_proxy_keeps_as_many_as_it_likes() {
        let hall = hall(1, AT_ONCE).await;
        let mut guests = Vec::new();
        for _ in 0..5 {
            guests.push(hall.enter("10.9.1.1").await);
        }
        guests.iter_mut().for_each(|guest| guest.busy = None);
        assert_eq!(hall.list.idle_over(0), 0);
        assert!(guests.iter().all(|guest| !guest.leaving()));
    }

    #[tokio::test]
    async fn a_connection_with_requests_is_idle_when_the_last_has_ended() {
        let hall = hall(40, AT_ONCE).await;
        let mut guest = hall.enter("192.0.2.7").await;
        let connection = Arc::clone(guest.listed.connection());
        assert!(!connection.presence.is_idle(), "its handshake is under way");
        guest.busy = None;
        let (one, other) = (Busy::new(&connection), Busy::new(&connection));
        assert_eq!(hall.list.idle_over(0), 0);
        drop(one);
        assert!(!connection.presence.is_idle());
        drop(other);
        assert!(connection.presence.is_idle());
        assert_eq!(hall.list.idle_over(0), 1);
        connection.presence.asked_to_leave().await;
    }
}

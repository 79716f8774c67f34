//! Chooses the implementer, and the server among several: all are looked at at once, each within
//! a deadline. Which one is written to is decided by `choose`, which is pure.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::super::entry::{Entry, Tail};
use super::etcd::Etcd;
use super::lineage::{Descent, Lineage, written};
use super::mariadb::Mariadb;
use super::note::Note;
use super::postgres::Postgres;
use super::tls::place;
use super::{DatabaseError, Host, Kind, Ledger, Mark, Place, Settings};

/// Connecting, looking, reading: a server that takes longer counts as away.
const LOOK: Duration = Duration::from_secs(3);
/// One append. Callers do not wait that long; see [`Settings::wait`].
const APPEND: Duration = Duration::from_secs(10);
/// A promotion; the server itself gives up after 20 s.
const PROMOTE: Duration = Duration::from_secs(25);

/// A ledger whose every call has a deadline.
pub struct Connection(Box<dyn Ledger>);

impl Connection {
    /// Connects to one server.
    ///
    /// # Errors
    /// It is away, or refuses the account.
    pub async fn open(settings: &Settings, host: &(String, u16)) -> Result<Self, DatabaseError> {
        let open = async {
            Ok(match settings.kind {
                Kind::Postgres => Self(Box::new(Postgres::connect(settings, host).await?)),
                Kind::Mariadb => Self(Box::new(Mariadb::connect(settings, host).await?)),
                Kind::Etcd => Self(Box::new(Etcd::connect(settings, host).await?)),
            })
        };
        within(LOOK, &place(host), open).await
    }

    /// A ledger that is open already.
    #[must_use]
    pub fn of(ledger: impl Ledger + 'static) -> Self {
        Self(Box::new(ledger))
    }

    /// Host and port.
    #[must_use]
    pub fn place(&self) -> &str {
        self.0.place()
    }

    /// See [`Ledger::lineage`].
    #[must_use]
    pub fn lineage(&self) -> Option<&Lineage> {
        self.0.lineage()
    }

    /// See [`Ledger::look`].
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn look(&mut self) -> Result<Host, DatabaseError> {
        let place = self.place().to_owned();
        within(LOOK, &place, self.0.look()).await
    }

    /// See [`Ledger::prepare`].
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn prepare(&mut self) -> Result<Tail, DatabaseError> {
        let place = self.place().to_owned();
        within(APPEND, &place, self.0.prepare()).await
    }

    /// See [`Ledger::tail`].
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn tail(&mut self) -> Result<Tail, DatabaseError> {
        let place = self.place().to_owned();
        within(LOOK, &place, self.0.tail()).await
    }

    /// See [`Ledger::append`].
    ///
    /// # Errors
    /// See [`DatabaseError`]; but for [`DatabaseError::Moved`] it may have been written all the same.
    pub async fn append(&mut self, after: Tail, entries: &[Entry]) -> Result<(), DatabaseError> {
        let place = self.place().to_owned();
        within(APPEND, &place, self.0.append(after, entries)).await
    }

    /// See [`Ledger::entries`].
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn entries(&mut self, after: u64) -> Result<Vec<Entry>, DatabaseError> {
        let place = self.place().to_owned();
        within(APPEND, &place, self.0.entries(after)).await
    }

    /// See [`Ledger::would_append`].
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn would_append(&mut self) -> Result<(), DatabaseError> {
        let place = self.place().to_owned();
        within(LOOK, &place, self.0.would_append()).await
    }

    /// See [`Ledger::begun`].
    #[must_use]
    pub fn begun(&self) -> Option<&Mark> {
        self.0.begun()
    }

    /// See [`Ledger::begin`].
    ///
    /// # Errors
    /// See [`DatabaseError`]; but for [`DatabaseError::Moved`] it may have been done all the same.
    pub async fn begin(&mut self, at: Tail, mark: Mark) -> Result<(), DatabaseError> {
        let place = self.place().to_owned();
        within(APPEND, &place, self.0.begin(at, mark)).await
    }

    /// See [`Ledger::identity`].
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn identity(&mut self) -> Result<String, DatabaseError> {
        let place = self.place().to_owned();
        within(LOOK, &place, self.0.identity()).await
    }

    /// See [`Ledger::found`].
    pub fn found(&mut self) -> Option<(Tail, Vec<Entry>)> {
        self.0.found()
    }

    /// See [`Ledger::promote`].
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn promote(&mut self) -> Result<bool, DatabaseError> {
        let place = self.place().to_owned();
        within(PROMOTE, &place, self.0.promote()).await
    }
}

async fn within<T>(
    deadline: Duration,
    place: &str,
    work: impl Future<Output = Result<T, DatabaseError>>,
) -> Result<T, DatabaseError> {
    let late = |_| Err(DatabaseError::Late { place: place.to_owned(), deadline });
    timeout(deadline, work).await.unwrap_or_else(late)
}

/// Looks at every server at once.
pub async fn survey(settings: &Settings, fenced: &BTreeSet<String>) -> (Vec<Host>, Vec<Option<Connection>>) {
    let looks = settings.hosts.iter().map(|host| async move {
        let mut connection = Connection::open(settings, host).await?;
        let host = connection.look().await?;
        Ok::<_, DatabaseError>((host, connection))
    });
    let looks = join_all(looks).await.into_iter().zip(&settings.hosts);
    looks
        .map(|(look, host)| {
            let name = place(host);
            let is_fenced = fenced.contains(&name);
            match look {
                Ok((host, connection)) => (Host { fenced: is_fenced, ..host }, Some(connection)),
                Err(error) => (Host { fenced: is_fenced, ..Host::closed(name, &error) }, None),
            }
        })
        .unzip()
}

/// What each server says of itself, all asked at once, or what is wrong with it. With `prepare` the
/// tables are made in a database that is empty, and looked at; nothing else is changed.
pub async fn look_over(settings: &Settings, prepare: bool) -> Vec<(String, Result<Host, DatabaseError>)> {
    let looks = settings.hosts.iter().map(|host| async move {
        let look = async {
            let mut connection = Connection::open(settings, host).await?;
            let mut seen = connection.look().await?;
            if let (Place::Unfit, Some(what)) = (seen.place, seen.why.clone()) {
                let next = "vault starts when that is done, or without [sequence.database]".to_owned();
                return Err(DatabaseError::Unfit { place: seen.host, what, next });
            }
            if prepare && seen.place == Place::Primary {
                seen.holds = Some(connection.prepare().await?);
            }
            Ok(seen)
        };
        (place(host), look.await)
    });
    join_all(looks).await
}

/// The faults that keep a vault from starting: what an operator must put right, and nothing that
/// passes by itself. `prepare`: see [`look_over`].
///
/// # Errors
/// The first such fault.
pub async fn check(settings: &Settings, prepare: bool) -> Result<(), DatabaseError> {
    for (_, look) in look_over(settings, prepare).await {
        match look {
            Err(error) if error.needs_operator() => return Err(error),
            Err(error) => tracing::warn!("sequence: database: {error}"),
            Ok(_) => {}
        }
    }
    Ok(())
}

/// How many servers take writes that must not: more than one of a kind that has one primary.
#[must_use]
pub fn writable(kind: Kind, hosts: &[Host]) -> Vec<String> {
    let primaries = hosts.iter().filter(|host| host.place == Place::Primary);
    match kind {
        Kind::Postgres | Kind::Mariadb => primaries.map(|host| host.host.clone()).collect(),
        // Every member takes writes for the one cluster.
        Kind::Etcd => primaries.take(1).map(|host| host.host.clone()).collect(),
    }
}

/// Which of these servers continues the copy; its place among them.
///
/// # Errors
/// None does, and why.
pub fn choose(hosts: &[Host], note: &Note) -> Result<usize, DatabaseError> {
    let mut refused = None;
    let mut fit = Vec::new();
    for (place, host) in hosts.iter().enumerate() {
        if host.place != Place::Primary || host.fenced {
            continue;
        }
        match lacks(host, note) {
            None => fit.push(place),
            Some(what) => {
                let next = format!(
                    "see vault database status, then write vault database take-over --host {0} or vault database fence --host {0}",
                    host.host
                );
                refused.get_or_insert(DatabaseError::Foreign { place: host.host.clone(), what, next });
            }
        }
    }
    let branch = |host: &Host| host.lineage.as_ref().map(|lineage| (lineage.timeline, lineage.forks.clone()));
    let known = note.lineage.as_ref().map(|lineage| (lineage.timeline, lineage.forks.clone()));
    // Where two take writes, the one that was written to goes on.
    let same = fit.iter().find(|place| hosts.get(**place).is_some_and(|host| branch(host) == known));
    if let Some(place) = same.or(fit.first()) {
        return Ok(*place);
    }
    if let Some(refused) = refused {
        return Err(refused);
    }
    if let Some(host) = hosts.iter().find(|host| host.place == Place::Unfit && !host.fenced) {
        let what = host.why.clone().unwrap_or_default();
        let next = "vault database status shows every server".to_owned();
        return Err(DatabaseError::Unfit { place: host.host.clone(), what, next });
    }
    let said = hosts.iter().map(|host| match (host.fenced, host.place, &host.why) {
        (true, _, _) => format!("{} is fenced", host.host),
        (_, Place::Standby, _) => format!("{} is a standby", host.host),
        (_, _, Some(why)) => format!("{}: {why}", host.host),
        (_, _, None) => format!("{} is away", host.host),
    });
    let said = said.collect::<Vec<_>>().join("; ");
    Err(DatabaseError::NoPrimary(match next(hosts) {
        Some(standby) => format!(
            "{said}; if the primary is lost, on the ledger's owner: vault database take-over --host {standby}"
        ),
        None => said,
    }))
}

/// The standby that holds the most, which an operator would have promoted.
fn next(hosts: &[Host]) -> Option<&str> {
    let standbys = hosts.iter().filter(|host| host.place == Place::Standby && !host.fenced);
    let holds = |host: &&Host| host.holds.map_or(0, |tail| tail.index);
    Some(standbys.rev().max_by_key(holds)?.host.as_str())
}

/// What a server has lost of what was written to the copy.
pub(super) fn lacks(host: &Host, note: &Note) -> Option<String> {
    let holds = host.holds.map_or(0, |tail| tail.index);
    if holds < note.copied {
        return Some(format!("it holds {holds} entries of the {} that were written", note.copied));
    }
    let (lineage, known) = (host.lineage.as_ref()?, note.lineage.as_ref()?);
    match lineage.descent(known) {
        Descent::Continues => None,
        Descent::Stranger => Some("it began with other data (another system identifier)".to_owned()),
        Descent::Behind(at) => Some(format!(
            "its log ends at {}, before {} which the journals know of",
            written(at),
            written(known.at)
        )),
        Descent::Forked(at) | Descent::Aside(at) => Some(format!(
            "its history branched off at {}, before {} which the journals know of",
            written(at),
            written(known.at)
        )),
        Descent::Untold => Some(
            "it was promoted, and this account may not read where it branched off; write: \
             GRANT EXECUTE ON FUNCTION pg_read_file(text) TO this account"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, place: Place, timeline: u32, forks: &[(u32, u64)], holds: u64) -> Host {
        let lineage = Lineage { system: "7".to_owned(), timeline, forks: Some(forks.to_vec()), at: 5000 };
        let mut host =
            Host::closed(name.to_owned(), &DatabaseError::NoPrimary("not looked at yet".to_owned()));
        host.place = place;
        host.why = None;
        host.lineage = Some(lineage);
        host.holds = Some(Tail { index: holds, ..Tail::default() });
        host
    }

    fn note() -> Note {
        let lineage = Lineage { system: "7".to_owned(), timeline: 1, forks: Some(Vec::new()), at: 1000 };
        Note { copied: 10, lineage: Some(lineage), ..Note::default() }
    }

    #[test]
    fn a_promoted_standby_that_lost_nothing_goes_on_by_itself() {
        let hosts = [host("a", Place::Standby, 1, &[], 10), host("b", Place::Primary, 2, &[(1, 1200)], 12)];
        assert_eq!(choose(&hosts, &note()), Ok(1));
    }

    #[test]
    fn one_that_lost_rows_or_branched_off_before_them_waits_for_the_operator() {
        for lossy in [
            host("b", Place::Primary, 2, &[(1, 1200)], 9),
            host("b", Place::Primary, 2, &[(1, 900)], 10),
            Host { holds: None, ..host("b", Place::Primary, 1, &[], 0) },
        ] {
            let error = choose(&[lossy], &note()).unwrap_err();
            assert!(matches!(error, DatabaseError::Foreign { .. }), "{error}");
            assert!(error.to_string().contains("take-over --host b"), "{error}");
        }
    }

    #[test]
    fn where_the_primary_is_away_the_standby_that_holds_the_most_is_the_way_on() {
        let mut hosts = [
            host("a", Place::Away, 1, &[], 10),
            host("b", Place::Standby, 1, &[], 9),
            host("c", Place::Standby, 1, &[], 10),
        ];
        let told = |hosts: &[Host]| choose(hosts, &note()).unwrap_err().to_string();
        let words = "; if the primary is lost, on the ledger's owner: vault database take-over --host ";
        assert!(told(&hosts).ends_with(&format!("a is away; b is a standby; c is a standby{words}c")));
        hosts[2].fenced = true;
        assert!(told(&hosts).ends_with(&format!("{words}b")));
        hosts[1].place = Place::Away;
        assert!(!told(&hosts).contains("take-over"));
    }

    #[tokio::test]
    async fn servers_that_keep_silent_are_waited_for_side_by_side() {
        let silent: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let settings = Settings {
            kind: Kind::Postgres,
            role: super::super::Role::Copy,
            hosts: silent
                .iter()
                .map(|one| ("127.0.0.1".to_owned(), one.local_addr().unwrap().port()))
                .collect(),
            database: "vault".to_owned(),
            user: "vault".to_owned(),
            password_file: None,
            authority_file: None,
            wait: Duration::from_secs(1),
        };
        let looks = timeout(LOOK * 2, look_over(&settings, true)).await.unwrap();
        assert!(looks.len() == 3 && looks.iter().all(|(_, look)| look.is_err()), "{looks:?}");
    }

    #[test]
    fn of_two_primaries_the_one_that_was_written_to_goes_on_unless_it_is_fenced() {
        let mut hosts =
            [host("b", Place::Primary, 2, &[(1, 1200)], 10), host("a", Place::Primary, 1, &[], 10)];
        assert_eq!(choose(&hosts, &note()), Ok(1));
        assert_eq!(writable(Kind::Postgres, &hosts), ["b", "a"]);
        hosts[1].fenced = true;
        assert_eq!(choose(&hosts, &note()), Ok(0));
        hosts[0].place = Place::Away;
        let told = choose(&hosts, &note()).unwrap_err().to_string();
        assert_eq!(told, "no server takes the ledger's copy: b is away; a is fenced");
    }
}

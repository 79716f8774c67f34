//! Finds a member of etcd that answers for a quorum: all are asked at once, and the first to answer
//! serves until it fails. Knows nothing of what is appended.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::timeout;

use crate::sequence::database::open::Connection;
use crate::sequence::database::{DatabaseError, Settings};

/// One question to a member. A new leader is chosen within about as long.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// The first member to tell where the ledger ends, which it can only with a quorum.
///
/// # Errors
/// None does; what needs an operator first.
pub(super) async fn reach(settings: &Settings) -> Result<Connection, DatabaseError> {
    let attempts: FuturesUnordered<_> = settings
        .hosts
        .iter()
        .map(async |host| {
            let attempt = async {
                let mut connection = Connection::open(settings, host).await?;
                connection.tail().await?;
                Ok::<_, DatabaseError>(connection)
            };
            let late = DatabaseError::Late { place: format!("{}:{}", host.0, host.1), deadline: PATIENCE };
            timeout(PATIENCE, attempt).await.unwrap_or(Err(late))
        })
        .collect();
    let mut attempts = std::pin::pin!(attempts);
    let mut failed = Vec::new();
    while let Some(attempt) = attempts.next().await {
        match attempt {
            Ok(connection) => return Ok(connection),
            Err(error) => failed.push(error),
        }
    }
    let said = || failed.iter().map(|error| error.to_string().replace(AGAIN, "")).collect::<Vec<_>>();
    let away = || DatabaseError::Away { place: "etcd".to_owned(), why: said().join("; ") };
    Err(failed.iter().find(|error| error.needs_operator()).cloned().unwrap_or_else(away))
}

/// What an error of one member ends with; said once for all of them.
const AGAIN: &str = "; connected again by itself";

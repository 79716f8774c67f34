//! Finds a member of etcd that answers for a quorum: all are asked at once, and the first to answer
//! serves until it fails; one that holds less than is known, or another ledger, is passed over for
//! another. Knows nothing of what is appended.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::timeout;

use crate::sequence::database::open::Connection;
use crate::sequence::database::{DatabaseError, Mark, Settings};
use crate::sequence::entry::Tail;
use crate::sequence::reason::Reason;

/// One question to a member. A new leader is chosen within about as long.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// The member that was chosen, and those that were passed over for it.
pub(super) struct Reached {
    pub(super) connection: Connection,
    /// What they hold, and why that is not the ledger.
    pub(super) passed: Vec<String>,
}

/// The first member to tell where the ledger ends, which it can only with a quorum, and that `fits`;
/// if none does, one that does not, and says why.
///
/// # Errors
/// None answers; what needs an operator first.
pub(super) async fn reach(
    settings: &Settings,
    fits: impl Fn(Tail, Option<&Mark>) -> Result<(), Reason>,
) -> Result<Reached, DatabaseError> {
    let attempts: FuturesUnordered<_> = settings
        .hosts
        .iter()
        .map(async |host| {
            let attempt = async {
                let mut connection = Connection::open(settings, host).await?;
                let end = connection.tail().await?;
                Ok::<_, DatabaseError>((connection, end))
            };
            let late = DatabaseError::Late { place: format!("{}:{}", host.0, host.1), deadline: PATIENCE };
            timeout(PATIENCE, attempt).await.unwrap_or(Err(late))
        })
        .collect();
    let mut attempts = std::pin::pin!(attempts);
    let (mut failed, mut passed, mut last) = (Vec::new(), Vec::new(), None);
    while let Some(attempt) = attempts.next().await {
        match attempt {
            Ok((connection, end)) => match fits(end, connection.begun()) {
                Ok(()) => return Ok(Reached { connection, passed }),
                Err(reason) => {
                    passed.push(format!("{} holds {} entries: {reason}", connection.place(), end.index));
                    last = Some(connection);
                }
            },
            Err(error) => failed.push(error),
        }
    }
    if let Some(connection) = last {
        return Ok(Reached { connection, passed });
    }
    let said = || failed.iter().map(|error| error.to_string().replace(AGAIN, "")).collect::<Vec<_>>();
    let away = || DatabaseError::Away { place: "etcd".to_owned(), why: said().join("; ") };
    Err(failed.iter().find(|error| error.needs_operator()).cloned().unwrap_or_else(away))
}

/// What an error of one member ends with; said once for all of them.
const AGAIN: &str = "; will connect again by itself";

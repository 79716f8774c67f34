//! The one thread that writes: takes what waits, commits it together, answers after the
//! commit. A commit costs one flush however many wait for it.

use rusqlite::Connection;
use tokio::sync::{mpsc, watch};

use super::change::last_change;
use crate::storage::step::{Step, Steps};

/// Most jobs of one transaction, so that nobody waits for an endless one.
const BATCH: usize = 256;

/// Tells one job's caller how the commit went.
pub(super) type Reply = Box<dyn FnOnce(Result<(), &str>) + Send>;
/// One write. Says whether it failed (and is to be undone), and how to answer. Without a connection
/// there is no transaction: it only says how to answer.
pub(super) type Job = Box<dyn FnOnce(Option<&Connection>) -> (bool, Reply) + Send>;

/// Starts the thread; it ends when the last sender is gone.
pub(super) fn start(
    connection: Connection,
    mut queue: mpsc::Receiver<Job>,
    news: watch::Sender<u64>,
    steps: Steps,
) -> std::io::Result<()> {
    let run = move || {
        while let Some(first) = queue.blocking_recv() {
            let mut jobs = vec![first];
            while jobs.len() < BATCH {
                let Ok(next) = queue.try_recv() else { break };
                jobs.push(next);
            }
            let (outcome, replies) = commit(&connection, jobs, &steps);
            let outcome = outcome.map_err(|error| error.to_string());
            if let Err(why) = &outcome {
                tracing::error!("catalog: commit failed: {why}; the callers are refused");
            }
            if let Ok(last) = last_change(&connection) {
                news.send_if_modified(|known| std::mem::replace(known, last) != last);
            }
            for reply in replies {
                reply(outcome.as_ref().copied().map_err(String::as_str));
            }
        }
    };
    std::thread::Builder::new().name("catalog".to_owned()).spawn(run).map(drop)
}

fn commit(connection: &Connection, jobs: Vec<Job>, steps: &Steps) -> (rusqlite::Result<()>, Vec<Reply>) {
    let mut replies = Vec::with_capacity(jobs.len());
    // What is undone of a job that is alone is the whole transaction: no page is kept aside for it.
    let alone = jobs.len() == 1;
    let mut undone = false;
    let mut outcome = ready(connection, "BEGIN IMMEDIATE");
    for job in jobs {
        if outcome.is_ok() && !alone {
            outcome = ready(connection, "SAVEPOINT job");
        }
        // Without its savepoint a job would be durable by itself while its caller is refused.
        let (failed, reply) = job(outcome.is_ok().then_some(connection));
        replies.push(reply);
        if outcome.is_ok() && alone {
            undone = failed;
        } else if outcome.is_ok() {
            if failed {
                outcome = ready(connection, "ROLLBACK TO job");
            }
            outcome = outcome.and_then(|()| ready(connection, "RELEASE job"));
        }
    }
    if outcome.is_ok() && !undone {
        steps.reach(|| Step::Commit);
        outcome = ready(connection, "COMMIT");
    }
    if (outcome.is_err() || undone) && !connection.is_autocommit() {
        // What fails here has ended the transaction by itself.
        let _ = connection.execute_batch("ROLLBACK");
    }
    (outcome, replies)
}

/// Runs a statement that is kept ready.
fn ready(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn after_sqlite_rolled_back_by_itself_no_job_of_the_batch_changes_anything() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE t (n INTEGER)").unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let job = |sql: &'static str| -> Job {
            let told = Arc::clone(&told);
            Box::new(move |db| {
                let failed = db.is_none_or(|db| db.execute_batch(sql).is_err());
                (failed, Box::new(move |outcome| told.lock().unwrap().push(outcome.is_ok())))
            })
        };
        let insert = "INSERT INTO t VALUES (1)";
        // As it does when the disk is full.
        let jobs = vec![job(insert), job("ROLLBACK"), job(insert), job(insert)];
        let (outcome, replies) = commit(&connection, jobs, &Steps::default());
        assert!(outcome.is_err());
        replies.into_iter().for_each(|reply| reply(Err("refused")));
        let count =
            || connection.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!((count(), told.lock().unwrap().len()), (0, 4));
        let (outcome, _) = commit(&connection, vec![job(insert)], &Steps::default());
        assert_eq!((outcome, count()), (Ok(()), 1));
    }

    #[test]
    fn a_job_that_fails_is_undone_alone_as_in_company() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE t (n INTEGER)").unwrap();
        let job = |sql: &'static str| -> Job {
            Box::new(move |db| (db.is_none_or(|db| db.execute_batch(sql).is_err()), Box::new(|_| ())))
        };
        let (well, half) = ("INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2); no SQL");
        for jobs in [vec![half], vec![well], vec![well, half, well], vec![half, half], vec![half]] {
            let (outcome, _) = commit(&connection, jobs.into_iter().map(job).collect(), &Steps::default());
            assert!(outcome.is_ok() && connection.is_autocommit());
        }
        let kept: (i64, i64) = connection
            .query_row("SELECT count(*), max(n) FROM t", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        assert_eq!(kept, (3, 1));
    }
}

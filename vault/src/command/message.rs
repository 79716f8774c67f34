//! `vault message …`: what an operator does with queues and messages by hand, over the control socket
//! of the running vault. Knows how to ask and show; the vault knows what a queue is.

mod listing;
mod retry;
mod send;

use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use http::{Method, Request, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use shared::api::Page;

use super::control::{self, Progress, whole};
use super::{CommandError, Output};
use crate::api::queues::{Counted, Moving, Queue};

/// The vault has answered a small question within this time.
const SOON: Duration = Duration::from_secs(30);
/// What is done to a long queue takes its time.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What can be done with messages.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show every queue: its messages, consumers, and how long the oldest has waited
    Queues,
    /// Put a message into a queue
    ///
    /// For example: vault message send orders '{"lot":7}' --type application/json --property lot=7
    Send(send::Send),
    /// Show a queue's messages as they would be delivered; takes none away
    ///
    /// For example: vault message browse ActiveMQ.DLQ, which tells of each dead letter where it was
    /// and why it died.
    Browse(listing::Browse),
    /// Move messages to another queue, those excepted that consumers hold
    ///
    /// For example: vault message move orders orders.old --count 100
    Move(Move),
    /// Put dead letters back into the queues they came from
    ///
    /// Without numbers, it tells how many of which queue they are, and does it with --yes. What ActiveMQ's
    /// client put aside as duplicates stays: a consumer had it before, and may have worked on it.
    Retry(retry::Retry),
    /// Delete all messages of a queue, those excepted that consumers hold
    Purge {
        /// The queue
        queue: String,
        /// Do it; without, tell only how many there are
        #[arg(long)]
        yes: bool,
    },
    /// Remove a queue that is empty and that nobody reads
    Remove {
        /// The queue
        queue: String,
    },
}

/// `vault message move`
#[derive(Debug, Args)]
pub struct Move {
    /// The queue they are in
    from: String,
    /// The queue they go to; it is made where there is none
    to: String,
    #[command(flatten)]
    which: Which,
}

/// Which ones; one of the three must be said.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// This one, as `vault message browse` numbers it; may be repeated
    #[arg(long = "number", value_name = "NUMBER")]
    numbers: Vec<i64>,
    /// The first so many
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// All of them
    #[arg(long)]
    all: bool,
}

impl Verb {
    /// Does it.
    ///
    /// # Errors
    /// The vault does not run, or refuses; a file or standard input cannot be read.
    pub async fn run(&self, socket: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
        match self {
            Self::Queues => {
                let queues = queues(socket).await?;
                output.show(&queues, &listing::queues(&queues))
            }
            Self::Send(send) => send.run(socket, output).await,
            Self::Browse(browse) => browse.run(socket, output).await,
            Self::Move(asked) => {
                let Which { numbers, count, .. } = &asked.which;
                let numbers = (!numbers.is_empty()).then(|| numbers.clone());
                let moving = Moving { to: asked.to.clone(), numbers, count: *count };
                let path = format!("{}/move", place(&asked.from));
                let Counted { messages } = ask(socket, Method::POST, &path, &moving, PATIENCE).await?;
                had(messages, &asked.which.numbers, &asked.from)?;
                let text = format!("{messages} moved from {} to {}", asked.from, asked.to);
                output.show(&json!({ "from": asked.from, "to": asked.to, "messages": messages }), &text)
            }
            Self::Retry(retry) => retry.run(socket, output).await,
            Self::Purge { queue, yes } => purge(socket, queue, *yes, output).await,
            Self::Remove { queue } => {
                let request = Request::delete(place(queue)).body(whole("")).map_err(std::io::Error::other)?;
                let answer = control::call(socket, request, SOON, &Progress::default()).await?;
                drop(control::accepted(socket, answer).await?);
                output.show(&json!({ "removed": queue }), &format!("removed {queue}"))
            }
        }
    }
}

async fn purge(socket: &Path, queue: &str, yes: bool, output: &mut Output<'_>) -> Result<(), CommandError> {
    if !yes {
        let listed = queues(socket).await?;
        if let Some(Queue { messages, .. }) = listed.into_iter().find(|listed| listed.name == queue) {
            return Err(CommandError::Unconfirmed { queue: queue.to_owned(), messages });
        }
        // There is none, which the vault says itself.
    }
    let path = format!("{}/purge", place(queue));
    let Counted { messages } = ask(socket, Method::POST, &path, &json!({}), PATIENCE).await?;
    let text = format!("{messages} messages of {queue} are deleted");
    output.show(&json!({ "queue": queue, "messages": messages }), &text)
}

/// Who names messages wants something done with them.
fn had(messages: u64, numbers: &[i64], queue: &str) -> Result<(), CommandError> {
    if messages == 0 && !numbers.is_empty() {
        return Err(CommandError::NoneLeft { queue: queue.to_owned() });
    }
    Ok(())
}

async fn queues(socket: &Path) -> Result<Vec<Queue>, CommandError> {
    let listed: Page<Queue> = ask(socket, Method::GET, "/v1/queues", &json!({}), SOON).await?;
    Ok(listed.items)
}

/// Asks with a JSON body and reads the JSON answer.
async fn ask<Q: Serialize + Sync, A: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    question: &Q,
    patience: Duration,
) -> Result<A, CommandError> {
    let body = serde_json::to_vec(question).map_err(std::io::Error::from)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(whole(body))
        .map_err(std::io::Error::other)?;
    let answer = control::call(socket, request, patience, &Progress::default()).await?;
    control::json(socket, answer).await
}

/// A queue's path.
fn place(queue: &str) -> String {
    format!("/v1/queues/{}", encoded(queue))
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_messages_that_are_gone_are_an_error_and_an_empty_queue_is_none() {
        let error = had(0, &[7], "orders").unwrap_err().to_string();
        assert!(error.contains("vault message browse orders"), "{error}");
        assert!(had(0, &[], "orders").is_ok() && had(1, &[7, 8], "orders").is_ok());
    }
}

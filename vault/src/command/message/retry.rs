//! `vault message retry`: which dead letters an operator wants back in their queues, and what is told before.
//! Knows words; the vault knows which ones they are.

use std::path::Path;

use clap::Args;
use http::Method;

use super::super::{CommandError, Output};
use super::{PATIENCE, ask, had};
use crate::api::queues::{Retried, Retrying};
use crate::queue::message::DEAD_LETTERS;

/// So many queues are named in one line.
const NAMED: usize = 20;

/// `vault message retry`
#[derive(Debug, Args)]
pub struct Retry {
    /// Only these, whatever they died of, as `vault message browse ActiveMQ.DLQ` numbers them
    #[arg(value_name = "NUMBER", conflicts_with_all = ["from", "reason", "duplicates", "yes"])]
    numbers: Vec<i64>,
    /// Only those that came from this queue
    #[arg(long, value_name = "QUEUE")]
    from: Option<String>,
    /// Only those whose cause says this somewhere, as `browse` shows it
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Those too that ActiveMQ's client put aside as duplicates: a consumer had them before
    #[arg(long)]
    duplicates: bool,
    /// Do it; without, tell only how many there are
    #[arg(long)]
    yes: bool,
}

impl Retry {
    pub(super) async fn run(&self, socket: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
        let is_named = !self.numbers.is_empty();
        let retrying = Retrying {
            numbers: is_named.then(|| self.numbers.clone()),
            from: self.from.clone(),
            reason: self.reason.clone(),
            duplicates: self.duplicates,
            count_only: !is_named && !self.yes,
        };
        let path = "/v1/dead-letters/retry";
        let retried: Retried = ask(socket, Method::POST, path, &retrying, PATIENCE).await?;
        had(retried.messages, &self.numbers, DEAD_LETTERS)?;
        if retrying.count_only && retried.messages > 0 {
            return Err(CommandError::RetryUnconfirmed { told: counted(&retried) });
        }
        let text =
            format!("{} dead letters are in their queues again{}", retried.messages, staying(&retried));
        output.show(&retried, &text)
    }
}

fn counted(retried: &Retried) -> String {
    let named = retried.queues.iter().take(NAMED).map(|(queue, count)| format!("{count} of {queue}"));
    let mut named: Vec<String> = named.collect();
    if retried.queues.len() > NAMED {
        named.push(format!("the rest of {} further queues", retried.queues.len() - NAMED));
    }
    format!("{} dead letters: {}{}", retried.messages, named.join(", "), staying(retried))
}

/// What is left where it is, and how it is had.
fn staying(retried: &Retried) -> String {
    let duplicates = match retried.duplicates {
        0 => String::new(),
        count => format!(
            "; {count} more that ActiveMQ's client put aside as duplicates stay (a consumer had them before and may \
             have worked on them; --duplicates takes them along)"
        ),
    };
    let strays = match retried.strays {
        0 => String::new(),
        count => format!(
            "; {count} that were put there by hand stay (they came from no queue; `vault message move` takes them)"
        ),
    };
    duplicates + &strays
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_hears_how_many_of_which_queue_go_back_and_what_stays_and_why() {
        let queues = [("offers".to_owned(), 1), ("orders".to_owned(), 2)].into();
        let told = counted(&Retried { messages: 3, queues, duplicates: 142, strays: 4 });
        assert!(told.starts_with("3 dead letters: 1 of offers, 2 of orders; 142 more that "), "{told}");
        assert!(told.contains("--duplicates") && told.contains("4 that were put there by hand"), "{told}");
        let queues = (0..25).map(|number| (format!("q{number:02}"), 1)).collect();
        let told = counted(&Retried { messages: 25, queues, ..Retried::default() });
        assert!(told.ends_with("1 of q19, the rest of 5 further queues"), "{told}");
    }
}

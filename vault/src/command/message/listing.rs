//! `vault message queues` and `browse`: tables that are printed while they come, or JSON documents.
//! Knows columns; which messages there are is the vault's to say.

use std::path::Path;

use clap::Args;
use http::Method;
use serde_json::json;
use shared::api::Page;

use super::super::{CommandError, Output};
use super::{SOON, ask, place};
use crate::api::queues::{Queue, Queued, Shown};

/// Most messages asked for at once.
const PAGE: usize = 100;
/// As much of a body stands in a line.
const SHOWN: usize = 200;

/// `vault message browse`
#[derive(Debug, Args)]
pub struct Browse {
    /// The queue; dead letters are in ActiveMQ.DLQ
    queue: String,
    /// At most so many
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,
    /// Those behind this one, as the last line of a list that was cut names it
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    after: i64,
    /// Show what they say, too
    #[arg(long)]
    body: bool,
    /// Show this one alone, whole
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["limit", "after", "body"])]
    number: Option<i64>,
}

impl Browse {
    pub(super) async fn run(&self, socket: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
        let messages = format!("{}/messages", place(&self.queue));
        if let Some(number) = self.number {
            let path = format!("{messages}?number={number}");
            let page: Page<Queued> = ask(socket, Method::GET, &path, &json!({}), SOON).await?;
            let Some(message) = page.items.into_iter().next() else { return Ok(()) };
            let text = whole(&message);
            return output.show(&message, &text);
        }
        let (mut after, mut left, mut table) = (self.after, self.limit, Table { count: 0 });
        loop {
            let path = format!("{messages}?after={after}&limit={}&body={}", left.clamp(1, PAGE), self.body);
            let page: Page<Queued> = ask(socket, Method::GET, &path, &json!({}), SOON).await?;
            table.begin(output)?;
            let Some(last) = page.items.last().map(|last| last.number) else {
                return table.end(output, None);
            };
            if left == 0 {
                return table.end(output, Some(after));
            }
            left -= page.items.len().min(left);
            for message in &page.items {
                table.add(output, message)?;
            }
            after = last;
        }
    }
}

/// A list that is printed as it comes, so that its length costs no memory.
struct Table {
    count: usize,
}

impl Table {
    fn begin(&self, output: &mut Output<'_>) -> Result<(), CommandError> {
        match (self.count, output.json) {
            (0, true) => write!(output.to, "[")?,
            (0, false) => writeln!(
                output.to,
                "{:>19}  {:<20}  {:>1}  {:>9}  {:<40}  MORE",
                "NUMBER", "CAME", "P", "SIZE", "ID"
            )?,
            _ => {}
        }
        Ok(())
    }

    fn add(&mut self, output: &mut Output<'_>, message: &Queued) -> Result<(), CommandError> {
        if output.json {
            let json = serde_json::to_string(message).map_err(std::io::Error::from)?;
            write!(output.to, "{}\n  {json}", if self.count == 0 { "" } else { "," })?;
        } else {
            let Queued { number, id, came, priority, size, .. } = message;
            let came = came.get(..19).unwrap_or_default();
            let (id, more) = (line(id, SHOWN), more(message));
            writeln!(output.to, "{number:>19}  {came:<19}Z  {priority}  {size:>9}  {id:<40}  {more}")?;
        }
        self.count += 1;
        Ok(())
    }

    /// `more`: the list was cut there.
    fn end(self, output: &mut Output<'_>, more: Option<i64>) -> Result<(), CommandError> {
        if output.json {
            writeln!(output.to, "{}]", if self.count == 0 { "" } else { "\n" })?;
        } else if let Some(after) = more {
            writeln!(output.to, "… and more: --after {after}")?;
        }
        Ok(output.to.flush()?)
    }
}

/// What is out of the ordinary, in one line.
fn more(message: &Queued) -> String {
    let mut words = Vec::new();
    if let Some(died) = &message.died {
        let why = died.why.as_ref().map(|why| format!(": {}", line(why, SHOWN))).unwrap_or_default();
        words.push(format!("from {}, {}{why}", line(&died.queue, SHOWN), died.cause));
    }
    if let Some(expires) = &message.expires {
        words.push(format!("expires {expires}"));
    }
    if !message.persistent {
        words.push("not persistent".to_owned());
    }
    match &message.body {
        Some(Shown::Text(text)) => words.push(line(text, SHOWN)),
        Some(Shown::Base64(bytes)) => words.push(format!("base64 {}", line(bytes, SHOWN))),
        Some(Shown::Not(why)) => words.push(format!("({})", line(why, SHOWN))),
        None => {}
    }
    words.join("; ")
}

/// A message with all that is known of it.
fn whole(message: &Queued) -> String {
    let mut lines = vec![
        format!("number:     {}", message.number),
        format!("id:         {}", line(&message.id, usize::MAX)),
        format!("came:       {}", message.came),
        format!("priority:   {}", message.priority),
        format!("persistent: {}", message.persistent),
    ];
    lines.extend(message.expires.iter().map(|expires| format!("expires:    {expires}")));
    if let Some(died) = &message.died {
        let why = died.why.as_ref().map(|why| format!(": {}", line(why, usize::MAX))).unwrap_or_default();
        lines.push(format!("died:       in {}, {}{why}", line(&died.queue, usize::MAX), died.cause));
    }
    for (name, value) in message.headers.iter().chain(&message.properties) {
        lines.push(format!("{}: {value}", line(name, usize::MAX)));
    }
    lines.push(String::new());
    lines.push(match &message.body {
        Some(Shown::Text(text)) => text.clone(),
        Some(Shown::Base64(bytes)) => format!("base64: {bytes}"),
        Some(Shown::Not(why)) => format!("({why})"),
        None => String::new(),
    });
    lines.join("\n")
}

/// All queues as a table.
pub(super) fn queues(queues: &[Queue]) -> String {
    let mut text = format!(
        "{:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>6}  {:<20}  QUEUE\n",
        "MESSAGES", "IN FLIGHT", "CONSUMERS", "CAME", "DONE", "DIED", "OLDEST"
    );
    for queue in queues {
        let Queue { messages, in_flight, consumers, enqueued, dequeued, dead, .. } = queue;
        let oldest = queue.oldest.as_deref().and_then(|oldest| oldest.get(..19));
        let oldest = oldest.map(|oldest| format!("{oldest}Z")).unwrap_or_default();
        let temporary = if queue.temporary { " (temporary)" } else { "" };
        let name = line(&queue.name, usize::MAX);
        text.push_str(&format!(
            "{messages:>9}  {in_flight:>9}  {consumers:>9}  {enqueued:>9}  {dequeued:>9}  {dead:>6}  {oldest:<20}  {name}{temporary}\n"
        ));
    }
    if let Some(queue) = queues.first() {
        let since = queue.counted_since.get(..19).unwrap_or_default();
        text.push_str(&format!(
            "CAME, DONE and DIED since {since}Z, when this vault started; its own queues\n"
        ));
    }
    text
}

/// A stranger's text, of which no character breaks a line or moves the cursor.
fn line(text: &str, most: usize) -> String {
    let mut line = String::new();
    for character in text.chars().take(most) {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    if text.chars().nth(most).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::queues::Died;

    fn message() -> Queued {
        Queued {
            number: 7,
            id: "ID:a:1".to_owned(),
            came: "2026-01-01T00:00:00.5Z".to_owned(),
            expires: None,
            priority: 4,
            persistent: false,
            size: 5,
            headers: serde_json::Map::new(),
            properties: serde_json::Map::new(),
            died: Some(Died {
                queue: "orders".to_owned(),
                cause: "poison".to_owned(),
                why: Some("no\nlot".to_owned()),
            }),
            body: Some(Shown::Text("a\u{1b}[2J".to_owned())),
        }
    }

    fn printed(json: bool, count: usize, more: Option<i64>) -> String {
        let mut told = Vec::new();
        let mut output = Output { to: &mut told, json };
        let mut table = Table { count: 0 };
        table.begin(&mut output).unwrap();
        for _ in 0..count {
            table.add(&mut output, &message()).unwrap();
        }
        table.end(&mut output, more).unwrap();
        String::from_utf8(told).unwrap()
    }

    #[test]
    fn a_list_is_one_json_document_whatever_its_length() {
        for count in 0..3 {
            let read: Vec<Queued> = serde_json::from_str(&printed(true, count, Some(1))).unwrap();
            assert_eq!(read.len(), count);
        }
    }

    #[test]
    fn a_line_tells_why_a_letter_is_dead_and_no_text_breaks_it() {
        let told = printed(false, 1, Some(7));
        let lines: Vec<_> = told.lines().collect();
        assert_eq!(lines.len(), 3, "{told}");
        assert!(lines[1].contains("from orders, poison: no\\nlot; not persistent; a\\u{1b}[2J"), "{told}");
        assert_eq!(lines[2], "… and more: --after 7");
        assert!(whole(&message()).contains("died:       in orders, poison: no\\nlot"));
    }

    #[test]
    fn a_long_text_is_cut_between_letters() {
        assert_eq!(line("äöü", 2), "äö…");
        assert_eq!(line("äöü", 3), "äöü");
    }

    #[test]
    fn a_table_of_queues_says_since_when_it_counts() {
        let queue: Queue = serde_json::from_value(serde_json::json!({
            "name": "orders", "temporary": false, "messages": 12, "in_flight": 0, "consumers": 1, "bytes": 7,
            "counted_since": "2026-01-01T00:00:00.123Z", "enqueued": 40, "dequeued": 27, "dead": 1,
        }))
        .unwrap();
        let told = queues(&[queue]);
        assert_eq!(told.lines().count(), 3, "{told}");
        assert!(
            told.ends_with("since 2026-01-01T00:00:00Z, when this vault started; its own queues\n"),
            "{told}"
        );
        assert_eq!(queues(&[]).lines().count(), 1);
    }
}

//! `vault record …`: what an operator does with records, over the control socket of the running
//! vault. Knows how to ask and show; the vault knows what a record is.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use http::{Method, Request, header};
use http_body_util::BodyExt as _;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use shared::api::record::{Record, VAULT_STALE, WrittenRecord};
use shared::api::{IDEMPOTENCY_KEY, Page};

use super::control::{self, Progress, whole};
use super::{CommandError, Output};

/// The vault has answered within this time.
const SOON: Duration = Duration::from_secs(10);
/// As much of a value stands in a line of the list.
const SHOWN: usize = 60;

/// What can be done with records.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show a record's value
    Get {
        /// As `vault record list` shows it
        name: String,
        /// Whose
        #[arg(long)]
        owner: String,
        /// An old version
        #[arg(long, value_name = "VERSION")]
        version: Option<u64>,
        /// While the vaults are apart, show what this one has
        #[arg(long)]
        stale: bool,
    },
    /// Write a record's next version
    Put(Put),
    /// List records, in the order of their names
    List {
        /// Names that begin so
        #[arg(default_value = "")]
        prefix: String,
        /// Whose
        #[arg(long)]
        owner: String,
        /// Those after this name
        #[arg(long, value_name = "NAME", default_value = "")]
        after: String,
        /// At most so many, 1 to 1000
        #[arg(long, value_name = "COUNT", default_value_t = 100)]
        limit: usize,
        /// While the vaults are apart, show what this one has
        #[arg(long)]
        stale: bool,
    },
}

/// What is to be written.
#[derive(Debug, Args)]
pub struct Put {
    /// A path, such as lots/7
    name: String,
    /// The value; without it, standard input is read
    value: Option<String>,
    /// Whose
    #[arg(long)]
    owner: String,
    #[command(flatten)]
    expect: Expect,
    /// The value is JSON
    #[arg(long = "as-json")]
    as_json: bool,
    /// An idempotency key of your own, to repeat this safely
    #[arg(long)]
    key: Option<String>,
}

/// Which version is seen; one of the three must be said.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Expect {
    /// Only if this is the present version
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    /// Only if there is no such record
    #[arg(long)]
    new: bool,
    /// Whatever the record says at present
    #[arg(long)]
    blind: bool,
}

impl Verb {
    /// Does it.
    ///
    /// # Errors
    /// The vault does not run, or refuses; standard input cannot be read.
    pub async fn run(&self, socket: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
        match self {
            Self::Get { name, owner, version, stale } => {
                let version = version.map_or_else(String::new, |version| format!("&version={version}"));
                let path = format!("{}&stale={stale}{version}", place(name, owner));
                show(socket, name, &path, output).await
            }
            Self::Put(put) => put.run(socket, output).await,
            Self::List { prefix, owner, after, limit, stale } => {
                let (prefix, after) = (encoded(prefix), encoded(after));
                let owner = encoded(owner);
                let path = format!(
                    "/v1/records?owner={owner}&prefix={prefix}&after={after}&limit={limit}&stale={stale}"
                );
                let answer =
                    control::call(socket, request(Method::GET, &path)?, SOON, &Progress::default()).await?;
                let old = warning(answer.headers());
                let page: Page<Record> = control::json(socket, answer).await?;
                output.show(&page, &format!("{}{old}", listed(&page)))
            }
        }
    }
}

impl Put {
    async fn run(&self, socket: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
        let value = match &self.value {
            Some(value) => value.clone(),
            None => {
                let mut value = String::new();
                std::io::stdin().lock().read_to_string(&mut value)?;
                value
            }
        };
        let key = match &self.key {
            Some(key) => key.clone(),
            None => shared::api::client::fresh_key().map_err(std::io::Error::other)?,
        };
        let (condition, seen) = match self.expect {
            Expect { if_version: Some(version), .. } => (header::IF_MATCH, format!("\"{version}\"")),
            Expect { new: true, .. } => (header::IF_NONE_MATCH, "*".to_owned()),
            Expect { .. } => (header::IF_MATCH, "*".to_owned()),
        };
        let kind = if self.as_json { "application/json" } else { "text/plain" };
        let request = Request::builder()
            .method(Method::PUT)
            .uri(place(&self.name, &self.owner))
            .header(condition, seen)
            .header(header::CONTENT_TYPE, kind)
            .header(IDEMPOTENCY_KEY, &key)
            .body(whole(value))
            .map_err(std::io::Error::other)?;
        let answer = control::call(socket, request, SOON, &Progress::default()).await?;
        let written: WrittenRecord = control::json(socket, answer).await?;
        output.show(&written, &format!("{} is in version {}", written.name, written.version))
    }
}

async fn show(socket: &Path, name: &str, path: &str, output: &mut Output<'_>) -> Result<(), CommandError> {
    let answer = control::call(socket, request(Method::GET, path)?, SOON, &Progress::default()).await?;
    let answer = control::accepted(socket, answer).await?;
    let old = answer.headers().contains_key(VAULT_STALE);
    let version = answer.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok()).unwrap_or_default();
    let version: Option<u64> = version.trim_matches('"').parse().ok();
    let body = answer.into_body().collect().await;
    let broken = |source| CommandError::Broken { socket: socket.to_owned(), source };
    let value = String::from_utf8_lossy(&body.map_err(broken)?.to_bytes()).into_owned();
    output.show(&json!({ "name": name, "version": version, "value": value, "stale": old }), &value)
}

fn request(method: Method, path: &str) -> Result<Request<control::Body>, CommandError> {
    let request = Request::builder().method(method).uri(path).body(whole(Vec::new()));
    Ok(request.map_err(std::io::Error::other)?)
}

/// Where a record is; segments stay segments.
fn place(name: &str, owner: &str) -> String {
    let segments: Vec<_> = name.split('/').map(encoded).collect();
    format!("/v1/records/{}?owner={}", segments.join("/"), encoded(owner))
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn warning(headers: &http::HeaderMap) -> &'static str {
    if headers.contains_key(VAULT_STALE) { "this is what this vault has, and may be old\n" } else { "" }
}

fn listed(page: &Page<Record>) -> String {
    let mut text = String::new();
    for record in &page.items {
        let value = record.value.as_deref().unwrap_or_default();
        let start: String = value.chars().take(SHOWN).flat_map(char::escape_debug).collect();
        let more = if value.chars().nth(SHOWN).is_some() { "…" } else { "" };
        text.push_str(&format!("{}  {}  {start}{more}\n", record.name, record.version));
    }
    match &page.next {
        Some(next) => text.push_str(&format!("there are more: --after {next}\n")),
        None if page.items.is_empty() => text.push_str("no such records\n"),
        None => {}
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_shows_each_value_in_its_own_line_and_how_to_go_on() {
        let record = Record {
            name: "lots/7".to_owned(),
            version: 3,
            value: Some("a\n\u{1b}b".to_owned()),
            json: false,
            by: None,
            changed: String::new(),
        };
        let page = Page { items: vec![record], next: Some("lots/7".to_owned()) };
        assert_eq!(listed(&page), "lots/7  3  a\\n\\u{1b}b\nthere are more: --after lots/7\n");
        assert_eq!(place("a b/ü", "erp"), "/v1/records/a%20b/%C3%BC?owner=erp");
    }
}

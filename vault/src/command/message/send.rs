//! `vault message send`: options → the headers of a posted message. Decides nothing of what they mean.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use http::{Method, Request, header};
use serde_json::{Map, Value, json};
use shared::api::message::{
    MESSAGE_CORRELATION_ID, MESSAGE_GROUP, MESSAGE_PERSISTENT, MESSAGE_PRIORITY, MESSAGE_PROPERTIES,
    MESSAGE_REPLY_TO, MESSAGE_TIME_TO_LIVE, MESSAGE_TYPE, PostedMessage,
};
use shared::api::{IDEMPOTENCY_KEY, LifeAnswer, VAULT_TICKET};
use shared::config::parse_duration;

use super::super::control::{self, Progress, whole};
use super::super::file::can_be_repeated;
use super::super::{CommandError, Output};
use super::{PATIENCE, SOON, ask, encoded};

/// `vault message send`
#[derive(Debug, Args)]
pub struct Send {
    /// The queue; it is made where there is none
    queue: String,
    /// The message; without it, or with -, standard input is read
    text: Option<String>,
    /// Send a file's bytes instead
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    file: Option<PathBuf>,
    /// Its content type: text/…, JSON or XML make a text message, application/octet-stream and all else
    /// a bytes message
    #[arg(long = "type", value_name = "TYPE", default_value = "text/plain")]
    media_type: String,
    /// A property; whole numbers, true and false are sent as what they are, with NAME:=VALUE as JSON
    /// says, anything else as a string. May be repeated
    #[arg(long = "property", value_name = "NAME=VALUE")]
    properties: Vec<String>,
    /// 0 to 9; 4 is usual
    #[arg(long, value_name = "PRIORITY", value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// After this time it is a dead letter, such as 10m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    time_to_live: Option<std::time::Duration>,
    /// JMSCorrelationID
    #[arg(long, value_name = "TEXT")]
    correlation_id: Option<String>,
    /// JMSType
    #[arg(long, value_name = "TEXT")]
    jms_type: Option<String>,
    /// JMSXGroupID
    #[arg(long, value_name = "TEXT")]
    group: Option<String>,
    /// The queue for answers
    #[arg(long, value_name = "QUEUE")]
    reply_to: Option<String>,
    /// A restart of the vault may lose it
    #[arg(long)]
    non_persistent: bool,
    /// An idempotency key of your own, to repeat this safely. Random by default
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

impl Send {
    pub(super) async fn run(&self, socket: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
        let body = self.body()?;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("/v1/messages/{}", encoded(&self.queue)))
            .header(header::CONTENT_TYPE, &self.media_type)
            .header(header::CONTENT_LENGTH, body.len());
        for (name, value) in self.headers()? {
            request = request.header(name, value);
        }
        let key = match &self.key {
            Some(key) => key.clone(),
            None => {
                // A key that nobody else has was sent nowhere before.
                let life: LifeAnswer = ask(socket, Method::GET, "/v1/life", &json!({}), SOON).await?;
                request = request.header(VAULT_TICKET, life.life);
                shared::api::client::fresh_key().map_err(std::io::Error::other)?
            }
        };
        let request = request.header(IDEMPOTENCY_KEY, &key).body(whole(body));
        let request = request.map_err(std::io::Error::other)?;
        let posted: Result<PostedMessage, _> =
            match control::call(socket, request, PATIENCE, &Progress::default()).await {
                Ok(answer) => control::json(socket, answer).await,
                Err(error) => Err(error),
            };
        let posted = posted.map_err(|error| match can_be_repeated(&error) {
            true => CommandError::Repeatable { source: Box::new(error), key },
            false => error,
        })?;
        output.show(&posted, &format!("{} is in {}", posted.id, posted.destination))
    }

    fn body(&self) -> Result<Vec<u8>, CommandError> {
        if let Some(file) = &self.file {
            let unread = |source| CommandError::Unread { file: file.clone(), source };
            return std::fs::read(file).map_err(unread);
        }
        match self.text.as_deref() {
            None | Some("-") => {
                let mut body = Vec::new();
                std::io::stdin().lock().read_to_end(&mut body)?;
                Ok(body)
            }
            Some(text) => Ok(text.as_bytes().to_vec()),
        }
    }

    fn headers(&self) -> Result<Vec<(&'static str, String)>, CommandError> {
        let mut headers = Vec::new();
        let texts = [
            (MESSAGE_CORRELATION_ID, &self.correlation_id),
            (MESSAGE_TYPE, &self.jms_type),
            (MESSAGE_GROUP, &self.group),
            (MESSAGE_REPLY_TO, &self.reply_to),
        ];
        headers.extend(texts.into_iter().filter_map(|(name, text)| Some((name, encoded(text.as_ref()?)))));
        headers.extend(self.priority.map(|priority| (MESSAGE_PRIORITY, priority.to_string())));
        headers.extend(self.time_to_live.map(|time| (MESSAGE_TIME_TO_LIVE, time.as_millis().to_string())));
        if self.non_persistent {
            headers.push((MESSAGE_PERSISTENT, "false".to_owned()));
        }
        if !self.properties.is_empty() {
            let properties: Option<Map<_, _>> = self.properties.iter().map(|said| property(said)).collect();
            let properties = properties
                .ok_or(CommandError::Usage("write a property as NAME=TEXT or NAME:=JSON, such as lot:=7"))?;
            headers.push((MESSAGE_PROPERTIES, Value::Object(properties).to_string()));
        }
        Ok(headers)
    }
}

/// `NAME=TEXT`, or `NAME:=JSON`.
fn property(said: &str) -> Option<(String, Value)> {
    let (name, text) = said.split_once('=')?;
    match name.strip_suffix(':') {
        Some(name) => Some((name.to_owned(), serde_json::from_str(text).ok()?)),
        None => Some((name.to_owned(), text.into())),
    }
}

fn duration(text: &str) -> Result<std::time::Duration, &'static str> {
    parse_duration(text).ok_or("write a time such as 500ms, 30s or 10m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_is_a_string_unless_it_is_said_to_be_json() {
        assert_eq!(property("lot=7"), Some(("lot".to_owned(), "7".into())));
        assert_eq!(property("lot:=7"), Some(("lot".to_owned(), 7.into())));
        assert_eq!(property("text=a=b"), Some(("text".to_owned(), "a=b".into())));
        assert_eq!(property("urgent:=true"), Some(("urgent".to_owned(), true.into())));
        assert_eq!(property("urgent:=yes"), None);
        assert_eq!(property("urgent"), None);
    }
}

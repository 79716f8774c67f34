//! The API's calls by name, for tools, tests and handlers in Rust: paths, bodies and typed
//! answers over [`Client::call`]. Adds no behaviour of its own.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Answer, Body, Client, ClientError};
use crate::api::message::PostedMessage;
use crate::api::{
    Confirm, FILE_LABEL, File, IDEMPOTENCY_KEY, MAX_KEY, MAX_NUMBER_KEY, Number, Problem, Void,
};
use crate::tls::is_name;

/// Longest JSON answer; a page of a thousand files stays below.
const MAX_JSON: usize = 8 << 20;

impl Client {
    /// Reserves the series' next number for `key`; the same key gives the same number.
    ///
    /// # Errors
    /// As [`Client::call`], or the vault's refusal (503 `peer_away` while the pair is apart).
    pub async fn reserve(&self, series: &str, key: &str) -> Result<Number, ClientError> {
        let request = post(&numbers(series)?, Some(Key::Number(key)), Body::Empty)?;
        self.json("reserve", request).await
    }

    /// Confirms a number with the hash of the document that uses it.
    ///
    /// # Errors
    /// As [`Client::call`], or the vault's refusal (409 once confirmed otherwise or void).
    pub async fn confirm(
        &self,
        series: &str,
        number: u64,
        document_hash: &str,
    ) -> Result<Number, ClientError> {
        let path = format!("{}/{number}/confirm", numbers(series)?);
        let body = Confirm { document_hash: document_hash.to_owned() };
        self.json("confirm", post_json(&path, "confirm", &body)?).await
    }

    /// Marks a number as spoiled.
    ///
    /// # Errors
    /// As [`Client::call`], or the vault's refusal.
    pub async fn void(&self, series: &str, number: u64, reason: &str) -> Result<Number, ClientError> {
        let path = format!("{}/{number}/void", numbers(series)?);
        self.json("void", post_json(&path, "void", &Void { reason: reason.to_owned() })?).await
    }

    /// What became of a number.
    ///
    /// # Errors
    /// As [`Client::call`], or the vault's refusal (404 for one never given).
    pub async fn lookup(&self, series: &str, number: u64) -> Result<Number, ClientError> {
        let path = format!("{}/{number}", numbers(series)?);
        self.json("lookup", bare(Method::GET, &path)?).await
    }

    /// The number that `key` reserved, if it did.
    ///
    /// # Errors
    /// As [`Client::call`], or the vault's refusal other than 404.
    pub async fn lookup_key(&self, series: &str, key: &str) -> Result<Option<Number>, ClientError> {
        let path = format!("{}?key={}", numbers(series)?, encode(key));
        match self.json("lookup", bare(Method::GET, &path)?).await {
            Ok(number) => Ok(Some(number)),
            Err(ClientError::Refused { problem, .. }) if problem.status == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Stores bytes as a file; the same key and bytes give the same file.
    ///
    /// # Errors
    /// As [`Client::call`], or the vault's refusal (409 `key_reused` for other bytes).
    pub async fn upload(
        &self,
        key: &str,
        media_type: &str,
        label: &str,
        content: Bytes,
    ) -> Result<File, ClientError> {
        let mut request = post("/v1/files", Some(Key::File(key)), Body::Kept(content))?;
        let media_type = HeaderValue::try_from(media_type)
            .map_err(|_| ClientError::Argument("the media type is no header value"))?;
        request.headers_mut().insert(header::CONTENT_TYPE, media_type);
        if !label.is_empty() {
            let label = HeaderValue::try_from(encode(label))
                .map_err(|_| ClientError::Argument("the label cannot be encoded"))?;
            request.headers_mut().insert(FILE_LABEL, label);
        }
        self.json("upload", request).await
    }

    /// A whole file of at most `most` bytes.
    ///
    /// # Errors
    /// As [`Client::call`], or the vault's refusal (404, 410), or it is larger.
    pub async fn download(&self, id: &str, most: usize) -> Result<Bytes, ClientError> {
        let response = self.call(bare(Method::GET, &file(id)?)?).await?;
        if response.status() == StatusCode::OK {
            return collect(response.into_body(), most).await;
        }
        Err(refusal(response).await?)
    }

    /// Deletes a file; deleting it again succeeds too.
    ///
    /// # Errors
    /// As [`Client::call`], or the vault's refusal.
    pub async fn delete(&self, id: &str) -> Result<(), ClientError> {
        let response = self.call(bare(Method::DELETE, &file(id)?)?).await?;
        if response.status().is_success() { Ok(()) } else { Err(refusal(response).await?) }
    }

    /// Posts a message into a queue; the same key and message are kept once. `headers` are those of
    /// [`crate::api::message`], and the content type by which it is a text or bytes.
    ///
    /// # Errors
    /// As [`Client::call`], or the vault's refusal (409 `key_reused` for another message, 503
    /// `in_doubt` while a vault is away that may have it).
    pub async fn post_message(
        &self,
        destination: &str,
        key: &str,
        headers: HeaderMap,
        content: Bytes,
    ) -> Result<PostedMessage, ClientError> {
        let path = format!("/v1/messages/{}", encode(destination));
        let mut request = post(&path, Some(Key::Message(key)), Body::Kept(content))?;
        request.headers_mut().extend(headers);
        self.json("post", request).await
    }

    /// Any call that answers JSON.
    ///
    /// # Errors
    /// As [`Client::call`], the vault's refusal, or an answer of another shape.
    pub async fn json<T: DeserializeOwned>(
        &self,
        what: &'static str,
        request: Request<Body>,
    ) -> Result<T, ClientError> {
        let response = self.call(request).await?;
        if !response.status().is_success() {
            return Err(refusal(response).await?);
        }
        let body = collect(response.into_body(), MAX_JSON).await?;
        serde_json::from_slice(&body).map_err(|source| ClientError::Unreadable { what, source })
    }
}

fn numbers(series: &str) -> Result<String, ClientError> {
    if !is_name(series) {
        return Err(ClientError::Argument("a series is named by 1 to 64 of a-z A-Z 0-9 . _ -"));
    }
    Ok(format!("/v1/series/{series}/numbers"))
}

fn file(id: &str) -> Result<String, ClientError> {
    if id.len() != 64 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(ClientError::Argument("a file's id has 64 hex digits"));
    }
    Ok(format!("/v1/files/{id}"))
}

fn bare(method: Method, path: &str) -> Result<Request<Body>, ClientError> {
    let mut request = Request::new(Body::Empty);
    *request.method_mut() = method;
    *request.uri_mut() = path.parse::<Uri>().map_err(|_| ClientError::Argument("the path cannot be sent"))?;
    Ok(request)
}

/// What a key is of; each has its own length.
enum Key<'a> {
    Number(&'a str),
    File(&'a str),
    Message(&'a str),
}

impl Key<'_> {
    fn value(self) -> Result<HeaderValue, ClientError> {
        let (key, most, wrong) = match self {
            Self::Number(key) => (key, MAX_NUMBER_KEY, "a number's key is 1 to 256 visible ASCII characters"),
            Self::Message(key) => {
                (key, MAX_NUMBER_KEY, "a message's key is 1 to 256 visible ASCII characters")
            }
            Self::File(key) => (key, MAX_KEY, "a file's key is 1 to 128 visible ASCII characters"),
        };
        let fits = (1..=most).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
        let value = if fits { HeaderValue::try_from(key).ok() } else { None };
        value.ok_or(ClientError::Argument(wrong))
    }
}

fn post(path: &str, key: Option<Key<'_>>, body: Body) -> Result<Request<Body>, ClientError> {
    let mut request = bare(Method::POST, path)?.map(|_| body);
    if let Some(key) = key {
        request.headers_mut().insert(IDEMPOTENCY_KEY, key.value()?);
    }
    Ok(request)
}

fn post_json<T: Serialize>(path: &str, what: &'static str, body: &T) -> Result<Request<Body>, ClientError> {
    let json = serde_json::to_vec(body).map_err(|source| ClientError::Unreadable { what, source })?;
    let mut request = post(path, None, Body::Kept(json.into()))?;
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(request)
}

async fn collect(body: Answer, most: usize) -> Result<Bytes, ClientError> {
    match Limited::new(body, most).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => {
            Err(error.downcast::<ClientError>().map_or(ClientError::TooLarge(most), |broken| *broken))
        }
    }
}

/// The vault's refusal as an error. A body that is no problem JSON becomes one.
async fn refusal(response: Response<Answer>) -> Result<ClientError, ClientError> {
    let (status, retry_after) = (response.status(), retry_after(response.headers()));
    let body = collect(response.into_body(), MAX_JSON).await?;
    let problem = serde_json::from_slice(&body).unwrap_or_else(|_| {
        Problem::new(status, "unexplained", "the vault refused without a problem document")
    });
    Ok(ClientError::Refused { problem, retry_after })
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// Percent-encodes all but RFC 3986's unreserved characters.
#[must_use]
pub fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(text: &str) -> Option<String> {
        let mut bytes = Vec::new();
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            if byte == b'%' {
                let digits = [rest.next()?, rest.next()?];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
            } else {
                bytes.push(byte);
            }
        }
        String::from_utf8(bytes).ok()
    }

    proptest! {
        #[test]
        fn encoded_text_is_header_safe_and_reads_back(text in "\\PC{0,40}") {
            let encoded = encode(&text);
            prop_assert!(encoded.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert_eq!(decode(&encoded), Some(text));
        }
    }

    #[test]
    fn keys_are_as_long_as_the_vault_takes_them_and_no_longer() {
        let key = |length: usize| "k".repeat(length);
        let number = |length| post("/", Some(Key::Number(&key(length))), Body::Empty).map(drop);
        let file = |length| post("/", Some(Key::File(&key(length))), Body::Empty).map(drop);
        assert!(number(1).is_ok() && number(MAX_NUMBER_KEY).is_ok());
        assert!(file(1).is_ok() && file(MAX_KEY).is_ok());
        for (refused, most) in [
            (number(0), MAX_NUMBER_KEY),
            (number(MAX_NUMBER_KEY + 1), MAX_NUMBER_KEY),
            (file(0), MAX_KEY),
            (file(MAX_KEY + 1), MAX_KEY),
        ] {
            let told = refused.unwrap_err().to_string();
            assert!(told.contains(&format!("1 to {most} visible")), "{told}");
        }
    }

    #[test]
    fn names_that_would_change_the_path_are_refused() {
        for bad in ["", "..", "a/b", "a?b", "a b"] {
            assert!(numbers(bad).is_err(), "{bad}");
        }
        assert!(file("../numbers").is_err());
    }
}

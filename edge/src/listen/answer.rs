//! The few answers that `listen` gives itself, as HTTP/1 bytes. Knows statuses and problem JSON;
//! must not know sockets.

use http::StatusCode;
use shared::api::Problem;

use crate::admission::TooFast;
use crate::listen::head::{Fault, phrase};

/// The whole answer to a head that was refused; empty where nobody is left to read it.
#[must_use]
pub fn refusal(fault: Fault) -> Vec<u8> {
    match StatusCode::from_u16(fault.status()) {
        Ok(status) => problem(&Problem::new(status, "malformed_request", fault.to_string()), status, ""),
        Err(_) => Vec::new(),
    }
}

/// The whole answer to who asks too fast.
#[must_use]
pub fn too_fast(fault: TooFast) -> Vec<u8> {
    let status = StatusCode::TOO_MANY_REQUESTS;
    let problem = Problem::new(status, "too_many_requests", "too many requests from this address");
    // Never zero and never too short.
    let wait = format!("Retry-After: {}\r\n", fault.retry_after.as_secs() + 1);
    self::problem(&problem, status, &wait)
}

fn problem(problem: &Problem, status: StatusCode, header: &str) -> Vec<u8> {
    let body = serde_json::to_string(problem).unwrap_or_default();
    format!(
        "HTTP/1.1 {} {}\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\n{header}Connection: close\r\n\r\n{body}",
        status.as_u16(),
        phrase(status.as_u16()),
        body.len()
    )
    .into_bytes()
}

/// A redirect; `location` holds only what the head's parser lets through.
#[must_use]
pub fn redirect(status: u16, location: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status} {}\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        phrase(status)
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_why_and_closes() {
        let text = String::from_utf8(refusal(Fault::BareLineFeed)).unwrap();
        assert!(text.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{text}");
        assert!(text.contains("\r\nConnection: close\r\n"), "{text}");
        assert!(text.contains("\"detail\":\"bare line feed\""), "{text}");
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{text}");
        assert_eq!(refusal(Fault::Truncated), b"");
    }
}

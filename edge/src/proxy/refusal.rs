//! Why edge itself answers a request. Knows statuses and words; must not know how they are sent.
//! The client reads the detail, the log keeps the reason, which may say more.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use shared::api::Problem;

use crate::admission::{Denied, TooFast};

/// One refusal.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    /// 4xx or 5xx; 499 where the client is gone and nobody reads an answer.
    pub(crate) status: u16,
    /// Stable word for programs.
    pub(crate) code: &'static str,
    /// For the client.
    pub(crate) detail: Cow<'static, str>,
    /// For the log; the detail where it is `None`.
    pub(crate) reason: Option<String>,
    /// When to come back.
    pub(crate) retry_after: Option<Duration>,
    /// Nothing more is read of the request, and the connection ends with the answer.
    pub(crate) is_final: bool,
    /// It was a visitor's: no fault of its own.
    pub(crate) spared: bool,
}

impl Refusal {
    pub(crate) fn new(status: u16, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        let (detail, reason, retry_after) = (detail.into(), None, None);
        Self { status, code, detail, reason, retry_after, is_final: false, spared: false }
    }

    pub(crate) fn because(mut self, reason: String) -> Self {
        self.reason = Some(reason);
        self
    }

    pub(crate) const fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The client is not let in.
    pub(crate) fn denied(why: Denied) -> Self {
        match why {
            Denied::Banned => Self::banned(),
            Denied::TooFast { visitor, fault, .. } => {
                let refusal = Self::too_fast("rate", fault).because(why.reason());
                Self { spared: visitor, ..refusal }
            }
        }
    }

    /// The client is banned.
    pub(crate) fn banned() -> Self {
        let refusal = Self::new(403, "banned", "this address is banned");
        Self { is_final: true, ..refusal.because("banned".to_owned()) }
    }

    /// The client asks too fast.
    pub(crate) fn too_fast(what: &str, fault: TooFast) -> Self {
        Self::new(429, "too_many_requests", "too many requests from this address")
            .because(format!("{what}: {fault}"))
            .retry_after(fault.retry_after)
    }

    pub(crate) fn malformed(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(400, "malformed_request", detail)
    }

    /// What the log says.
    pub(crate) fn reason(&self) -> String {
        self.reason.clone().unwrap_or_else(|| self.detail.clone().into_owned())
    }

    /// The problem JSON (RFC 9457).
    pub(crate) fn body(&self) -> Bytes {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let problem = Problem::new(status, self.code, self.detail.clone());
        Bytes::from(serde_json::to_vec(&problem).unwrap_or_default())
    }
}

/// Whole seconds for `Retry-After`, at least one.
pub(crate) fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0).max(u64::from(wait.is_zero()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_never_zero_and_never_too_short() {
        let waits = [0, 1, 999, 1000, 1001, 2000].map(|ms| seconds(Duration::from_millis(ms)));
        assert_eq!(waits, [1, 1, 1, 1, 2, 2]);
    }
}

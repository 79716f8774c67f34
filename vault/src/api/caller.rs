//! Who calls: the identity out of the verified client certificate, or the control socket's
//! operator. Default deny: a handler that takes no [`Caller`] must say why.

use axum::extract::FromRequestParts;
use http::StatusCode;
use http::request::Parts;
use shared::tls::{Identity, Role};

use super::refusal::Refusal;

/// A verified caller. The listener puts the [`Identity`] into the request's extensions.
#[derive(Debug, Clone)]
pub struct Caller(pub Identity);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        parts.extensions.get::<Identity>().cloned().map(Caller).ok_or_else(|| {
            Refusal::new(
                StatusCode::UNAUTHORIZED,
                "no_certificate",
                "this call needs a client certificate of this vault's authority; enrol with a token",
            )
        })
    }
}

impl Caller {
    /// Lets only the given roles through.
    ///
    /// # Errors
    /// 403 with the role that called.
    pub fn must_be(&self, allowed: &[Role]) -> Result<(), Refusal> {
        if allowed.contains(&self.0.role) {
            return Ok(());
        }
        Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "role_refused",
            format!("a certificate of role {} may not do this", self.0.role),
        ))
    }

    /// May this caller act on what `owner` owns? Edges only on their own; operators on all.
    #[must_use]
    pub fn may_touch(&self, owner: &str) -> bool {
        self.0.role == Role::Admin || (self.0.role == Role::Edge && self.0.owner == owner)
    }
}

//! A broker as it is configured. Reads the files of its login at every connection, so a password or
//! certificate that was changed, or was missing, is used at the next one. Connects to nobody.

use std::path::PathBuf;

use super::PATIENCE;
use crate::openwire::client::{ClientError, Login, trust};
use crate::openwire::uri::Uri;
use crate::openwire::{BrokerId, Text};

/// A broker.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// Where.
    pub uri: Uri,
    /// The account, if it wants one.
    pub user: Option<String>,
    /// A file with its password alone.
    pub password_file: Option<PathBuf>,
    /// Who signs its certificate, PEM; for `ssl://`.
    pub authority_file: Option<PathBuf>,
    /// Own certificate and key, PEM, if it wants one.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

impl Place {
    /// By which a message tells that it came from there, and need not go there. The same in every bridge
    /// that calls it so.
    pub(super) fn mark(&self) -> BrokerId {
        BrokerId { value: Text::shortened(&format!("ID:vault-bridge-{}", self.name)) }
    }

    /// As whom: account and trust; whoever connects gives the names.
    ///
    /// # Errors
    /// One of the files: [`ClientError::Password`], [`ClientError::Trust`].
    pub(super) async fn login(&self) -> Result<Login, ClientError> {
        let place = self.clone();
        let read = tokio::task::spawn_blocking(move || place.read_login()).await;
        // It is never cancelled.
        read.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    fn read_login(&self) -> Result<Login, ClientError> {
        let password = |file: &PathBuf| match std::fs::read_to_string(file) {
            Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
            Err(source) => Err(ClientError::Password { file: file.clone(), source }),
        };
        let own = self.certificate.as_ref().map(|(certificate, key)| (certificate, key));
        let trusted = |file: &PathBuf| trust(file, own).map_err(ClientError::Trust);
        Ok(Login {
            user: self.user.clone(),
            password: self.password_file.as_ref().map(password).transpose()?,
            tls: self.authority_file.as_ref().map(trusted).transpose()?,
            patience: PATIENCE,
            ..Login::default()
        })
    }
}

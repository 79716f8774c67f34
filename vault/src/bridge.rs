//! The bridge: messages of one broker, each once, to another. Knows brokers as OpenWire shows them;
//! not who runs them.
//!
//! A [`direction`] is one way between two brokers, worked until the vault stops. Its rules are pure
//! ([`core`]), what it must not lose is in its [`journal`].

pub mod core;
pub mod direction;
pub mod journal;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use shared::shutdown::Shutdown;
use shared::tls::TlsError;
use tokio::sync::watch;

use self::core::Limits;
use self::direction::{Broker, Settings, SettingsError, Status};
use crate::openwire::Destination;
use crate::openwire::client::{Login, trust};
use crate::openwire::uri::Uri;

/// How long a broker may take for one answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A broker as it is configured.
#[derive(Debug, Clone)]
pub struct Place {
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

/// A direction as it is configured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its name; the same on both vaults.
    pub name: String,
    /// Where messages come from.
    pub from: Place,
    /// Where they go.
    pub to: Place,
    /// Which ones.
    pub destination: Destination,
    /// Messages under way from the source.
    pub prefetch: u16,
    /// What its journal may hold, in bytes.
    pub journal_bytes: u64,
}

/// Why a direction cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// It would carry what is its own.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A certificate or key.
    #[error("bridge {name}: {source}")]
    Tls {
        /// The direction.
        name: String,
        /// Which file, and why.
        #[source]
        source: TlsError,
    },
    /// A password.
    #[error("bridge {name}: {file}: {source}; write the broker's password there, for vault's user alone")]
    Password {
        /// The direction.
        name: String,
        /// The file.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The folder of the journals.
    #[error("{folder}: {source}; give vault's state folder to vault's user")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// All directions of this vault.
#[derive(Debug, Clone, Default)]
pub struct Bridge {
    directions: BTreeMap<String, watch::Receiver<Status>>,
}

impl Bridge {
    /// Starts them; they run until `shutdown`. Call inside a runtime.
    ///
    /// # Errors
    /// See [`BridgeError`]; none was started then.
    pub fn start(
        plans: &[Plan],
        vault: &str,
        state: &Path,
        shutdown: &Shutdown,
    ) -> Result<Self, BridgeError> {
        let folder = state.join("bridge");
        for Plan { name, from, to, .. } in plans {
            for option in from.uri.ignored.iter().chain(&to.uri.ignored) {
                tracing::warn!(bridge = %name, "bridge {name}: {option} has no effect here; take it out of the URI");
            }
        }
        let settings: Vec<Settings> =
            plans.iter().map(|plan| plan.settings(vault, &folder)).collect::<Result<_, _>>()?;
        if !settings.is_empty() {
            std::fs::create_dir_all(&folder)
                .map_err(|source| BridgeError::Folder { folder: folder.clone(), source })?;
        }
        let start = |settings: Settings| {
            let (status, shown) = watch::channel(Status::default());
            let name = settings.name.clone();
            tokio::spawn(direction::run(Arc::new(settings), status, shutdown.clone()));
            (name, shown)
        };
        Ok(Self { directions: settings.into_iter().map(start).collect() })
    }

    /// Each direction by its name, as it is now.
    #[must_use]
    pub fn status(&self) -> BTreeMap<String, Status> {
        self.directions.iter().map(|(name, shown)| (name.clone(), shown.borrow().clone())).collect()
    }
}

impl Plan {
    fn settings(&self, vault: &str, folder: &Path) -> Result<Settings, BridgeError> {
        let settings = Settings {
            name: self.name.clone(),
            vault: vault.to_owned(),
            file: folder.join(format!("{}.db", self.name)),
            from: self.from.broker(&self.name)?,
            to: self.to.broker(&self.name)?,
            destination: self.destination.clone(),
            limits: Limits { journal_bytes: self.journal_bytes, ..Limits::default() },
            prefetch: self.prefetch,
        };
        settings.check()?;
        Ok(settings)
    }
}

impl Place {
    fn broker(&self, name: &str) -> Result<Broker, BridgeError> {
        let password = |file: &PathBuf| match std::fs::read_to_string(file) {
            Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
            Err(source) => Err(BridgeError::Password { name: name.to_owned(), file: file.clone(), source }),
        };
        let own = self.certificate.as_ref().map(|(certificate, key)| (certificate, key));
        let trusted = |file: &PathBuf| {
            trust(file, own).map_err(|source| BridgeError::Tls { name: name.to_owned(), source })
        };
        let login = Login {
            user: self.user.clone(),
            password: self.password_file.as_ref().map(password).transpose()?,
            tls: self.authority_file.as_ref().map(trusted).transpose()?,
            patience: PATIENCE,
            ..Login::default()
        };
        Ok(Broker { uri: self.uri.clone(), login })
    }
}

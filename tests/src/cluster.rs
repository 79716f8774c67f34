//! Everything together on loopback: two vaults, one edge in front of a small application
//! (the `invoices` example), in a temporary directory that goes when the cluster goes.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use tempfile::TempDir;

use crate::curl::Curl;
use crate::edge_host::{Edge, EdgePlan, NAME};
use crate::program::{Program, Recipe};
use crate::vault_host::{Holder, Pair, PairPlan, READY};
use crate::{binaries, wait};

/// The owner on whose behalf the cluster's edge acts.
pub const OWNER: &str = "erp";

static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Two vaults, an edge, and the application.
#[derive(Debug)]
pub struct Cluster {
    // Stopped in this order; the folder goes last.
    /// The application behind edge.
    pub invoices: Program,
    /// The DMZ host.
    pub edge: Edge,
    /// The two vaults.
    pub pair: Pair,
    /// The handlers' door: edge's gateway socket.
    pub gateway: PathBuf,
    /// What edge shows to the vaults.
    pub holder: Holder,
    folder: TempDir,
}

impl Cluster {
    /// Sets everything up and starts it; returns when all of it answers.
    ///
    /// # Errors
    /// Whatever a program says, with the end of its log.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(&PairPlan::default())
    }

    /// As [`Self::start`], with another pair than the usual one.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(plan: &PairPlan) -> anyhow::Result<Self> {
        let folder = temporary_folder()?;
        let pair = Pair::start(folder.path(), plan)?;
        let own = folder.path().join("edge");
        let gateway = own.join("gateway.sock");
        let application = own.join("invoices.sock");
        let holder = Holder {
            certificate: own.join("tls/edge.crt"),
            key: own.join("tls/edge.key"),
            authority: own.join("tls/authority.crt"),
        };
        let draft = Edge::write(&own, &edge_plan(&pair, &holder, &gateway, &application))?;
        std::fs::create_dir_all(own.join("tls"))?;
        let [first, _] = &pair.vaults;
        draft.enrol(&first.dial(), &first.token("edge", OWNER, "www1")?)?;
        let edge = draft.start()?;
        let invoices = start_invoices(&own, &gateway, &application)?;
        let cluster = Self { invoices, edge, pair, gateway, holder, folder };
        wait::until("the application answers through edge", READY, || {
            cluster.edge.call("/").send()?.expect(&[200])
        })?;
        Ok(cluster)
    }

    /// Where all of it lies.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A handler's call through edge's gateway.
    #[must_use]
    pub fn handler(&self, path: &str) -> Curl {
        Curl::new(format!("http://gateway{path}")).over(&self.gateway)
    }

    /// Stops everything in order: the application, edge, the vaults.
    ///
    /// # Errors
    /// A program that had to be killed, or ended badly.
    pub fn stop(mut self) -> anyhow::Result<()> {
        let [first, second] = &mut self.pair.vaults;
        let programs = [Some(&mut self.edge.program), first.program.as_mut(), second.program.as_mut()];
        // The sample application has no state and no manners: TERM simply ends it.
        self.invoices.terminate()?;
        for program in programs.into_iter().flatten() {
            // A vault that somebody has killed to see what happens.
            if !program.is_running() {
                continue;
            }
            let name = program.name().to_owned();
            let status = program.terminate()?;
            anyhow::ensure!(status.success(), "{name}: {status}\n{}", program.log_tail(30));
        }
        self.folder.close().context("the temporary directory")
    }
}

/// A folder for sockets, state and logs. Short, because a Unix socket's path is.
///
/// # Errors
/// `/tmp` cannot be written.
pub fn temporary_folder() -> anyhow::Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("edge-vault-").tempdir_in("/tmp")?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700))?;
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).push(folder.path().to_owned());
    Ok(folder)
}

/// Removes every temporary folder of this process. For the driver's signal handler, after
/// [`crate::program::stop_everything`].
pub fn remove_folders() {
    for folder in FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        // Most are gone already.
        let _ = std::fs::remove_dir_all(folder);
    }
}

fn edge_plan(pair: &Pair, holder: &Holder, gateway: &Path, application: &Path) -> EdgePlan {
    let [first, second] = &pair.vaults;
    EdgePlan {
        upstreams: vec![("invoices".to_owned(), vec![format!("unix:{}", application.display())])],
        routes: format!(
            "[[route]]\nhost = \"{NAME}\"\npath_prefix = \"/\"\nupstream = \"invoices\"\nmax_body = \"64MiB\"\n"
        ),
        gateway: format!(
            r#"[gateway]
listen = "unix:{gateway}"
tickets = "{tickets}"
certificate_file = "{certificate}"
key_file = "{key}"
authority_file = "{authority}"

[[gateway.vault]]
name = "{first_name}"
address = "{first_address}"

[[gateway.vault]]
name = "{second_name}"
address = "{second_address}"
"#,
            gateway = gateway.display(),
            tickets = gateway.with_file_name("tickets.db").display(),
            certificate = holder.certificate.display(),
            key = holder.key.display(),
            authority = holder.authority.display(),
            first_name = first.name,
            first_address = first.api,
            second_name = second.name,
            second_address = second.api,
        ),
        ..EdgePlan::default()
    }
}

fn start_invoices(folder: &Path, gateway: &Path, application: &Path) -> anyhow::Result<Program> {
    let arguments: [OsString; 4] = [
        "--listen".into(),
        format!("unix:{}", application.display()).into(),
        "--gateway".into(),
        gateway.into(),
    ];
    let binary = binaries::find("examples/invoices")?;
    Program::start(Recipe::new("invoices", binary, arguments, folder))
}

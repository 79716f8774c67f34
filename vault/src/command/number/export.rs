//! `vault number export`: the vault's answer, as it comes, on standard output. Knows no row.

use std::path::Path;
use std::time::Duration;

use clap::{Args, ValueEnum};
use http::{Method, Request};
use http_body_util::BodyExt;

use super::super::control::{self, Progress, whole};
use super::super::{CommandError, Output};
use super::Of;

/// An export that makes no progress for so long is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// `vault number export`
#[derive(Debug, Args)]
pub struct Export {
    #[command(flatten)]
    of: Of,
    /// csv, or json; the global --json says json too
    #[arg(long, value_enum, default_value_t = Form::Csv)]
    format: Form,
    /// Where etcd is the ledger and not reached: export what this vault has of it
    #[arg(long)]
    stale: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Csv,
    Json,
}

impl Export {
    pub(super) async fn run(&self, socket: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
        let format = if output.json || self.format == Form::Json { "json" } else { "csv" };
        let (place, stale) = (self.of.place("/export", None), self.stale);
        let path = format!("{place}&format={format}&stale={stale}");
        let request = Request::builder().method(Method::GET).uri(path).body(whole(Vec::new()));
        let request = request.map_err(std::io::Error::other)?;
        let answer = control::call(socket, request, PATIENCE, &Progress::default()).await?;
        let mut body = control::accepted(socket, answer).await?.into_body();
        loop {
            let late = |_| CommandError::Late { socket: socket.to_owned(), deadline: PATIENCE };
            let frame = tokio::time::timeout(PATIENCE, body.frame()).await.map_err(late)?;
            let broken = |source| CommandError::Broken { socket: socket.to_owned(), source };
            let Some(frame) = frame.transpose().map_err(broken)? else { break };
            if let Ok(piece) = frame.into_data() {
                output.to.write_all(&piece)?;
            }
        }
        Ok(output.to.flush()?)
    }
}

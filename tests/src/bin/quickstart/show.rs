//! What the person in front of the screen may try, as commands that can be pasted.

use std::path::Path;

use harness::binaries;
use harness::cluster::Cluster;
use harness::edge_host::NAME;

/// Prints addresses and a worked example.
///
/// # Errors
/// A program that is not where it was started from.
pub(crate) fn try_this(cluster: &Cluster) -> anyhow::Result<()> {
    let [first, second] = &cluster.pair.vaults;
    let vault = binaries::find("vault")?;
    let edge = binaries::find("edge")?;
    let port = cluster.edge.https.port();
    let curl = format!(
        "curl -sS --connect-to {NAME}:{port}:{} --cacert {}",
        cluster.edge.https,
        cluster.edge.authority.certificate.display()
    );
    let site = format!("https://{NAME}:{port}");
    println!(
        r#"
edge      {site}/  (on {https}; http on {http} redirects)
          health and metrics: http://{edge_admin}/readyz?verbose  http://{edge_admin}/metrics
gateway   {gateway}  (the handlers' door to the vaults)
{first_name}   https on {first_api}, health and metrics: http://{first_admin}/readyz?verbose
{second_name}   https on {second_api}, health and metrics: http://{second_admin}/readyz?verbose
files     two file servers: {paris}  {lyon}
all of it in {folder}

Try, in another terminal, from this folder:

  # a name that no DNS knows, and an authority that no browser trusts
  browse() {{ {curl} "$@"; }}

  # upload a document: it is stored twice, gets the next number of its series, and the number is confirmed
  browse -H 'Idempotency-Key: first' --data-binary @README.md {site}/invoices

  # the same again: the same number, the same file
  browse -H 'Idempotency-Key: first' --data-binary @README.md {site}/invoices

  # download it again (the "file" of the answer above)
  browse {site}/files/FILE

  # 60 at once from one address: 50 are answered, 10 are refused
  browse -Z --parallel-immediate --parallel-max 60 -o /dev/null -w '%{{http_code}}\n' '{site}/slow?ms=3000&n=[1-60]' 2>/dev/null | sort | uniq -c

  # as a handler would: a number by itself
  curl -sS --unix-socket {gateway} -X POST -H 'Idempotency-Key: order-4711' http://gateway/v1/series/ORDER/numbers

  # how the pair is doing
  {vault} status --config {first_config}
  {edge} status --config {edge_config}

  # a vault dies: uploads go on, numbers wait (503, Retry-After); it is started again after 20 s
  kill -9 {second_pid}

Ctrl-C stops everything and removes the folder."#,
        https = cluster.edge.https,
        http = cluster.edge.http,
        edge_admin = cluster.edge.admin,
        gateway = cluster.gateway.display(),
        first_name = first.name,
        first_api = first.api,
        first_admin = first.admin,
        second_name = second.name,
        second_api = second.api,
        second_admin = second.admin,
        paris = shown(&cluster.pair.file_servers[0]),
        lyon = shown(&cluster.pair.file_servers[1]),
        folder = shown(cluster.folder()),
        vault = vault.display(),
        edge = edge.display(),
        first_config = first.config.display(),
        edge_config = cluster.edge.config.display(),
        second_pid = second.program.as_ref().and_then(harness::program::Program::pid).unwrap_or_default(),
    );
    Ok(())
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

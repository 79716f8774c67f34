//! Durability seen from the kernel's side: what a vault acknowledges was brought to the disk
//! before the answer left, on both vaults where that is promised. The same look at a build
//! without its fsyncs must find them missing, or it would prove nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use harness::cluster::temporary_folder;
use harness::sftp_pair::SftpPair;
use harness::sftp_server::SftpServer;
use harness::trace::{Call, Moment, Trace};
use harness::vault_host::{Pair, PairPlan, Vault};
use harness::{binaries, wait};

/// The owner in whose name the control socket acts here.
const OWNER: &str = "erp";

#[test]
fn an_acknowledged_number_was_synced_by_both_vaults_before_the_answer() {
    let folder = temporary_folder().unwrap();
    let pair = Pair::start(folder.path(), &traced(None)).unwrap();
    // Asked at the owner, and at the vault that forwards.
    for (asked, vault) in pair.vaults.iter().enumerate() {
        let key = format!("durable-number-asked-at-{asked}");
        number_is_durable(&pair, vault, &key).unwrap();
    }
}

#[test]
fn an_acknowledged_file_was_synced_with_its_name_and_its_entry_before_the_answer() {
    let folder = temporary_folder().unwrap();
    let pair = Pair::start(folder.path(), &traced(None)).unwrap();
    for (asked, vault) in pair.vaults.iter().enumerate() {
        file_is_durable(&pair, vault, &format!("durable-file-{asked}"), [&vault.folder; 2]).unwrap();
    }
}

#[test]
fn an_acknowledged_file_was_synced_by_both_sftp_servers_before_the_answer() {
    let house = SftpPair::start_with(traced(None), traced_server).unwrap();
    let traces = house.servers.each_ref().map(SftpServer::folder);
    for (asked, vault) in house.pair.vaults.iter().enumerate() {
        file_is_durable(&house.pair, vault, &format!("durable-file-{asked}"), traces).unwrap();
    }
}

#[test]
fn a_build_without_fsync_is_found_out_on_sftp_servers_too() {
    let control = binaries::find_without_fsync().unwrap();
    let house = SftpPair::start_with(traced(Some(&control)), traced_server).unwrap();
    let traces = house.servers.each_ref().map(SftpServer::folder);
    let file = file_is_durable(&house.pair, &house.pair.vaults[0], "careless-file", traces);
    let file = file.unwrap_err().to_string();
    assert!(file.contains("the bytes of") && file.contains("not synced before the answer"), "{file}");
}

#[test]
fn a_build_without_fsync_is_found_out() {
    let folder = temporary_folder().unwrap();
    let control = binaries::find_without_fsync().unwrap();
    let pair = Pair::start(folder.path(), &traced(Some(&control))).unwrap();
    let [first, _] = &pair.vaults;
    let number = number_is_durable(&pair, first, "careless-number").unwrap_err().to_string();
    assert!(number.contains("not synced before the answer"), "{number}");
    let file = file_is_durable(&pair, first, "careless-file", [&first.folder; 2]).unwrap_err().to_string();
    assert!(file.contains("not synced before the answer"), "{file}");
}

fn traced(binary: Option<&Path>) -> PairPlan {
    PairPlan { wrapper: Some(Trace::wrapper), binary: binary.map(Path::to_owned), ..PairPlan::default() }
}

fn traced_server(folder: &Path, place: &Path) -> anyhow::Result<SftpServer> {
    SftpServer::start_behind(Trace::wrapper(folder), folder, place)
}

/// Draws a number at `asked` and looks at both vaults' calls.
fn number_is_durable(pair: &Pair, asked: &Vault, key: &str) -> anyhow::Result<()> {
    let path = format!("/v1/series/DURABLE/numbers?owner={OWNER}");
    asked.control(&path).key(key).method("POST").send()?.expect(&[201])?;
    let reply = reply_to(asked, key)?;
    for vault in &pair.vaults {
        let trace = Trace::read(&vault.folder)?;
        let logged = log_writes(&trace, key, 0, reply);
        anyhow::ensure!(!logged.is_empty(), "{}: no row of {key} was written before the answer", vault.name);
        anyhow::ensure!(
            logged.iter().any(|write| trace.syncs(&write.file, write.end, reply)),
            "{}: the row of {key} was not synced before the answer",
            vault.name
        );
    }
    Ok(())
}

/// Uploads a file at `asked` and looks at its calls, and at those of whoever keeps the replicas:
/// `traces` are the folders in which theirs are written down.
fn file_is_durable(pair: &Pair, asked: &Vault, key: &str, traces: [&PathBuf; 2]) -> anyhow::Result<()> {
    let upload =
        asked.control(&format!("/v1/files?owner={OWNER}")).key(key).body("a document\n".repeat(5000));
    let id = upload.send()?.expect(&[201])?.word("id")?;
    let reply = reply_to(asked, key)?;
    let trace = Trace::read(&asked.folder)?;
    let mut stored_from = Moment::MAX;
    for (file_server, folder) in pair.file_servers.iter().zip(traces) {
        let named = replica_is_durable(&Trace::read(folder)?, file_server, &id, reply)?;
        stored_from = stored_from.min(named.end);
    }
    let logged = log_writes(&trace, key, stored_from, reply);
    anyhow::ensure!(!logged.is_empty(), "{}: no entry of {key} was written before the answer", asked.name);
    anyhow::ensure!(
        logged.iter().any(|write| trace.syncs(&write.file, write.end, reply)),
        "{}: the catalog's entry of {key} was not synced before the answer",
        asked.name
    );
    Ok(())
}

/// The replica's bytes were synced before it got its name, and the directory that holds the
/// name was synced before the answer. Returns the call that named it.
fn replica_is_durable(trace: &Trace, file_server: &Path, id: &str, reply: Moment) -> anyhow::Result<Call> {
    let place = file_server.display().to_string();
    let named = trace
        .find(|call| call.is_naming() && call.arguments.contains(id) && call.arguments.contains(&place))
        .with_context(|| format!("{place}: no replica of {id} got its name"))?;
    let bytes_synced = trace.0.iter().any(|call| {
        call.is_sync()
            && call.end <= named.start
            && call.file.starts_with(&place)
            && Path::new(&call.file)
                .file_name()
                .is_some_and(|name| named.arguments.contains(&*name.to_string_lossy()))
    });
    anyhow::ensure!(
        bytes_synced,
        "{place}: the bytes of {id} were not synced before the answer, nor before it was named"
    );
    let folder_synced = trace.0.iter().any(|call| {
        call.is_sync()
            && call.start >= named.end
            && call.end <= reply
            && Path::new(&call.file).starts_with(file_server)
            && named.arguments.contains(&format!("{}/", call.file.trim_start_matches(&place)))
    });
    anyhow::ensure!(folder_synced, "{place}: the directory of {id} was not synced before the answer");
    Ok(named.clone())
}

/// When the answer to the request that carried `key` began to leave.
fn reply_to(asked: &Vault, key: &str) -> anyhow::Result<Moment> {
    wait::until("the answer shows in the trace", Duration::from_secs(20), || {
        let trace = Trace::read(&asked.folder)?;
        let is_control = |call: &Call| call.file.starts_with("UNIX");
        let request = trace
            .find(|call| is_control(call) && call.is_read() && call.arguments.contains(key))
            .context("no request")?;
        let reply = trace.find(|call| {
            is_control(call)
                && call.is_write()
                && call.start >= request.start
                && call.file == request.file
                && call.arguments.contains("HTTP/1.1 201")
        });
        reply.map(|reply| reply.start).context("no answer")
    })
}

/// Writes to SQLite logs that carry `key`, between two moments.
fn log_writes<'t>(trace: &'t Trace, key: &str, from: Moment, to: Moment) -> Vec<&'t Call> {
    let is_ours = |call: &&Call| {
        call.is_write()
            && call.file.ends_with("-wal")
            && call.start >= from
            && call.end <= to
            && call.arguments.contains(key)
    };
    trace.0.iter().filter(is_ours).collect()
}

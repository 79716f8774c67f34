//! MariaDB: how a primary and its replicas are made, promoted and made anew.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use super::{DatabaseServer, Kind, PASSWORD, PATIENCE, Place, done};

impl Place {
    pub(super) fn mariadb(self) -> anyhow::Result<DatabaseServer> {
        self.start_mariadb(false)
    }

    pub(super) fn mariadb_replica(self, primary: &DatabaseServer) -> anyhow::Result<DatabaseServer> {
        let server = self.start_mariadb(true)?;
        load(&server, primary)?;
        Ok(server)
    }

    fn start_mariadb(self, read_only: bool) -> anyhow::Result<DatabaseServer> {
        install(&self.data)?;
        write_role(&self.own, read_only)?;
        let port = self.seat.address.port();
        let arguments = vec![
            // Must be the first.
            format!("--defaults-file={}", role(&self.own).display()),
            "--user=root".to_owned(),
            format!("--datadir={}", self.data.display()),
            format!("--tmpdir={}", temporary(&self.data).display()),
            format!("--socket={}", self.data.join("socket").display()),
            format!("--port={port}"),
            format!("--bind-address={}", self.ip()),
            "--skip-name-resolve".to_owned(),
            format!("--ssl-cert={}", self.certificate.display()),
            format!("--ssl-key={}", self.key.display()),
            format!("--server-id={}", server_id(self.ip(), port)),
            "--log-bin=binlog".to_owned(),
            "--log-slave-updates".to_owned(),
            "--gtid-strict-mode".to_owned(),
            "--slave-net-timeout=5".to_owned(),
        ];
        let mut server = self.launch(Kind::Mariadb, "/usr/sbin/mariadbd".into(), arguments)?;
        server.wait_ready()?;
        make_accounts(&server)?;
        Ok(server)
    }
}

/// `mariadb`, on the server's own host.
pub(super) fn client(data: &Path, database: &str) -> Command {
    let mut client = Command::new("timeout");
    client.args([PATIENCE, "mariadb", "-N", "-B", "-u", "root", "--socket"]).arg(data.join("socket"));
    client.arg(database);
    client
}

/// Lets a replica take writes, also after a restart.
pub(super) fn promote(server: &DatabaseServer) -> anyhow::Result<()> {
    write_role(own(server)?, false)?;
    server.sql("mysql", "STOP REPLICA; RESET REPLICA ALL; SET GLOBAL read_only = 0").map(drop)
}

/// Empties it and makes it a replica: what it has beyond the primary's history cannot be wound back.
pub(super) fn build_anew(server: &mut DatabaseServer, primary: &DatabaseServer) -> anyhow::Result<()> {
    std::fs::remove_dir_all(&server.data)?;
    std::fs::create_dir(&server.data)?;
    install(&server.data)?;
    write_role(own(server)?, true)?;
    server.restart()?;
    make_accounts(server)?;
    load(server, primary)
}

/// Its own folder for what passes: a server that starts removes what others have in theirs.
fn temporary(data: &Path) -> PathBuf {
    data.with_file_name("temporary")
}

fn install(data: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(temporary(data))?;
    let mut make = Command::new("mariadb-install-db");
    make.env("TMPDIR", temporary(data));
    make.args(["--no-defaults", "--user=root", "--auth-root-authentication-method=normal", "--skip-test-db"])
        .arg(format!("--datadir={}", data.display()));
    done(&mut make).map(drop)
}

/// The accounts and the empty database; each server makes its own, the log tells nobody of them.
fn make_accounts(server: &DatabaseServer) -> anyhow::Result<()> {
    let from = if server.address.ip().is_loopback() { "127.0.0.1" } else { "%" };
    let text = format!(
        "SET SESSION sql_log_bin = 0; CREATE DATABASE vault CHARACTER SET utf8mb4;
         CREATE USER vault@'{from}' IDENTIFIED BY '{PASSWORD}';
         GRANT SELECT, INSERT, UPDATE, CREATE ON vault.* TO vault@'{from}';
         CREATE USER feed@'{from}' IDENTIFIED BY '{PASSWORD}'; GRANT REPLICATION SLAVE ON *.* TO feed@'{from}'"
    );
    server.sql("mysql", &text).map(drop)
}

/// Takes over what the primary holds, and follows it from there.
fn load(server: &DatabaseServer, primary: &DatabaseServer) -> anyhow::Result<()> {
    let mut dump = Command::new("timeout");
    dump.args([PATIENCE, "mariadb-dump", "-u", "root", "--socket"]).arg(primary.data.join("socket")).args([
        "--hex-blob",
        "--single-transaction",
        "--master-data=1",
        "--gtid",
        "--databases",
        "vault",
    ]);
    // What is loaded is the primary's own past: the log tells nobody of it.
    let text = format!("SET SESSION sql_log_bin = 0;\n{}\n", done(&mut dump)?);
    let mut load = client(&server.data, "mysql");
    let mut load = load.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().context("mariadb")?;
    load.stdin.take().context("no input")?.write_all(text.as_bytes())?;
    let loaded = load.wait_with_output()?;
    anyhow::ensure!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr).trim());
    let follow = format!(
        "CHANGE MASTER TO MASTER_HOST = '{}', MASTER_PORT = {}, MASTER_USER = 'feed',
         MASTER_PASSWORD = '{PASSWORD}', MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1,
         MASTER_HEARTBEAT_PERIOD = 1; START REPLICA",
        primary.address.ip(),
        primary.address.port()
    );
    server.sql("mysql", &follow).map(drop)
}

/// The file that tells whether it takes writes when it starts.
fn role(own: &Path) -> PathBuf {
    own.join("role.cnf")
}

fn write_role(own: &Path, read_only: bool) -> anyhow::Result<()> {
    Ok(std::fs::write(role(own), format!("[mysqld]\nread_only = {}\n", u8::from(read_only)))?)
}

fn own(server: &DatabaseServer) -> anyhow::Result<&Path> {
    server.data.parent().context("its data lies in a folder of its own")
}

/// Another one for each server of a test.
fn server_id(ip: IpAddr, port: u16) -> u32 {
    let last = match ip {
        IpAddr::V4(ip) => u32::from(ip.octets()[3]),
        IpAddr::V6(_) => 0,
    };
    last << 16 | u32::from(port)
}

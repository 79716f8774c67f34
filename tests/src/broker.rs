//! A message broker that runs, whichever it is: reached at one port that stays the same over its
//! restarts, ended, killed, frozen. Knows that it speaks OpenWire when it is ready, and nothing
//! more of what it says; how one is set up stands in [`crate::activemq`] and [`crate::artemis`].

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::browser::Authority;
use crate::jvm::{self, Jvm};
use crate::program::{Program, Recipe};
use crate::{ports, wait};

/// How long one may take until it answers, on a busy machine.
const READY: Duration = Duration::from_secs(90);
/// How long one question of [`Broker::wait_ready`] may take.
const ASKED: Duration = Duration::from_secs(2);
/// A WireFormatInfo of version 12 without properties, loosely encoded: with that every OpenWire
/// conversation opens, from both sides.
const GREETING: &[u8] = b"\0\0\0\x0e\x01ActiveMQ\0\0\0\x0c\0";

/// What brokers of every kind are asked to be.
#[derive(Debug, Clone)]
pub struct Seat {
    /// Its name, and that of its folder.
    pub name: String,
    /// Where it takes OpenWire in the clear.
    pub address: SocketAddr,
    /// Where it takes OpenWire over TLS, if it does.
    pub tls: Option<SocketAddr>,
    /// The one account; without it everybody is let in.
    pub account: Option<Account>,
    /// How its virtual machine runs.
    pub jvm: Jvm,
}

/// Who may connect.
#[derive(Debug, Clone)]
pub struct Account {
    /// The name.
    pub user: String,
    /// The password.
    pub password: String,
}

impl Seat {
    /// At a free port of loopback, open to everybody, with a quick machine of 256 MiB.
    ///
    /// # Errors
    /// There is no free port.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            address: ports::free()?,
            tls: None,
            account: None,
            jvm: Jvm::quick(256),
        })
    }

    /// The same, with a port for TLS beside the other.
    ///
    /// # Errors
    /// There is no free port.
    pub fn with_tls(mut self) -> anyhow::Result<Self> {
        self.tls = Some(ports::free()?);
        Ok(self)
    }

    /// The same, with one account that must be given.
    #[must_use]
    pub fn with_account(mut self, user: &str, password: &str) -> Self {
        self.account = Some(Account { user: user.to_owned(), password: password.to_owned() });
        self
    }

    /// Its URI before it runs, for those who are told of it.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("tcp://{}", self.address)
    }
}

/// A broker's key store and whom its clients must trust.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) authority: PathBuf,
    pub(crate) store: PathBuf,
}

impl Keys {
    /// Makes them for the seat's address, if it takes TLS.
    pub(crate) fn of(seat: &Seat, folder: &Path) -> anyhow::Result<Option<Self>> {
        let Some(address) = seat.tls else { return Ok(None) };
        let authority = Authority::new(folder, "authority")?;
        let pair = authority.issue(folder, "broker", &[&address.ip().to_string()])?;
        Ok(Some(Self { store: jvm::key_store(&pair)?, authority: authority.certificate }))
    }
}

/// One that runs, or ran.
#[derive(Debug)]
pub struct Broker {
    /// Its name.
    pub name: String,
    /// Where it takes OpenWire in the clear.
    pub address: SocketAddr,
    /// Where it takes OpenWire over TLS, if it does.
    pub tls: Option<SocketAddr>,
    /// Who signed its certificate, PEM, if it takes TLS.
    pub authority: Option<PathBuf>,
    program: Program,
}

impl Broker {
    /// Starts it and waits for nothing.
    pub(crate) fn launch(seat: &Seat, authority: Option<PathBuf>, recipe: Recipe) -> anyhow::Result<Self> {
        let program = Program::start(recipe)?;
        Ok(Self { name: seat.name.clone(), address: seat.address, tls: seat.tls, authority, program })
    }

    /// Waits until it has greeted somebody as OpenWire's brokers do.
    ///
    /// # Errors
    /// It has ended, or does not answer in time; with the end of its log.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        let ready = wait::until(&format!("broker {} answers", self.name), READY, || {
            // One that has ended is not waited for.
            if self.program.is_running() { greet(self.address).map(|()| true) } else { Ok(false) }
        });
        let ended = || format!("{} has ended", self.name);
        ready
            .and_then(|runs| runs.then_some(()).with_context(ended))
            .with_context(|| self.program.log_tail(20))
    }

    /// `tcp://…`, for any client.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("tcp://{}", self.address)
    }

    /// `ssl://…`, for clients that trust [`Self::authority`].
    ///
    /// # Errors
    /// It takes no TLS.
    pub fn tls_uri(&self) -> anyhow::Result<String> {
        let address = self.tls.with_context(|| format!("{} takes no TLS", self.name))?;
        Ok(format!("ssl://{address}"))
    }

    /// SIGKILL: the whole virtual machine at once.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.program.kill()
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.program.terminate().map(drop)
    }

    /// SIGSTOP: its port is there and nobody answers.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.program.freeze()
    }

    /// SIGCONT after [`Self::freeze`].
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.program.thaw()
    }

    /// Starts it again at the same ports with what it has stored, and waits until it answers.
    ///
    /// # Errors
    /// It still runs, or does not come back.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.program.restart()?;
        self.wait_ready()
    }

    /// Its process while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.program.pid()
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.program.log()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Its folder goes with it: there is nothing to end in order. It may not run any more.
        let _ = self.program.kill();
    }
}

/// `failover:(…)` over these URIs in this order, with the failover transport's own options.
#[must_use]
pub fn failover(uris: &[String], options: &str) -> String {
    let separator = if options.is_empty() { "" } else { "&" };
    format!("failover:({})?randomize=false{separator}{options}", uris.join(","))
}

/// Greets, and hears the greeting that comes back.
fn greet(address: SocketAddr) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, ASKED)?;
    stream.set_read_timeout(Some(ASKED))?;
    stream.set_write_timeout(Some(ASKED))?;
    stream.write_all(GREETING)?;
    let mut head = [0; 13];
    stream.read_exact(&mut head)?;
    anyhow::ensure!(head.get(4..) == GREETING.get(4..13), "no OpenWire: {head:02x?}");
    Ok(())
}

//! Apache Artemis, which Debian does not package: its binary distribution comes from Maven's
//! central repository once, by Maven itself, and is kept for every later run. Knows where it is
//! kept and how it is set up; what runs afterwards is a [`Broker`] like any other.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use sha2::{Digest as _, Sha256};

use crate::broker::{Broker, Keys, Seat};
use crate::jvm::{self, STORE_PASSWORD};
use crate::program::{Recipe, run};

const VERSION: &str = "2.44.0";
/// SHA-256 of the distribution, 46 MB.
const DIGEST: &str = "1030320a8d1af6376361cd750bef12ef3cf7babc7a363bc6097340961d1e3e29";
/// The Maven plug-in that copies one artifact.
const COPY: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy";
/// How long Maven may take, in seconds.
const PATIENCE: &str = "300";
/// Its warnings and errors, on standard output.
const LOG: &str = "rootLogger = WARN, out\nappender.out.type = Console\nappender.out.name = out\n\
    appender.out.layout.type = PatternLayout\nappender.out.layout.pattern = %d %-5p %c{1} %m%n\n";
const BOOTSTRAP: &str =
    r#"<broker xmlns="http://activemq.apache.org/schema"><jaas-security domain="activemq"/>"#;
const MANAGEMENT: &str = "<management-context xmlns=\"http://activemq.apache.org/schema\"/>\n";
const LOGIN: &str = "activemq { org.apache.activemq.artemis.spi.core.security.jaas.PropertiesLoginModule required \
    org.apache.activemq.jaas.properties.user=\"users.properties\" \
    org.apache.activemq.jaas.properties.role=\"roles.properties\"; };\n";
/// All that an account may do.
const RIGHTS: [&str; 9] = [
    "createNonDurableQueue",
    "deleteNonDurableQueue",
    "createDurableQueue",
    "deleteDurableQueue",
    "createAddress",
    "deleteAddress",
    "consume",
    "browse",
    "send",
];

/// Starts one with its own folder in `folder`, and waits until it answers.
///
/// # Errors
/// It cannot be had, or does not start; with the end of its log.
pub fn start(seat: &Seat, folder: &Path) -> anyhow::Result<Broker> {
    let mut broker = launch(seat, folder)?;
    broker.wait_ready()?;
    Ok(broker)
}

/// Starts it and waits for nothing: several start side by side.
///
/// # Errors
/// It cannot be had, or a file cannot be written.
pub fn launch(seat: &Seat, folder: &Path) -> anyhow::Result<Broker> {
    let home = distribution()?;
    let own = folder.join(&seat.name);
    let etc = own.join("etc");
    for part in ["etc", "data", "tmp"] {
        std::fs::create_dir_all(own.join(part))?;
    }
    let keys = Keys::of(seat, &own)?;
    let (user, password) =
        seat.account.as_ref().map_or(("nobody", "none"), |account| (&account.user, &account.password));
    let bootstrap =
        format!("{BOOTSTRAP}<server configuration=\"file:{}/broker.xml\"/></broker>\n", etc.display());
    for (name, text) in [
        ("bootstrap.xml", bootstrap),
        ("broker.xml", configuration(seat, &own, keys.as_ref())),
        ("management.xml", MANAGEMENT.to_owned()),
        ("log4j2.properties", LOG.to_owned()),
        ("login.config", LOGIN.to_owned()),
        ("users.properties", format!("{user} = {password}\n")),
        ("roles.properties", format!("users = {user}\n")),
    ] {
        std::fs::write(etc.join(name), text).with_context(|| name.to_owned())?;
    }
    let recipe = Recipe::new(&seat.name, jvm::tool("java"), arguments(seat, &home, &own), &own);
    Broker::launch(seat, keys.map(|keys| keys.authority), recipe)
}

/// Where the distribution lies; brought there if it does not yet.
///
/// # Errors
/// Maven is not installed or does not get it, or it is not the one that is known here.
pub fn distribution() -> anyhow::Result<PathBuf> {
    let cache = cache()?;
    let name = format!("apache-artemis-{VERSION}");
    let home = cache.join(&name);
    if home.is_dir() {
        return Ok(home);
    }
    std::fs::create_dir_all(&cache)?;
    // Beside the place where it is to lie: what is there is whole.
    let temporary = tempfile::Builder::new().prefix("artemis-").tempdir_in(&cache)?;
    fetch(temporary.path())?;
    let archive = temporary.path().join(format!("{name}-bin.tar.gz"));
    let mut digest = Sha256::new();
    std::io::copy(&mut std::fs::File::open(&archive)?, &mut digest)?;
    let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    anyhow::ensure!(digest == DIGEST, "{}: not the known one: SHA-256 {digest}", archive.display());
    let words = ["-xzf".into(), archive.into_os_string(), "-C".into(), temporary.path().into()];
    run(Path::new("tar"), &words)?.well()?;
    let unpacked = temporary.path().join(&name);
    match std::fs::rename(&unpacked, &home) {
        // Another run has been faster: it is the same.
        Err(_) if home.is_dir() => Ok(home),
        renamed => renamed.map(|()| home).with_context(|| format!("{}", unpacked.display())),
    }
}

fn cache() -> anyhow::Result<PathBuf> {
    let above = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    Ok(above.or_else(home).context("neither XDG_CACHE_HOME nor HOME is set")?.join("edge-vault-tests"))
}

fn fetch(folder: &Path) -> anyhow::Result<()> {
    let output = Command::new("timeout")
        .args(["--kill-after=5", PATIENCE, "mvn", "--batch-mode", "--quiet", COPY])
        .arg(format!("-Dartifact=org.apache.activemq:apache-artemis:{VERSION}:tar.gz:bin"))
        .arg(format!("-DoutputDirectory={}", folder.display()))
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .context("timeout mvn")?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    anyhow::ensure!(
        output.status.success(),
        "mvn does not bring Artemis {VERSION} ({}): {} {}",
        output.status,
        said(&output.stdout),
        said(&output.stderr)
    );
    Ok(())
}

fn arguments(seat: &Seat, home: &Path, own: &Path) -> Vec<OsString> {
    let mut words = seat.jvm.arguments(&own.join("tmp"));
    let (home, own) = (home.display(), own.display());
    words.extend(
        [
            "-classpath".to_owned(),
            format!("{home}/lib/artemis-boot.jar"),
            format!("-Dartemis.home={home}"),
            format!("-Dartemis.instance={own}"),
            format!("-Dartemis.instance.etc={own}/etc"),
            format!("-Djava.security.auth.login.config={own}/etc/login.config"),
            format!("-Dlog4j2.configurationFile={own}/etc/log4j2.properties"),
            "org.apache.activemq.artemis.boot.Artemis".to_owned(),
            "run".to_owned(),
        ]
        .map(Into::into),
    );
    words
}

fn configuration(seat: &Seat, own: &Path, keys: Option<&Keys>) -> String {
    let data = own.join("data").display().to_string();
    let mut doors = format!("<acceptor name=\"openwire\">{}?protocols=OPENWIRE</acceptor>", seat.uri());
    if let Some((address, keys)) = seat.tls.zip(keys) {
        doors += &format!(
            "<acceptor name=\"ssl\">tcp://{address}?protocols=OPENWIRE;sslEnabled=true;keyStoreType=PKCS12;\
             keyStorePath={};keyStorePassword={STORE_PASSWORD}</acceptor>",
            keys.store.display()
        );
    }
    let folders: String = ["paging", "bindings", "journal", "large-messages"]
        .map(|kind| format!("<{kind}-directory>{data}/{kind}</{kind}-directory>"))
        .concat();
    let rights = RIGHTS.map(|right| format!("<permission type=\"{right}\" roles=\"users\"/>")).concat();
    let lost = ["DLQ", "ExpiryQueue"]
        .map(|name| format!("<address name=\"{name}\"><anycast><queue name=\"{name}\"/></anycast></address>"))
        .concat();
    format!(
        r##"<configuration xmlns="urn:activemq"><core xmlns="urn:activemq:core">
<name>{name}</name>
{folders}
<journal-type>NIO</journal-type>
<global-max-size>64M</global-max-size>
<max-disk-usage>99</max-disk-usage>
<security-enabled>{security}</security-enabled>
<acceptors>{doors}</acceptors>
<security-settings><security-setting match="#">{rights}</security-setting></security-settings>
<address-settings><address-setting match="#">
<dead-letter-address>DLQ</dead-letter-address><expiry-address>ExpiryQueue</expiry-address>
<auto-delete-queues>false</auto-delete-queues><auto-delete-addresses>false</auto-delete-addresses>
</address-setting></address-settings>
<addresses>{lost}</addresses>
</core></configuration>
"##,
        name = seat.name,
        security = seat.account.is_some(),
    )
}

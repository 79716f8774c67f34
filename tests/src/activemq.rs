//! Apache ActiveMQ of Debian's package, set up as an operator would: own folder, own store, and
//! where asked for its own network connector, scheduler, destination policies. Knows its
//! configuration file; what runs afterwards is a [`Broker`] like any other.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;

use crate::broker::{Broker, Keys, Seat};
use crate::jvm::{self, STORE_PASSWORD};
use crate::program::Recipe;

const PROGRAM: &str = "/usr/share/activemq/bin/activemq.jar";
const HOME: &str = "/usr/share/activemq";
/// Its warnings and errors are worth a look; what it does besides is not.
const LOG: &str = "log4j.rootLogger=WARN, out\nlog4j.appender.out=org.apache.log4j.ConsoleAppender\n\
    log4j.appender.out.layout=org.apache.log4j.PatternLayout\n\
    log4j.appender.out.layout.ConversionPattern=%d %-5p %c{1} %m%n\n";
/// Every queue has a dead letter queue of its own, `DLQ.` and its name, for all that it gives up.
pub const INDIVIDUAL_DEAD_LETTERS: &str = r#"<policyEntry queue=">"><deadLetterStrategy><individualDeadLetterStrategy queuePrefix="DLQ." useQueueForQueueMessages="true" processNonPersistent="true"/></deadLetterStrategy></policyEntry>"#;
/// What waits at a broker whose consumers went over to another one is sent back to them, and a
/// message that comes back is told from one that is doubled.
pub const REPLAY_WHEN_NO_CONSUMERS: &str = r#"<policyEntry queue=">" enableAudit="false"><networkBridgeFilterFactory><conditionalNetworkBridgeFilterFactory replayWhenNoConsumers="true"/></networkBridgeFilterFactory></policyEntry>"#;

/// How one is set up.
#[derive(Debug, Clone)]
pub struct ActiveMq {
    /// Where it is.
    pub seat: Seat,
    /// Other brokers to which its own network connectors forward.
    pub connectors: Vec<NetworkConnector>,
    /// Does it deliver messages later that ask for it?
    pub scheduler: bool,
    /// Elements `<policyEntry>`, as [`INDIVIDUAL_DEAD_LETTERS`]; one for each pattern, of two for the
    /// same one only one counts.
    pub policies: Vec<String>,
    /// Elements for `<plugins>`, as `<redeliveryPlugin …>`.
    pub plugins: Vec<String>,
}

/// ActiveMQ's own bridge to another broker.
#[derive(Debug, Clone)]
pub struct NetworkConnector {
    /// Its name, unlike those of the broker's other connectors.
    pub name: String,
    /// The other broker's URI.
    pub to: String,
    /// Does it carry both ways?
    pub duplex: bool,
    /// Queues that are forwarded even without a consumer at the other side; with none of them
    /// what is asked for there is forwarded.
    pub queues: Vec<String>,
    /// Further attributes, as `prefetchSize="1000"`.
    pub attributes: String,
}

impl NetworkConnector {
    /// One way, on demand.
    #[must_use]
    pub fn to(name: &str, uri: &str) -> Self {
        Self {
            name: name.to_owned(),
            to: uri.to_owned(),
            duplex: false,
            queues: Vec::new(),
            attributes: String::new(),
        }
    }

    fn element(&self) -> String {
        let mut text = format!(
            r#"<networkConnector name="{}" uri="static:({})" duplex="{}" {}>"#,
            self.name, self.to, self.duplex, self.attributes
        );
        if !self.queues.is_empty() {
            text.push_str("<staticallyIncludedDestinations>");
            for queue in &self.queues {
                let _ = write!(text, r#"<queue physicalName="{queue}"/>"#);
            }
            text.push_str("</staticallyIncludedDestinations>");
        }
        text + "</networkConnector>"
    }
}

impl ActiveMq {
    /// As it is out of the box.
    #[must_use]
    pub fn at(seat: Seat) -> Self {
        Self { seat, connectors: Vec::new(), scheduler: false, policies: Vec::new(), plugins: Vec::new() }
    }

    /// The same, with an own network connector.
    #[must_use]
    pub fn forwards(mut self, connector: NetworkConnector) -> Self {
        self.connectors.push(connector);
        self
    }

    /// The same, with one more `<policyEntry>`.
    #[must_use]
    pub fn with_policy(mut self, entry: &str) -> Self {
        self.policies.push(entry.to_owned());
        self
    }

    /// Starts it with its own folder in `folder`, and waits until it answers.
    ///
    /// # Errors
    /// It does not start; with the end of its log.
    pub fn start(&self, folder: &Path) -> anyhow::Result<Broker> {
        let mut broker = self.launch(folder)?;
        broker.wait_ready()?;
        Ok(broker)
    }

    /// Starts it and waits for nothing: several start side by side.
    ///
    /// # Errors
    /// A file cannot be written, or it is not installed.
    pub fn launch(&self, folder: &Path) -> anyhow::Result<Broker> {
        anyhow::ensure!(Path::new(PROGRAM).is_file(), "no {PROGRAM}: install the package activemq");
        let own = folder.join(&self.seat.name);
        for part in ["conf", "data", "tmp"] {
            std::fs::create_dir_all(own.join(part))?;
        }
        let keys = Keys::of(&self.seat, &own)?;
        let conf = own.join("conf");
        std::fs::write(conf.join("log4j.properties"), LOG)?;
        let file = conf.join("activemq.xml");
        std::fs::write(&file, self.configuration(&own, keys.as_ref()))
            .with_context(|| format!("{}", file.display()))?;
        let recipe = Recipe::new(&self.seat.name, jvm::tool("java"), self.arguments(&own), &own);
        Broker::launch(&self.seat, keys.map(|keys| keys.authority), recipe)
    }

    fn arguments(&self, own: &Path) -> Vec<OsString> {
        let mut words = self.seat.jvm.arguments(&own.join("tmp"));
        let own = own.display();
        words.extend(
            [
                format!("-Dactivemq.home={HOME}"),
                format!("-Dactivemq.base={own}"),
                format!("-Dactivemq.conf={own}/conf"),
                format!("-Dactivemq.data={own}/data"),
                format!("-Dactivemq.classpath={own}/conf"),
                "-jar".to_owned(),
                PROGRAM.to_owned(),
                "start".to_owned(),
                format!("xbean:file:{own}/conf/activemq.xml"),
            ]
            .map(Into::into),
        );
        words
    }

    /// Its elements stand in the order of the alphabet, as its schema wants it.
    fn configuration(&self, own: &Path, keys: Option<&Keys>) -> String {
        let mut parts = String::new();
        let mut add = |name: &str, content: String| {
            if !content.is_empty() {
                let _ = writeln!(parts, "<{name}>{content}</{name}>");
            }
        };
        let policies = self.policies.concat();
        if !policies.is_empty() {
            let entries = format!("<policyEntries>{policies}</policyEntries>");
            add("destinationPolicy", format!("<policyMap>{entries}</policyMap>"));
        }
        add("networkConnectors", self.connectors.iter().map(NetworkConnector::element).collect());
        let data = own.join("data");
        let store =
            format!(r#"<kahaDB directory="{}" journalMaxFileLength="32mb"/>"#, data.join("kahadb").display());
        add("persistenceAdapter", store);
        add("plugins", self.accounts() + &self.plugins.concat());
        if let Some(keys) = keys {
            let context = format!(
                r#"<sslContext keyStore="file:{}" keyStoreType="PKCS12" keyStorePassword="{STORE_PASSWORD}"/>"#,
                keys.store.display()
            );
            add("sslContext", context);
        }
        // A quarter of its heap for messages.
        let memory = self.seat.jvm.heap / 4;
        let usage = format!(
            r#"<systemUsage><memoryUsage><memoryUsage limit="{memory} mb"/></memoryUsage><storeUsage><storeUsage limit="4 gb"/></storeUsage><tempUsage><tempUsage limit="1 gb"/></tempUsage></systemUsage>"#
        );
        add("systemUsage", usage);
        let mut doors = format!(r#"<transportConnector name="openwire" uri="{}"/>"#, self.seat.uri());
        if let Some(address) = self.seat.tls {
            let _ = write!(doors, r#"<transportConnector name="ssl" uri="ssl://{address}"/>"#);
        }
        add("transportConnectors", doors);
        format!(
            r#"<beans xmlns="http://www.springframework.org/schema/beans" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
 xsi:schemaLocation="http://www.springframework.org/schema/beans http://www.springframework.org/schema/beans/spring-beans-2.0.xsd http://activemq.apache.org/schema/core http://activemq.apache.org/schema/core/activemq-core.xsd">
<broker xmlns="http://activemq.apache.org/schema/core" brokerName="{name}" dataDirectory="{data}" useJmx="false" schedulerSupport="{scheduler}">
{parts}</broker></beans>
"#,
            name = self.seat.name,
            data = data.display(),
            scheduler = self.scheduler,
        )
    }

    fn accounts(&self) -> String {
        let Some(account) = &self.seat.account else { return String::new() };
        format!(
            r#"<simpleAuthenticationPlugin><users><authenticationUser username="{}" password="{}" groups="users"/></users></simpleAuthenticationPlugin>"#,
            account.user, account.password
        )
    }
}

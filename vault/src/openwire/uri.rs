//! Brokers' addresses as ActiveMQ writes them: `tcp://a:61616`,
//! `failover:(tcp://a:61616,ssl://b:61617)?randomize=false`. Pure; connects to nothing.
//!
//! Source: ActiveMQ's manual, "TCP Transport", "Failover Transport" and "Configuring Wire Formats".
//! An option is honoured, known and without effect here ([`Uri::ignored`] names it), or refused.

use std::time::Duration;

use http::uri::Authority;

use super::greeting::Offer;
use super::text::Text;

/// Most brokers in one URI.
const MOST_BROKERS: usize = 32;

/// Options of the failover transport that mean something here.
const FAILOVER: &[&str] = &["randomize", "initialReconnectDelay", "maxReconnectDelay"];

/// Options of one broker that mean something here.
const BROKER: &[&str] = &[
    "connectionTimeout",
    "wireFormat.maxInactivityDuration",
    "wireFormat.maxInactivityDurationInitalDelay",
    "wireFormat.maxFrameSize",
];

/// Options that a client of ours has no use for: it tries for ever, reads names from its settings
/// alone, and what it asks of sockets and of the encoding is fixed.
const WITHOUT_EFFECT: &[&str] = &[
    "backOffMultiplier",
    "backup",
    "backupPoolSize",
    "daemon",
    "dynamicManagement",
    "keepAlive",
    "maxCacheSize",
    "maxReconnectAttempts",
    "priorityBackup",
    "priorityURIs",
    "rebalanceUpdateURIs",
    "reconnectDelayExponent",
    "reconnectSupported",
    "soLinger",
    "soTimeout",
    "soWriteTimeout",
    "startupMaxReconnectAttempts",
    "tcpNoDelay",
    "timeout",
    "trace",
    "trackMessages",
    "trackTransactionProducers",
    "trackTransactions",
    "updateURIsSupported",
    "useExponentialBackOff",
    "useInactivityMonitor",
    "useKeepAlive",
    "warnAfterReconnectAttempts",
    "wireFormat.cacheEnabled",
    "wireFormat.cacheSize",
    "wireFormat.sizePrefixDisabled",
    "wireFormat.stackTraceEnabled",
    "wireFormat.tcpNoDelayEnabled",
    "wireFormat.tightEncodingEnabled",
];

/// One broker, and how to greet it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// `ssl://`, `nio+ssl://`.
    pub tls: bool,
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// How long connecting may take, and TLS, and the greeting: each so long.
    pub patience: Duration,
    /// What is offered in the greeting.
    pub offer: Offer,
}

/// Where to connect to: the brokers in the order in which they are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    /// At least one.
    pub brokers: Vec<Address>,
    /// Is any of them as good as the first?
    pub randomize: bool,
    /// Wait before the second attempt; it doubles.
    pub first_wait: Duration,
    /// Longest wait.
    pub longest_wait: Duration,
    /// Options that have no effect here.
    pub ignored: Vec<String>,
}

/// Why a text is no such URI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Neither `failover:(…)` nor an address.
    #[error("{0:?} is no broker's address; write tcp://HOST:PORT, ssl://HOST:PORT or failover:(…,…)")]
    NoAddress(String),
    /// A scheme that is not spoken.
    #[error("{0:?} is not spoken here; use tcp, nio, ssl, nio+ssl or failover")]
    Scheme(String),
    /// Names and passwords do not belong there.
    #[error("{0} does not belong into a URI, which is logged; write user and password_file beside it")]
    Credentials(&'static str),
    /// No such option.
    #[error("{name:?} is no option here; known are {}", known.join(", "))]
    Unknown {
        /// What was written.
        name: String,
        /// What could be.
        known: Vec<&'static str>,
    },
    /// A value that the option cannot have.
    #[error("{name}={value:?}: write {wanted}")]
    Value {
        /// The option.
        name: String,
        /// What was written.
        value: String,
        /// What could be.
        wanted: &'static str,
    },
    /// Empty parentheses, or a crowd in them.
    #[error("{0} brokers in one URI; name 1 to {MOST_BROKERS}")]
    Number(usize),
}

impl std::str::FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let mut uri = Uri {
            brokers: Vec::new(),
            randomize: false,
            first_wait: Duration::from_millis(10),
            longest_wait: Duration::from_secs(30),
            ignored: Vec::new(),
        };
        let Some(composite) = text.strip_prefix("failover:") else {
            let broker = uri.address(text)?;
            uri.brokers.push(broker);
            return Ok(uri);
        };
        uri.randomize = true;
        let no_address = || UriError::NoAddress(text.to_owned());
        let composite = composite.strip_prefix("//").unwrap_or(composite);
        let (members, options) =
            composite.strip_prefix('(').and_then(|rest| rest.rsplit_once(')')).ok_or_else(no_address)?;
        for member in members.split(',').map(str::trim).filter(|member| !member.is_empty()) {
            let broker = uri.address(member)?;
            uri.brokers.push(broker);
        }
        match uri.brokers.len() {
            1..=MOST_BROKERS => {}
            other => return Err(UriError::Number(other)),
        }
        match options {
            "" => Ok(uri),
            _ => {
                for (name, value) in pairs(options.strip_prefix('?').ok_or_else(no_address)?) {
                    uri.set(name, value)?;
                }
                Ok(uri)
            }
        }
    }
}

impl Uri {
    fn address(&mut self, text: &str) -> Result<Address, UriError> {
        let no_address = || UriError::NoAddress(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(no_address)?;
        let tls = match scheme {
            "tcp" | "nio" => false,
            "ssl" | "nio+ssl" => true,
            other => return Err(UriError::Scheme(other.to_owned())),
        };
        let (place, options) = rest.split_once('?').unwrap_or((rest, ""));
        if place.contains('@') {
            return Err(UriError::Credentials("a name before the host"));
        }
        let place: Authority = place.trim_end_matches('/').parse().map_err(|_| no_address())?;
        let host = place.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let mut address = Address {
            tls,
            offer: Offer { host: Some(Text::shortened(&host)), ..Offer::default() },
            host,
            port: place.port_u16().filter(|port| *port > 0).ok_or_else(no_address)?,
            patience: Duration::from_secs(10),
        };
        for (name, value) in pairs(options) {
            if !address.set(name, value)? {
                self.ignore(name, BROKER)?;
            }
        }
        Ok(address)
    }

    /// An option behind the parentheses; `nested.` gives one to each broker.
    fn set(&mut self, name: &str, value: &str) -> Result<(), UriError> {
        match name {
            "randomize" => self.randomize = flag(name, value)?,
            "initialReconnectDelay" => self.first_wait = milliseconds(name, value)?,
            "maxReconnectDelay" => self.longest_wait = milliseconds(name, value)?,
            _ => {
                let own = name.strip_prefix("nested.").unwrap_or(name);
                let mut known = false;
                for broker in &mut self.brokers {
                    known |= broker.set(own, value)?;
                }
                if !known {
                    self.ignore(own, FAILOVER)?;
                }
            }
        }
        Ok(())
    }

    fn ignore(&mut self, name: &str, known: &[&'static str]) -> Result<(), UriError> {
        if matches!(name, "jms.userName" | "jms.password") {
            return Err(UriError::Credentials("a user or password"));
        }
        if !name.starts_with("jms.") && !WITHOUT_EFFECT.contains(&name) {
            return Err(UriError::Unknown { name: name.to_owned(), known: known.to_vec() });
        }
        if !self.ignored.iter().any(|ignored| ignored == name) {
            self.ignored.push(name.to_owned());
        }
        Ok(())
    }
}

impl Address {
    /// Sets an option; false if it is none of those that mean something here.
    fn set(&mut self, name: &str, value: &str) -> Result<bool, UriError> {
        match name {
            "connectionTimeout" => {
                // ActiveMQ's 0 is for ever, which nothing here waits.
                let time = milliseconds(name, value)?;
                self.patience = if time.is_zero() { self.patience } else { time };
            }
            "wireFormat.maxInactivityDuration" => self.offer.inactivity = milliseconds(name, value)?,
            // Spelled the first way in the protocol.
            "wireFormat.maxInactivityDurationInitalDelay"
            | "wireFormat.maxInactivityDurationInitialDelay" => {
                self.offer.initial_delay = milliseconds(name, value)?;
            }
            "wireFormat.maxFrameSize" => {
                let size = value.parse().ok().filter(|size| *size > 0);
                self.offer.max_frame = size.ok_or_else(|| refused(name, value, "a number of bytes"))?;
            }
            // Names in certificates are always compared.
            "socket.verifyHostName" | "transport.verifyHostName" => {
                if !flag(name, value)? {
                    return Err(refused(name, value, "true, or leave it out: broker's names are verified"));
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn pairs(options: &str) -> impl Iterator<Item = (&str, &str)> {
    let written = options.split('&').filter(|option| !option.is_empty());
    written.map(|option| option.split_once('=').unwrap_or((option, "")))
}

fn milliseconds(name: &str, value: &str) -> Result<Duration, UriError> {
    let number = value.parse().map_err(|_| refused(name, value, "a number of milliseconds"))?;
    Ok(Duration::from_millis(number))
}

fn flag(name: &str, value: &str) -> Result<bool, UriError> {
    value.parse().map_err(|_| refused(name, value, "true or false"))
}

fn refused(name: &str, value: &str, wanted: &'static str) -> UriError {
    UriError::Value { name: name.to_owned(), value: value.to_owned(), wanted }
}

impl std::fmt::Display for Address {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "ssl" } else { "tcp" };
        let brackets = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(formatter, "{scheme}://{}{}{}:{}", brackets.0, self.host, brackets.1, self.port)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    fn refusal(text: &str) -> String {
        text.parse::<Uri>().unwrap_err().to_string()
    }

    #[test]
    fn a_failover_uri_gives_its_brokers_and_options() {
        let uri = uri(
            "failover:(tcp://a:61616?wireFormat.maxInactivityDuration=5000,ssl://[::1]:61617)?randomize=false&\
             initialReconnectDelay=100&maxReconnectDelay=2000&timeout=3000&jms.prefetchPolicy.all=5&\
             nested.wireFormat.maxFrameSize=1000",
        );
        assert_eq!(
            uri.brokers.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["tcp://a:61616", "ssl://[::1]:61617"]
        );
        let inactivity = |at: usize| uri.brokers[at].offer.inactivity.as_secs();
        assert_eq!((inactivity(0), inactivity(1)), (5, 30));
        assert!(uri.brokers.iter().all(|broker| broker.offer.max_frame == 1000));
        assert_eq!((uri.randomize, uri.first_wait.as_millis(), uri.longest_wait.as_secs()), (false, 100, 2));
        assert_eq!(uri.ignored, ["timeout", "jms.prefetchPolicy.all"]);
    }

    #[test]
    fn a_plain_address_is_a_uri_of_one_broker() {
        let plain = uri("nio+ssl://broker.example:61617?connectionTimeout=500&tcpNoDelay=true");
        let broker = &plain.brokers[0];
        assert_eq!((broker.tls, broker.host.as_str(), broker.port), (true, "broker.example", 61617));
        assert_eq!(
            (broker.patience.as_millis(), plain.ignored.as_slice()),
            (500, ["tcpNoDelay".to_owned()].as_slice())
        );
        assert!(uri("failover:(tcp://a:1)").randomize, "as ActiveMQ has it");
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        assert_eq!(
            refusal("failover:(tcp://a:1)?randomise=false"),
            "\"randomise\" is no option here; known are randomize, initialReconnectDelay, maxReconnectDelay"
        );
        assert!(refusal("tcp://a:1?wireFormat.version=3").contains("known are connectionTimeout, "));
        assert!(refusal("tcp://me:secret@a:1").starts_with("a name before the host does not belong"));
        assert!(refusal("failover:(tcp://a:1)?jms.password=x").starts_with("a user or password does not"));
        assert!(refusal("ssl://a:1?socket.verifyHostName=false").contains("are verified"));
        assert_eq!(
            refusal("tcp://a:1?connectionTimeout=5s"),
            "connectionTimeout=\"5s\": write a number of milliseconds"
        );
        assert!(refusal("amqp://a:1").starts_with("\"amqp\" is not spoken here"));
        for text in ["tcp://a", "tcp://a:0", "a:61616", "failover:tcp://a:1", "failover:(tcp://a:1)x", ""] {
            assert!(refusal(text).contains("is no broker's address"), "{text}");
        }
        assert_eq!(refusal("failover:()"), "0 brokers in one URI; name 1 to 32");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in any::<String>(), inner in "[a-z:/()?&=,@\\[\\]0-9.]{0,40}") {
            let _either = text.parse::<Uri>();
            let _either = format!("failover:({inner})").parse::<Uri>();
            let _either = format!("tcp://{inner}").parse::<Uri>();
        }

        #[test]
        fn an_address_reads_back(tls in any::<bool>(), host in "[a-z]{1,9}|\\[::[0-9]\\]", port in 1_u16..) {
            let text = format!("{}://{host}:{port}", if tls { "ssl" } else { "tcp" });
            prop_assert_eq!(uri(&text).brokers[0].to_string(), text);
        }
    }
}

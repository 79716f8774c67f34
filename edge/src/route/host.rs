//! Host names as requests and the configuration write them. Pure; must not know DNS.

use std::borrow::Cow;
use std::net::Ipv6Addr;

/// RFC 1035 2.3.4, in presentation form.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// Why a `Host` or `:authority` is refused (400).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostFault {
    /// Nothing there.
    #[error("the host is empty")]
    Empty,
    /// Over 253 characters, or a label over 63.
    #[error("the host is too long")]
    TooLong,
    /// A label is empty, starts or ends with a dash, or holds other than letters, digits, `-`, `_`.
    #[error("the host is no valid name")]
    Name,
    /// After the colon stands no port.
    #[error("the host's port is no port")]
    Port,
    /// Between brackets stands no IPv6 address.
    #[error("the host is no IPv6 address")]
    Address,
}

/// `Host` or `:authority` → the name in lower case, without port and without the root's final
/// dot. IPv6 literals keep their brackets. RFC 9110 7.2, narrowed to real names.
///
/// # Errors
/// The text is no host with an optional port.
pub fn host_of(raw: &str) -> Result<Cow<'_, str>, HostFault> {
    if raw.is_empty() {
        return Err(HostFault::Empty);
    }
    if raw.starts_with('[') {
        let end = raw.find(']').ok_or(HostFault::Address)?;
        let (literal, rest) = raw.split_at(end + 1);
        port_of(rest)?;
        let address: Ipv6Addr = literal[1..end].parse().map_err(|_| HostFault::Address)?;
        return Ok(Cow::Owned(format!("[{address}]")));
    }
    let (name, rest) = raw.split_at(raw.find(':').unwrap_or(raw.len()));
    port_of(rest)?;
    lower_name(name.strip_suffix('.').unwrap_or(name))
}

/// `rest` is empty or a colon and a port.
fn port_of(rest: &str) -> Result<(), HostFault> {
    let Some(port) = rest.strip_prefix(':') else {
        return if rest.is_empty() { Ok(()) } else { Err(HostFault::Address) };
    };
    // `parse` alone would take a sign.
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    if digits && port.parse::<u16>().is_ok() { Ok(()) } else { Err(HostFault::Port) }
}

fn lower_name(name: &str) -> Result<Cow<'_, str>, HostFault> {
    if name.is_empty() {
        return Err(HostFault::Empty);
    }
    if name.len() > MAX_NAME {
        return Err(HostFault::TooLong);
    }
    for label in name.split('.') {
        if label.len() > MAX_LABEL {
            return Err(HostFault::TooLong);
        }
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if label.is_empty() || label.starts_with('-') || label.ends_with('-') || !label.bytes().all(known) {
            return Err(HostFault::Name);
        }
    }
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Ok(Cow::Owned(name.to_ascii_lowercase()))
    } else {
        Ok(Cow::Borrowed(name))
    }
}

/// Which hosts a route or certificate is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// This host alone, lower case.
    Exact(String),
    /// `*.suffix`: every host below it, at any depth, but not the suffix itself. Kept as `.suffix`.
    Below(String),
    /// Every host.
    Any,
}

impl HostPattern {
    /// Reads `www.example.org`, `*.example.org` or `*`, without a port.
    ///
    /// # Errors
    /// It is none of these.
    pub fn parse(text: &str) -> Result<Self, HostFault> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Some(suffix) = text.strip_prefix("*.") {
            return Ok(Self::Below(format!(".{}", lower_name(suffix)?)));
        }
        // A port or final dot in a pattern would never match what `host_of` returns.
        let whole = text.starts_with('[') && text.ends_with(']');
        let name = if whole { host_of(text)? } else { lower_name(text)? };
        Ok(Self::Exact(name.into_owned()))
    }

    /// Does it stand for `host`, as [`host_of`] returned it?
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => name == host,
            Self::Below(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
            Self::Any => true,
        }
    }
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(suffix) => write!(f, "*{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// Body of the fuzz target: whatever is accepted is lower case, short and its own normal form.
pub fn fuzz_host(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(host) = host_of(text) {
        assert!(!host.is_empty() && host.len() <= MAX_NAME);
        assert!(!host.bytes().any(|byte| byte.is_ascii_uppercase() || byte <= b' ' || byte >= 0x7f));
        assert_eq!(host_of(&host).as_deref(), Ok(&*host));
    }
    if let Ok(pattern) = HostPattern::parse(text) {
        assert_eq!(HostPattern::parse(&pattern.to_string()), Ok(pattern));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_lose_port_case_and_final_dot() {
        for (raw, host) in [
            ("www.example.org", "www.example.org"),
            ("WWW.Example.ORG:8443", "www.example.org"),
            ("www.example.org.", "www.example.org"),
            ("www.example.org.:443", "www.example.org"),
            ("my_host", "my_host"),
            ("192.0.2.1:80", "192.0.2.1"),
            ("[2001:DB8:0:0::1]:443", "[2001:db8::1]"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(host_of(raw).as_deref(), Ok(host), "{raw}");
        }
        assert!(matches!(host_of("plain"), Ok(Cow::Borrowed(_))), "the usual case copies nothing");
    }

    #[test]
    fn garbage_is_refused_with_its_reason() {
        let long = "a".repeat(64);
        for (raw, fault) in [
            ("", HostFault::Empty),
            (".", HostFault::Empty),
            (":80", HostFault::Empty),
            ("a..b", HostFault::Name),
            ("a..", HostFault::Name),
            (".a", HostFault::Name),
            ("-a.b", HostFault::Name),
            ("a-.b", HostFault::Name),
            ("a b", HostFault::Name),
            ("user@host", HostFault::Name),
            ("host/path", HostFault::Name),
            ("host\r\nX", HostFault::Name),
            ("host:80\r\nX: y", HostFault::Port),
            ("h\u{f6}st", HostFault::Name),
            ("%77ww", HostFault::Name),
            ("*.example.org", HostFault::Name),
            ("a,b", HostFault::Name),
            ("host:", HostFault::Port),
            ("host:+80", HostFault::Port),
            ("host:80:80", HostFault::Port),
            ("host:65536", HostFault::Port),
            ("::1", HostFault::Port),
            ("[::1", HostFault::Address),
            ("[::1]x", HostFault::Address),
            ("[fe80::1%eth0]", HostFault::Address),
            ("[v1.x]", HostFault::Address),
            (long.as_str(), HostFault::TooLong),
        ] {
            assert_eq!(host_of(raw), Err(fault), "{raw}");
        }
        assert_eq!(host_of(&"ab.".repeat(85)), Err(HostFault::TooLong));
    }

    #[test]
    fn a_wildcard_stands_for_hosts_below_it_only() {
        let pattern = HostPattern::parse("*.Example.org").unwrap();
        assert_eq!(pattern.to_string(), "*.example.org");
        assert!(pattern.matches("a.example.org") && pattern.matches("a.b.example.org"));
        for other in ["example.org", ".example.org", "badexample.org", "a.example.org.evil"] {
            assert!(!pattern.matches(other), "{other}");
        }
        for bad in ["", "*.", "*.*", "a*.b", "*a", "host:80", "[::1]:80", "*.[::1]", "host.", "**"] {
            assert!(HostPattern::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(HostPattern::parse("*"), Ok(HostPattern::Any));
        assert_eq!(HostPattern::parse("[::1]"), Ok(HostPattern::Exact("[::1]".to_owned())));
    }

    proptest! {
        #[test]
        fn a_valid_name_with_any_port_is_read(name in "[a-z0-9]{1,20}(\\.[a-z0-9_]{1,20}){0,5}", port: u16) {
            let raw = format!("{name}:{port}");
            prop_assert_eq!(host_of(&raw), Ok(Cow::Borrowed(name.as_str())));
        }

        #[test]
        fn no_host_makes_the_reader_panic(text in "(?s)[\\[\\]:.*a-zA-Z0-9-]{0,40}|(?s).{0,80}") {
            fuzz_host(text.as_bytes());
        }
    }
}

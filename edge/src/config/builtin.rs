//! The files of filters and jails that edge brings along, as they lie in `conf/jails`. Knows their names;
//! what they mean is read where every such file is read.

/// `(name, text)` of each file of `conf/jails` that is named here.
macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../conf/jails/", $name, ".toml")))),*]
    };
}

/// The name of each file, without `.toml`, and what it holds.
pub(super) const FILES: &[(&str, &str)] = files![
    "admin-probes",
    "bad-bots",
    "dot-files",
    "handshakes",
    "log4shell",
    "login-failures",
    "malformed",
    "not-found-flood",
    "path-traversal",
    "scanners",
    "shell-injection",
    "sql-injection",
    "too-many-requests",
    "webshells",
    "wordpress",
];

//! The program's own log: one line an event on standard error, level from `--log` or
//! `RUST_LOG`. Access logs and metrics are their rooms' own.

use tracing_subscriber::EnvFilter;

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people and journald.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Installs the log for the whole process, once. `RUST_LOG` beats `level`.
pub fn start(level: &str, format: Format) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let base = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match format {
        Format::Text => base.with_ansi(false).try_init(),
        Format::Json => base.json().flatten_event(true).try_init(),
    };
    debug_assert!(installed.is_ok(), "the log is installed once");
}

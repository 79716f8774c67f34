//! Builds and joins edge's rooms; decides nothing.

pub mod access_log;
pub mod admin;
pub mod admission;
pub mod ban;
pub mod client;
pub mod command;
pub mod config;
pub mod firewall;
pub mod gateway;
pub mod listen;
pub mod log_watch;
pub mod metrics;
pub mod preflight;
pub mod proxy;
pub mod route;
mod serve;
pub mod tls;
pub mod upstream;

pub use preflight::check;
pub use serve::{ServeError, serve};

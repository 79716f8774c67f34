//! What edge and vault both use today, and nothing else. Each room knows one subject;
//! none imports upwards. The programs meet only in [`api`], over HTTP.

pub mod api;
pub mod config;
pub mod enrol;
pub mod local_socket;
pub mod retry;
pub mod shutdown;
pub mod systemd;
pub mod telemetry;
pub mod tls;

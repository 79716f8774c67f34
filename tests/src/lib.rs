//! Starts the programs and their neighbours, for the stories and for `conf/quickstart`.
//! Knows how a program is started, asked, frozen and killed, and how a person would call it
//! (curl). Must not know what is right: it asserts nothing, it reports.
//!
//! Every wait polls until a deadline; nothing here sleeps for a fixed time and hopes.

pub mod activemq;
pub mod artemis;
pub mod binaries;
pub mod bridging;
pub mod broker;
pub mod browser;
pub mod cluster;
pub mod commit_line;
pub mod crowd;
pub mod curl;
pub mod database_server;
pub mod edge_host;
pub mod etcd_cluster;
pub mod extent;
pub mod java_client;
pub mod jvm;
pub mod netns;
pub mod plain;
pub mod ports;
pub mod proftpd;
pub mod program;
pub mod raw;
pub mod receipts;
pub mod sftp_pair;
pub mod sftp_server;
pub mod slow_line;
pub mod small_disk;
pub mod trace;
pub mod upstream;
pub mod vault_host;
pub mod wait;

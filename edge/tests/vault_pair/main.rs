//! The vault pair as its callers meet it: the failing-over client of `shared`, and the gateway
//! over it, against small TLS servers that are killed and misbehave in the middle.
#![expect(clippy::unwrap_used, reason = "a test's helpers may fail as its tests may")]

mod client;
mod gateway;
mod pair;
#[path = "../../../tests/src/ports.rs"]
#[expect(unreachable_pub, reason = "the harness' own file")]
mod ports;
mod tickets;

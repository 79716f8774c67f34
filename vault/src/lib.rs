//! Builds vault's rooms and joins them; decides nothing. The arrows between rooms point
//! one way: corridors (`api`, `command`, `worker`) drive rooms, rooms ignore each other.

pub mod api;
pub mod bridge;
pub mod broker;
pub mod command;
pub mod config;
pub mod delivery;
pub mod marks;
pub mod openwire;
pub mod pair;
pub mod pause;
pub mod pki;
pub mod posting;
pub mod queue;
mod rooms;
pub mod schedule;
pub mod sequence;
mod serve;
pub mod sqlite;
pub mod storage;
pub mod worker;

pub use rooms::RoomsError;
pub use serve::{ServeError, Vault, serve};

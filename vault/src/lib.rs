//! Builds vault's rooms and joins them; decides nothing. The arrows between rooms point
//! down this list only: corridors (`api`, `worker`) drive rooms, rooms ignore each other.

pub mod api;
pub mod config;
pub mod pair;
pub mod pki;
pub mod sequence;
pub mod sqlite;
pub mod storage;
pub mod worker;

//! Corridor 2: log line → offence → ban → firewall. Drives the rooms and decides nothing: what an
//! offence is and who is banned are `ban`'s decisions.

pub mod ban_store;
pub mod tail;

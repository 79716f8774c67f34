//! Bans, leases and positions that survive a restart, in one SQLite file. Must not know their
//! cause.

//! The bridge: messages of one broker, each once, to another. Knows brokers as OpenWire shows them;
//! not who runs them.
//!
//! `core` has the rules, `journal` what survives.

pub mod core;
pub mod journal;

//! The bridge: messages of one broker, each once, to another. Knows brokers as OpenWire shows them;
//! not who runs them.
//!
//! A [`direction`] is one way between two brokers; [`direction::run`] works it until it is told to
//! stop. Its rules are pure ([`core`]), what it must not lose is in its [`journal`].

pub mod core;
pub mod direction;
pub mod journal;

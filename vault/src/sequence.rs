//! Numbers: never twice, never a hole.

pub mod book;
pub mod digest;
pub mod entry;
pub mod journal;
pub mod protocol;

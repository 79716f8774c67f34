//! Corridor 1: HTTP. Knows who calls, what they may, and how an answer or a refusal is
//! worded; leaves numbers, files and certificates to their rooms.

pub mod caller;
pub mod numbers;
pub mod refusal;

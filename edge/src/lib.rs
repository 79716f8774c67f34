//! skeleton
pub mod gateway;

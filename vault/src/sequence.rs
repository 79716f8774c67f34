//! Placeholder of numbers.

//! Placeholder of the failing-over client.

//! Host and path → upstream. Pure: knows names and paths; must not know clients, sockets or
//! what an upstream is beyond its name.
//!
//! The raw host and path of a request pass [`host_of`] and [`checked_path`] first. Both
//! refuse rather than repair: what edge understands must be exactly what the upstream,
//! which is sent the raw text, will understand.

mod host;
mod path;
mod table;

pub use host::{HostFault, HostPattern, fuzz_host, host_of};
pub use path::{MAX_PATH, MAX_SEGMENT, PathFault, checked_path, fuzz_path};
pub use table::{Route, Routes};

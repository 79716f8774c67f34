//! The thread that writes lines to the file. Knows the file and the queue in front of it;
//! must not know what a line says.

use std::path::Path;
use std::sync::Arc;

use super::{AccessLogError, Entry, Format};
use crate::metrics::Metrics;

#[derive(Clone, Debug)]
pub(super) struct Handle;

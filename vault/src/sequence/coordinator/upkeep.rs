//! What the thread does by the clock, whoever asks for nothing: tries a disk that refused. Decides
//! nothing; the core says whether there is something to try.

use std::time::Duration;

use tokio::time::Instant;

use super::Coordinator;
use crate::sequence::protocol::Input;

/// How often a disk that refused is tried again.
const DISK: Duration = Duration::from_secs(10);

impl Coordinator {
    /// Sees whether a disk that refused takes writes again.
    pub(super) fn try_disk(&mut self) {
        if !self.core.cannot_write() {
            self.disk_due = None;
            return;
        }
        let now = Instant::now();
        if *self.disk_due.get_or_insert(now + DISK) <= now {
            self.disk_due = None;
            self.feed(Input::TryAgain);
        }
    }
}

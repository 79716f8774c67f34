//! How the coordinator spends the time between rounds: it waits for those who ask together, looks
//! ahead for the keys of those who wait, and stays awake for the other vault's word. Decides nothing;
//! without it all is the same, slower.

use std::time::Duration;

use tokio::time::Instant;

use super::Coordinator;
use crate::sequence::entry::BATCH;

/// Whoever was in the last round asks again at about the same time: one round for all of them costs
/// what one for the first of them would. So long is waited at a time, while more come, and in all.
const COMPANY: Duration = Duration::from_micros(50);
const COMPANY_TURNS: usize = 4;
/// So long is waited awake; a virtual processor that sleeps takes 50 to 100 µs to wake.
const AWAKE: Duration = Duration::from_micros(200);
/// Keys that are looked for before this thread looks whether it has something else to do.
const LOOKED_AT: usize = 32;

impl Coordinator {
    /// Waits for company as long as that comes: this thread has nothing else to do meanwhile.
    pub(super) fn gather(&mut self) {
        for _ in 0..COMPANY_TURNS {
            let before = self.waiting.len();
            if before == 0 || before >= self.company || !self.core.may_propose() {
                return;
            }
            // A sleep may take much longer than it should; whoever comes can run meanwhile.
            let due = Instant::now() + COMPANY;
            while self.waiting.len() < self.company && Instant::now() < due {
                std::thread::yield_now();
                self.take_more();
            }
            if self.waiting.len() == before {
                return;
            }
        }
    }

    /// Waits awake for the other vault's word about a round that holds everybody who asks: it comes
    /// sooner than a thread that sleeps would wake. Where more wait than one round takes, those who
    /// ask have better use for the processor.
    pub(super) fn await_peer(&mut self) {
        if !self.waiting.is_empty() || self.under_way.is_empty() || self.core.peer().is_none() {
            return;
        }
        let due = Instant::now() + AWAKE;
        while self.queue.is_empty() && Instant::now() < due {
            std::thread::yield_now();
        }
    }

    /// Looks for the keys of what waits, as long as there is nothing else to do: the round then
    /// need not, while nobody works but this thread.
    pub(super) fn look_ahead(&mut self) {
        while self.looked_at < self.waiting.len().min(BATCH) && self.queue.is_empty() {
            let at_once = self.journal.at_once();
            for waiting in self.waiting.iter().skip(self.looked_at).take(LOOKED_AT) {
                // The journal remembers it until it is written; what is wrong shows in the round.
                drop(self.journal.context(&waiting.name, &waiting.wish));
            }
            self.looked_at += LOOKED_AT;
            drop(at_once);
        }
    }
}

//! What the owner of a session enters before callers' wishes: the rows that either vault gave
//! alone, then lives and ranges.

use super::{Core, Link, Output, Stage, Together};
use crate::sequence::entry::{BATCH, Draft, Entry};
use crate::sequence::message::Message;
use crate::sequence::reason::Reason;

impl Core {
    /// The owner's next move until callers' wishes may be entered.
    pub(super) fn settle(&mut self, out: &mut Vec<Output>) {
        let Link::Together(Together { session, leads: true, stage, .. }) = self.link else { return };
        match stage {
            Stage::Own(after) => self.load_solo(after, out),
            Stage::Peer(after) => out.push(Output::Send(Message::FetchSolo { session, after })),
            Stage::Ranges => out.push(Output::Settle),
            Stage::Settled => {}
        }
    }

    pub(super) fn load_solo(&mut self, after: u64, out: &mut Vec<Output>) {
        self.loading_solo = Some(after);
        out.push(Output::LoadSolo(after));
    }

    pub(super) fn solo_loaded(&mut self, after: u64, rows: Vec<Entry>, out: &mut Vec<Output>) {
        if self.loading_solo.take_if(|asked| *asked == after).is_none() {
            return;
        }
        let Link::Together(together) = &mut self.link else { return };
        let session = together.session;
        if !together.leads {
            return out.push(Output::Send(Message::Solo { session, rows }));
        }
        if together.stage != Stage::Own(after) {
            return;
        }
        if rows.is_empty() {
            together.stage = Stage::Peer(0);
            return self.settle(out);
        }
        out.push(Output::Adopt(rows));
    }

    pub(super) fn peers_rows(&mut self, rows: Vec<Entry>, out: &mut Vec<Output>) {
        let Link::Together(together) = &mut self.link else { return };
        let Stage::Peer(after) = together.stage else { return };
        if rows.is_empty() {
            together.stage = Stage::Ranges;
            return self.settle(out);
        }
        let rising = rows.windows(2).all(|pair| pair[0].index < pair[1].index);
        if rows.len() > BATCH || !rising || rows[0].index <= after {
            return self.hang_up(Reason::Forked, out);
        }
        out.push(Output::Adopt(rows));
    }

    pub(super) fn adopt(&mut self, drafts: Vec<Draft>, upto: u64, out: &mut Vec<Output>) {
        let Link::Together(together) = &mut self.link else { return };
        match &mut together.stage {
            Stage::Own(after) | Stage::Peer(after) if upto > *after => *after = upto,
            _ => return self.hang_up(Reason::Forked, out),
        }
        if drafts.is_empty() { self.settle(out) } else { self.propose(drafts, out) }
    }

    /// All that was given alone is in the chain, and ranges are granted.
    pub(super) fn settled(&mut self, out: &mut Vec<Output>) {
        let Link::Together(together) = &mut self.link else { return };
        if together.stage == Stage::Settled || (together.leads && together.stage != Stage::Ranges) {
            return;
        }
        together.stage = Stage::Settled;
        (self.met, self.stood) = (true, true);
        self.settled = self.tail.index;
        if together.leads {
            out.push(Output::Send(Message::Settled { session: together.session }));
        }
    }
}

//! What operators ask of the thread, page by page, and what time does; rows are read and acted on in
//! one turn, so that nothing changes in between.

use super::{Engine, Reply, Request, Waiter, milliseconds};
use crate::queue::core::{Action, QueueState};
use crate::queue::journal::JournalError;
use crate::queue::message::{Destination, Id, Placed};
use crate::queue::{QueueError, QueueStatus};

/// Rows that are looked at by one request or one turn of expiry.
pub(in crate::queue) const ROWS: usize = 500;

/// What operators ask for.
pub(in crate::queue) enum Operate {
    Act(Page, Action, Reply<Acted>),
    /// The same with these of a queue.
    Pick(Destination, Vec<Id>, Action, Reply<Acted>),
    /// Asks for [`crate::queue::core::Core::position`].
    Position(Reply<u64>),
    Browse {
        destination: Destination,
        after: Id,
        most: usize,
        bytes: usize,
        reply: Reply<Vec<Placed>>,
    },
    /// Asks for the size of the first message behind a place.
    Weigh(Destination, Id, Reply<Option<usize>>),
    Remove(Destination, Reply),
    /// Asks for [`crate::queue::core::Core::has`], once all that was sent before is kept or refused.
    Has(Box<str>, u64, Reply<bool>),
    /// Waits until all that anybody has asked before is done, and durable.
    Settle(Reply),
    List(Reply<Vec<QueueStatus>>),
}

impl From<Operate> for Request {
    fn from(operate: Operate) -> Self {
        Self::Operate(operate)
    }
}

/// Which messages an operator means: those of a queue behind a place, sent before a position.
#[derive(Debug, Clone)]
pub(in crate::queue) struct Page {
    pub(in crate::queue) destination: Destination,
    pub(in crate::queue) after: Id,
    pub(in crate::queue) before: u64,
}

/// What was done with a page.
#[derive(Debug, Clone, Copy)]
pub(in crate::queue) struct Acted {
    pub(in crate::queue) count: u64,
    /// The last place looked at; `None` when there was none.
    pub(in crate::queue) last: Option<Id>,
}

impl Engine {
    pub(super) fn operate(&mut self, operate: Operate) {
        match operate {
            Operate::Act(page, action, reply) => self.act(&page, &action, reply),
            Operate::Pick(destination, ids, action, reply) => self.pick(&destination, ids, &action, reply),
            Operate::Position(reply) => drop(reply.send(Ok(self.core.position()))),
            Operate::Browse { destination, after, most, bytes, reply } => {
                let page = self.browse(&destination, after, most, bytes);
                drop(reply.send(page));
            }
            Operate::Weigh(destination, after, reply) => drop(reply.send(self.weigh(&destination, after))),
            Operate::Remove(destination, reply) => {
                // What is owed would keep it in use.
                self.write();
                let token = self.wait(Waiter::Done(reply));
                self.core.remove(token, &destination);
            }
            Operate::Has(producer, number, reply) => {
                self.write();
                drop(reply.send(Ok(self.core.has(&producer, number))));
            }
            Operate::Settle(reply) => {
                let token = self.wait(Waiter::Done(reply));
                self.core.sync(token);
            }
            Operate::List(reply) => drop(reply.send(self.list())),
        }
    }

    /// One page of a sweep, so that others are served in between.
    pub(super) fn expire(&mut self) {
        let Some(after) = self.sweep else { return };
        let now = milliseconds();
        let rows = self.journal.expired(now, after, ROWS).unwrap_or_else(|error| {
            self.unread(&error);
            Vec::new()
        });
        self.core.expire(now, &rows);
        let full = rows.len() == ROWS && (self.core.owed() == 0 || self.write());
        // Those in consumers' hands stay, and are not looked at again.
        self.sweep = rows.last().filter(|_| full).map(|row| (row.expiration, row.id));
    }

    fn number(&self, destination: &Destination) -> Result<u16, QueueError> {
        let number = self.core.find(destination);
        number.ok_or_else(|| QueueError::NoQueue { destination: destination.clone() })
    }

    fn pick(&mut self, destination: &Destination, mut ids: Vec<Id>, action: &Action, reply: Reply<Acted>) {
        let rows = self.number(destination).and_then(|queue| {
            ids.retain(|id| id.level().queue() == queue);
            Ok(self.journal.rows_at(&ids)?)
        });
        match rows {
            Ok(rows) => {
                let token = self.wait(Waiter::Acted(None, reply));
                // What has no row is in memory only, if it is anywhere.
                ids.retain(|id| !rows.iter().any(|row| row.id == *id));
                self.core.act(token, &rows, &ids, action);
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn act(&mut self, page: &Page, action: &Action, reply: Reply<Acted>) {
        let rows = self.number(&page.destination).and_then(|queue| {
            let volatile = self.core.volatile(queue, page.after, ROWS);
            Ok((self.journal.rows_of(queue, page.after, ROWS)?, volatile))
        });
        let (mut rows, volatile) = match rows {
            Ok(rows) => rows,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let mut volatile: Vec<Id> = volatile.into_iter().map(|placed| placed.id).collect();
        // What is behind the end of either page comes with the next one.
        let full = [rows.last().map(|row| row.id), volatile.last().copied()];
        let full = full.into_iter().zip([rows.len(), volatile.len()]).filter(|(_, count)| *count == ROWS);
        if let Some(end) = full.filter_map(|(last, _)| last).min() {
            rows.retain(|row| row.id <= end);
            volatile.retain(|id| *id <= end);
        }
        let last = rows.iter().map(|row| row.id).chain(volatile.iter().copied()).max();
        let meant = |id: &Id| id.sequence() < page.before;
        rows.retain(|row| meant(&row.id));
        volatile.retain(meant);
        let token = self.wait(Waiter::Acted(last, reply));
        self.core.act(token, &rows, &volatile, action);
    }

    fn browse(
        &mut self,
        destination: &Destination,
        after: Id,
        most: usize,
        bytes: usize,
    ) -> Result<Vec<Placed>, QueueError> {
        let queue = self.number(destination)?;
        // What is acknowledged is not seen any more.
        self.write();
        let mut page = self.kept_page(queue, after, most, bytes)?;
        let volatile = self.core.volatile(queue, after, most);
        // What is behind the end of either page comes with the next one. That of rows may end early
        // by its bytes.
        let behind = volatile.last().filter(|_| volatile.len() == most).map(|placed| placed.id);
        let end = [page.last().map(|placed| placed.id), behind].into_iter().flatten().min();
        page.extend(volatile);
        page.retain(|placed| end.is_none_or(|end| placed.id <= end));
        page.sort_by_key(|placed| placed.id);
        Ok(page)
    }

    fn weigh(&mut self, destination: &Destination, after: Id) -> Result<Option<usize>, QueueError> {
        let queue = self.number(destination)?;
        self.write();
        let kept = self.journal.rows_of(queue, after, 1)?.first().map(|row| (row.id, row.size));
        let volatile = self.core.volatile(queue, after, 1);
        let volatile = volatile.first().map(|placed| (placed.id, placed.message.size()));
        Ok(kept.into_iter().chain(volatile).min().map(|(_, size)| size))
    }

    /// None is the end, also where damaged ones are in between.
    fn kept_page(
        &self,
        queue: u16,
        mut after: Id,
        most: usize,
        bytes: usize,
    ) -> Result<Vec<Placed>, JournalError> {
        loop {
            let page = self.journal.browse(queue, after, most, bytes)?;
            match page.damaged.last() {
                Some(last) if page.placed.is_empty() => after = *last,
                _ => return Ok(page.placed),
            }
        }
    }

    fn list(&self) -> Result<Vec<QueueStatus>, QueueError> {
        let status = |state: QueueState| {
            let kept = if state.bytes > 0 { self.journal.oldest(state.number)? } else { None };
            let oldest_at = [kept, state.first_at].into_iter().flatten().min();
            Ok(QueueStatus { state, oldest_at })
        };
        self.core.list().into_iter().map(status).collect()
    }
}

//! Queues that nobody uses any more are forgotten, as ActiveMQ can do it (`gcInactiveDestinations`): so
//! that their number bounds those in use, not those that ever were. Knows no time: who calls says how
//! long a round takes.

use std::collections::BTreeSet;

use super::Core;
use super::line::Line;

impl Core {
    /// Looks at so many queues, and forgets those that are empty, that nobody reads, and that were not
    /// used since they were looked at before. Tells whether that was the last of them.
    pub fn forget_unused(&mut self, most: usize) -> bool {
        let from = self.swept.map_or(0, |swept| swept.saturating_add(1));
        let numbers: Vec<u16> = self.lines.range(from..).map(|(number, _)| *number).take(most).collect();
        self.swept = numbers.last().filter(|_| numbers.len() == most).copied();
        let busy = self.expected();
        for number in numbers {
            if let Some(line) = self.lines.get_mut(&number)
                && is_idle(line, &busy)
                && !std::mem::take(&mut line.used)
            {
                self.forget(number);
            }
        }
        self.swept.is_none()
    }

    /// Forgets one that is not in use now, where there are as many as there may be.
    pub(super) fn make_room(&mut self) -> bool {
        let busy = self.expected();
        let idle = self.lines.iter().find(|(_, line)| is_idle(line, &busy)).map(|(number, _)| *number);
        idle.inspect(|number| self.forget(*number)).is_some()
    }

    pub(super) fn forget(&mut self, number: u16) {
        if let Some(line) = self.lines.remove(&number) {
            self.numbers.remove(&line.destination);
            self.owed.queues.insert(number, None);
        }
    }

    /// Queues that something is on its way to.
    fn expected(&self) -> BTreeSet<u16> {
        let mut busy = self.sent_to();
        for unit in &self.units {
            busy.extend(unit.arrivals.iter().map(|(id, _)| id.level().queue()));
            let moved = unit.removed.iter().filter_map(|(_, _, step)| step.as_ref());
            busy.extend(moved.map(|step| step.to.level().queue()));
        }
        busy
    }
}

fn is_idle(line: &Line, busy: &BTreeSet<u16>) -> bool {
    line.is_empty() && line.readers.len() == 0 && line.is_removable() && !busy.contains(&line.number)
}

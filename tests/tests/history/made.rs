//! Stories made up for the checker's unit tests. Knows how a call looks, and judges nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::check::{Promise, faults};
use crate::history::{Act, Call, Ending, Line, Loss, Outcome, Story};

/// A story in the making: each call begins a second after the last one, and takes half a one.
#[derive(Default)]
pub(crate) struct Made(pub(crate) Story);

pub(crate) fn line(number: u64, key: &str, state: &str) -> Line {
    let hash = (state == "confirmed").then(|| "h".to_owned());
    Line { number, key: key.to_owned(), state: state.to_owned(), hash }
}

pub(crate) fn reserve(series: &str, key: &str) -> Act {
    Act::Reserve { series: series.to_owned(), key: key.to_owned(), ticket: Some("life".to_owned()) }
}

pub(crate) fn confirm(number: u64) -> Act {
    Act::Confirm { series: "INV".to_owned(), number, hash: "h".to_owned() }
}

pub(crate) fn void(number: u64) -> Act {
    Act::Void { series: "INV".to_owned(), number }
}

pub(crate) fn lookup(key: &str) -> Act {
    Act::Lookup { series: "INV".to_owned(), key: key.to_owned() }
}

pub(crate) fn refused(status: u16, code: &str) -> Outcome {
    Outcome::Refused { status, code: code.to_owned() }
}

pub(crate) fn strict() -> Made {
    Made(Story { strict: vec!["INV".to_owned()], ..Story::default() })
}

impl Made {
    pub(crate) fn call(mut self, vault: usize, act: Act, outcome: Outcome) -> Self {
        let invoked = Duration::from_secs(self.0.calls.len() as u64);
        let ended = invoked + Duration::from_millis(500);
        self.0.calls.push(Call { vault, invoked, ended, act, outcome });
        self
    }

    pub(crate) fn gets(self, key: &str, number: u64) -> Self {
        self.call(0, reserve("INV", key), Outcome::Number(line(number, key, "reserved")))
    }

    /// The last call is still under way when the one after it begins.
    pub(crate) fn late(mut self) -> Self {
        self.0.calls.last_mut().unwrap().ended += Duration::from_secs(5);
        self
    }

    pub(crate) fn ends(mut self, lines: &[Line]) -> Self {
        let upto = lines.iter().map(|line| line.number).max().unwrap_or(0);
        let listed = [lines.to_vec(), lines.to_vec()];
        self.0.ending.insert("INV".to_owned(), Ending { listed, upto, ..Ending::default() });
        self
    }

    pub(crate) fn loses(mut self, vault: usize, since: u64, at: u64) -> Self {
        let [since, at] = [since, at].map(Duration::from_secs);
        self.0.losses.push(Loss { vault, since, at });
        self
    }

    pub(crate) fn broken(&self) -> BTreeSet<Promise> {
        faults(&self.0).into_iter().map(|fault| fault.promise).collect()
    }

    pub(crate) fn breaks(&self, promise: Promise) {
        assert_eq!(self.broken(), BTreeSet::from([promise]), "{:?}", faults(&self.0));
    }

    pub(crate) fn is_well(&self) {
        assert_eq!(faults(&self.0), []);
    }
}

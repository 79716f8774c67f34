//! `[[schedule]]` and `[[delivery]]` → ready settings of the worker. Knows their keys and defaults;
//! connects to nobody.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use shared::config::Section;

use crate::delivery::course::Policy;
use crate::delivery::handler::{Address, Deadlines};
use crate::delivery::{self, Endpoint};
use crate::queue::message::{DEAD_LETTERS, Destination};
use crate::schedule::Job;
use crate::schedule::plan::{self, Plan};
use crate::schedule::turn::{Passed, Rules};

/// Messages under way at once at one target; each holds its body in memory.
const MOST_UNDER_WAY: usize = 256;
const MOST_TRIES: u32 = 1000;
/// So begin the names of the vault's own jobs.
const OWN: [&str; 2] = ["storage.", "pair."];
/// A handler that needs longer should answer 202 and work on.
const LONGEST_ANSWER: Duration = Duration::from_secs(600);

/// One `[[schedule]]`.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// When.
    pub job: Job,
    /// What.
    pub kind: Kind,
}

/// What a run does.
#[derive(Debug, Clone)]
pub enum Kind {
    /// Puts a text message into a queue of the embedded broker.
    Message {
        /// The queue.
        queue: String,
        /// The text.
        text: String,
    },
    /// POSTs to a handler.
    Http(Call),
}

/// A call of a handler.
#[derive(Debug, Clone)]
pub struct Call {
    /// Whom.
    pub endpoint: Endpoint,
    /// With this body.
    pub body: String,
    /// Its type.
    pub content_type: String,
    /// How often it is tried in one run.
    pub policy: Policy,
}

/// What jobs and targets are called so far, and as what: commands name either.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<String, &'static str>);

impl Names {
    /// Reads a section's own.
    fn read(&mut self, section: &mut Section<'_>, kind: &'static str) -> Option<String> {
        let name = super::name(section, "name")?;
        match self.0.entry(name.clone()) {
            Entry::Occupied(other) => {
                let other = other.get();
                section.fault("name", format!("a [[{other}]] has the name {name:?} too; each needs its own"));
            }
            Entry::Vacant(free) => {
                free.insert(kind);
            }
        }
        Some(name)
    }
}

/// Every `[[delivery]]`.
pub(super) fn deliveries(root: &mut Section<'_>, names: &mut Names) -> Option<Vec<delivery::Settings>> {
    let sections = root.sections("delivery");
    let all: Vec<_> = sections.into_iter().map(|section| delivery(section, names)).collect();
    all.into_iter().collect()
}

/// Every `[[schedule]]`; `now` only tells whether one is ever due.
pub(super) fn schedules(root: &mut Section<'_>, names: &mut Names, now: SystemTime) -> Option<Vec<Schedule>> {
    let now = Timestamp::try_from(now).unwrap_or_default();
    let sections = root.sections("schedule");
    let all: Vec<_> = sections.into_iter().map(|section| schedule(section, names, now)).collect();
    all.into_iter().collect()
}

fn delivery(mut section: Section<'_>, names: &mut Names) -> Option<delivery::Settings> {
    let name = names.read(&mut section, "delivery");
    if name.as_ref().is_some_and(|name| OWN.iter().any(|own| name.starts_with(own))) {
        section.fault("name", "so begin the names of the vault's own jobs; take another");
    }
    let queue = queue(&mut section);
    if queue.as_deref() == Some(DEAD_LETTERS) {
        section.fault(
            "queue",
            "what is given up there is gone for good; watch vault_delivery_dead_letters_total instead",
        );
    }
    let endpoint = endpoint(&mut section);
    let policy = policy(&mut section, 30, Duration::from_secs(600));
    let concurrency = section.or("concurrency", 4_usize);
    if !(1..=MOST_UNDER_WAY).contains(&concurrency) {
        section
            .fault("concurrency", format!("write how many may be under way at once, 1 to {MOST_UNDER_WAY}"));
    }
    let rate = section.or("rate", 100_u32);
    let per_second = NonZeroU32::new(rate);
    if per_second.is_none() {
        section.fault("rate", "0 sends nothing; write requests a second, or pause the target by command");
    }
    Some(delivery::Settings {
        name: name?,
        queue: queue?,
        endpoint: endpoint?,
        policy,
        concurrency,
        per_second: per_second?,
    })
}

fn schedule(mut section: Section<'_>, names: &mut Names, now: Timestamp) -> Option<Schedule> {
    let name = names.read(&mut section, "schedule");
    if name.as_ref().is_some_and(|name| name.contains('.')) {
        section.fault("name", "has a full stop, which ids of events must not have; use dashes");
    }
    let cron: Option<String> = section.required("cron");
    let mut zone = section.or("time_zone", "UTC".to_owned());
    if let Err(error) = plan::zone(&zone) {
        section.fault("time_zone", error.to_string());
        // What is wrong with the expression is told as well.
        zone = "UTC".to_owned();
    }
    let plan = cron.and_then(|cron| {
        let plan = Plan::parse(&cron, &zone, now);
        plan.map_err(|error| section.fault("cron", error.to_string())).ok()
    });
    let rules = Rules {
        missed: passed(&mut section, "missed", Passed::RunOnce),
        overlap: passed(&mut section, "overlap", Passed::Skip),
    };
    let time_limit = section.or("time_limit", Duration::from_secs(3600));
    if time_limit < Duration::from_secs(1) {
        section.fault("time_limit", "must be at least \"1s\"");
    }
    let kind: Option<String> = section.required("kind");
    let kind = match kind.as_deref() {
        Some("message") => {
            let (queue, text) = (queue(&mut section), section.or("text", String::new()));
            queue.map(|queue| Kind::Message { queue, text })
        }
        Some("http") => call(&mut section).map(Kind::Http),
        other => {
            if let Some(other) = other {
                section.fault("kind", format!("{other:?} is no kind of job; write \"message\" or \"http\""));
            }
            // Which other keys belong here depends on it.
            section.leave_rest();
            None
        }
    };
    Some(Schedule { job: Job { name: name?, plan: plan?, rules, time_limit }, kind: kind? })
}

fn call(section: &mut Section<'_>) -> Option<Call> {
    let endpoint = endpoint(section);
    let body = section.or("body", String::new());
    let content_type = section.or("content_type", "text/plain; charset=utf-8".to_owned());
    let policy = policy(section, 5, Duration::from_secs(60));
    Some(Call { endpoint: endpoint?, body, content_type, policy })
}

fn queue(section: &mut Section<'_>) -> Option<String> {
    let queue: String = section.required("queue")?;
    match Destination::queue(&queue) {
        Ok(_) => Some(queue),
        Err(error) => {
            section.fault("queue", error.to_string());
            None
        }
    }
}

fn endpoint(section: &mut Section<'_>) -> Option<Endpoint> {
    let url: Option<String> = section.required("url");
    if let Some(Err(error)) = url.as_deref().map(Address::parse) {
        section.fault("url", error.to_string());
    }
    let deadlines = Deadlines {
        connect: section.or("connect_timeout", Duration::from_secs(5)),
        answer: section.or("answer_timeout", Duration::from_secs(30)),
    };
    for (key, limit) in [("connect_timeout", deadlines.connect), ("answer_timeout", deadlines.answer)] {
        if limit.is_zero() || limit > LONGEST_ANSWER {
            section.fault(key, "must be longer than 0 and at most \"10m\"");
        }
    }
    let authority_file = section.optional("authority_file");
    let secret_file = section.optional("secret_file");
    Some(Endpoint { url: url?, authority_file, secret_file, deadlines })
}

fn policy(section: &mut Section<'_>, tries: u32, longest_wait: Duration) -> Policy {
    let policy = Policy {
        tries: section.or("tries", tries),
        first_wait: section.or("first_wait", Duration::from_secs(1)),
        longest_wait: section.or("longest_wait", longest_wait),
    };
    if !(1..=MOST_TRIES).contains(&policy.tries) {
        section.fault("tries", format!("write how often it is tried in all, 1 to {MOST_TRIES}"));
    }
    if policy.first_wait < Duration::from_millis(10) {
        section.fault("first_wait", "must be at least \"10ms\", or an ailing handler is flooded");
    }
    if policy.longest_wait < policy.first_wait {
        section.fault("longest_wait", "must not be shorter than first_wait");
    }
    policy
}

fn passed(section: &mut Section<'_>, key: &'static str, default: Passed) -> Passed {
    match section.optional::<String>(key).as_deref() {
        None => default,
        Some("run-once") => Passed::RunOnce,
        Some("skip") => Passed::Skip,
        Some(other) => {
            section.fault(key, format!("{other:?} is no rule; write \"run-once\" or \"skip\""));
            default
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    /// The shipped file with its own worker sections uncommented, and `more` behind them.
    fn read(more: &str) -> Result<Config, shared::config::Faults> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vault.toml");
        let sample = include_str!("../../../conf/vault.toml");
        let (before, worker) = sample.split_once("#[[schedule]]").unwrap();
        let (worker, _bridges) = worker.split_once("#[[remote_broker]]").unwrap();
        let worker = worker.replace("\n#", "\n").replace("content_type =", "# content_type =");
        let keys =
            |line: &&str| line.starts_with("[[") || line.contains(" = ") && !line.starts_with([' ', '#']);
        let worker: Vec<_> = worker.lines().filter(keys).filter(|line| !line.starts_with("body")).collect();
        let before = before.replace("escrow_recipient = \"\"", "escrow_recipient = \"age1\"");
        std::fs::write(&file, format!("{before}\n[[schedule]]\n{}\n{more}", worker.join("\n"))).unwrap();
        Config::read(&file)
    }

    #[test]
    fn the_shipped_examples_are_the_defaults() {
        let config = read("").unwrap_or_else(|faults| panic!("{faults}"));
        let [schedule] = config.schedules.as_slice() else { panic!("{:?}", config.schedules) };
        assert_eq!(schedule.job.rules, Rules { missed: Passed::RunOnce, overlap: Passed::Skip });
        assert!(matches!(&schedule.kind, Kind::Message { queue, .. } if queue == "reports.start"));
        let more = "[[delivery]]\nname = \"bare\"\nqueue = \"orders.events\"\nurl = \"https://shop.example/hooks/orders\"\n";
        let config = read(more).unwrap_or_else(|faults| panic!("{faults}"));
        let [shipped, bare] = config.deliveries.as_slice() else { panic!("{:?}", config.deliveries) };
        assert_eq!(
            (shipped.policy, shipped.concurrency, shipped.per_second, shipped.endpoint.deadlines),
            (bare.policy, bare.concurrency, bare.per_second, bare.endpoint.deadlines)
        );
    }

    #[test]
    fn every_fault_of_the_workers_sections_is_told_at_once() {
        let more = "[[schedule]]\nname = \"a.b\"\ncron = \"never\"\nkind = \"http\"\nurl = \"shop\"\nmissed = \"twice\"\n\
            [[schedule]]\nname = \"c\"\ncron = \"* * * * *\"\nkind = \"mail\"\ntime_zone = \"Mars\"\n\
            [[delivery]]\nname = \"shop\"\nqueue = \"a.>\"\nurl = \"https://me:secret@shop/\"\ntries = 0\nrate = 0\n\
            concurrency = 1000\nfirst_wait = \"1h\"\nanswer_timeout = \"0s\"\n";
        let told = read(more).unwrap_err().to_string();
        for words in [
            "name: has a full stop",
            "\"never\" is no cron expression",
            "\"shop\" is no URL of a handler",
            "\"twice\" is no rule",
            "\"mail\" is no kind of job",
            "\"Mars\" is no time zone",
            "patterns and lists of queues are not served",
            "the URL holds a user name",
            "tries: write how often",
            "rate: 0 sends nothing",
            "concurrency: write how many",
            "longest_wait: must not be shorter",
            "answer_timeout: must be longer",
        ] {
            assert!(told.contains(words), "{words}: {told}");
        }
        assert!(!told.contains("secret@") && !told.contains("unknown"), "{told}");
        let told = read("[[delivery]]\nname = \"storage.scrub\"\nqueue = \"q\"\nurl = \"http://h/\"\n");
        assert!(told.unwrap_err().to_string().contains("the vault's own jobs"));
        let told = read("[[delivery]]\nname = \"dead\"\nqueue = \"ActiveMQ.DLQ\"\nurl = \"http://h/\"\n");
        assert!(told.unwrap_err().to_string().contains("given up there is gone for good"));
        let told = read("[[delivery]]\nname = \"nightly-report\"\nqueue = \"q\"\nurl = \"http://h/\"\n");
        assert!(told.unwrap_err().to_string().contains("a [[schedule]] has the name"));
        let twice = read(
            "[[schedule]]\nname = \"nightly-report\"\ncron = \"@daily\"\nkind = \"message\"\nqueue = \"q\"\n",
        );
        let told = twice.unwrap_err().to_string();
        assert!(told.contains("a [[schedule]] has the name \"nightly-report\" too"), "{told}");
    }

    #[test]
    fn a_fault_hides_neither_a_name_that_is_there_twice_nor_a_time_zone_that_is_none() {
        let more = "[[schedule]]\nname = \"a\"\ncron = \"never\"\ntime_zone = \"Mars\"\nkind = \"message\"\nqueue = \"q\"\n\
            [[schedule]]\nname = \"a\"\ncron = \"@daily\"\nkind = \"message\"\nqueue = \"q\"\n\
            [[delivery]]\nname = \"a\"\nqueue = \"q\"\nurl = \"none\"\n\
            [[delivery]]\nname = \"b\"\nqueue = \"q\"\nurl = \"http://h/\"\n\
            [[delivery]]\nname = \"b\"\nqueue = \"q\"\nurl = \"http://h/\"\n";
        let faults = read(more).unwrap_err();
        let told = faults.to_string();
        let twice = faults.0.iter().filter(|fault| fault.what.contains("has the name")).count();
        assert_eq!((faults.0.len(), twice), (6, 3), "{told}");
        assert!(told.contains("time_zone: \"Mars\" is no time zone"), "{told}");
        assert!(told.contains("a [[delivery]] has the name \"b\" too"), "{told}");
    }
}

//! What both vaults' files must say alike: the broker, and every bridge, job and delivery by its name. Each key of
//! theirs has a digest, which the vaults tell each other. What may differ from vault to vault is left out: ports, paths,
//! limits, and by which URL a handler is reached. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Config;
use super::worker::{Kind, Schedule};
use crate::bridge::{Place, Plan};
use crate::delivery;
use crate::schedule::turn::Passed;

/// So many differences are told one by one.
const MOST_TOLD: usize = 5;

/// Digests by what they are of, as it stands in the file: `[broker]`, `[[bridge]] NAME`, and in each by its key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alike(BTreeMap<String, BTreeMap<String, String>>);

impl Config {
    /// What the other vault's file must say too.
    #[must_use]
    pub fn alike(&self) -> Alike {
        let mut alike = Alike::default();
        if let Some(broker) = &self.broker {
            let most = broker.max_message.to_string();
            alike.put("[broker]".to_owned(), &[("max_message", &most)]);
        }
        self.bridge.iter().for_each(|plan| alike.put_bridge(plan));
        self.schedules.iter().for_each(|schedule| alike.put_schedule(schedule));
        self.deliveries.iter().for_each(|target| alike.put_delivery(target));
        alike
    }
}

impl Alike {
    /// How the other vault's differ from these, in a sentence; `None` where they do not.
    #[must_use]
    pub fn differs(&self, theirs: &Self, peer: &str) -> Option<String> {
        let own = self.0.iter().filter_map(|(part, keys)| match theirs.0.get(part) {
            None => Some(format!("{part} is not in {peer}'s")),
            Some(their) => {
                (their != keys).then(|| format!("{part}: {} another in {peer}'s", others(keys, their)))
            }
        });
        let more = theirs.0.keys().filter(|part| !self.0.contains_key(*part));
        let all: Vec<String> = own.chain(more.map(|part| format!("{part} is in {peer}'s alone"))).collect();
        let told = all.get(..MOST_TOLD).unwrap_or(&all).join(", ");
        let rest = match all.len().saturating_sub(MOST_TOLD) {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        (!all.is_empty()).then(|| {
            format!(
                "the two vaults' files differ: {told}{rest}; write both alike, and restart what was changed"
            )
        })
    }

    fn put(&mut self, part: String, says: &[(&str, &str)]) {
        let digest =
            |text: &str| Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let keys = says.iter().map(|(key, text)| ((*key).to_owned(), digest(text)));
        self.0.insert(part, keys.collect());
    }

    fn put_bridge(&mut self, plan: &Plan) {
        let Plan { name, from, to, destination, preferred, .. } = plan;
        let preferred = preferred.as_deref().unwrap_or_default();
        let destination = destination.to_string();
        let says = [
            ("from", &*from.name),
            ("to", &to.name),
            ("destination", &destination),
            ("preferred", preferred),
        ];
        self.put(format!("[[bridge]] {name}"), &says);
        self.put_place(from);
        self.put_place(to);
    }

    /// The brokers of a URI; in which order they are tried is each vault's matter.
    fn put_place(&mut self, place: &Place) {
        let mut brokers: Vec<String> = place.uri.brokers.iter().map(ToString::to_string).collect();
        brokers.sort_unstable();
        let user = place.user.as_deref().unwrap_or_default();
        self.put(format!("[[remote_broker]] {}", place.name), &[("uri", &brokers.join(" ")), ("user", user)]);
    }

    fn put_schedule(&mut self, schedule: &Schedule) {
        let job = &schedule.job;
        let rule = |passed: Passed| if passed == Passed::Skip { "skip" } else { "run-once" };
        let mut says = vec![
            ("its time", job.plan.text()),
            ("missed", rule(job.rules.missed)),
            ("overlap", rule(job.rules.overlap)),
        ];
        match &schedule.kind {
            Kind::Message { queue, text } => {
                says.extend([("kind", "message"), ("queue", queue), ("text", text)])
            }
            Kind::Http(call) => {
                says.extend([("kind", "http"), ("body", &call.body), ("content_type", &call.content_type)]);
            }
        }
        self.put(format!("[[schedule]] {}", job.name), &says);
    }

    fn put_delivery(&mut self, target: &delivery::Settings) {
        self.put(format!("[[delivery]] {}", target.name), &[("queue", &target.queue)]);
    }
}

/// Which keys differ, with the verb.
fn others(own: &BTreeMap<String, String>, their: &BTreeMap<String, String>) -> String {
    let all: BTreeSet<&String> = own.keys().chain(their.keys()).collect();
    let others: Vec<&str> =
        all.into_iter().filter(|key| own.get(*key) != their.get(*key)).map(|key| &**key).collect();
    format!("{} {}", others.join(", "), if others.len() == 1 { "is" } else { "are" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vault.toml");
        let sample = include_str!("../../../conf/vault.toml");
        let sample = sample.replace("escrow_recipient = \"\"", "escrow_recipient = \"age1\"");
        std::fs::write(&file, format!("{sample}\n{more}")).unwrap();
        Config::read(&file).unwrap_or_else(|faults| panic!("{faults}"))
    }

    const ALL: &str = "[broker]\nanonymous = true\n\
        [[remote_broker]]\nname = \"a\"\nuri = \"failover:(tcp://a:1,tcp://b:1)\"\n\
        [[remote_broker]]\nname = \"b\"\nuri = \"tcp://c:1\"\n\
        [[bridge]]\nname = \"there\"\nfrom = \"a\"\nto = \"b\"\ndestination = \"orders.>\"\n\
        [[schedule]]\nname = \"nightly\"\ncron = \"@daily\"\nkind = \"message\"\nqueue = \"q\"\n\
        [[delivery]]\nname = \"shop\"\nqueue = \"orders\"\nurl = \"http://here/\"\n";

    #[test]
    fn what_may_differ_from_vault_to_vault_does_not_count() {
        let other = ALL
            .replace("(tcp://a:1,tcp://b:1)", "(tcp://b:1,tcp://a:1)")
            .replace("http://here/", "http://there/")
            .replace("anonymous = true", "anonymous = true\nlisten = \"127.0.0.1:7\"\nmemory = \"1GiB\"");
        assert_ne!(ALL, other);
        assert_eq!(read(ALL).alike().differs(&read(&other).alike(), "vault-b"), None);
    }

    #[test]
    fn each_part_that_is_missing_or_another_is_told_with_its_name() {
        let own = read(ALL).alike();
        let nothing = own.differs(&read("").alike(), "vault-b").unwrap();
        assert!(nothing.contains("[[bridge]] there is not in vault-b's"), "{nothing}");
        assert!(
            nothing.contains("[[schedule]] nightly is not in") && nothing.contains(", and 1 more;"),
            "{nothing}"
        );
        let alone = read("").alike().differs(&own, "vault-b").unwrap();
        assert!(alone.contains("[[delivery]] shop is in vault-b's alone"), "{alone}");
        for (from, to, part) in [
            ("tcp://c:1", "tcp://c:2", "[[remote_broker]] b: uri is"),
            ("orders.>", "orders.*", "[[bridge]] there: destination is"),
            ("to = \"b\"", "to = \"b\"\npreferred = \"vault-b\"", "[[bridge]] there: preferred is"),
            ("@daily", "@hourly", "[[schedule]] nightly: its time is"),
            ("@daily\"", "@daily\"\ntime_zone = \"Europe/Paris\"", "[[schedule]] nightly: its time is"),
            ("queue = \"orders\"", "queue = \"sales\"", "[[delivery]] shop: queue is"),
            ("anonymous = true", "anonymous = true\nmax_message = \"1MiB\"", "[broker]: max_message is"),
            ("queue = \"q\"", "queue = \"r\"\ntext = \"x\"", "[[schedule]] nightly: queue, text are"),
        ] {
            let told = own.differs(&read(&ALL.replace(from, to)).alike(), "vault-b").unwrap();
            let told = told.strip_prefix("the two vaults' files differ: ").unwrap();
            assert!(told.starts_with(&format!("{part} another in vault-b's; ")), "{to}: {told}");
        }
    }

    #[test]
    fn it_goes_over_the_link_as_json() {
        let own = read(ALL).alike();
        let told = serde_json::to_value(&own).unwrap();
        assert_eq!(serde_json::from_value::<Alike>(told).unwrap(), own);
        assert!(
            serde_json::from_value::<Alike>(serde_json::Value::Null).is_err(),
            "an older release says nothing"
        );
    }
}

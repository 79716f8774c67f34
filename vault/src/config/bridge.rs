//! `[[remote_broker]]` and `[[bridge]]` of `vault.toml` → what the bridge is to carry. Knows the keys and
//! their defaults; opens nothing.

use std::collections::BTreeMap;

use shared::config::{ByteSize, Section};
use shared::tls::is_name;

use crate::bridge::pattern::{meet, names_own_queues};
use crate::bridge::{Place, Plan};
use crate::openwire::uri::Uri;
use crate::openwire::{Destination, DestinationKind, Text};

/// A smaller journal would hold the bridge up at every turn.
const SMALLEST_JOURNAL: ByteSize = ByteSize::mib(64);

/// Every `[[bridge]]`, with the brokers that it names.
///
/// `vaults`: this one's name and the other's, if they are known.
pub(super) fn plans(root: &mut Section<'_>, vaults: [Option<&str>; 2]) -> Vec<Plan> {
    let mut brokers = BTreeMap::new();
    for mut section in root.sections("remote_broker") {
        let name = name(&mut section);
        let place = place(&mut section, name.as_deref().unwrap_or_default());
        let Some(name) = name else { continue };
        if brokers.insert(name.clone(), place).is_some() {
            section.fault("name", format!("there is another broker {name:?}; give each its own name"));
        }
    }
    let mut plans: Vec<Plan> = Vec::new();
    for mut section in root.sections("bridge") {
        if let Some(plan) = plan(&mut section, &brokers, vaults) {
            for other in &plans {
                compare(&mut section, other, &plan);
            }
            plans.push(plan);
        }
    }
    plans
}

/// Two bridges must not have one name, and not carry the same messages.
fn compare(section: &mut Section<'_>, other: &Plan, plan: &Plan) {
    if other.name == plan.name {
        section.fault("name", format!("there is another bridge {:?}; give each its own name", plan.name));
    }
    // A topic's messages go to each of several targets.
    let is_shared = plan.destination.kind == DestinationKind::Queue || plan.to.name == other.to.name;
    if plan.from.name == other.from.name && is_shared && meet(&plan.destination, &other.destination) {
        let why = format!(
            "bridge {:?} takes {} from {:?} too, and what both name would go by chance with either, or twice; \
             name what is for one alone",
            other.name, other.destination, plan.from.name
        );
        section.fault("destination", why);
    }
}

fn name(section: &mut Section<'_>) -> Option<String> {
    let name: String = section.required("name")?;
    if !is_name(&name) {
        let why = format!("{name:?} is no name; use 1 to 64 letters, digits, dots, dashes, underscores");
        section.fault("name", why);
        return None;
    }
    Some(name)
}

fn place(section: &mut Section<'_>, name: &str) -> Option<Place> {
    let uri: Option<String> = section.required("uri");
    let uri: Option<Uri> = uri.and_then(|text| text.parse().map_err(|why| section.fault("uri", why)).ok());
    let certificate = section.optional("certificate_file");
    let key = section.optional("key_file");
    if certificate.is_some() != key.is_some() {
        section.fault("key_file", "certificate_file and key_file belong together; write both or none");
    }
    let (user, password_file) = (section.optional("user"), section.optional("password_file"));
    if user.is_some() != password_file.is_some() {
        section.fault("password_file", "user and password_file belong together; write both or none");
    }
    let authority_file = section.optional("authority_file");
    let uses_tls = uri.as_ref().is_some_and(|uri| uri.brokers.iter().any(|broker| broker.tls));
    if uses_tls && authority_file.is_none() {
        section
            .fault("authority_file", "ssl needs to know who signs the broker's certificate; name the file");
    }
    let certificate = certificate.zip(key);
    Some(Place { name: name.to_owned(), user, password_file, authority_file, certificate, uri: uri? })
}

/// `brokers`: by name; none where a broker's own section is at fault.
fn plan(
    section: &mut Section<'_>,
    brokers: &BTreeMap<String, Option<Place>>,
    vaults: [Option<&str>; 2],
) -> Option<Plan> {
    let own = name(section);
    let ends: [Option<String>; 2] = [section.required("from"), section.required("to")];
    for (key, end) in ["from", "to"].into_iter().zip(&ends) {
        if let Some(end) = end.as_ref().filter(|end| !brokers.contains_key(*end)) {
            section.fault(key, format!("there is no broker {end:?}; name one of [[remote_broker]]"));
        }
    }
    if ends[0].is_some() && ends[0] == ends[1] {
        section.fault("to", "is where the messages come from; name another [[remote_broker]]");
    }
    let destination = destination(section);
    let prefetch = section.or("prefetch", 1000);
    if prefetch == 0 {
        section.fault("prefetch", "0 lets nothing come; write how many messages may be under way");
    }
    let journal = section.or("journal_size", ByteSize::gib(10));
    if journal.0 < SMALLEST_JOURNAL.0 {
        section.fault("journal_size", "must be at least \"64MiB\"");
    }
    let preferred: Option<String> = section.optional("preferred");
    let is_vault = |name: &String| vaults.iter().any(|it| it.is_none_or(|it| it == name));
    if let Some(name) = preferred.as_ref().filter(|name| !is_vault(name)) {
        section.fault("preferred", format!("{name:?} is neither of the two vaults; name one of them"));
    }
    let [from, to] = ends.map(|end| brokers.get(&end?).cloned().flatten());
    Some(Plan {
        name: own?,
        from: from?,
        to: to?,
        destination: destination?,
        prefetch,
        journal_bytes: journal.0,
        preferred,
    })
}

fn destination(section: &mut Section<'_>) -> Option<Destination> {
    let text: String = section.required("destination")?;
    let destination = match text.strip_prefix("topic://") {
        Some(topic) => Destination::topic(Text::shortened(topic)),
        None => Destination::queue(Text::shortened(text.strip_prefix("queue://").unwrap_or(&text))),
    };
    if names_own_queues(&destination) {
        let why = format!(
            "{destination} also names the bridge's own queues, vault.bridge.>; name a prefix, as orders.>"
        );
        section.fault("destination", why);
    }
    Some(destination)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use shared::config::read_text;

    use super::*;

    fn read(text: &str) -> Result<Vec<Plan>, String> {
        let vaults = [Some("vault-a"), Some("vault-b")];
        read_text(Path::new("vault.toml"), text, |root| Some(plans(root, vaults)))
            .map_err(|faults| faults.to_string())
    }

    const BROKERS: &str = "[[remote_broker]]\nname = \"a\"\nuri = \"failover:(tcp://a:61616)\"\nuser = \"erp\"\npassword_file = \"erp.password\"\n\
        [[remote_broker]]\nname = \"b\"\nuri = \"ssl://b:61617\"\nauthority_file = \"b.crt\"\n";

    #[test]
    fn a_bridge_carries_what_it_names_between_brokers_that_are_there() {
        let bridge = "[[bridge]]\nname = \"there\"\nfrom = \"a\"\nto = \"b\"\ndestination = \"topic://prices\"\npreferred = \"vault-b\"\n";
        let plans = read(&format!("{BROKERS}{bridge}")).unwrap();
        let plan = &plans[0];
        assert_eq!((plans.len(), plan.prefetch, plan.journal_bytes), (1, 1000, 10 << 30));
        assert_eq!(plan.destination.to_string(), "topic://prices");
        assert_eq!((plan.preferred.as_deref(), plan.from.name.as_str()), (Some("vault-b"), "a"));
        assert_eq!((plan.from.user.as_deref(), plan.to.uri.brokers[0].port), (Some("erp"), 61617));
        assert_eq!(read("").unwrap().len(), 0);
    }

    #[test]
    fn what_cannot_be_is_told_with_its_place() {
        let bridge = "[[bridge]]\nname = \"x\"\nfrom = \"c\"\nto = \"b\"\ndestination = \"orders.>\"\njournal_size = \"1MiB\"\n\
            [[bridge]]\nname = \"y\"\nfrom = \"a\"\nto = \"b\"\ndestination = \"x\"\npreferred = \"c\"\n";
        let faults = read(&format!("{BROKERS}{bridge}")).unwrap_err();
        assert!(faults.contains("there is no broker \"c\""), "{faults}");
        assert!(faults.contains("must be at least \"64MiB\""), "{faults}");
        assert!(faults.contains("\"c\" is neither of the two vaults"), "{faults}");
        let faults = read("[[remote_broker]]\nname = \"a\"\nuri = \"tcp://a:1?cache=1\"\nkey_file = \"x\"\n")
            .unwrap_err();
        assert!(faults.contains("\"cache\" is no option here"), "{faults}");
        assert!(faults.contains("belong together"), "{faults}");
    }

    #[test]
    fn faults_are_told_all_at_once_and_none_follows_from_another() {
        let bridge = |name: &str, from: &str, to: &str, what: &str| {
            format!(
                "[[bridge]]\nname = \"{name}\"\nfrom = \"{from}\"\nto = \"{to}\"\ndestination = \"{what}\"\n"
            )
        };
        let brokers = "[[remote_broker]]\nname = \"a\"\nuri = \"tcp:/\"\nuser = \"erp\"\n\
            [[remote_broker]]\nname = \"b\"\nuri = \"ssl://b:61617\"\n";
        let text = format!("{brokers}{}preferred = \"vault-a\"\n", bridge("x", "a", "b", ">"));
        let faults = read(&text).unwrap_err();
        for told in ["uri", "password_file", "authority_file", "destination"] {
            assert!(faults.contains(told), "{told}: {faults}");
        }
        assert!(!faults.contains("there is no broker") && !faults.contains("unknown key"), "{faults}");
        let (own, round) = (bridge("x", "a", "a", "vault.>"), bridge("y", "a", "b", "a.>"));
        let faults = read(&format!("{BROKERS}{own}{round}{}", bridge("z", "a", "b", "a.b"))).unwrap_err();
        for told in ["the bridge's own queues", "is where the messages come from", "bridge \"y\" takes"] {
            assert!(faults.contains(told), "{told}: {faults}");
        }
        let topics = [bridge("y", "a", "b", "topic://a"), bridge("z", "b", "a", "topic://a")].concat();
        assert_eq!(read(&format!("{BROKERS}{topics}")).unwrap().len(), 2);
    }
}

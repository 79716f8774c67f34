//! `[[remote_broker]]` and `[[bridge]]` of `vault.toml` → what the bridge is to carry. Knows the keys and
//! their defaults; opens nothing.

use std::collections::BTreeMap;

use shared::config::{ByteSize, Section};
use shared::tls::is_name;

use crate::bridge::{Place, Plan};
use crate::openwire::{Destination, Text};

/// A smaller journal would hold the bridge up at every turn.
const SMALLEST_JOURNAL: ByteSize = ByteSize::mib(64);

/// Every `[[bridge]]`, with the brokers that it names.
///
/// `vaults`: this one's name and the other's, if they are known.
pub(super) fn plans(root: &mut Section<'_>, vaults: [Option<&str>; 2]) -> Vec<Plan> {
    let mut brokers = BTreeMap::new();
    for mut section in root.sections("remote_broker") {
        let Some(name) = name(&mut section) else { continue };
        let Some(place) = place(&mut section, &name) else { continue };
        if brokers.insert(name.clone(), place).is_some() {
            section.fault("name", format!("there is another broker {name:?}; give each its own name"));
        }
    }
    let mut plans: Vec<Plan> = Vec::new();
    for mut section in root.sections("bridge") {
        if let Some(plan) = plan(&mut section, &brokers) {
            if plans.iter().any(|other| other.name == plan.name) {
                let why = format!("there is another bridge {:?}; give each its own name", plan.name);
                section.fault("name", why);
            }
            let is_vault = |name: &String| vaults.iter().any(|it| it.is_none_or(|it| it == name));
            if let Some(name) = plan.preferred.as_ref().filter(|name| !is_vault(name)) {
                section
                    .fault("preferred", format!("{name:?} is neither of the two vaults; name one of them"));
            }
            plans.push(plan);
        }
    }
    plans
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
    let uri = uri.and_then(|text| text.parse().map_err(|why| section.fault("uri", why)).ok());
    let certificate = section.optional("certificate_file");
    let key = section.optional("key_file");
    if certificate.is_some() != key.is_some() {
        section.fault("key_file", "certificate_file and key_file belong together; write both or none");
    }
    Some(Place {
        name: name.to_owned(),
        user: section.optional("user"),
        password_file: section.optional("password_file"),
        authority_file: section.optional("authority_file"),
        certificate: certificate.zip(key),
        uri: uri?,
    })
}

fn plan(section: &mut Section<'_>, brokers: &BTreeMap<String, Place>) -> Option<Plan> {
    let own = name(section);
    let mut broker = |key| {
        let name: String = section.required(key)?;
        let place = brokers.get(&name).cloned();
        if place.is_none() {
            section.fault(key, format!("there is no broker {name:?}; name one of [[remote_broker]]"));
        }
        place
    };
    let (from, to) = (broker("from"), broker("to"));
    let destination: Option<String> = section.required("destination");
    let destination = destination.map(|text| match text.strip_prefix("topic://") {
        Some(topic) => Destination::topic(Text::shortened(topic)),
        None => Destination::queue(Text::shortened(text.strip_prefix("queue://").unwrap_or(&text))),
    });
    let prefetch = section.or("prefetch", 1000);
    if prefetch == 0 {
        section.fault("prefetch", "0 lets nothing come; write how many messages may be under way");
    }
    let journal = section.or("journal_size", ByteSize::gib(10));
    if journal.0 < SMALLEST_JOURNAL.0 {
        section.fault("journal_size", "must be at least \"64MiB\"");
    }
    Some(Plan {
        name: own?,
        from: from?,
        to: to?,
        destination: destination?,
        prefetch,
        journal_bytes: journal.0,
        preferred: section.optional("preferred"),
    })
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

    const BROKERS: &str = "[[remote_broker]]\nname = \"a\"\nuri = \"failover:(tcp://a:61616)\"\nuser = \"erp\"\n\
        [[remote_broker]]\nname = \"b\"\nuri = \"ssl://b:61617\"\n";

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
}

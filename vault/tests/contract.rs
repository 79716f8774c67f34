//! The API's document and the router say the same: every route of the tree stands in
//! `conf/vault.openapi.yaml`, and everything in the document is routed. The document is read
//! line by line; it keeps paths at two blanks and methods at four.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const METHODS: [&str; 5] = ["get", "head", "post", "put", "delete"];

/// Tag → path → methods, with every `{parameter}` written `{}`.
type Contract = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

fn documented() -> Contract {
    let mut contract = Contract::new();
    let mut path = String::new();
    let mut method = String::new();
    for line in vault::api::status::OPENAPI.lines() {
        if let Some(found) = line.strip_prefix("  ").filter(|rest| rest.starts_with("/v1/")) {
            path = unnamed(found.trim_end_matches(':'));
        } else if let Some(found) = line.strip_prefix("    ").and_then(|rest| rest.strip_suffix(':')) {
            if METHODS.contains(&found) {
                method = found.to_owned();
            }
        } else if let Some(tag) = line.strip_prefix("      tags: [").and_then(|rest| rest.strip_suffix(']')) {
            let paths = contract.entry(tag.to_owned()).or_default();
            paths.entry(path.clone()).or_default().insert(method.clone());
        }
    }
    contract
}

/// What `api/<room>.rs` routes: the path and the method words after each `.route(`.
fn routed(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let production = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut routes = BTreeMap::<String, BTreeSet<String>>::new();
    for call in production.split(".route(").skip(1) {
        let mut quoted = call.splitn(3, '"');
        let (Some(_), Some(path), Some(rest)) = (quoted.next(), quoted.next(), quoted.next()) else {
            panic!("a route without a literal path: {call}");
        };
        // The next route, the state, or the function's end closes the list of methods.
        let ends = [".route(", ".with_state(", "\n}"].into_iter().filter_map(|end| rest.find(end));
        let end = ends.min().unwrap_or(rest.len());
        let methods = routes.entry(unnamed(path)).or_default();
        for method in METHODS {
            let word = format!("{method}(");
            let before =
                |at: usize| rest[..at].chars().last().is_none_or(|c| !c.is_alphanumeric() && c != '_');
            if rest[..end].match_indices(&word).any(|(at, _)| before(at)) {
                methods.insert(method.to_owned());
            }
        }
    }
    routes
}

fn unnamed(path: &str) -> String {
    let mut unnamed = String::new();
    for (index, part) in path.split('{').enumerate() {
        let rest = if index == 0 { part } else { part.split_once('}').map_or("", |(_, rest)| rest) };
        unnamed.push_str(if index == 0 { "" } else { "{}" });
        unnamed.push_str(rest);
    }
    unnamed
}

#[test]
fn every_route_stands_in_the_document_and_every_operation_is_routed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api");
    let documented = documented();
    let mut compared = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let file = entry.unwrap().path();
        let room = file.file_stem().unwrap().to_str().unwrap().to_owned();
        // Probes are in clear on a listener of their own, and no part of this contract.
        if room == "admin" || file.extension().is_none_or(|kind| kind != "rs") {
            continue;
        }
        let mut routed = routed(&std::fs::read_to_string(&file).unwrap());
        let mut expected = documented.get(&room).cloned().unwrap_or_default();
        // axum answers HEAD by GET; a room may also route it by hand.
        for methods in routed.values_mut().chain(expected.values_mut()) {
            methods.remove("head");
        }
        assert_eq!(routed, expected, "api/{room}.rs and the operations tagged {room}");
        compared += expected.len();
    }
    assert!(compared >= 6, "only {compared} paths were compared");
}

#[test]
fn every_reference_in_the_document_leads_somewhere() {
    let document = vault::api::status::OPENAPI;
    let mut sections = BTreeMap::<&str, BTreeSet<&str>>::new();
    let mut section = "";
    for line in document.lines().skip_while(|line| *line != "components:") {
        let indent = line.len() - line.trim_start().len();
        let Some((key, _)) = line.trim_start().split_once(':') else { continue };
        match indent {
            2 => section = key,
            4 => drop(sections.entry(section).or_default().insert(key)),
            _ => {}
        }
    }
    let references = document.split("'#/components/").skip(1).filter_map(|rest| rest.split('\'').next());
    for reference in references {
        let (section, name) = reference.split_once('/').unwrap();
        assert!(sections[section].contains(name), "{reference}");
    }
}

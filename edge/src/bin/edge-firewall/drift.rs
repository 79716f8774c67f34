//! What somebody changed in our table behind our back; pure. Compares the kernel's listing with the
//! one taken right after loading, without what changes by itself: handles, counts, elements of the
//! sets that fill and empty.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Differences that are told; a table that somebody rewrote need not be told line by line.
const MOST: usize = 40;

/// A listing, boiled down: what stands where, in order.
pub(crate) type Shape = BTreeMap<String, Vec<Value>>;

/// Out of the listing's objects. The elements of sets stay where the listing holds them.
pub(crate) fn shape(listing: &[Value]) -> Shape {
    let mut shape = Shape::new();
    for (kind, body) in listing.iter().filter_map(Value::as_object).flatten() {
        let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or("?");
        let place = match kind.as_str() {
            "metainfo" => continue,
            "rule" => format!("chain {}", text("chain")),
            // A chain's own hook and policy stand before its rules.
            "chain" => format!("chain {}", text("name")),
            other => format!("{other} {}", text("name")),
        };
        let mut body = body.clone();
        still(&mut body);
        if kind == "counter" {
            body = Value::Null;
        }
        shape.entry(place).or_default().push(body);
    }
    shape
}

/// Takes out what changes by itself.
fn still(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("handle");
            if is_count(fields) {
                fields.clear();
            }
            fields.values_mut().for_each(still);
        }
        Value::Array(items) => items.iter_mut().for_each(still),
        _ => {}
    }
}

fn is_count(fields: &Map<String, Value>) -> bool {
    fields.contains_key("packets") && fields.contains_key("bytes")
}

/// What `now` has otherwise than `loaded`; one sentence each.
pub(crate) fn differences(loaded: &Shape, now: &Shape) -> Vec<String> {
    let mut told = Vec::new();
    for (place, was) in loaded {
        match now.get(place) {
            None => told.push(format!("{place} is gone")),
            Some(is) if is == was => {}
            Some(is) if place.starts_with("chain ") => told.push(rules_differ(place, was, is)),
            Some(_) => told.push(format!("{place} differs from what was loaded")),
        }
    }
    told.extend(
        now.keys().filter(|place| !loaded.contains_key(*place)).map(|place| format!("{place} is new")),
    );
    told.truncate(MOST);
    told
}

fn rules_differ(place: &str, was: &[Value], is: &[Value]) -> String {
    // The first entry is the chain itself.
    let first = was.iter().zip(is).position(|(was, is)| was != is).unwrap_or(was.len().min(is.len()));
    let where_ = if first == 0 { "its hook or policy".to_owned() } else { format!("rule {first}") };
    match is.len().cmp(&was.len()) {
        std::cmp::Ordering::Equal => format!("{place}: {where_} differs"),
        std::cmp::Ordering::Greater => format!("{place}: {} more, at rule {first}", is.len() - was.len()),
        std::cmp::Ordering::Less => format!("{place}: {} fewer, at rule {first}", was.len() - is.len()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn listing() -> Vec<Value> {
        vec![
            json!({"metainfo": {"version": "1.0.6"}}),
            json!({"chain": {"name": "input", "handle": 3, "policy": "drop"}}),
            json!({"rule": {"chain": "input", "handle": 9, "expr": [{"counter": {"packets": 1, "bytes": 60}}, {"accept": null}]}}),
            json!({"counter": {"name": "c_ban", "handle": 2, "packets": 7, "bytes": 420}}),
            json!({"set": {"name": "allow4", "handle": 4, "elem": ["192.0.2.1"]}}),
        ]
    }

    #[test]
    fn counts_and_handles_are_no_drift() {
        let mut later = listing();
        later[1]["chain"]["handle"] = json!(33);
        later[2]["rule"]["expr"][0]["counter"]["packets"] = json!(2000);
        later[3]["counter"]["packets"] = json!(8);
        assert_eq!(differences(&shape(&listing()), &shape(&later)), Vec::<String>::new());
    }

    #[test]
    fn each_kind_of_drift_is_told() {
        let mut later = listing();
        later[1]["chain"]["policy"] = json!("accept");
        later[4]["set"]["elem"] = json!(["192.0.2.1", "198.51.100.1"]);
        later.push(json!({"chain": {"name": "extra"}}));
        assert_eq!(
            differences(&shape(&listing()), &shape(&later)),
            [
                "chain input: its hook or policy differs",
                "set allow4 differs from what was loaded",
                "chain extra is new"
            ]
        );
        let mut later = listing();
        later.insert(2, json!({"rule": {"chain": "input", "expr": [{"accept": null}]}}));
        assert_eq!(differences(&shape(&listing()), &shape(&later)), ["chain input: 1 more, at rule 1"]);
        later.retain(|entry| entry.get("rule").is_none() && entry.get("counter").is_none());
        assert_eq!(
            differences(&shape(&listing()), &shape(&later)),
            ["chain input: 1 fewer, at rule 1", "counter c_ban is gone"]
        );
    }
}

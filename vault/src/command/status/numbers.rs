//! The part of `vault status` about numbers: given or not, and while the two vaults are apart what
//! goes on here all the same, and what waits. Knows the words alone.

use serde_json::Value;

use super::{at, count, list, word};

/// So many series are named; `--json` names more.
const NAMED: usize = 8;

/// What keeps numbers from being given, in a few words; nothing where they all are.
pub(super) fn wanting(numbers: &Value) -> Option<String> {
    let (reason, apart) = (numbers["reason"].as_str()?, &numbers["apart"]);
    let what = match (is_given_from(apart), apart["records"] == true) {
        (true, true) => "only numbers of available series are given, and records go on alone",
        (true, false) => "only numbers of available series are given",
        (false, true) => "no numbers are given, and records go on alone",
        (false, false) => "no numbers are given",
    };
    Some(format!("{what}: {reason}"))
}

/// Is anything left that this vault gives alone?
fn is_given_from(apart: &Value) -> bool {
    apart["gives"] == true && (apart["left"] == true || apart["unread"] == true)
}

/// The lines about numbers.
pub(super) fn told(numbers: &Value, line: &mut impl FnMut(&str, String)) {
    let apart = &numbers["apart"];
    let given = match (numbers["reason"].is_string(), is_given_from(apart)) {
        (false, _) => "given",
        (true, true) => "given ALONE, of available series",
        (true, false) => "NOT given",
    };
    let tokens: Vec<&str> = list(&numbers["tokens"]).iter().map(word).collect();
    let tokens =
        if tokens.is_empty() { String::new() } else { format!("; a token for {}", tokens.join(" and ")) };
    let (entries, owner) = (count(&numbers["entries"]), word(&numbers["owner"]));
    let epoch = count(&numbers["epoch"]);
    line("numbers", format!("{given}; {entries} entries, kept by {owner} in epoch {epoch}{tokens}"));
    for over in list(&numbers["tokens_over"]) {
        let (vault, since) = (word(&over["vault"]), over["since"].as_i64().map(at).unwrap_or_default());
        let what = if over["used"] == true { "was used, as known since" } else { "is void since" };
        let next = format!("make a new one: vault number token --for {vault}");
        line("token", format!("the one for {vault} {what} {since}; {next}"));
    }
    if apart.is_object() {
        alone(apart, line);
    }
    if let Some(unproven) = numbers["unproven"].as_str() {
        line("if killed", unproven.to_owned());
    }
}

/// What goes on, and what waits.
fn alone(apart: &Value, line: &mut impl FnMut(&str, String)) {
    if let Some(why) = apart["why"].as_str() {
        let next = apart["next"].as_str().map(|next| format!("; {next}")).unwrap_or_default();
        line("alone", format!("nothing: {why}{next}"));
    } else if apart["gives"] == true {
        let by = if apart["by_token"] == true { ", by the token that was opened" } else { "" };
        let all = list(&apart["series"]);
        for series in all.iter().take(NAMED) {
            let period = series["period"].as_str().map(|period| format!(" {period}")).unwrap_or_default();
            let (name, owner) = (word(&series["series"]), word(&series["owner"]));
            let left = match count(&series["left"]) {
                0 => "NONE".to_owned(),
                left => left.to_string(),
            };
            let of = count(&series["of"]);
            line("alone", format!("{name}{period} of {owner}: {left} left of {of} set aside{by}"));
        }
        if apart["unread"] == true {
            let how = "vault number list --owner NAME --stale tells it";
            line("alone", format!("what is left could not be read in time; {how}"));
        } else if all.len() > NAMED || apart["more"] == true {
            let others = if apart["more"] == true { ", and others" } else { "" };
            let more = all.len().saturating_sub(NAMED);
            line("alone", format!("{more} more series in vault --json status{others}"));
        } else if all.is_empty() {
            line(
                "alone",
                "nothing: no series has numbers set aside (vault number define --range)".to_owned(),
            );
        }
    }
    let records = if apart["records"] == true {
        "; records, names and leases go on here alone"
    } else {
        ", records, names, leases"
    };
    line("waits", format!("strict series, definitions, changes to numbers that both gave{records}"));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lines(numbers: &Value) -> String {
        let mut text = String::new();
        told(numbers, &mut |name, about| text.push_str(&format!("{name}: {about}\n")));
        text
    }

    fn away(apart: Value) -> Value {
        json!({ "reason": "the other vault is away", "entries": 21, "owner": "vault-a", "epoch": 1,
            "tokens": [], "tokens_over": [], "apart": apart })
    }

    #[test]
    fn a_vault_that_goes_on_alone_tells_what_goes_on_what_is_left_and_what_waits() {
        let till = json!({ "owner": "erp", "series": "TILL", "left": 988, "of": 1000 });
        let march = json!({ "owner": "erp", "series": "POS", "period": "2026-03", "left": 0, "of": 10 });
        let mut numbers = away(json!({ "gives": true, "why": null, "by_token": false, "records": false,
            "series": [till, march], "more": false, "left": true, "unread": false }));
        assert_eq!(
            wanting(&numbers).unwrap(),
            "only numbers of available series are given: the other vault is away"
        );
        assert_eq!(
            lines(&numbers),
            "numbers: given ALONE, of available series; 21 entries, kept by vault-a in epoch 1\n\
             alone: TILL of erp: 988 left of 1000 set aside\n\
             alone: POS 2026-03 of erp: NONE left of 10 set aside\n\
             waits: strict series, definitions, changes to numbers that both gave, records, names, leases\n"
        );
        numbers["apart"]["by_token"] = json!(true);
        assert!(lines(&numbers).contains("988 left of 1000 set aside, by the token that was opened"));
        let few = numbers["apart"]["series"].clone();
        let many: Vec<_> = (0..11).map(|_| few[0].clone()).collect();
        numbers["apart"]["series"] = json!(many);
        assert!(lines(&numbers).contains("alone: 3 more series in vault --json status\n"));
        numbers["apart"]["more"] = json!(true);
        assert!(lines(&numbers).contains("alone: 3 more series in vault --json status, and others\n"));
        numbers["apart"]["series"] = json!([]);
        numbers["apart"]["unread"] = json!(true);
        assert!(lines(&numbers).contains("alone: what is left could not be read in time"));
        numbers["apart"]["series"] = few;
        for (name, value) in [("left", false), ("more", true), ("unread", false)] {
            numbers["apart"][name] = json!(value);
        }
        assert!(lines(&numbers).starts_with("numbers: NOT given"), "nothing is left");
        numbers["apart"]["records"] = json!(true);
        let verdict = "no numbers are given, and records go on alone: the other vault is away";
        assert_eq!(wanting(&numbers).as_deref(), Some(verdict));
    }

    #[test]
    fn a_vault_that_may_give_nothing_alone_says_why_and_what_to_do() {
        let apart = json!({ "gives": false, "why": "it was started anew", "next": null, "series": [], "more": false });
        let mut numbers = away(apart);
        assert!(
            lines(&numbers).contains("alone: nothing: it was started anew\n"),
            "no token, no word of one"
        );
        numbers["apart"]["next"] = json!("with its token it gives numbers");
        assert!(
            lines(&numbers)
                .contains("alone: nothing: it was started anew; with its token it gives numbers\n")
        );
        numbers["unproven"] = json!("api.control_socket lies on ext4");
        assert!(lines(&numbers).ends_with("if killed: api.control_socket lies on ext4\n"));
        numbers["tokens_over"] = json!([
            { "vault": "vault-b", "used": false, "since": 1_800_000_000 },
            { "vault": "vault-a", "used": true, "since": 1_800_000_000 },
        ]);
        let told = lines(&numbers);
        for words in [
            "vault-b is void since 2027-01-15T08:00:00Z; make a new one: vault number token --for vault-b",
            "vault-a was used, as known since 2027-01-15T08:00:00Z; make a new one",
        ] {
            assert!(told.contains(words), "{words}: {told}");
        }
        numbers["reason"] = Value::Null;
        assert_eq!(wanting(&numbers), None);
    }
}

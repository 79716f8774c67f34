//! `vault bridge …`: asks the running vault about what it carries between brokers, and tells it what to do with
//! dead letters and with what waits for a broker that never comes back. Prints; decides nothing.

use std::path::Path;

use clap::Subcommand;
use http::{Method, Request};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::control::{Progress, ask, call, json, whole};
use super::status::{at, bytes, span};
use super::{CommandError, Output};
use crate::bridge::BridgeError;
use crate::bridge::trial::{Found, try_out};
use crate::config::Config;

/// Many dead letters take their time.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(600);

/// What `vault check` tells of bridges and their brokers: lines, and what needs the operator.
pub async fn check(config: &Config) -> (Vec<String>, Vec<String>) {
    let (mut found, mut faults) = (Vec::new(), Vec::new());
    for one in try_out(&config.bridge).await {
        match one {
            Found::Fine(line) => found.push(line),
            Found::Fault(fault) => faults.push(fault),
        }
    }
    let ways = config.bridge.iter();
    found.extend(ways.map(|plan| {
        format!("bridge {}: {} from {} to {}", plan.name, plan.destination, plan.from.name, plan.to.name)
    }));
    (found, faults)
}

/// `vault bridge …`
#[derive(Debug, Clone, Subcommand)]
pub enum Verb {
    /// Show every bridge: which vault carries, what waits, what has passed each hop
    ///
    /// `received` are taken from the source; each of them is forwarded, expired, a dead letter, or waits.
    /// Each vault counts what passed its own journal.
    Status,
    /// Show the dead letters of a bridge in this vault's journal, with the target's reason
    Dead {
        /// As its `[[bridge]]` names it
        name: String,
        /// Behind this one
        #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
        after: u64,
    },
    /// Send all dead letters of a bridge on again, behind what waits
    Retry {
        /// As its `[[bridge]]` names it
        name: String,
    },
    /// Give up dead letters of a bridge for good. Without --yes it is told how many they are
    Purge {
        /// As its `[[bridge]]` names it
        name: String,
        /// Only those up to this one, the last that you have seen
        #[arg(long, value_name = "SEQUENCE")]
        through: Option<u64>,
        /// Do it: they are lost then
        #[arg(long)]
        yes: bool,
    },
    /// Take a message that waits out of the way of those behind it: it becomes a dead letter
    ///
    /// For one that the target neither takes nor refuses. It may have got it all the same: look there before
    /// you have it go on again.
    Bury {
        /// As its `[[bridge]]` names it
        name: String,
        /// Which one, as `status` shows the first that waits
        sequence: u64,
        /// Kept with it
        #[arg(long, value_name = "WORDS", default_value = "no reason was given")]
        why: String,
    },
    /// Say what became of messages that wait for a source which never comes back
    ///
    /// The connection broke while they were taken, and another broker answers in that one's place. Without --yes
    /// it is told how many they are and what each choice risks.
    Settle {
        /// As its `[[bridge]]` names it
        name: String,
        /// They were taken: send them on. If the source still has them they come twice
        #[arg(long, required_unless_present = "returned")]
        taken: bool,
        /// The source still has them: forget them here. If it has not they are lost
        #[arg(long, conflicts_with = "taken")]
        returned: bool,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
    /// Send what waits to the target that is refused: it was made anew in place of the old one
    ///
    /// A part of what waits may be at the old one already, at most one transaction, or after a crash of vault
    /// all that waits. Without --yes it is told how many they are.
    Accept {
        /// As its `[[bridge]]` names it
        name: String,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

impl Verb {
    /// Asks, and prints the answer.
    ///
    /// # Errors
    /// The vault does not run, or refuses.
    pub async fn run(&self, socket: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
        match self {
            Verb::Status => {
                let report: Value = ask(socket, Method::GET, "/v1/bridges", None::<&()>).await?;
                output.show(&report, &told(&report))
            }
            Verb::Dead { name, after } => {
                let path = format!("/v1/bridges/{}/dead?after={after}", segment(name));
                let dead: Value = ask(socket, Method::GET, &path, None::<&()>).await?;
                output.show(&dead, &letters(name, &dead))
            }
            Verb::Retry { name } => {
                change(socket, Method::POST, name, "dead/retry", "dead letters go on again", output).await
            }
            Verb::Purge { name, through, yes: false } => {
                let lost = dead_up_to(socket, name, *through).await?;
                let told = serde_json::json!({ "count": lost, "done": false });
                output.show(&told, &format!("{name}: {lost} dead letters would be lost; --yes does it"))
            }
            Verb::Purge { name, through, yes: true } => {
                let query = through.map(|through| format!("?through={through}")).unwrap_or_default();
                let path = format!("dead{query}");
                change(socket, Method::DELETE, name, &path, "dead letters are given up", output).await
            }
            Verb::Bury { name, sequence, why } => {
                let path = format!("/v1/bridges/{}/dead", segment(name));
                let burial = serde_json::json!({ "sequence": sequence, "why": why });
                let done: Value = ask(socket, Method::POST, &path, Some(&burial)).await?;
                output.show(&done, &format!("{name}: {sequence} is a dead letter"))
            }
            Verb::Settle { name, taken: true, yes: true, .. } => {
                change(socket, Method::POST, name, "settle?taken=true", "messages are sent on", output).await
            }
            Verb::Settle { name, yes: true, .. } => {
                change(socket, Method::POST, name, "settle?taken=false", "messages are forgotten", output)
                    .await
            }
            Verb::Accept { name, yes: true } => {
                change(socket, Method::POST, name, "accept", "messages go to the new target", output).await
            }
            Verb::Settle { name, .. } | Verb::Accept { name, .. } => {
                let report: Value = ask(socket, Method::GET, "/v1/bridges", None::<&()>).await?;
                let direction = &report["directions"][name];
                let told = risks(name, direction, matches!(self, Verb::Accept { .. }))?;
                output.show(direction, &told)
            }
        }
    }
}

/// How many dead letters there are, up to a sequence if there is one.
async fn dead_up_to(socket: &Path, name: &str, through: Option<u64>) -> Result<u64, CommandError> {
    let after = |sequence: u64| format!("/v1/bridges/{}/dead?after={sequence}", segment(name));
    let all: Value = ask(socket, Method::GET, &after(0), None::<&()>).await?;
    let total = all["total"].as_u64().unwrap_or_default();
    let Some(through) = through else { return Ok(total) };
    let others: Value = ask(socket, Method::GET, &after(through), None::<&()>).await?;
    let shown = others["letters"].as_array().map_or(0, Vec::len) as u64;
    Ok(total.saturating_sub(shown + others["behind"].as_u64().unwrap_or_default()))
}

async fn change(
    socket: &Path,
    method: Method,
    name: &str,
    what: &str,
    done: &str,
    output: &mut Output<'_>,
) -> Result<(), CommandError> {
    let uri = format!("/v1/bridges/{}/{what}", segment(name));
    let request =
        Request::builder().method(method).uri(uri).body(whole("")).map_err(std::io::Error::other)?;
    let answer = call(socket, request, PATIENCE, &Progress::default()).await?;
    let answer: Value = json(socket, answer).await?;
    let text = match answer["count"].as_u64() {
        Some(0) if what.starts_with("dead") => format!("{name}: no dead letters in this vault's journal"),
        _ => format!("{name}: {} {done}", answer["count"]),
    };
    output.show(&answer, &text)
}

/// What an operator should know before it is done; refused as the vault would.
fn risks(name: &str, direction: &Value, is_target: bool) -> Result<String, BridgeError> {
    if !direction.is_object() {
        return Err(BridgeError::Unknown(name.to_owned()));
    }
    match (is_target, direction["is_refusing"] == true, direction["elsewhere"]["rows"].as_u64()) {
        (true, false, _) => Err(BridgeError::NoneRefused(name.to_owned())),
        (true, true, _) => Ok(format!(
            "{name}: {} messages wait; {}\n  a part of them may be at the old target, and comes twice if its messages \
             are read again; --yes sends all of them to the new one",
            direction["waiting"]["rows"],
            word(&direction["target"])
        )),
        (false, _, Some(held @ 1..)) => Ok(format!(
            "{name}: {held} messages wait for a source that is away\n  --taken --yes sends them on: they come twice \
             if it comes back and still has them\n  --returned --yes forgets them: they are lost if it gave them away"
        )),
        (false, _, _) => Err(BridgeError::NothingHeld(name.to_owned())),
    }
}

fn segment(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}

fn told(report: &Value) -> String {
    let mut lines: Vec<String> = Vec::new();
    for (name, own) in report["directions"].as_object().into_iter().flatten() {
        let its = &report["its"]["directions"][name];
        let carrier = match (own["state"] == "carrying", its["state"] == "carrying") {
            (true, _) => "carried here".to_owned(),
            (false, true) => format!("carried by {}", word(&report["peer"])),
            (false, false) if report["its"].is_object() => "carried by NOBODY".to_owned(),
            (false, false) => format!("not carried here, and {} says nothing", word(&report["peer"])),
        };
        lines.push(format!("{name}: {carrier}"));
        lines.push(hops("here", own));
        let peer = word(&report["peer"]);
        lines.push(match (its.is_object(), report["its"].is_object()) {
            (true, _) => hops(peer, its),
            (false, true) => format!("  {peer}: has no [[bridge]] {name} in its file"),
            (false, false) => format!("  {peer}: says nothing"),
        });
    }
    for (vault, troubles) in
        [("here", &report["troubles"]), (word(&report["peer"]), &report["its"]["troubles"])]
    {
        let troubles = troubles.as_array().into_iter().flatten();
        lines.extend(troubles.map(|trouble| format!("TROUBLE {vault}: {}", word(trouble))));
    }
    if lines.is_empty() {
        lines.push("no [[bridge]] is configured".to_owned());
    }
    lines.join("\n")
}

/// One vault's share of a direction.
fn hops(vault: &str, direction: &Value) -> String {
    let count = |key: &str| direction[key].as_u64().unwrap_or_default();
    let (waiting, bound) = (&direction["waiting"], count("journal_bytes"));
    let (rows, held) =
        (waiting["rows"].as_u64().unwrap_or_default(), waiting["bytes"].as_u64().unwrap_or_default());
    let mut line = format!(
        "  {vault}: {} for {}; {} received, {} journalled, {} forwarded, {} expired, {} dead; {rows} wait",
        word(&direction["state"]),
        span(count("state_seconds")),
        count("received"),
        count("journalled"),
        count("forwarded"),
        count("expired"),
        count("dead"),
    );
    if rows > 0 {
        let lag = span(count("lag_seconds"));
        line.push_str(&format!(" ({} of {}, the oldest for {lag}", bytes(held), bytes(bound)));
        line.push_str(
            &direction["first"].as_u64().map(|it| format!(", {it} first)")).unwrap_or(")".to_owned()),
        );
    }
    let rows = |key: &str| direction[key]["rows"].as_u64().unwrap_or_default();
    if rows("uncertain") > 0 {
        line.push_str(&format!("; {} uncertain", rows("uncertain")));
    }
    if rows("elsewhere") > 0 {
        line.push_str(&format!(", {} of them wait for a source that is away", rows("elsewhere")));
    }
    if rows("returned") > 0 {
        line.push_str(&format!("; {} the source's again and kept for a while", rows("returned")));
    }
    for (side, key) in [("source", "source"), ("target", "target"), ("journal", "journal")] {
        if let Some(why) = direction[key].as_str() {
            line.push_str(&format!("\n    {side}: {why}"));
        }
    }
    line
}

fn letters(name: &str, dead: &Value) -> String {
    let letter = |letter: &Value| {
        let sent = letter["timestamp"].as_i64().filter(|sent| *sent > 0);
        format!(
            "{} {} to {}{}, {}: {}",
            letter["sequence"],
            letter["message_id"].as_str().unwrap_or("(no message)"),
            letter["destination"].as_str().unwrap_or("?"),
            sent.map(|sent| format!(", sent {}", at(sent / 1000))).unwrap_or_default(),
            bytes(letter["bytes"].as_u64().unwrap_or_default()),
            word(&letter["why"])
        )
    };
    let mut lines: Vec<_> = dead["letters"].as_array().into_iter().flatten().map(letter).collect();
    if let Some(behind @ 1..) = dead["behind"].as_u64() {
        let last = &dead["letters"][lines.len().saturating_sub(1)]["sequence"];
        let total = &dead["total"];
        lines.push(format!("{behind} more of {total}: vault bridge dead {name} --after {last}"));
    }
    match lines.is_empty() {
        true => format!("{name}: no dead letters in this vault's journal"),
        false => lines.join("\n"),
    }
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn status_tells_who_carries_and_what_has_passed_each_hop() {
        let direction = |state: &str, source: Option<&str>| {
            json!({
                "state": state, "state_seconds": 130, "received": 9, "journalled": 8, "forwarded": 5, "expired": 1,
                "dead": 0, "waiting": { "rows": 2, "bytes": 4096 }, "lag_seconds": 7, "journal_bytes": 64 << 20,
                "first": 70, "uncertain": { "rows": 1 }, "returned": { "rows": 0 }, "source": source, "target": null, "journal": null,
            })
        };
        let report = json!({
            "directions": { "there": direction("standby", Some("it is taken")) },
            "troubles": ["old: left"],
            "peer": "vault-b",
            "its": { "directions": { "there": direction("carrying", None) }, "troubles": ["there: full"] },
        });
        let hops = "for 2 min; 9 received, 8 journalled, 5 forwarded, 1 expired, 0 dead; 2 wait (4 KiB of 64 MiB, \
                    the oldest for 7 s, 70 first); 1 uncertain";
        assert_eq!(
            told(&report),
            format!(
                "there: carried by vault-b\n  here: standby {hops}\n    source: it is taken\n  vault-b: carrying \
                 {hops}\nTROUBLE here: old: left\nTROUBLE vault-b: there: full"
            )
        );
        assert_eq!(told(&json!({})), "no [[bridge]] is configured");
        let mut alone = report.clone();
        alone["its"] = json!({ "directions": {}, "troubles": [] });
        assert!(told(&alone).contains("  vault-b: has no [[bridge]] there in its file"));
        alone["its"] = Value::Null;
        assert!(told(&alone).contains("  vault-b: says nothing"));
    }

    #[test]
    fn what_a_choice_risks_is_told_before_it_is_made() {
        let direction = json!({
            "elsewhere": { "rows": 3 }, "waiting": { "rows": 9 }, "target": "b is another", "is_refusing": true,
        });
        let settled = risks("there", &direction, false).unwrap();
        assert!(settled.starts_with("there: 3 messages wait for a source that is away"), "{settled}");
        assert!(settled.contains("--taken --yes") && settled.contains("--returned --yes"), "{settled}");
        let accepted = risks("there", &direction, true).unwrap();
        assert!(accepted.starts_with("there: 9 messages wait; b is another"), "{accepted}");
        let none = json!({ "elsewhere": { "rows": 0 }, "is_refusing": false });
        let refused = |name, direction, is_target| risks(name, direction, is_target).unwrap_err().to_string();
        assert!(refused("x", &Value::Null, true).starts_with("there is no bridge \"x\" here"));
        assert!(refused("there", &none, true).contains("no other target is refused"));
        assert!(refused("there", &none, false).contains("waits for another source"));
    }

    #[test]
    fn dead_letters_are_told_with_the_reason() {
        let letter = json!({ "sequence": 7, "message_id": "ID:1", "destination": "queue://a", "bytes": 2048,
            "why": "no rights" });
        let dead =
            |behind: u64| json!({ "letters": [letter.clone()], "behind": behind, "total": behind + 1 });
        assert_eq!(letters("there", &dead(0)), "7 ID:1 to queue://a, 2 KiB: no rights");
        let mut timed = dead(0);
        timed["letters"][0]["timestamp"] = json!(1_800_000_000_123_u64);
        let told = "7 ID:1 to queue://a, sent 2027-01-15T08:00:00Z, 2 KiB: no rights";
        assert_eq!(letters("there", &timed), told);
        let more = "7 ID:1 to queue://a, 2 KiB: no rights\n4 more of 5: vault bridge dead there --after 7";
        assert_eq!(letters("there", &dead(4)), more);
        let none = json!({ "letters": [], "behind": 0, "total": 0 });
        assert_eq!(letters("there", &none), "there: no dead letters in this vault's journal");
    }
}

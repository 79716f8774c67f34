//! `vault worker …`: asks the running vault about jobs and deliveries, and hands it an operator's
//! wishes. Prints; decides nothing.

use std::path::Path;

use clap::Subcommand;
use http::{Method, Request};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::control::{Progress, accepted, ask, call, whole};
use super::{CommandError, Output};

/// Under the targets.
const OF_THIS_VAULT: &str = "targets here are this vault's alone; the other one's: vault worker status there";
/// An operator waits no longer.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);

/// `vault worker …`
#[derive(Debug, Clone, Subcommand)]
pub enum Verb {
    /// Show every job with its last and next run, the vault's own too, and every target of deliveries
    Status,
    /// Run a job now, whatever its schedule says; the plan goes on as it is
    Run {
        /// As its `[[schedule]]` names it, or one of the vault's own such as storage.scrub
        name: String,
    },
    /// Keep a job from running, on both vaults, or a target from getting messages, here; over restarts
    /// too, until it is resumed. What is under way ends
    Pause {
        /// As its `[[schedule]]` or `[[delivery]]` names it, or one of the vault's own: that pauses here
        name: String,
    },
    /// Let a job run, or a target get messages, again
    Resume {
        /// As above
        name: String,
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
                let report: Value = ask(socket, Method::GET, "/v1/worker", None::<&()>).await?;
                output.show(&report, &told(&report))
            }
            Verb::Run { name } => {
                let path = format!("/v1/worker/jobs/{}/run", segment(name));
                let asked: Value = ask(socket, Method::POST, &path, None::<&()>).await?;
                let text = match asked["key"].as_str() {
                    Some(key) => format!("{key} begins as soon as this vault has its lease"),
                    None => format!("{name} begins on this vault"),
                };
                output.show(&asked, &format!("{text}; vault worker status shows its end"))
            }
            Verb::Pause { name } => set(socket, name, "pause", output).await,
            Verb::Resume { name } => set(socket, name, "resume", output).await,
        }
    }
}

/// No job has the name of a target.
async fn set(socket: &Path, name: &str, what: &str, output: &mut Output<'_>) -> Result<(), CommandError> {
    let report: Value = ask(socket, Method::GET, "/v1/worker", None::<&()>).await?;
    let is_target = rows(&report, "targets").any(|target| target["name"] == name);
    let kind = if is_target { "targets" } else { "jobs" };
    let path = format!("/v1/worker/{kind}/{}/{what}", segment(name));
    let request = Request::post(path).body(whole("")).map_err(std::io::Error::other)?;
    let answer = call(socket, request, PATIENCE, &Progress::default()).await?;
    drop(accepted(socket, answer).await?);
    output.show(&json!({ "name": name, "done": what }), &format!("{name}: {what}d"))
}

fn segment(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}

fn rows<'a>(report: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    report[key].as_array().into_iter().flatten()
}

fn told(report: &Value) -> String {
    let (own, configured): (Vec<_>, Vec<_>) = rows(report, "jobs").partition(|job| job["runs_on"] == "each");
    let mut lines: Vec<_> = configured.into_iter().map(job).collect();
    lines.extend(rows(report, "targets").map(target));
    if rows(report, "targets").next().is_some() {
        lines.push(OF_THIS_VAULT.to_owned());
    }
    if lines.is_empty() {
        lines.push("no [[schedule]] and no [[delivery]] is configured".to_owned());
    }
    lines.extend(own.into_iter().map(job));
    lines.join("\n")
}

fn job(job: &Value) -> String {
    let mut line = format!("job {}:", word(&job["name"]));
    let mut add = |part: String| {
        line.push_str(if line.ends_with(':') { " " } else { ", " });
        line.push_str(&part);
    };
    let is_own = job["runs_on"] == "each";
    if !is_own || job["next"].is_string() {
        add(format!("next {}", time(&job["next"])));
    }
    if job["asked"].is_string() {
        add(format!("ASKED FOR at {}, has not begun", time(&job["asked"])));
    }
    let (run, last) = (&job["running"], &job["last"]);
    if run.is_object() {
        add(format!("running on {} since {}", word(&run["by"]), time(&run["began"])));
    }
    if last.is_object() {
        let done = || last["result"].as_str().unwrap_or("done").to_owned();
        let how = last["fault"].as_str().map_or_else(done, |fault| format!("FAILED: {fault}"));
        match last["at"].as_str() {
            Some(_) => add(format!("last for {} on {}: {how}", time(&last["at"]), word(&last["by"]))),
            None => add(format!("last at {}: {how}", time(&last["ended"]))),
        }
    }
    if let Some(failures @ 2..) = job["failures"].as_u64() {
        add(format!("{failures} FAILURES in a row"));
    }
    for (key, sign) in [("paused", "PAUSED"), ("trouble", "WAITS")] {
        if let Some(why) = job[key].as_str() {
            add(format!("{sign}: {why}"));
        }
    }
    if line.ends_with(':') {
        line.push_str(" not since this vault's start");
    }
    line
}

fn target(target: &Value) -> String {
    let mut line = format!(
        "target {}: from {}, {} delivered, {} under way, {} failed tries, {} dead letters",
        word(&target["name"]),
        word(&target["queue"]),
        target["delivered"],
        target["under_way"],
        target["failed"],
        target["dead"]
    );
    if let Some(gone @ 1..) = target["gone"].as_u64() {
        line.push_str(&format!(", {gone} given up and gone"));
    }
    if let Some(waiting @ 1..) = target["retrying"].as_u64() {
        line.push_str(&format!(", {waiting} to be tried again"));
    }
    if let Some(why) = target["paused"].as_str() {
        line.push_str(&format!(", PAUSED: {why}"));
    }
    if let Some(why) = target["last_failure"].as_str() {
        line.push_str(&format!(", last failure: {why}"));
    }
    line
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("never")
}

/// Whole seconds of a time in UTC.
fn time(value: &Value) -> String {
    let text = word(value);
    text.split_once('.').map_or_else(|| text.to_owned(), |(seconds, _)| format!("{seconds}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_tells_what_needs_an_operator() {
        let report = json!({
            "jobs": [
                { "name": "nightly", "runs_on": "one", "next": "2026-05-02T00:30:00Z", "failures": 3,
                    "last": { "at": "2026-05-01T00:30:00Z", "by": "vault-a", "fault": "410" } },
                { "name": "new", "runs_on": "one", "next": null, "trouble": "records need both vaults",
                    "paused": "paused by ops", "asked": "2026-05-01T00:00:01Z", "failures": 0 },
                { "name": "storage.scrub", "runs_on": "each", "next": "2026-06-01T00:00:00Z", "failures": 0,
                    "running": { "by": "vault-a", "began": "2026-05-01T00:00:00.000012345Z" } },
                { "name": "storage.probe", "runs_on": "each", "next": null, "failures": 0 },
                { "name": "storage.repair", "runs_on": "each", "next": null, "failures": 0,
                    "last": { "ended": "2026-05-01T00:00:00Z", "result": "2 replicas copied" } },
            ],
            "targets": [{ "name": "shop", "queue": "orders", "delivered": 7, "under_way": 2, "retrying": 1,
                "failed": 2, "dead": 1, "gone": 4, "paused": "paused by ops", "last_failure": null }],
        });
        assert_eq!(
            told(&report),
            "job nightly: next 2026-05-02T00:30:00Z, last for 2026-05-01T00:30:00Z on vault-a: FAILED: 410, \
             3 FAILURES in a row\n\
             job new: next never, ASKED FOR at 2026-05-01T00:00:01Z, has not begun, PAUSED: paused by ops, WAITS: records need both vaults\n\
             target shop: from orders, 7 delivered, 2 under way, 2 failed tries, 1 dead letters, 4 given up and gone, \
             1 to be tried again, PAUSED: paused by ops\n\
             targets here are this vault's alone; the other one's: vault worker status there\n\
             job storage.scrub: next 2026-06-01T00:00:00Z, running on vault-a since 2026-05-01T00:00:00Z\n\
             job storage.probe: not since this vault's start\n\
             job storage.repair: last at 2026-05-01T00:00:00Z: 2 replicas copied"
        );
        assert!(told(&json!({})).starts_with("no [[schedule]]"));
    }
}

//! `vault worker …`: asks the running vault about jobs and deliveries, and hands it an operator's
//! wishes. Prints; decides nothing.

use std::path::Path;

use clap::Subcommand;
use http::{Method, Request};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::control::{Progress, accepted, ask, call, whole};
use super::{CommandError, Output};

/// An operator waits no longer.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);

/// `vault worker …`
#[derive(Debug, Clone, Subcommand)]
pub enum Verb {
    /// Show every job with its last and next run, and every target of deliveries
    Status,
    /// Run a job now, whatever its schedule says; the plan goes on as it is
    Run {
        /// As its `[[schedule]]` names it
        name: String,
    },
    /// Send this target nothing more until it is resumed, over restarts too; what is under way ends
    Pause {
        /// As its `[[delivery]]` names it
        target: String,
    },
    /// Send this target messages again
    Resume {
        /// As its `[[delivery]]` names it
        target: String,
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
                let text = format!(
                    "{} begins as soon as this vault has its lease; vault worker status shows its end",
                    word(&asked["key"])
                );
                output.show(&asked, &text)
            }
            Verb::Pause { target } => set(socket, target, "pause", output).await,
            Verb::Resume { target } => set(socket, target, "resume", output).await,
        }
    }
}

async fn set(socket: &Path, target: &str, what: &str, output: &mut Output<'_>) -> Result<(), CommandError> {
    let path = format!("/v1/worker/targets/{}/{what}", segment(target));
    let request = Request::post(path).body(whole("")).map_err(std::io::Error::other)?;
    let answer = call(socket, request, PATIENCE, &Progress::default()).await?;
    drop(accepted(socket, answer).await?);
    output.show(&json!({ "target": target, "done": what }), &format!("{target}: {what}d"))
}

fn segment(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}

fn told(report: &Value) -> String {
    let rows = |key: &str| report[key].as_array().cloned().unwrap_or_default();
    let (jobs, targets) = (rows("jobs"), rows("targets"));
    let mut lines: Vec<_> = jobs.iter().map(job).chain(targets.iter().map(target)).collect();
    if lines.is_empty() {
        lines.push("no [[schedule]] and no [[delivery]] is configured".to_owned());
    }
    lines.join("\n")
}

fn job(job: &Value) -> String {
    let state = &job["state"];
    let mut line = format!("job {}: next {}", word(&job["name"]), word(&job["next"]));
    if let Some(run) = state["running"].as_object() {
        line.push_str(&format!(", running on {} since {}", word(&run["by"]), word(&run["began"])));
    }
    if let Some(last) = state["last"].as_object() {
        let how = last["fault"].as_str().map_or("done".to_owned(), |fault| format!("FAILED: {fault}"));
        let run = &last["run"];
        line.push_str(&format!(", last for {} on {}: {how}", word(&run["at"]), word(&run["by"])));
    }
    if let Some(trouble) = job["trouble"].as_str() {
        line.push_str(&format!(", WAITS: {trouble}"));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_tells_what_needs_an_operator() {
        let report = json!({
            "jobs": [
                { "name": "nightly", "next": "2026-05-02T00:30:00Z", "trouble": null, "state": {
                    "running": null,
                    "last": { "run": { "at": "2026-05-01T00:30:00Z", "by": "vault-a" }, "fault": "410" },
                } },
                { "name": "new", "next": null, "trouble": "records need both vaults", "state": null },
            ],
            "targets": [{ "name": "shop", "queue": "orders", "delivered": 7, "under_way": 1, "failed": 2,
                "dead": 1, "paused": "paused by ops", "last_failure": null }],
        });
        assert_eq!(
            told(&report),
            "job nightly: next 2026-05-02T00:30:00Z, last for 2026-05-01T00:30:00Z on vault-a: FAILED: 410\n\
             job new: next never, WAITS: records need both vaults\n\
             target shop: from orders, 7 delivered, 1 under way, 2 failed tries, 1 dead letters, PAUSED: paused by ops"
        );
        assert!(told(&json!({})).starts_with("no [[schedule]]"));
    }
}

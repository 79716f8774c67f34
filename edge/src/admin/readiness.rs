//! Is this edge alive, and should it get traffic? Rooms report their part here; the admin
//! listener and the direct host name answer from here. Must not know who asks.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where edge is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Rooms are being opened.
    Starting,
    /// Clients are served.
    Serving,
    /// No new connections; requests in flight go on.
    Draining,
}

/// What one room last said about itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Part {
    /// Which room or upstream.
    pub part: String,
    /// Does it do its work?
    pub healthy: bool,
    /// In a few words.
    pub detail: String,
}

/// Shared flags of all rooms.
#[derive(Debug)]
pub struct Readiness {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    parts: BTreeMap<Cow<'static, str>, (bool, String)>,
}

impl Readiness {
    /// Starting, with no part known.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { stage: Stage::Starting, parts: BTreeMap::new() }) })
    }

    /// Clients are served from now on. Has no effect once draining.
    pub fn serving(&self) {
        self.advance(Stage::Serving);
    }

    /// Stop sending clients here: `/readyz` answers 503 from now on, `/livez` still 200.
    pub fn draining(&self) {
        self.advance(Stage::Draining);
    }

    /// Notes how a part does. A part that is not healthy makes the whole not ready, so report
    /// only what clients of this edge would feel and another edge would not have.
    pub fn report(&self, part: impl Into<Cow<'static, str>>, healthy: bool, detail: String) {
        self.state().parts.insert(part.into(), (healthy, detail));
    }

    /// Where edge is in its life.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.state().stage
    }

    /// Every part that reported, by name.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        let state = self.state();
        let part = |(name, (healthy, detail)): (&Cow<'_, str>, &(bool, String))| Part {
            part: name.to_string(),
            healthy: *healthy,
            detail: detail.clone(),
        };
        state.parts.iter().map(part).collect()
    }

    /// Status and text for `/livez`, `/readyz` and `/healthz` (the same as `/readyz`); `None`
    /// for any other path. `verbose` names parts and details: not for the public.
    #[must_use]
    pub fn answer(&self, path: &str, verbose: bool) -> Option<(u16, String)> {
        match path {
            "/livez" => Some((200, "ok\n".to_owned())),
            "/readyz" | "/healthz" => Some(self.readyz(verbose)),
            _ => None,
        }
    }

    fn readyz(&self, verbose: bool) -> (u16, String) {
        let state = self.state();
        let ready = state.stage == Stage::Serving && state.parts.values().all(|(healthy, _)| *healthy);
        let (status, word) = match state.stage {
            _ if ready => (200, "ok"),
            Stage::Starting => (503, "starting"),
            Stage::Draining => (503, "draining"),
            Stage::Serving => (503, "not ready"),
        };
        let mut text = String::new();
        if verbose {
            for (name, (healthy, detail)) in &state.parts {
                let mark = if *healthy { '+' } else { '-' };
                // Writing to a String cannot fail.
                let _ = writeln!(text, "[{mark}] {name}: {detail}");
            }
        }
        text.push_str(word);
        text.push('\n');
        (status, text)
    }

    /// Life goes one way.
    fn advance(&self, to: Stage) {
        let mut state = self.state();
        state.stage = state.stage.max(to);
    }

    /// Nothing under this lock can panic half-way, so a poisoned one is still whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_while_serving_and_every_part_is_healthy() {
        let readiness = Readiness::new();
        assert_eq!(readiness.answer("/readyz", false), Some((503, "starting\n".to_owned())));
        readiness.serving();
        assert_eq!(readiness.answer("/readyz", false), Some((200, "ok\n".to_owned())));
        readiness.report("upstream app", false, "127.0.0.1:9000 refuses".to_owned());
        assert_eq!(readiness.answer("/readyz", false), Some((503, "not ready\n".to_owned())));
        readiness.report("upstream app", true, "2 of 2 servers".to_owned());
        assert_eq!(readiness.answer("/healthz", false), Some((200, "ok\n".to_owned())));
        readiness.draining();
        readiness.serving();
        assert_eq!(readiness.answer("/readyz", false), Some((503, "draining\n".to_owned())));
        assert_eq!(readiness.answer("/livez", true), Some((200, "ok\n".to_owned())));
    }

    #[test]
    fn details_are_told_only_to_who_asks_verbosely() {
        let readiness = Readiness::new();
        readiness.serving();
        readiness.report("certificates", true, "2 loaded".to_owned());
        readiness.report("upstream app", false, "127.0.0.1:9000 refuses".to_owned());
        let verbose = readiness.answer("/readyz", true).unwrap();
        assert_eq!(
            verbose,
            (
                503,
                "[+] certificates: 2 loaded\n[-] upstream app: 127.0.0.1:9000 refuses\nnot ready\n"
                    .to_owned()
            )
        );
        assert!(!readiness.answer("/readyz", false).unwrap().1.contains("127.0.0.1"));
        assert_eq!(readiness.answer("/", true), None);
    }
}

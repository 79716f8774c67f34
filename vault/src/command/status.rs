//! `vault status` for people: a verdict first, then each part in a line or two. Knows what of the
//! status document keeps a vault from being well; what it does not know of is in `--json`.

mod numbers;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A replica may be owed so long without anything being wrong, in seconds.
const LATE: u64 = 600;
/// An upload needs a little room in the spool, bytes.
const FULL: u64 = 16 << 20;

/// What keeps this vault from being well, each in a few words; nothing where it is. `status` is the
/// document of `GET /v1/status`.
#[must_use]
pub fn wanting(status: &Value) -> Vec<String> {
    let mut wanting = Vec::new();
    for (room, about) in status.as_object().into_iter().flatten() {
        wanting.extend(about["error"].as_str().map(|error| format!("{room}: {error}")));
    }
    let (pair, files) = (&status["pair"], &status["files"]);
    wanting.extend(list(&status["worker"]["worries"]).iter().filter_map(Value::as_str).map(str::to_owned));
    wanting.extend(list(&status["messages"]["crowded"]).iter().map(|owner| {
        format!("{} posts so many messages that their keys are forgotten before their time", word(owner))
    }));
    if pair["connected"] == false {
        wanting.push(format!("{} is away", word(&pair["peer"])));
    }
    wanting.extend(pair["unlike"].as_str().map(str::to_owned));
    wanting.extend(numbers::wanting(&status["numbers"]));
    if let dropped @ 1.. = count(&status["numbers"]["dropped"]) {
        wanting.push(format!(
            "{dropped} writes of records that were answered here alone gave way: vault number dropped"
        ));
    }
    let database = &status["numbers"]["database"];
    if let Some(why) = database["why"].as_str() {
        wanting.push(format!("database: {why}"));
    } else if let ("behind", behind @ 1..) = (word(&database["phase"]), count(&database["lag"])) {
        wanting.push(format!("the database is {behind} entries behind, and replies do not wait for it"));
    }
    wanting.extend(database["thin"].as_str().map(str::to_owned));
    wanting.extend(database["alarm"].as_str().map(str::to_owned));
    let servers = list(&files["file_servers"]);
    for server in servers {
        let name = word(&server["name"]);
        if server["up"] == false {
            wanting.push(format!("{name} {}", away(server)));
        } else if server["full"] == true {
            wanting.push(format!("{name} is full"));
        } else if server["low"] == true {
            wanting.push(format!("{name} has less room than storage.keep_free"));
        }
    }
    let theirs = &pair["its_status"]["files"];
    if pair["connected"] == true {
        let error = &pair["its_status"]["error"];
        wanting.extend(error.as_str().map(|error| format!("{}: {error}", word(&pair["peer"]))));
        let here = |name: &Value| servers.iter().any(|own| own["name"] == *name && own["up"] == true);
        for server in list(&theirs["file_servers"]) {
            if server["up"] == false && here(&server["name"]) {
                wanting.push(format!("{} does not reach {}", word(&pair["peer"]), word(&server["name"])));
            }
        }
    }
    let broker = &status["broker"];
    wanting.extend(broker["full"].as_str().map(|what| format!("broker: {what} is full; senders are held")));
    wanting.extend(broker["trouble"].as_str().map(|why| format!("broker: {why}")));
    wanting.extend(list(&status["queues"]["troubles"]).iter().map(|trouble| word(trouble).to_owned()));
    let troubles = list(&status["bridge"]["troubles"]).iter();
    wanting.extend(troubles.map(|trouble| format!("bridge {}", word(trouble))));
    wanting.extend(files["key_trouble"].as_str().map(|trouble| format!("keys: {trouble}")));
    if let sealed @ 1.. = count(&files["unopened"]) {
        wanting.push(format!(
            "{sealed} objects on the file servers open with no key here: vault file rebuild-catalog --identity"
        ));
    }
    if let lost @ 1.. = count(&files["without_replica"]) {
        wanting.push(format!("{lost} files have no whole replica left: vault file owed"));
    }
    let oldest = count(&files["owed_oldest_seconds"]);
    if oldest >= LATE {
        let owed = count(&files["owed"]);
        wanting.push(format!("{owed} replicas owed, the oldest for {}", span(oldest)));
    }
    for (walk, what) in [("rewrap", "rewrapping"), ("rebuild", "rebuilding the catalog")] {
        let walk = &files[walk];
        if let (Some(error), false) = (walk["last_error"].as_str(), walk["running"] == true) {
            wanting.push(format!("{what}: {error}"));
        }
    }
    if files["spool"]["free_bytes"].as_u64().is_some_and(|free| free < FULL) {
        wanting.push(format!("the spool {} is full", word(&files["spool"]["folder"])));
    }
    wanting
}

/// The document as people read it. `now` in Unix seconds.
#[must_use]
pub fn told(status: &Value, wanting: &[String], now: i64) -> String {
    let (vault, pair, numbers) = (&status["vault"], &status["pair"], &status["numbers"]);
    let verdict =
        if wanting.is_empty() { "well".to_owned() } else { format!("degraded: {}", wanting.join("; ")) };
    let mut text = format!("{}: {verdict}\n", word(&vault["name"]));
    let mut line = |name: &str, about: String| {
        text.push_str(&format!("  {name:<12} {about}\n"));
    };
    let there = if pair["connected"] == true { "connected" } else { "AWAY" };
    // Where numbers are given, both say the same of it.
    let theirs = &pair["its_status"]["numbers"];
    let theirs = match (numbers["reason"].is_string(), theirs["owner"].as_str()) {
        (true, Some(owner)) => {
            format!("; to it {owner} owns the ledger, in epoch {}", count(&theirs["epoch"]))
        }
        _ => String::new(),
    };
    line("other vault", format!("{}, {there}{theirs}", word(&pair["peer"])));
    numbers::told(numbers, &mut line);
    let database = &numbers["database"];
    if database.is_object() {
        let at = database["place"].as_str().map(|place| format!(" on {place}")).unwrap_or_default();
        let behind = match count(&database["lag"]) {
            0 => String::new(),
            lag => format!(", {lag} behind"),
        };
        let (phase, holds) = (word(&database["phase"]), count(&database["holds"]));
        line("database", format!("{phase}{at}; {holds} entries{behind}"));
    }
    files(&status["files"], now, &mut line);
    let broker = &status["broker"];
    if broker.is_object() {
        line(
            "broker",
            format!(
                "{}, {} clients; {} messages in {} queues, {} dead letters",
                word(&broker["listen"]),
                count(&broker["clients"]),
                count(&broker["messages"]),
                count(&broker["queues"]),
                count(&broker["dead_letters"]),
            ),
        );
    }
    let queues = &status["queues"];
    if queues.is_object() && !broker.is_object() {
        let (messages, names) = (count(&queues["messages"]), count(&queues["queues"]));
        let dead = count(&queues["dead_letters"]);
        line("queues", format!("{messages} messages in {names} queues, {dead} dead letters; no broker"));
    }
    for (name, direction) in status["bridge"]["directions"].as_object().into_iter().flatten() {
        let waiting = count(&direction["waiting"]["rows"]);
        let (state, forwarded) = (word(&direction["state"]), count(&direction["forwarded"]));
        line("bridge", format!("{name}: {state}; {forwarded} messages forwarded, {waiting} wait"));
    }
    let pki = &status["pki"];
    let key = if pki["authority_key_here"] == true { "; the authority's key lies here" } else { "" };
    line(
        "certificates",
        format!(
            "{}, {} revoked, {} tokens open{key}",
            count(&pki["certificates"]),
            count(&pki["revoked"]),
            count(&pki["open_tokens"])
        ),
    );
    line(
        "program",
        format!("vault {}, up {}", word(&vault["version"]), span(count(&vault["uptime_seconds"]))),
    );
    text.push_str("vault --json status tells everything\n");
    text
}

fn files(files: &Value, now: i64, line: &mut impl FnMut(&str, String)) {
    let aged = |name: &str, what: &str| match (
        count(&files[name]),
        files[format!("{name}_oldest_seconds")].as_u64(),
    ) {
        (0, _) => String::new(),
        (some, Some(oldest)) => format!(", {some} {what} (the oldest for {})", span(oldest)),
        (some, None) => format!(", {some} {what}"),
    };
    line(
        "files",
        format!(
            "{}{}{}{}",
            count(&files["objects"]),
            aged("deleted", "deleted"),
            aged("owed", "replicas owed"),
            aged("removals_owed", "removals owed"),
        ),
    );
    for server in list(&files["file_servers"]) {
        let mut about = if server["up"] == true {
            "answers".to_owned()
        } else {
            away(server).replacen("away", "AWAY", 1)
        };
        if let Some(took) = server["first_byte_ms"].as_f64().filter(|_| server["up"] == true) {
            about.push_str(&format!(", first byte after {} ms", took.round()));
        }
        for (key, what) in [("full", "FULL"), ("low", "low on space")] {
            if server[key] == true {
                about.push_str(&format!(", {what}"));
            }
        }
        if let owed @ 1.. = count(&server["owed"]) {
            about.push_str(&format!(", {owed} replicas owed"));
        }
        line(word(&server["name"]), about);
    }
    let spool = &files["spool"];
    let free = spool["free_bytes"].as_u64().map_or_else(
        || "its disk does not tell what is free".to_owned(),
        |free| format!("{} free", bytes(free)),
    );
    let low = if spool["low"] == true { ", less than one upload of storage.max_file takes" } else { "" };
    line("spool", format!("{}, {free}{low}", word(&spool["folder"])));
    line("compared", round(&files["sync"], now));
    line("scrubbed", round(&files["scrub"], now));
    for (walk, what) in [("rewrap", "rewrapping"), ("rebuild", "rebuilding")] {
        let walk = &files[walk];
        if walk["running"] == true {
            line(what, format!("{} %, {} done", count(&walk["percent"]), count(&walk["done"])));
        }
    }
}

fn round(round: &Value, now: i64) -> String {
    let ended = match round["finished"].as_i64() {
        Some(finished) => {
            format!("{} ({} ago)", at(finished), span(u64::try_from(now - finished).unwrap_or(0)))
        }
        None => "not yet".to_owned(),
    };
    let found = match (count(&round["damaged"]), count(&round["skipped"])) {
        (0, 0) => String::new(),
        (damaged, skipped) => format!("; {damaged} damaged or missing, {skipped} left out"),
    };
    let under_way = if round["running"] == true { "; one is under way" } else { "" };
    format!("{ended}{found}{under_way}")
}

fn away(server: &Value) -> String {
    let since =
        server["away_since"].as_i64().map(|since| format!(" since {}", at(since))).unwrap_or_default();
    let why = server["away"].as_str().map(|why| format!(" ({why})")).unwrap_or_default();
    format!("away{since}{why}")
}

/// A time in Unix seconds, as people read it.
pub(super) fn at(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}

/// Seconds in a unit that people read.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Bytes in a unit that people read.
pub(super) fn bytes(count: u64) -> String {
    match count {
        0..1_048_576 => format!("{} KiB", count >> 10),
        1_048_576..1_073_741_824 => format!("{} MiB", count >> 20),
        _ => format!("{}.{} GiB", count >> 30, ((count % (1 << 30)) * 10) >> 30),
    }
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn well() -> Value {
        let files = json!({
            "key_trouble": null, "unopened": 0, "objects": 204, "owed": 1, "owed_oldest_seconds": 12, "removals_owed": 0,
            "deleted": 3, "deleted_oldest_seconds": 7300, "without_replica": 0,
            "sync": {"running": false, "finished": NOW - 300, "damaged": 0},
            "scrub": {"running": true, "finished": null, "damaged": 0, "skipped": 0},
            "rewrap": {"running": false, "last_error": null}, "rebuild": {"running": false, "last_error": null},
            "spool": {"folder": "/var/lib/vault/spool", "free_bytes": 13_300_000_000_u64, "low": false},
            "file_servers": [
                {"name": "lyon", "up": true, "full": false, "low": false, "owed": 0, "first_byte_ms": 3.217_348},
                {"name": "paris", "up": true, "full": false, "low": false, "owed": 1,
                 "errors": 7, "last_error": "file server paris: x: away: long ago"},
            ],
        });
        json!({
            "vault": {"name": "vault-a", "version": "0.1.0", "uptime_seconds": 11_000},
            "pair": {"peer": "vault-b", "connected": true, "unlike": null, "its_status": {"files": {}}},
            "numbers": {"owner": "vault-a", "entries": 21, "epoch": 2, "tokens": ["vault-b"], "reason": null,
                "database": {"phase": "current", "lag": 0, "why": null, "thin": null, "writable": ["a"]}},
            "pki": {"certificates": 4, "revoked": 0, "open_tokens": 0, "authority_key_here": false},
            "worker": {"worries": []},
            "messages": {"keys": 7, "crowded": []},
            "files": files,
        })
    }

    #[test]
    fn a_status_is_a_verdict_and_a_dozen_lines() {
        let status = well();
        assert_eq!(wanting(&status), Vec::<String>::new());
        let text = told(&status, &[], NOW);
        assert!(text.starts_with("vault-a: well\n"), "{text}");
        assert!(text.lines().count() <= 13, "{text}");
        for words in [
            "kept by vault-a in epoch 2; a token for vault-b",
            "first byte after 3 ms",
            "12.3 GiB free",
            "3 deleted (the oldest for 2 h)",
            "(5 min ago)",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(!text.contains("long ago"), "an error that does not hold any more: {text}");
    }

    #[test]
    fn what_is_wrong_stands_first_and_each_thing_by_itself_is_enough() {
        for (place, value, words) in [
            ("/pair/connected", json!(false), "vault-b is away"),
            ("/pair/its_status", json!({"error": "no answer"}), "vault-b: no answer"),
            ("/pair/unlike", json!("the two vaults' files differ: x"), "the two vaults' files differ"),
            (
                "/files/key_trouble",
                json!("storage.escrow_recipient differs"),
                "keys: storage.escrow_recipient",
            ),
            ("/files/unopened", json!(3), "3 objects on the file servers open with no key"),
            ("/numbers/reason", json!("the other vault is away"), "no numbers are given: the other vault is"),
            ("/files/file_servers/0/full", json!(true), "lyon is full"),
            ("/files/file_servers/1/low", json!(true), "paris has less room"),
            ("/files/owed_oldest_seconds", json!(7200), "1 replicas owed, the oldest for 2 h"),
            ("/files/without_replica", json!(2), "2 files have no whole replica left"),
            ("/files/rebuild/last_error", json!("both must be listed"), "rebuilding the catalog: both"),
            ("/files/spool/free_bytes", json!(4096), "the spool /var/lib/vault/spool is full"),
            ("/pki", json!({"error": "disk"}), "pki: disk"),
            ("/messages", json!({"keys": 7, "crowded": ["erp"]}), "erp posts so many messages"),
            ("/worker", json!({"worries": ["tick is paused"]}), "tick is paused"),
            ("/numbers/database", json!({"phase": "behind", "lag": 3}), "the database is 3 entries behind"),
            ("/numbers/database", json!({"alarm": "a and b take writes"}), "a and b take writes"),
            (
                "/bridge",
                json!({"troubles": ["there: its source is away"]}),
                "bridge there: its source is away",
            ),
            ("/numbers/database", json!({"thin": "etcd: a is away"}), "etcd: a is away"),
            ("/queues", json!({"dead_letters": 5, "troubles": ["5 dead letters: vault"]}), "5 dead letters"),
        ] {
            let mut status = well();
            status["queues"] = json!({});
            status["bridge"] = json!({});
            *status.pointer_mut(place).unwrap() = value;
            let found = wanting(&status);
            assert!(found.len() == 1 && found[0].contains(words), "{place}: {found:?}");
        }
        let mut status = well();
        status["numbers"]["reason"] = json!("both own it");
        status["pair"]["its_status"]["numbers"] = json!({ "owner": "vault-b", "epoch": 2 });
        let text = told(&status, &wanting(&status), NOW);
        assert!(text.contains("vault-b, connected; to it vault-b owns the ledger, in epoch 2"), "{text}");
        let mut status = well();
        let paris =
            json!({"name": "paris", "up": false, "away": "connection refused", "away_since": NOW, "owed": 1});
        status["files"]["file_servers"][1] = paris;
        let text = told(&status, &wanting(&status), NOW);
        let verdict = "vault-a: degraded: paris away since 2027-01-15T08:00:00Z (connection refused)\n";
        assert!(text.starts_with(verdict), "{text}");
        assert!(text.contains("AWAY since 2027-01-15T08:00:00Z"), "{text}");
    }
}

//! The house rules that can be checked by reading the tree: who may import whom, what opens
//! every file, which names are not used, where unsafe code and pingora may appear. No program
//! runs here. A rule that is bent on purpose is bent in one of the tables below, with its reason.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// No file of ours is longer; near 600 lines a second noun has moved in.
const LONGEST: usize = 700;

/// The small modules that may contain unsafe code, each with its reason.
const UNSAFE: &[(&str, &str)] = &[];

/// Names that say nothing, as words of an identifier's end or as whole file names.
const EMPTY_FILE_NAMES: &[&str] =
    &["mod.rs", "util.rs", "utils.rs", "common.rs", "helpers.rs", "helper.rs", "misc.rs"];

/// Names that others' traits impose on us.
const IMPOSED: &[(&str, &str)] = &[
    ("get_ssl_digest", "pingora's Ssl"),
    ("get_timing_digest", "pingora's GetTimingDigest"),
    ("get_proxy_digest", "pingora's GetProxyDigest"),
    ("get_socket_digest", "pingora's GetSocketDigest"),
];

/// Corridors may import any room of their program.
const CORRIDORS: &[&str] = &["edge/proxy", "edge/log_watch", "vault/api", "vault/worker"];

/// What builds and joins rooms: may import anything of its program.
const JOINERS: &[&str] = &[
    "edge/main",
    "edge/lib",
    "edge/serve",
    "edge/preflight",
    "edge/command",
    "vault/main",
    "vault/lib",
    "vault/serve",
    "vault/rooms",
    "vault/command",
];

/// Which rooms a room may import besides `shared`. Rooms that are not named import nobody.
const ARROWS: &[(&str, &[&str])] = &[
    // Settings are read in one place and handed to the rooms that own them.
    (
        "edge/config",
        &["access_log", "admission", "ban", "client", "firewall", "gateway", "listen", "route", "upstream"],
    ),
    // Plain HTTP only redirects, and only to hosts that are named like hosts.
    // Who is banned is closed before its handshake, and cut by its client's address.
    ("edge/listen", &["access_log", "admission", "client", "config", "metrics", "route", "tls"]),
    ("edge/tls", &["config"]),
    // A route may have a rate of its own.
    ("edge/route", &["admission"]),
    ("edge/admission", &["client"]),
    ("edge/access_log", &["metrics"]),
    // The operator sees who is being counted, and asks about bans.
    ("edge/admin", &["admission", "ban", "metrics"]),
    // The third corridor: the handlers' door.
    ("edge/gateway", &["admin", "metrics"]),
    ("vault/broker", &["openwire", "queue"]),
    (
        "vault/config",
        &[
            "bridge", "broker", "delivery", "openwire", "pair", "pki", "queue", "schedule", "sequence",
            "storage",
        ],
    ),
    // It consumes a queue in process, and shows its messages to who speaks no OpenWire.
    ("vault/delivery", &["openwire", "pause", "queue"]),
    ("vault/bridge", &["openwire", "sqlite"]),
    // It puts messages into queues for who speaks no JMS.
    ("vault/posting", &["openwire", "queue", "sqlite"]),
    ("vault/pki", &["marks", "sqlite"]),
    ("vault/queue", &["sqlite"]),
    ("vault/sequence", &["sqlite"]),
    ("vault/storage", &["marks", "sqlite"]),
];

/// Who may speak of pingora.
const PINGORA: &[&str] = &["edge/proxy", "edge/listen"];

#[test]
fn every_file_opens_with_what_it_knows() {
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|source| !source.text.starts_with("//! "))
        .map(|source| source.name)
        .collect();
    assert!(silent.is_empty(), "these files do not open with `//!`: {silent:?}");
}

#[test]
fn no_file_outgrows_its_room() {
    let long: Vec<_> = sources()
        .into_iter()
        .map(|source| (source.text.lines().count(), source.name))
        .filter(|(lines, _)| *lines > LONGEST)
        .collect();
    assert!(long.is_empty(), "longer than {LONGEST} lines, split by noun: {long:?}");
}

#[test]
fn no_name_is_empty_of_meaning() {
    let mut found = Vec::new();
    for source in sources() {
        let file_name = source.name.rsplit('/').next().unwrap_or_default();
        if EMPTY_FILE_NAMES.contains(&file_name) {
            found.push(source.name.clone());
        }
        for (number, line) in source.code_lines() {
            for name in declared(line) {
                let imposed = IMPOSED.iter().any(|(imposed, _)| *imposed == name);
                if imposed {
                    continue;
                }
                if name.starts_with("get_")
                    || name.ends_with("Manager")
                    || name.ends_with("Impl")
                    || name.ends_with("Helper")
                {
                    found.push(format!("{}:{number}: {name}", source.name));
                }
            }
        }
    }
    assert!(found.is_empty(), "no Manager, get_, Impl, util, common or helpers: {found:#?}");
}

#[test]
fn arrows_between_rooms_point_down() {
    let rooms = rooms();
    let allowed: BTreeMap<_, BTreeSet<_>> =
        ARROWS.iter().map(|(room, targets)| (*room, targets.iter().copied().collect())).collect();
    let mut wrong = Vec::new();
    for source in programs() {
        let Some((program, room)) = source.room() else { continue };
        let full = format!("{program}/{room}");
        if program == "shared" || CORRIDORS.contains(&full.as_str()) || JOINERS.contains(&full.as_str()) {
            continue;
        }
        for (number, line) in source.production_lines() {
            for target in crate_paths(line) {
                let known = rooms.contains(&format!("{program}/{target}"));
                let fine = target == room
                    || allowed.get(full.as_str()).is_some_and(|targets| targets.contains(target.as_str()));
                if known && !fine {
                    wrong.push(format!("{}:{number}: {room} imports {target}", source.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "rooms on one floor ignore each other; see ARROWS: {wrong:#?}");
}

#[test]
fn no_room_imports_a_corridor() {
    let mut wrong = Vec::new();
    for source in programs() {
        let Some((program, room)) = source.room() else { continue };
        if JOINERS.contains(&format!("{program}/{room}").as_str()) {
            continue;
        }
        for (number, line) in source.production_lines() {
            for target in crate_paths(line) {
                if CORRIDORS.contains(&format!("{program}/{target}").as_str()) && target != room {
                    wrong.push(format!("{}:{number}: imports the corridor {target}", source.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_privileged_program_sees_nothing_of_edge_but_the_firewall() {
    let files: Vec<_> = sources()
        .into_iter()
        .filter(|source| source.name.starts_with("edge/src/bin/edge-firewall/"))
        .collect();
    assert!(files.len() > 1, "the helper's files are not where this test looks");
    let mut wrong = Vec::new();
    for source in files {
        for (number, line) in source.code_lines() {
            if mentions(line, "edge::") && !mentions(line, "edge::firewall") {
                wrong.push(format!("{}:{number}: {}", source.name, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "it adds bans and loads rules, and must not learn to do more: {wrong:#?}");
}

#[test]
fn the_table_of_arrows_names_rooms_that_exist() {
    let rooms = rooms();
    for (room, targets) in ARROWS {
        assert!(rooms.contains(*room), "{room} is no room");
        let program = room.split('/').next().unwrap_or_default();
        for target in *targets {
            assert!(
                rooms.contains(&format!("{program}/{target}")),
                "{room} may import {target}, which is no room"
            );
        }
    }
}

#[test]
fn edge_and_vault_meet_only_in_shared() {
    let mut wrong = Vec::new();
    for source in programs() {
        let foreign: &[&str] = match source.name.split('/').next() {
            Some("edge") => &["vault::"],
            Some("vault") => &["edge::"],
            _ => &["edge::", "vault::"],
        };
        for (number, line) in source.code_lines() {
            if foreign.iter().any(|path| mentions(line, path)) {
                wrong.push(format!("{}:{number}: {}", source.name, line.trim()));
            }
        }
    }
    for (manifest, forbidden) in
        [("edge", ["vault"].as_slice()), ("vault", &["edge"]), ("shared", &["edge", "vault"])]
    {
        let text = read(&top().join(manifest).join("Cargo.toml"));
        for line in text.lines() {
            let key = line.split(['=', '.', ' ']).next().unwrap_or_default();
            if forbidden.contains(&key) {
                wrong.push(format!("{manifest}/Cargo.toml: {line}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn shared_imports_nothing_upwards_and_its_rooms_ignore_each_other() {
    // The client speaks the API's types over mTLS and knows when to try again; enrolment too.
    let allowed: BTreeMap<&str, &[&str]> =
        BTreeMap::from([("api", ["tls", "retry"].as_slice()), ("enrol", &["api", "tls"])]);
    let mut wrong = Vec::new();
    for source in programs().into_iter().filter(|source| source.name.starts_with("shared/")) {
        let Some((_, room)) = source.room() else { continue };
        for (number, line) in source.production_lines() {
            for target in crate_paths(line) {
                let fine = room == "lib"
                    || target == room
                    || allowed.get(room.as_str()).is_some_and(|targets| targets.contains(&target.as_str()));
                if !fine {
                    wrong.push(format!("{}:{number}: imports {target}", source.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn pingora_is_known_to_the_proxy_alone() {
    let wrong: Vec<_> = programs()
        .iter()
        .filter(|source| {
            let room = source.room().map(|(program, room)| format!("{program}/{room}"));
            !room.is_some_and(|room| PINGORA.contains(&room.as_str()))
        })
        .flat_map(|source| {
            source
                .code_lines()
                .filter(|(_, line)| line.contains("pingora"))
                .map(|(number, line)| format!("{}:{number}: {}", source.name, line.trim()))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(wrong.is_empty(), "only {PINGORA:?} know pingora: {wrong:#?}");
}

#[test]
fn unsafe_code_stands_only_where_it_is_listed() {
    // Written in two halves, so that this file does not find itself.
    let marks = [concat!("un", "safe"), concat!("un", "safe_code")];
    let mut wrong = Vec::new();
    for source in sources() {
        let listed = UNSAFE.iter().any(|(file, _)| *file == source.name);
        for (number, line) in source.code_lines() {
            if words(line).any(|word| marks.contains(&word)) && !listed {
                wrong.push(format!("{}:{number}: {}", source.name, line.trim()));
            }
        }
    }
    for (file, _) in UNSAFE {
        assert!(top().join(file).is_file(), "{file} is listed and does not exist");
    }
    assert!(wrong.is_empty(), "not in the list: {wrong:#?}");
}

#[test]
fn nothing_is_left_undone_or_switched_off() {
    // Written in two halves, so that this file does not find itself.
    let marks = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("allow(", "dead_code"),
        concat!("#[", "ignore"),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
    ];
    let mut found = Vec::new();
    for source in sources() {
        for (number, line) in source.text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                found.push(format!("{}:{}: {}", source.name, number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_tree_speaks_of_the_project_alone() {
    let outside = [
        concat!("../sha", "red/"),
        concat!("/wo", "rk/"),
        concat!("/tmp/br", "ief"),
        concat!("facts/", "pingora"),
    ];
    let mut found = Vec::new();
    for file in all_files() {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        for (number, line) in text.lines().enumerate() {
            // The crate beside ours is no document.
            let line = line.replace("path = \"../../shared\"", "").replace("path = \"../shared\"", "");
            if outside.iter().any(|mark| line.contains(mark)) {
                found.push(format!("{}:{}: {}", relative(&file), number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "what readers cannot see must not be named: {found:#?}");
}

#[test]
fn errors_are_enums_of_their_room_without_a_catch_all() {
    let mut found = Vec::new();
    for source in programs() {
        for (number, line) in source.production_lines() {
            if line.contains("Other(String)")
                || (line.contains("anyhow") && !source.name.ends_with("main.rs"))
            {
                found.push(format!("{}:{number}: {}", source.name, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "anyhow only in main.rs, no Other(String): {found:#?}");
}

#[test]
fn every_key_of_the_configuration_files_says_why() {
    for name in ["edge.toml", "vault.toml"] {
        let text = read(&top().join("conf").join(name));
        // A key is explained once; a second section of the same kind need not repeat it.
        let (mut explained, mut keys) = (BTreeSet::new(), BTreeMap::new());
        let (mut section, mut just_said) = (String::new(), false);
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            let bare = line.trim_start_matches('#').trim_start();
            if line.is_empty() {
                just_said = false;
            } else if bare.starts_with('[') && bare.ends_with(']') {
                section = bare.trim_matches(['[', ']']).to_owned();
            } else if let Some(key) = assigned(bare) {
                let path = format!("{section}.{key}");
                if just_said || line.trim_start_matches('#').contains(" #") {
                    explained.insert(path.clone());
                }
                keys.entry(path).or_insert(number + 1);
            } else if line.starts_with('#') {
                just_said = true;
            }
        }
        assert!(keys.len() > 10, "conf/{name}: {} keys cannot be all of them", keys.len());
        let silent: Vec<_> = keys.iter().filter(|(path, _)| !explained.contains(*path)).collect();
        assert!(silent.is_empty(), "conf/{name}: one line of why for each key: {silent:#?}");
    }
}

#[test]
fn every_key_the_programs_read_stands_in_its_configuration_file() {
    for program in ["edge", "vault"] {
        let file = read(&top().join("conf").join(format!("{program}.toml")));
        let written: BTreeSet<_> = file
            .lines()
            .flat_map(|line| {
                let bare = line.trim().trim_start_matches('#').trim_start();
                let section = bare.trim_matches(['[', ']']).split('.').map(str::to_owned).collect::<Vec<_>>();
                if bare.starts_with('[') { section } else { assigned(bare).into_iter().collect() }
            })
            .collect();
        let mut missing = BTreeSet::new();
        for source in programs() {
            if source.room().is_some_and(|(own, room)| own == program && room == "config") {
                for (_, line) in source.production_lines() {
                    missing.extend(pulled(line).filter(|key| !written.contains(key)));
                }
            }
        }
        assert!(missing.is_empty(), "conf/{program}.toml lacks: {missing:?}");
    }
}

#[test]
fn every_fuzz_body_has_its_target() {
    let folder = top().join("tests/fuzz/fuzz_targets");
    let targets: String =
        all_files().iter().filter(|file| file.starts_with(&folder)).map(|file| read(file)).collect();
    let mut missing = Vec::new();
    for source in programs() {
        let stem = source.name.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs").to_owned();
        for (_, line) in source.production_lines() {
            let Some(name) = declared(line).find(|name| name == "fuzz" || name.starts_with("fuzz_")) else {
                continue;
            };
            // A body called `fuzz` is told from the others by its module.
            let call = if name == "fuzz" { format!("{stem}::{name}(") } else { format!("{name}(") };
            if line.trim_start().starts_with("pub fn") && !targets.contains(&call) {
                missing.push(format!("{}: {name}", source.name));
            }
        }
    }
    assert!(missing.is_empty(), "no target in tests/fuzz calls: {missing:?}");
}

#[test]
fn the_readme_names_the_tests_of_its_invariants() {
    let readme = read(&top().join("README.md"));
    let own = read(&top().join("tests/tests/house.rs"));
    let named: Vec<_> = own
        .lines()
        .zip(own.lines().skip(1))
        .filter(|(mark, _)| mark.trim() == "#[test]")
        .filter_map(|(_, line)| line.strip_prefix("fn ")?.split('(').next().map(str::to_owned))
        .filter(|name| readme.contains(&format!("`{name}`")))
        .collect();
    assert!(named.len() >= 6, "the architecture section names only {named:?}");
}

/// A source file, by its path from the top.
struct Source {
    name: String,
    text: String,
}

impl Source {
    /// `("edge", "listen")` for `edge/src/listen/head.rs`.
    fn room(&self) -> Option<(String, String)> {
        let mut parts = self.name.split('/');
        let (program, src, room) = (parts.next()?, parts.next()?, parts.next()?);
        (src == "src").then(|| (program.to_owned(), room.trim_end_matches(".rs").to_owned()))
    }

    /// Numbered lines without comments and strings' worth of prose.
    fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line))
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// As [`Self::code_lines`], up to the unit tests, which stand last and may import anything.
    fn production_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let whole_file_is_a_test = self.name.ends_with("/tests.rs");
        self.code_lines().take_while(move |(_, line)| !whole_file_is_a_test && line.trim() != "#[cfg(test)]")
    }
}

/// Where the tree starts.
fn top() -> PathBuf {
    harness::binaries::tree().to_owned()
}

/// Every Rust file of the workspace.
fn sources() -> Vec<Source> {
    let files = all_files();
    let rust = files.iter().filter(|file| file.extension().is_some_and(|end| end == "rs"));
    rust.map(|file| Source { name: relative(file), text: read(file) }).collect()
}

/// The Rust files of the programs and of what they share.
fn programs() -> Vec<Source> {
    let own =
        |name: &str| ["edge/src/", "vault/src/", "shared/src/"].iter().any(|start| name.starts_with(start));
    sources().into_iter().filter(|source| own(&source.name)).collect()
}

/// `edge/listen` for every room of both programs.
fn rooms() -> BTreeSet<String> {
    let named = programs().into_iter().filter_map(|source| source.room());
    named.map(|(program, room)| format!("{program}/{room}")).collect()
}

/// Every file under version control or about to be: not what is built, not git's own.
fn all_files() -> Vec<PathBuf> {
    let skipped = ["target", ".git", "corpus", "artifacts"];
    let mut files = Vec::new();
    let mut folders = vec![top()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let name = entry.file_name();
            if skipped.iter().any(|skip| name == *skip) {
                continue;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files.sort();
    files
}

fn relative(file: &Path) -> String {
    file.strip_prefix(top()).unwrap_or(file).display().to_string()
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The first segments of `crate::…` paths in a line, also of `crate::{a, b::c}`.
fn crate_paths(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in line.split("crate::").skip(1) {
        if let Some(group) = part.strip_prefix('{') {
            let mut depth = 0;
            let mut name = String::new();
            for letter in group.chars() {
                match letter {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => found.push(first_segment(&std::mem::take(&mut name))),
                    _ if depth == 0 => name.push(letter),
                    _ => {}
                }
            }
            found.push(first_segment(&name));
        } else {
            found.push(first_segment(part));
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

fn first_segment(path: &str) -> String {
    path.trim().chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

/// The names that a line declares.
fn declared(line: &str) -> impl Iterator<Item = String> {
    let mut words = words(line).peekable();
    let mut names = Vec::new();
    while let Some(word) = words.next() {
        if ["fn", "struct", "enum", "trait", "type", "mod"].contains(&word)
            && let Some(name) = words.peek()
        {
            names.push((*name).to_owned());
        }
    }
    names.into_iter()
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|letter: char| !letter.is_alphanumeric() && letter != '_').filter(|word| !word.is_empty())
}

/// Is `path` (`vault::`) named, and not as the end of a longer word or path?
fn mentions(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line.get(..at).and_then(|start| start.chars().last());
        !before.is_some_and(|letter| letter.is_alphanumeric() || matches!(letter, '_' | ':' | '"' | '\\'))
    })
}

/// `key` of `key = value`.
fn assigned(line: &str) -> Option<String> {
    let (key, value) = line.split_once(" = ")?;
    let is_key = !key.is_empty()
        && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    (is_key && !value.trim().is_empty()).then(|| key.to_owned())
}

/// The keys that a line of a `config` room pulls out of a section.
fn pulled(line: &str) -> impl Iterator<Item = String> {
    const CALLS: [&str; 7] =
        ["required", "or", "optional", "list", "section", "optional_section", "sections"];
    let mut keys = Vec::new();
    for call in CALLS {
        for mark in [format!(".{call}(\""), format!(".{call}::<")] {
            for (at, _) in line.match_indices(&mark) {
                let rest = line.get(at + mark.len() - 1..).unwrap_or_default();
                let rest = rest.split_once('"').map_or("", |(_, rest)| rest);
                keys.extend(rest.split_once('"').map(|(key, _)| key.to_owned()));
            }
        }
    }
    keys.into_iter()
}

//! Random histories of one edge's real store between two vaults of a model: cut off from each other,
//! restarted, the store lost, put back from a snapshot or a backup, its host's clock set, edge killed
//! between any two steps of a ticket. No key may ever be told two numbers. The same histories with
//! a store that ignores its doubts must find one that is, or they would show nothing.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::doubts::{Hands, TODAY};
use super::*;

const FILES: [&str; 4] = ["", "-wal", ".witness", ".seal"];

/// How far a call gets before edge is killed, if it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The handler has its answer.
    Answered,
    /// Killed before the ticket is written down.
    NotWritten,
    /// Killed after that, before the call goes out.
    NotSent,
    /// Killed before the answer comes, which another edge's handler may have heard all the same.
    NotHeard,
}

#[derive(Debug, Clone, Copy)]
enum Op {
    /// A key goes to one vault first, and on to the same or the other one.
    Send(u8, usize, usize, Fate),
    Cut,
    Join,
    RestartVault(usize),
    /// Killed, or in order.
    RestartEdge(bool),
    SetClock,
    /// Of the files that a killed edge left, or one that ended.
    Snapshot(bool),
    /// The snapshot is put back: with the host, or these files of it alone, written over or renamed.
    PutBack(Option<u8>, bool),
    Lose,
    /// Edge asks whether both are together.
    AskTogether,
}

fn op() -> impl Strategy<Value = Op> {
    let fate = prop_oneof![
        6 => Just(Fate::Answered),
        1 => Just(Fate::NotWritten),
        1 => Just(Fate::NotSent),
        2 => Just(Fate::NotHeard),
    ];
    prop_oneof![
        14 => (0..3_u8, 0..2_usize, 0..2_usize, fate).prop_map(|(key, first, to, fate)| Op::Send(key, first, to, fate)),
        2 => Just(Op::Cut),
        1 => Just(Op::Join),
        1 => (0..2_usize).prop_map(Op::RestartVault),
        1 => any::<bool>().prop_map(Op::RestartEdge),
        1 => Just(Op::SetClock),
        1 => any::<bool>().prop_map(Op::Snapshot),
        1 => (prop::option::weighted(0.8, 1..16_u8), any::<bool>())
            .prop_map(|(files, renamed)| Op::PutBack(files, renamed)),
        1 => Just(Op::Lose),
        2 => Just(Op::AskTogether),
    ]
}

/// A vault by the rules that matter here.
struct Vault {
    life: u128,
    alone: BTreeMap<u8, u64>,
}

struct World {
    vaults: [Vault; 2],
    together: bool,
    /// What both know.
    ledger: BTreeMap<u8, u64>,
    given: u64,
    lives: u128,
    told: BTreeMap<u8, BTreeSet<u64>>,
    folder: tempfile::TempDir,
    edge: Option<Hands>,
    /// Does the store heed its doubts?
    heeds: bool,
}

impl World {
    fn new(heeds: bool) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let edge = Some(Hands::start(settings(folder.path()), TODAY));
        let vaults = [1, 2].map(|life| Vault { life, alone: BTreeMap::new() });
        let (ledger, told) = Default::default();
        Self { vaults, together: true, ledger, given: 0, lives: 2, told, folder, edge, heeds }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn edge(&mut self) -> &mut Hands {
        let folder = self.folder.path();
        let edge = self.edge.get_or_insert_with(|| Hands::start(settings(folder), TODAY));
        if !self.heeds && edge.doubt().is_some() {
            edge.settle();
        }
        edge
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Send(key, first, to, fate) => self.send(key, first, to, fate),
            Op::Cut => self.together = false,
            Op::Join => {
                for vault in &mut self.vaults {
                    for (key, number) in std::mem::take(&mut vault.alone) {
                        self.ledger.entry(key).or_insert(number);
                    }
                }
                self.together = true;
            }
            Op::RestartVault(vault) => {
                self.lives += 1;
                self.vaults[vault].life = self.lives;
            }
            Op::RestartEdge(killed) => self.stop(killed),
            Op::SetClock => {
                let edge = self.edge();
                edge.set(edge.wall + 86_400);
            }
            Op::Snapshot(killed) => {
                self.stop(killed);
                for name in FILES {
                    let copy = self.file(&format!("snapshot{name}"));
                    match std::fs::copy(self.file(&format!("tickets.db{name}")), &copy) {
                        Ok(_) => {}
                        Err(_) => drop(std::fs::remove_file(copy)),
                    }
                }
            }
            Op::PutBack(files, renamed) => {
                self.stop(!renamed);
                if self.file("snapshot").exists() {
                    std::thread::sleep(Duration::from_millis(10));
                    self.put_back(files.unwrap_or(15), renamed);
                    if files.is_none() {
                        let connection = rusqlite::Connection::open(self.file("tickets.db")).unwrap();
                        connection.execute("UPDATE about SET place = 'another boot'", []).unwrap();
                    }
                }
            }
            Op::Lose => {
                self.edge = None;
                std::fs::remove_file(self.file("tickets.db")).unwrap();
                // A fresh one, for a snapshot to be taken of.
                self.edge();
            }
            Op::AskTogether => {
                let doubt = self.edge().doubt();
                if let Some(doubt) = doubt.filter(|_| self.together) {
                    self.edge().turn(vec![Work::WereTogether(doubt)]);
                }
            }
        }
    }

    fn stop(&mut self, killed: bool) {
        match self.edge.take() {
            Some(edge) if killed => edge.kill(),
            _ended => {}
        }
    }

    fn put_back(&self, files: u8, renamed: bool) {
        for (at, name) in FILES.into_iter().enumerate() {
            let (from, to) = (self.file(&format!("snapshot{name}")), self.file(&format!("tickets.db{name}")));
            match (files & 1 << at != 0, from.exists(), renamed) {
                (false, ..) => {}
                (true, false, _) => drop(std::fs::remove_file(to)),
                (true, true, false) => drop(std::fs::copy(from, to).unwrap()),
                (true, true, true) => {
                    std::fs::copy(from, self.file("fresh")).unwrap();
                    std::fs::rename(self.file("fresh"), to).unwrap();
                }
            }
        }
    }

    fn send(&mut self, key: u8, first: usize, to: usize, fate: Fate) {
        if fate == Fate::NotWritten {
            self.stop(true);
            return;
        }
        let life = self.vaults[first].life;
        let doubt = self.edge().doubt();
        let ticket = self.edge().ask(&key.to_string(), Life(life));
        if fate == Fate::NotSent {
            self.stop(true);
            return;
        }
        let before = self.given;
        if let Some(number) = self.answer(key, to, ticket) {
            self.told.entry(key).or_default().insert(number);
        }
        match (doubt, ticket) {
            _ if fate == Fate::NotHeard => self.stop(true),
            (Some(doubt), None) if self.given > before => self.edge().turn(vec![Work::WereTogether(doubt)]),
            _ => {}
        }
    }

    /// What a vault answers, by the rules of tickets.
    fn answer(&mut self, key: u8, to: usize, ticket: Option<Life>) -> Option<u64> {
        let vault = &mut self.vaults[to];
        let known = self.ledger.get(&key).or(vault.alone.get(&key)).copied();
        if known.is_some() {
            return known;
        }
        if !self.together && ticket != Some(Life(vault.life)) {
            return None;
        }
        self.given += 1;
        if self.together { &mut self.ledger } else { &mut vault.alone }.insert(key, self.given);
        Some(self.given)
    }
}

/// In how many of these histories a key was told two numbers; and numbers that were told in all.
fn run(histories: u32, heeds: bool) -> (u32, usize) {
    let mut runner = TestRunner::deterministic();
    let (mut wrong, mut told) = (0, 0);
    for _ in 0..histories {
        let ops = prop::collection::vec(op(), 1..60).new_tree(&mut runner).unwrap().current();
        let mut world = World::new(heeds);
        ops.iter().for_each(|op| world.step(*op));
        told += world.told.len();
        let is_wrong = world.told.values().any(|numbers| numbers.len() > 1);
        assert!(!(is_wrong && heeds), "{:?} were told, after {ops:?}", world.told);
        wrong += u32::from(is_wrong);
    }
    (wrong, told)
}

#[test]
fn no_key_is_told_two_numbers_whatever_befalls_the_store() {
    let (_, told) = run(400, true);
    assert!(told > 400, "only {told} keys got numbers");
}

#[test]
fn a_store_that_ignored_its_doubts_would_be_found() {
    let (wrong, _) = run(400, false);
    assert!(wrong > 0, "the histories above show nothing");
}

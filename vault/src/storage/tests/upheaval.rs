//! Seeded lives of two vaults on the same two real file servers: uploads, deletions for ever and
//! such that are taken back, turns of both at once, deaths at any step, one file server at a time
//! rolled back, wiped or rotten, and fires that take both catalogs. In the end nothing acknowledged
//! is lost, nothing deleted is back, and everything agrees. A failure prints its seed; `UPHEAVALS`
//! sets how many lives there are, `UPHEAVAL` begins with another seed than 1.

use std::collections::{BTreeMap, BTreeSet};

use super::crash::dying_at;
use super::patrol::{spoil, sync_with};
use super::upkeep::rebuilt;
use super::*;

const VAULTS: [&str; 2] = ["vault-a", "vault-b"];
const SERVERS: [&str; 2] = ["one", "two"];

/// A small generator: the same seed gives the same life.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % below as u64).unwrap()
    }
}

struct World {
    place: Place,
    dice: Dice,
    vaults: Vec<Storage>,
    alive: BTreeMap<ObjectId, Vec<u8>>,
    deleted: BTreeSet<ObjectId>,
    /// Deleted, and within their grace.
    hidden: BTreeMap<ObjectId, Vec<u8>>,
    keys: usize,
    /// The file server that is not what it was: only one at a time, or files are lost for good.
    harmed: Option<usize>,
    copies: [bool; 2],
}

impl World {
    async fn new(seed: u64) -> Self {
        let place = Place::new();
        let vaults = vec![place.open(VAULTS[0]).await, place.open(VAULTS[1]).await];
        let dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let (alive, deleted) = (BTreeMap::new(), BTreeSet::new());
        let hidden = BTreeMap::new();
        Self { place, dice, vaults, alive, deleted, hidden, keys: 0, harmed: None, copies: [false; 2] }
    }

    async fn step(&mut self) {
        let vault = self.dice.roll(2);
        match self.dice.roll(15) {
            0..=2 => self.put(vault).await,
            3 => self.delete(vault).await,
            12 => self.hide(vault).await,
            13 => self.take_back(vault).await,
            14 if self.dice.roll(3) == 0 => self.burn().await,
            4 => self.tell().await,
            5 => {
                let (one, two) = (self.vaults[0].clone(), self.vaults[1].clone());
                let turn = |storage: Storage| async move {
                    let _ = storage.patrol_turn().await;
                    let _ = storage.repair_turn().await;
                };
                // Both at once, on one thread each where there are two.
                let (left, right) = (tokio::spawn(turn(one)), tokio::spawn(turn(two)));
                let _ = (left.await, right.await);
            }
            6 => self.die(vault).await,
            7 => {
                let server = self.dice.roll(2);
                if self.harmed.is_none() {
                    self.place.back_up(SERVERS[server]);
                    self.copies[server] = true;
                }
            }
            8 | 9 => self.harm().await,
            _ => self.heal().await,
        }
    }

    async fn put(&mut self, vault: usize) {
        self.keys += 1;
        let text = text(50 + self.keys);
        let stored = put(&self.vaults[vault], &format!("k{}", self.keys), &text).await;
        if let Ok(stored) = stored {
            self.alive.insert(stored.entry.id, text);
        }
    }

    async fn delete(&mut self, vault: usize) {
        let at = self.dice.roll(self.alive.len().max(1));
        let Some(id) = self.alive.keys().nth(at).copied() else { return };
        // Only what this vault knows: the API asks for it first.
        if matches!(self.vaults[vault].find(&id).await, Ok(Found::Stored(_))) {
            erase(&self.vaults[vault], &id).await;
            self.alive.remove(&id);
            self.deleted.insert(id);
        }
    }

    async fn hide(&mut self, vault: usize) {
        self.tell().await;
        let at = self.dice.roll(self.alive.len().max(1));
        let Some(id) = self.alive.keys().nth(at).copied() else { return };
        if matches!(self.vaults[vault].find(&id).await, Ok(Found::Stored(_))) {
            self.vaults[vault].delete(&id).await.unwrap();
            self.hidden.extend(self.alive.remove(&id).map(|text| (id, text)));
        }
    }

    async fn take_back(&mut self, vault: usize) {
        // Both have heard the same, or the one that has heard less is overruled.
        self.tell().await;
        let at = self.dice.roll(self.hidden.len().max(1));
        let Some(id) = self.hidden.keys().nth(at).copied() else { return };
        if self.vaults[vault].undelete(&id).await.is_ok() {
            self.alive.extend(self.hidden.remove(&id).map(|text| (id, text)));
        }
    }

    /// Both catalogs are lost, after a round of the inventories.
    async fn burn(&mut self) {
        self.heal().await;
        self.vaults.clear();
        self.place.burn().await;
        for vault in VAULTS {
            self.vaults.push(self.place.open(vault).await);
        }
        if self.dice.roll(2) == 0 {
            // The vaults have looked by themselves before the operator says anything.
            self.vaults[0].patrol_turn().await.unwrap();
        }
        let progress = rebuilt(&self.vaults[0], None, true).await;
        assert!(progress.finished && progress.failed == 0 && progress.warning.is_none(), "{progress:?}");
    }

    async fn tell(&self) {
        sync_with(&self.vaults[0], &self.vaults[1]).await;
        sync_with(&self.vaults[1], &self.vaults[0]).await;
    }

    /// One vault dies at some step of its work and starts again.
    async fn die(&mut self, vault: usize) {
        let (name, fatal) = (VAULTS[vault], self.dice.roll(120));
        let settings = self.place.settings(name);
        let (steps, _, _) = dying_at(fatal);
        let victim = self.vaults.remove(vault);
        drop(victim);
        if let Ok(dying) = Storage::open_watched(settings, name, steps).await {
            self.keys += 1;
            let (key, text) = (format!("k{}", self.keys), text(50 + self.keys));
            let (storage, sent) = (dying.clone(), text.clone());
            // In tasks of their own: the death must not be this test's.
            let upload = tokio::spawn(async move { put(&storage, &key, &sent).await });
            if let Ok(Ok(stored)) = upload.await {
                self.alive.insert(stored.entry.id, text);
            }
            let turns = tokio::spawn(async move {
                let _ = dying.repair_turn().await;
                let _ = dying.patrol_turn().await;
            });
            let _ = turns.await;
        }
        self.vaults.insert(vault, self.place.open(name).await);
    }

    async fn harm(&mut self) {
        if self.harmed.is_none() {
            // What the other one lacks must be there before this one loses it.
            self.heal().await;
        }
        let server = self.harmed.unwrap_or_else(|| self.dice.roll(2));
        self.harmed = Some(server);
        let name = SERVERS[server];
        match self.dice.roll(4) {
            0 => self.place.wipe(name),
            1 if self.copies[server] => self.place.restore(name),
            _ => {
                for replica in self.place.replicas(name) {
                    if self.dice.roll(3) == 0 && replica.metadata().unwrap().len() > 100 {
                        spoil(&replica, self.dice.roll(3));
                    }
                }
            }
        }
    }

    /// Time passes: turns, a scrub, the operator's eye on servers that are not what they were.
    async fn heal(&mut self) {
        self.tell().await;
        for vault in &self.vaults {
            vault.patrol_turn().await.unwrap();
            vault.repair_turn().await.unwrap();
            for server in vault.status().await.unwrap().file_servers {
                if !server.up {
                    let adopted = vault.adopt_server(&server.name).await;
                    assert!(adopted.is_ok(), "{adopted:?}: {:?}", server.last_error);
                }
            }
            vault.sync().await.unwrap();
            vault.scrub().await.unwrap();
            while vault.scrub_turn().await.unwrap() {}
        }
        for _ in 0..3 {
            self.tell().await;
            for vault in &self.vaults {
                // Not until nothing is owed: what only the peer tells of is left to it for a minute.
                vault.repair_turn().await.unwrap();
                vault.patrol_turn().await.unwrap();
                vault.sync().await.unwrap();
            }
        }
        self.harmed = None;
    }

    async fn check(&mut self, seed: u64) {
        self.heal().await;
        for vault in &self.vaults {
            let synced = vault.sync().await.unwrap();
            assert!(synced.agreed(), "seed {seed}: {synced:?}");
            for (id, text) in &self.alive {
                assert!(read(vault, id, None).await.unwrap() == *text, "seed {seed}: {id}");
            }
            for id in self.deleted.iter().chain(self.hidden.keys()) {
                let found = vault.find(id).await.unwrap();
                assert!(matches!(found, Found::Deleted(_)), "seed {seed}: {id}: {found:?}");
            }
        }
        for (id, text) in &self.hidden {
            self.vaults[1].undelete(id).await.unwrap();
            assert!(read(&self.vaults[1], id, None).await.unwrap() == *text, "seed {seed}: {id}");
        }
        for server in SERVERS {
            let there: BTreeSet<String> = self
                .place
                .replicas(server)
                .iter()
                .filter(|file| !file.to_string_lossy().contains("quarantine"))
                .map(|file| file.file_name().unwrap().to_string_lossy().into_owned())
                .collect();
            for id in self.alive.keys().chain(self.hidden.keys()) {
                assert!(there.contains(&id.to_string()), "seed {seed}: {server} lacks {id}");
            }
            for id in &self.deleted {
                assert!(!there.contains(&id.to_string()), "seed {seed}: {server} still has {id}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_befalls_one_server_and_both_vaults_nothing_is_lost_and_nothing_comes_back() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("UPHEAVAL").unwrap_or(1);
    for seed in first..first + number("UPHEAVALS").unwrap_or(6) {
        println!("seed {seed}");
        let mut world = World::new(seed).await;
        for _ in 0..25 {
            world.step().await;
        }
        world.check(seed).await;
    }
}

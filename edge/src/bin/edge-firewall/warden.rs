//! The rules in the kernel over their life: loaded, on trial, confirmed, rolled back, healed,
//! removed. Joins the file, the records, `nft` and the keeper; must not know sockets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use edge::firewall::message::Status;
use edge::firewall::ruleset::{self, ADMIN_COUNTER, BanSet};
use edge::firewall::settings::FirewallSettings;
use edge::firewall::{Ban, Counted, Figures, Fill};
use serde_json::Value;
use shared::config::Faults;

use crate::drift::Shape;
use crate::keeper::Keeper;
use crate::netlink::NetlinkError;
use crate::nft::{self, NftError};
use crate::record::{Loaded, RecordError, Records, Trial};
use crate::{drift, own};

/// Where a connection's handshake is kept out of tracking, tracking must begin in the middle.
const LOOSE: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_loose";
/// Where the records are if the file that says so cannot be read.
const USUAL_STATE: &str = "/var/lib/edge-firewall";
/// Bans that go into one transaction of text with the rules; a second's work for `nft`.
const TOGETHER: usize = 100_000;
/// The longest trial.
const LONGEST_TRIAL: u32 = 3600;
/// The lists whose elements are the file's, so that a changed one is drift.
pub(crate) const LISTS: [&str; 6] = ["allow4", "allow6", "free4", "free6", "admin4", "admin6"];
/// Sets that the rules themselves fill.
const COUNTING: [&str; 6] = ["cc4", "cc6", "rate4", "rate6", "slow4", "slow6"];

/// Why the rules are not as they were asked for. What was loaded before is still there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WardenError {
    /// The file is faulty or not root's.
    #[error("{0}")]
    Settings(#[from] Faults),
    /// The file cannot be read a second time.
    #[error("{path}: {source}; nothing has changed", path = .0.display(), source = .1)]
    File(PathBuf, #[source] std::io::Error),
    /// Nobody could administer this host any more.
    #[error("{0}: admin_networks is empty, which would lock you out; write the networks you come from")]
    NoAdministrators(PathBuf),
    /// A trial is under way.
    #[error(
        "rules are on trial for another {0} s; write `edge firewall confirm` or `edge firewall rollback` first"
    )]
    OnTrial(u64),
    /// Nothing is on trial.
    #[error("no rules are on trial, so there is nothing to confirm or roll back")]
    NoTrial,
    /// A trial that nobody could confirm in time, or that never ends.
    #[error("a trial takes 1 s to 3600 s; write --confirm 60s")]
    TrialTime,
    /// The proof that administrators still get in is missing.
    #[error(
        "not confirmed: no new connection of an administrator has passed the new rules; open a second session to an admin port and write `edge firewall confirm` there ({0} s left)"
    )]
    NoNewConnection(u64),
    /// Confirmed from the session that was open before.
    #[error(
        "not confirmed: this is the session that loaded the rules, which proves nothing; open a new one and write `edge firewall confirm` there ({0} s left)"
    )]
    SameSession(u64),
    /// The state folder.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// `nft`.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// The kernel's sets.
    #[error("kernel: {0}")]
    Netlink(#[from] NetlinkError),
    /// There is no netlink socket.
    #[error("kernel: no netlink socket: {0}")]
    Kernel(#[source] std::io::Error),
}

/// Everything the helper does with rules; one at a time.
#[derive(Debug)]
pub(crate) struct Warden {
    file: PathBuf,
    /// As the helper was started with: socket, user and state folder do not change before the next.
    pub settings: FirewallSettings,
    records: Records,
    /// Bans and leases.
    pub keeper: Keeper,
    warnings: Vec<String>,
    /// So often have rules been loaded since the start.
    loads: u64,
}

impl Warden {
    /// Reads the file and opens the kernel; loads nothing.
    ///
    /// # Errors
    /// The file is faulty and no rules were confirmed earlier, or the kernel cannot be reached.
    pub(crate) fn open(file: &Path) -> Result<Self, WardenError> {
        let mut warnings = Vec::new();
        let settings = match FirewallSettings::read_trusted(file) {
            Ok(settings) => settings,
            Err(faults) => {
                // A typing error must not leave a rebooted host without any rules.
                let confirmed = Records(USUAL_STATE.into()).confirmed().ok().flatten();
                let settings = confirmed.and_then(|rules| FirewallSettings::parse(file, &rules.config).ok());
                let told = faults.to_string();
                let Some(settings) = settings else { return Err(faults.into()) };
                tracing::error!("firewall: {told}; the rules that were confirmed last are used");
                warnings.push(format!("{told}; the rules that were confirmed last are used"));
                settings
            }
        };
        let records = Records(settings.state_folder.clone());
        let keeper = Keeper::open(&settings).map_err(WardenError::Kernel)?;
        Ok(Self { file: file.to_owned(), settings, records, keeper, warnings, loads: 0 })
    }

    /// What a start owes: the roll-back that a crash interrupted, the rules of a fresh boot, or the
    /// knowledge of what is in the kernel already.
    ///
    /// # Errors
    /// The rules cannot be loaded.
    pub(crate) fn boot(&mut self) -> Result<(), WardenError> {
        self.refresh_own();
        pick_up_in_the_middle(&mut self.warnings);
        let present = self.keeper.has_table()?;
        match self.records.trial() {
            Ok(Some(trial)) if present && !trial.is_over(now()) => {
                tracing::warn!("firewall: rules are on trial for another {} s", trial.until - now());
                self.keeper.learn()?;
                return Ok(());
            }
            Ok(None) => {}
            Ok(Some(_)) => {
                tracing::warn!("firewall: rules on trial were not confirmed; rolling back");
                return self.roll_back();
            }
            Err(error) => {
                tracing::error!("firewall: {error}; rolling back, in case rules were on trial");
                return self.roll_back();
            }
        }
        if present && self.records.loaded().ok().flatten().is_some() {
            self.keeper.learn()?;
            return Ok(());
        }
        match self.records.confirmed()? {
            Some(rules) => self.install(rules.config, rules.body).map(drop),
            None if self.settings.admin_networks.is_empty() => {
                Err(WardenError::NoAdministrators(self.file.clone()))
            }
            None => {
                let (config, body) = self.as_configured()?;
                let loaded = self.install(config, body)?;
                Ok(self.records.set_confirmed(Some(&loaded))?)
            }
        }
    }

    /// Loads the rules of the file; for good, or for a trial of so many seconds.
    ///
    /// # Errors
    /// See [`WardenError`]; then nothing has changed.
    pub(crate) fn apply(&mut self, confirm: Option<u32>, ssh: Option<String>) -> Result<String, WardenError> {
        if let Some(trial) = self.records.trial()? {
            return Err(WardenError::OnTrial(trial.until.saturating_sub(now())));
        }
        if confirm.is_some_and(|seconds| seconds == 0 || seconds > LONGEST_TRIAL) {
            return Err(WardenError::TrialTime);
        }
        let (config, body) = self.as_configured()?;
        let Some(seconds) = confirm.map(u64::from) else {
            let loaded = self.install(config, body)?;
            self.records.set_confirmed(Some(&loaded))?;
            return Ok("the rules are loaded and stay".to_owned());
        };
        // The intent is on the disk before the rules are: a crash in between rolls back to what is there.
        let mut trial = Trial { until: now() + seconds, seconds, administrators: 0, ssh };
        self.records.set_trial(Some(&trial))?;
        let installed = self.install(config, body).and_then(|_| Ok(self.administrators()?));
        match installed {
            Ok(administrators) => {
                trial.administrators = administrators;
                trial.until = now() + seconds;
                self.records.set_trial(Some(&trial))?;
                Ok(format!(
                    "the rules are loaded on trial: open a NEW session to this host and write `edge firewall confirm` within {seconds} s, or they are rolled back"
                ))
            }
            Err(error) => {
                self.roll_back()?;
                Err(error)
            }
        }
    }

    /// Keeps the rules on trial, where an administrator has proven to get in.
    ///
    /// # Errors
    /// See [`WardenError`]; then the trial goes on.
    pub(crate) fn confirm(&mut self, ssh: Option<&str>) -> Result<String, WardenError> {
        let trial = self.records.trial()?.ok_or(WardenError::NoTrial)?;
        let left = trial.until.saturating_sub(now());
        if trial.is_over(now()) {
            self.roll_back()?;
            return Err(WardenError::NoTrial);
        }
        if matches!((&trial.ssh, ssh), (Some(then), Some(is)) if then == is) {
            return Err(WardenError::SameSession(left));
        }
        if self.administrators()? <= trial.administrators {
            return Err(WardenError::NoNewConnection(left));
        }
        let loaded = self.records.loaded()?.ok_or(WardenError::NoTrial)?;
        self.records.set_confirmed(Some(&loaded))?;
        self.records.set_trial(None)?;
        Ok("the rules are confirmed and stay".to_owned())
    }

    /// Ends a trial at an operator's word.
    ///
    /// # Errors
    /// Nothing is on trial, or the old rules cannot be loaded.
    pub(crate) fn end_trial(&mut self) -> Result<String, WardenError> {
        self.records.trial()?.ok_or(WardenError::NoTrial)?;
        self.roll_back()?;
        Ok("the rules on trial are rolled back".to_owned())
    }

    /// What is due: a roll-back, or a table that somebody removed. Call it about once a second.
    ///
    /// # Errors
    /// What is due failed, and stays due.
    pub(crate) fn tick(&mut self) -> Result<(), WardenError> {
        match self.records.trial() {
            Ok(Some(trial)) if trial.is_over(now()) => {
                tracing::warn!("firewall: the rules on trial were not confirmed; rolling back");
                self.roll_back()
            }
            _ => self.heal(),
        }
    }

    /// What the table looked like right after it was loaded; nothing where that is not known.
    ///
    /// # Errors
    /// The record cannot be read.
    pub(crate) fn as_loaded(&self) -> Result<Option<Shape>, WardenError> {
        Ok(self.records.loaded()?.map(|rules| rules.shape))
    }

    /// So often have rules been loaded since the start.
    pub(crate) fn loads(&self) -> u64 {
        self.loads
    }

    /// Loads the table again, with its bans, where somebody removed it or sets of it.
    ///
    /// # Errors
    /// It cannot be loaded.
    pub(crate) fn heal(&mut self) -> Result<(), WardenError> {
        if self.keeper.stands()? {
            return Ok(());
        }
        let Some(rules) = self.records.loaded()? else { return Ok(()) };
        tracing::error!("firewall: somebody removed the table or its sets; it is loaded again with its bans");
        self.install(rules.config, rules.body).map(drop)
    }

    /// No rules at all, until they are applied or the helper starts again.
    ///
    /// # Errors
    /// They cannot be removed.
    pub(crate) fn remove(&mut self) -> Result<String, WardenError> {
        // The records go first, or a crash in between would load the table again.
        self.records.set_loaded(None)?;
        self.records.set_confirmed(None)?;
        self.records.set_trial(None)?;
        self.drop_table()?;
        Ok("the rules are removed and every port is open; the next start of edge-firewall loads them again, unless you disable it".to_owned())
    }

    /// The host's addresses may have changed.
    pub(crate) fn refresh_own(&mut self) {
        match own::addresses() {
            Ok(addresses) => self.keeper.own_addresses(addresses),
            Err(why) => tracing::warn!("firewall: own addresses: {why}; those known last stay protected"),
        }
    }

    /// Fill and counts.
    ///
    /// # Errors
    /// The table cannot be listed.
    pub(crate) fn figures(&mut self) -> Result<Figures, WardenError> {
        let listing = nft::table()?;
        self.figures_of(&listing)
    }

    /// How it stands.
    ///
    /// # Errors
    /// The kernel or the records cannot be asked.
    pub(crate) fn status(&mut self) -> Result<Status, WardenError> {
        let mut status = Status { warnings: self.warnings.clone(), ..Status::default() };
        status.loaded = self.keeper.has_table()?;
        let rules = self.records.loaded()?;
        status.on_trial_until = self.records.trial()?.map(|trial| trial.until);
        status.since = rules.as_ref().map(|rules| rules.since);
        let Some(rules) = rules.filter(|_| status.loaded) else { return Ok(status) };
        let listing = listing()?;
        status.drift = drift::differences(&rules.shape, &drift::shape(&listing));
        status.bans = self.keeper.list()?.len() as u64;
        status.figures = self.figures_of(&listing)?;
        if std::fs::read_to_string(&self.file).ok().as_ref() != Some(&rules.config) {
            status.warnings.push(format!(
                "{}: changed since the rules were loaded; write `edge firewall apply --confirm 60s`",
                self.file.display()
            ));
        }
        for fill in status.figures.sets.iter().filter(|fill| fill.alarms()) {
            let Fill { set, used, size } = fill;
            status.warnings.push(format!("set {set} holds {used} of {size}; raise sizes in firewall.toml"));
        }
        Ok(status)
    }

    fn figures_of(&mut self, listing: &[Value]) -> Result<Figures, WardenError> {
        let counters = listing.iter().filter_map(|entry| counted(entry.get("counter")?)).collect();
        let mut sets: Vec<_> =
            self.keeper.fills().into_iter().map(|(set, used, size)| Fill { set, used, size }).collect();
        for set in COUNTING {
            let size = listing.iter().filter_map(|entry| entry.get("set")).find(|found| found["name"] == set);
            let size = size.and_then(|found| found["size"].as_u64()).unwrap_or_default();
            sets.push(Fill { set: set.to_owned(), used: self.keeper.count(set)?, size });
        }
        Ok(Figures { sets, counters, evicted: self.keeper.evicted() })
    }

    fn as_configured(&self) -> Result<(String, String), WardenError> {
        let settings = FirewallSettings::read_trusted(&self.file)?;
        if settings.admin_networks.is_empty() {
            return Err(WardenError::NoAdministrators(self.file.clone()));
        }
        let config = std::fs::read_to_string(&self.file)
            .map_err(|error| WardenError::File(self.file.clone(), error))?;
        // One reading decides: what is recorded is what was made into rules.
        let settings = FirewallSettings::parse(&self.file, &config)?;
        Ok((config, ruleset::body(&settings)))
    }

    fn roll_back(&mut self) -> Result<(), WardenError> {
        match self.records.confirmed()? {
            Some(rules) => drop(self.install(rules.config, rules.body)?),
            None => {
                self.records.set_loaded(None)?;
                self.drop_table()?;
                tracing::warn!("firewall: there were no rules before these; every port is open");
            }
        }
        Ok(self.records.set_trial(None)?)
    }

    fn drop_table(&mut self) -> Result<(), WardenError> {
        if self.keeper.has_table()? {
            nft::load(&format!("delete table inet {}\n", ruleset::TABLE))?;
        }
        Ok(())
    }

    /// Loads rules in one transaction, keeps or carries over bans and leases, and records it.
    fn install(&mut self, config: String, body: String) -> Result<Loaded, WardenError> {
        let settings = FirewallSettings::parse(&self.file, &config)?;
        let present = self.keeper.has_table()?;
        // What is loaded may be unknown after damage; then the table is made anew.
        let alike = |loaded: Loaded| ruleset::shape(&loaded.body) == ruleset::shape(&body);
        let fits = self.records.loaded().ok().flatten().is_some_and(alike);
        let rebuild = present && !(fits && self.keeper.stands()?);
        if present && let Err(error) = self.keeper.learn() {
            tracing::warn!("firewall: the old table's bans cannot be read: {error}");
        }
        let mut text = ruleset::transaction(&body, rebuild);
        let mut carried = self.keeper.carried();
        // A table made anew comes with its bans in the same transaction, so that a crash loses none;
        // so many that nft would be slow, or more than fit, follow at once by the faster way.
        let together = carried.0.len() <= TOGETHER && room(&settings, &carried.0);
        if (rebuild || !present) && together {
            text.push_str(&ruleset::elements(&carried.0, &carried.1));
            carried = (Vec::new(), Vec::new());
        }
        nft::load(&text)?;
        self.keeper.adopt(&settings);
        if rebuild || !present {
            self.keeper.refill(&settings, carried)?;
        }
        let loaded = Loaded { config, body, since: now(), shape: drift::shape(&listing()?) };
        self.records.set_loaded(Some(&loaded))?;
        self.loads += 1;
        Ok(loaded)
    }

    /// New connections of administrators that the rules have seen.
    fn administrators(&self) -> Result<u64, NftError> {
        let listing = nft::table()?;
        let counted = listing.iter().filter_map(|entry| counted(entry.get("counter")?));
        Ok(counted.filter(|counted| counted.counter == ADMIN_COUNTER).map(|counted| counted.packets).sum())
    }
}

/// Do the bans fit the sets of these settings?
fn room(settings: &FirewallSettings, bans: &[Ban]) -> bool {
    let sets = bans.iter().filter_map(|ban| BanSet::of(ban.network));
    let mut counts: BTreeMap<BanSet, u32> = BTreeMap::new();
    sets.for_each(|set| *counts.entry(set).or_default() += 1);
    counts.into_iter().all(|(set, count)| count <= set.size(settings))
}

/// The table, with the elements of the lists that are the file's.
pub(crate) fn listing() -> Result<Vec<Value>, NftError> {
    let is_list = |entry: &Value| {
        entry.get("set").and_then(|set| set["name"].as_str()).is_some_and(|name| LISTS.contains(&name))
    };
    let mut listing = nft::table()?;
    listing.retain(|entry| !is_list(entry));
    for name in LISTS {
        match nft::set(name) {
            Ok(set) => listing.extend(set),
            // Somebody deleted it: that is drift and no failure.
            Err(error) => tracing::debug!("firewall: set {name}: {error}"),
        }
    }
    Ok(listing)
}

fn counted(counter: &Value) -> Option<Counted> {
    let packets = counter.get("packets")?.as_u64()?;
    Some(Counted { counter: counter.get("name")?.as_str()?.to_owned(), packets })
}

/// See the module `ruleset`: without it, no client would get in.
fn pick_up_in_the_middle(warnings: &mut Vec<String>) {
    match std::fs::read_to_string(LOOSE) {
        Ok(value) if value.trim() == "0" => {
            if let Err(error) = std::fs::write(LOOSE, "1\n") {
                let told = format!(
                    "{LOOSE} is 0 and must be 1, or no client gets in: {error}; write `sysctl -w net.netfilter.nf_conntrack_tcp_loose=1`"
                );
                tracing::error!("firewall: {told}");
                warnings.push(told);
            }
        }
        // Before the first rule that tracks connections it is not there, and 1.
        _ => {}
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the helper's corridor: a trial ends by the wall clock, over restarts"
)]
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

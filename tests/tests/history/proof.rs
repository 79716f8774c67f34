//! What lies on the disks at the end: both journals hold one chain and prove themselves offline,
//! and the copy in each database server is that chain, entry for entry. Reads what the programs
//! have written; asks no vault.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use harness::wait;
use vault::sequence::database::open::Connection;
use vault::sequence::entry::Entry;
use vault::sequence::journal::Journal;

use crate::databases::Databases;
use crate::network::{Network, Place};
use crate::vaults::Vaults;

/// How soon a standby must have what its primary has.
const FED: Duration = Duration::from_secs(40);

/// Stops both vaults, and reads everything. Both were together, the copy was current, and nothing
/// was under way. Tells how much was compared.
///
/// # Errors
/// What differs, or is not proved.
pub(crate) fn prove(vaults: &mut Vaults, databases: &Databases, network: &Network) -> anyhow::Result<String> {
    vaults.each.iter_mut().try_for_each(|vault| vault.stop())?;
    let mut chains = Vec::new();
    for vault in &vaults.each {
        let file = vault.journal_file();
        let words = ["number", "verify", "--journal", &file.display().to_string()];
        vault.command_without_config(&words).context("the journal is not proved")?;
        chains.push(chain(&file)?);
    }
    let [first, second] = chains.as_slice() else { anyhow::bail!("two vaults") };
    // What the last of them proposed when the other stopped may stand in one alone.
    let both = first.len().min(second.len());
    compare("the journals", &first[..both], &second[..both])?;
    let longest = if first.len() > second.len() { first } else { second };
    let mut told = format!("chain of {both}");
    for (place, server) in databases.servers.iter().enumerate() {
        let host = databases.host(place);
        let copy = network.inside(Place::Callers, || {
            wait::until(&format!("{host} has everything"), FED, || {
                let copy = copy(databases, place)?;
                let count = longest.len();
                anyhow::ensure!(copy.len() + LATE >= both, "{} entries of {count}", copy.len());
                Ok(copy)
            })
        })??;
        let end = copy.len().min(longest.len());
        anyhow::ensure!(copy.len() <= longest.len(), "{host}: more entries than the ledger: {}", copy.len());
        compare(&format!("{host} ({:?}) and the journals", server.kind), &copy, &longest[..end])?;
        told += &format!(", {} in {host}", copy.len());
    }
    Ok(told)
}

/// So many entries at the end may be missing in a copy: what the vaults wrote down when they
/// stopped.
const LATE: usize = 8;

/// All entries of a journal.
fn chain(file: &Path) -> anyhow::Result<Vec<Entry>> {
    let journal = Journal::open_to_read(file)?;
    let mut all: Vec<Entry> = Vec::new();
    loop {
        let more = journal.entries(all.last().map_or(0, |entry| entry.index))?;
        if more.is_empty() {
            return Ok(all);
        }
        all.extend(more);
    }
}

/// All entries of a copy, read as a vault would.
fn copy(databases: &Databases, place: usize) -> anyhow::Result<Vec<Entry>> {
    let settings = databases.settings().context("there is no database")?;
    let host = settings.hosts.get(place).context("there is no such server")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut connection = Connection::open(&settings, host).await?;
        let mut all: Vec<Entry> = Vec::new();
        loop {
            let more = connection.entries(all.last().map_or(0, |entry| entry.index)).await?;
            if more.is_empty() {
                return Ok(all);
            }
            all.extend(more);
        }
    })
}

/// The first place where they differ.
fn compare(what: &str, left: &[Entry], right: &[Entry]) -> anyhow::Result<()> {
    let differ = left.iter().zip(right).find(|(left, right)| left != right);
    anyhow::ensure!(differ.is_none(), "{what} differ: {differ:?}");
    anyhow::ensure!(left.len() == right.len(), "{what}: {} and {} entries", left.len(), right.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use vault::sequence::entry::{Act, Draft, Tail};

    use super::*;

    fn entries(keys: &[&str]) -> Vec<Entry> {
        let mut end = Tail::default();
        let made = keys.iter().map(|key| {
            let draft = Draft {
                owner: "erp".to_owned(),
                series: "INV".to_owned(),
                number: end.index + 1,
                key: (*key).to_owned(),
                act: Act::Reserve(None),
                at: 0,
                carried: None,
            };
            let entry = Entry::append(end, 1, 7, draft);
            end = entry.tail();
            entry
        });
        made.collect()
    }

    #[test]
    fn a_copy_with_another_a_missing_or_a_further_entry_is_found() {
        let chain = entries(&["a", "b", "c"]);
        assert!(compare("x", &chain, &entries(&["a", "b", "c"])).is_ok());
        for other in [&["a", "b"][..], &["a", "x", "c"], &["a", "b", "c", "d"], &["a", "b", "x"]] {
            assert!(compare("x", &chain, &entries(other)).is_err(), "{other:?}");
        }
    }
}

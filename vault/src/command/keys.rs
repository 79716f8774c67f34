//! `vault keys …`: the storage keys' files, and what the running vault says about them. Knows
//! the words for the operator; `storage::key` knows the file.

use std::path::{Path, PathBuf};

use http::Method;

use super::control::ask;
use super::{CommandError, Output, Walk, blocking, follow, wall_clock};
use crate::api::upkeep::Rewrap;
use crate::storage::key;
use crate::storage::{Keys, Progress, Use};

/// `vault keys init`
///
/// # Errors
/// One of the files exists, or cannot be written.
pub async fn init(file: &Path, escrow: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
    let (file, escrow) = (&whole_path(file)?, &whole_path(escrow)?);
    let (active_file, escrow_file) = (file.to_owned(), escrow.to_owned());
    let made = move || key::create_both(&active_file, &escrow_file, wall_clock());
    let (active, escrowed) = blocking(made).await?;
    let text = format!(
        "storage.key_file         = \"{}\"\nstorage.escrow_recipient = \"{escrowed}\"\n\n\
         Write both into the vault.toml of both vaults, and copy the first file to the other vault as it is:\n\
         never make a second one there. {}",
        file.display(),
        offline(escrow),
    );
    let answer = serde_json::json!({
        "recipient": active, "key_file": file,
        "escrow_recipient": escrowed, "escrow_file": escrow,
    });
    output.show(&answer, &text)
}

/// `vault keys escrow`
///
/// # Errors
/// The file exists, or cannot be written.
pub async fn escrow(file: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
    let file = &whole_path(file)?;
    let place = file.to_owned();
    let recipient = blocking(move || key::create(&place, wall_clock())).await?;
    let text = format!(
        "storage.escrow_recipient = \"{recipient}\"\n\n\
         Write this into the vault.toml of both vaults, start both again, then run vault keys rewrap on one.\n\
         Until that is complete, and for replicas in backups, keep the former escrow key too.\n{}",
        offline(file),
    );
    output.show(&serde_json::json!({ "escrow_recipient": recipient, "escrow_file": file }), &text)
}

/// What goes into a configuration is read from anywhere.
fn whole_path(file: &Path) -> Result<PathBuf, CommandError> {
    let failed = |source| CommandError::Local {
        path: file.to_owned(),
        what: "cannot be placed",
        source,
        next: "no key was made; write an absolute path",
    };
    std::path::absolute(file).map_err(failed)
}

fn offline(file: &Path) -> String {
    format!(
        "The escrow key lies in {} (mode 0600).\n\
         Take it offline now: print it or put it on two media, then remove it from this host. With the catalogs\n\
         of both vaults and the storage key lost, every file can still be read with it, and with nothing else.",
        file.display()
    )
}

/// `vault keys rotate`
///
/// # Errors
/// The key file cannot be read or replaced.
pub async fn rotate(file: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
    let place = file.to_owned();
    let recipient = blocking(move || key::rotate(&place, wall_clock())).await?;
    let text = format!(
        "{recipient}\n\n\
         The new key stands first in {file}; the earlier ones stay, records are sealed to them.\n\
         Copy the file to the other vault as it is. Both notice by themselves; the new key seals records once\n\
         vault keys list shows it as active. Then run vault keys rewrap on one of them.",
        file = file.display()
    );
    output.show(&serde_json::json!({ "recipient": recipient, "key_file": file }), &text)
}

/// `vault keys list`
///
/// # Errors
/// The vault does not run, or refuses.
pub async fn list(socket: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
    let keys: Keys = ask(socket, Method::GET, "/v1/keys", None::<&()>).await?;
    output.show(&keys, &table(&keys))
}

/// What the running vault, if there is one, says is wrong with the two vaults' keys.
pub async fn trouble(socket: &Path) -> Option<String> {
    let keys: Keys = ask(socket, Method::GET, "/v1/keys", None::<&()>).await.ok()?;
    keys.trouble
}

fn table(keys: &Keys) -> String {
    let mut text = format!("{:<62}  {:<7}  {:<20}  {:<5}  RECORDS\n", "RECIPIENT", "USE", "CREATED", "PEER");
    for key in &keys.keys {
        let used = match key.used {
            Use::Next => "next",
            Use::Active => "active",
            Use::Earlier => "earlier",
        };
        let (created, peer) = (key.created.as_deref().unwrap_or("-"), if key.at_peer { "has" } else { "-" });
        text.push_str(&format!(
            "{:<62}  {used:<7}  {created:<20}  {peer:<5}  {}\n",
            key.recipient, key.records
        ));
    }
    let peer = keys.escrow_at_peer.map_or("", |has| if has { "has" } else { "-" });
    text.push_str(format!("{:<62}  {:<7}  {:<20}  {peer}", keys.escrow, "escrow", "").trim_end());
    text.push_str("\n\n");
    if let Some(trouble) = &keys.trouble {
        text.push_str(&format!("{trouble}\n"));
    }
    if keys.other_records > 0 {
        text.push_str(&format!("{} records are sealed to other keys\n", keys.other_records));
    }
    if keys.unseen_records > 0 {
        text.push_str(&format!("{} records have not been looked at by this vault\n", keys.unseen_records));
    }
    // Only of those that are known to be old; and to no key that is not there yet.
    let old: u64 = keys.keys.iter().filter(|key| key.used == Use::Earlier).map(|key| key.records).sum();
    let active = keys.keys.first().is_some_and(|key| key.used == Use::Active);
    if active && old + keys.other_records > 0 {
        text.push_str("vault keys rewrap brings them to the active key and the escrow\n");
    }
    if keys.rewrap.running {
        text.push_str(&format!("rewrapping is at {} %\n", keys.rewrap.percent));
    } else if let Some(why) = keys.rewrap.last_error.as_ref().filter(|_| !keys.rewrap.finished) {
        text.push_str(&format!("rewrapping: {why}\n"));
    }
    text
}

/// `vault keys rewrap`
///
/// # Errors
/// The vault does not run, refuses, or could not rewrap every record.
pub async fn rewrap(socket: &Path, per_second: u32, output: &mut Output<'_>) -> Result<(), CommandError> {
    let asked = Rewrap { per_second };
    let _started: Progress = ask(socket, Method::POST, "/v1/keys/rewrap", Some(&asked)).await?;
    let walk = Walk {
        path: "/v1/keys/rewrap",
        what: "rewrapping",
        next: "vault's log names each; what is done stays done, and vault keys rewrap does the rest",
    };
    follow(socket, walk, output).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::KeyStatus;

    fn keys(uses: &[(Use, u64)]) -> Keys {
        let key = |&(used, records): &(Use, u64)| {
            let recipient = "age1key".to_owned();
            KeyStatus { recipient, used, created: None, at_peer: used != Use::Next, records }
        };
        Keys {
            keys: uses.iter().map(key).collect(),
            escrow: "age1escrow".to_owned(),
            escrow_at_peer: None,
            trouble: None,
            other_records: 0,
            unseen_records: 4,
            rewrap: Progress::default(),
        }
    }

    #[test]
    fn rewrapping_is_advised_for_records_known_to_be_old_and_once_the_new_key_is_active() {
        let advice = |keys: &Keys| table(keys).contains("vault keys rewrap brings them");
        assert!(!advice(&keys(&[(Use::Active, 9)])), "what nobody looked at is not old");
        assert!(!advice(&keys(&[(Use::Next, 0), (Use::Active, 9)])));
        assert!(
            !advice(&keys(&[(Use::Next, 0), (Use::Active, 9), (Use::Earlier, 1)])),
            "it would be refused"
        );
        assert!(advice(&keys(&[(Use::Active, 9), (Use::Earlier, 1)])));
        assert!(advice(&Keys { other_records: 1, ..keys(&[(Use::Active, 9)]) }), "of a former escrow");
    }

    #[test]
    fn another_escrow_at_the_peer_shows_in_its_row() {
        let row = |has: Option<bool>| {
            let trouble = has.is_some().then(|| "mend this".to_owned());
            let text = table(&Keys { escrow_at_peer: has, trouble, ..keys(&[(Use::Active, 1)]) });
            let row = text.lines().find(|line| line.starts_with("age1escrow")).map(str::to_owned);
            (row.unwrap_or_default().split_whitespace().last().map(str::to_owned), text.contains("mend this"))
        };
        assert_eq!(row(None), (Some("escrow".to_owned()), false));
        assert_eq!(row(Some(true)), (Some("has".to_owned()), true));
        assert_eq!(row(Some(false)), (Some("-".to_owned()), true));
    }
}

//! `vault broker user …`: who may connect to the embedded broker. Knows the words for the operator;
//! [`crate::broker::users`] knows the file. The running vault reads it at every login.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::Subcommand;
use serde_json::json;

use super::{CommandError, Output, blocking};
use crate::broker::Settings;
use crate::broker::users::{self, UsersError};
use crate::config::Config;

/// Randomness of a password that is made here, in bytes: 144 bits.
const PASSWORD: usize = 18;

/// `vault broker …`
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Who may connect: broker.users_file, the same on both vaults
    #[command(subcommand)]
    User(User),
}

/// `vault broker user …`
#[derive(Debug, Subcommand)]
pub enum User {
    /// Let a user in, or give one another password; it is made here and printed once
    Add {
        /// 1 to 64 letters, digits, dots, dashes, underscores
        name: String,
        /// Take the password from this file instead, without its line's end
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Show every user's name
    List,
    /// Let a user in no more; connections that are open stay until they end
    Remove {
        /// As `list` shows it
        name: String,
    },
}

impl Verb {
    /// Does it.
    ///
    /// # Errors
    /// There is no file of users, or it cannot be read or written.
    pub async fn run(&self, config: &Config, output: &mut Output<'_>) -> Result<(), CommandError> {
        let Self::User(user) = self;
        let settings: Option<&Settings> = config.broker.as_ref();
        let file = settings.and_then(|broker| broker.users.clone()).ok_or(CommandError::NoUsers)?;
        match user {
            User::Add { name, password_file } => add(file, name.clone(), password_file.clone(), output).await,
            User::List => list(&file, output),
            User::Remove { name } => remove(&file, name, output),
        }
    }
}

async fn add(
    file: PathBuf,
    name: String,
    password_file: Option<PathBuf>,
    output: &mut Output<'_>,
) -> Result<(), CommandError> {
    let made = move || {
        let (password, is_made) = match &password_file {
            Some(from) => (read_password(from)?, false),
            None => (make_password()?, true),
        };
        let hash = users::hash(&name, &password)?;
        let mut known = users::read(&file)?;
        let is_new = known.insert(name.clone(), hash).is_none();
        users::write(&file, &known)?;
        Ok((file, name, is_made.then_some(password), is_new))
    };
    let (file, name, password, is_new) = blocking(made).await.map_err(CommandError::Users)?;
    let secret = password.as_ref().map(|password| format!("password {password}\n\n")).unwrap_or_default();
    let can = if is_new { "may connect now" } else { "was there: the password before is replaced" };
    let text = format!("{secret}{name} {can}. Copy {} to the other vault as it is.", file.display());
    let told = json!({ "user": name, "password": password, "users_file": file, "replaced": !is_new });
    output.show(&told, &text)
}

fn list(file: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
    let names: Vec<String> = users::read(file).map_err(CommandError::Users)?.into_keys().collect();
    output.show(&json!({ "users": names }), &names.join("\n"))
}

fn remove(file: &Path, name: &str, output: &mut Output<'_>) -> Result<(), CommandError> {
    let mut known = users::read(file).map_err(CommandError::Users)?;
    known.remove(name).ok_or_else(|| CommandError::NoUser(name.to_owned()))?;
    users::write(file, &known).map_err(CommandError::Users)?;
    let text = format!(
        "{name} may connect no more. Copy {} to the other vault as it is.\n\
         Connections that are open stay; restart both vaults, one after the other, to end them.",
        file.display()
    );
    output.show(&json!({ "user": name, "users_file": file }), &text)
}

fn read_password(file: &Path) -> Result<String, UsersError> {
    let failed = |source| UsersError::File { file: file.to_owned(), source };
    let text = std::fs::read_to_string(file).map_err(failed)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn make_password() -> Result<String, UsersError> {
    let mut bytes = [0; PASSWORD];
    getrandom::fill(&mut bytes).map_err(|error| UsersError::Hash(error.to_string()))?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

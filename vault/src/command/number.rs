//! `vault number …`: what an operator does with numbers and series, over the control socket of
//! the running vault; and the proof of what was exported, which needs no vault. Knows how to ask
//! and show; the vault knows what a number is.

mod define;
mod dropped;
mod export;
mod stale;
mod verify;

pub use verify::{NotProved, Verify};

use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use http::{Method, Request, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::api::{
    Batch, BatchAnswer, Confirm, Count, Epoch, LifeAnswer, Number, NumberState, Page, Reseeded, Series,
    SeriesKind, Span, TakeOver, TokenFor, TokenText, Void,
};

use super::control::{self, Progress, whole};
use super::file::{encoded, shown};
use super::{CommandError, Output};
use stale::look;

/// Ten thousand keys are answered within this time.
const SOON: Duration = Duration::from_secs(30);

/// What can be done with numbers.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Say how a series is counted: how available it is, how its numbers read, when a reservation
    /// counts as forgotten
    ///
    /// What is not named stays as it is; of a new series: strict, without a pattern, never expired.
    /// Prints how the series is counted now, and before where that differs. The pattern of a series
    /// that has numbers stays as it is. (PUT /v1/series/SERIES takes a definition as a whole.)
    Define(define::Define),
    /// Reserve a number for each key; the same key gets the same number for ever
    ///
    /// Exit code 1 where a key got none.
    Reserve {
        #[command(flatten)]
        of: Of,
        /// 1 to 256 visible ASCII characters each
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
        #[command(flatten)]
        period: Period,
        /// The life that the keys were first sent to, as GET /v1/life told it then. Apart, a vault
        /// gives numbers to such of its own present life alone: "$(vault number life)" for keys that
        /// were never sent anywhere
        #[arg(long, value_name = "LIFE")]
        ticket: Option<String>,
    },
    /// Print this vault's present life, which a ticket names
    Life,
    /// Say which document uses a number
    Confirm {
        #[command(flatten)]
        of: Of,
        /// Which one
        number: u64,
        /// Identifies the document, usually its SHA-256
        #[arg(value_name = "HASH")]
        document_hash: String,
        #[command(flatten)]
        period: Period,
    },
    /// Give a number up, with the reason for the auditor
    Void {
        #[command(flatten)]
        of: Of,
        /// Which one
        number: u64,
        /// 1 to 512 bytes
        reason: String,
        #[command(flatten)]
        period: Period,
    },
    /// Show a series, or one number of it
    Show {
        #[command(flatten)]
        of: Of,
        /// Which number
        number: Option<u64>,
        /// The number of this key
        #[arg(long, conflicts_with = "number")]
        key: Option<String>,
        #[command(flatten)]
        period: Period,
        /// While the vaults are apart, show what this one has
        #[arg(long)]
        stale: bool,
    },
    /// List an owner's series, or the numbers of one
    List {
        /// Whose
        #[arg(long, value_name = "NAME")]
        owner: String,
        /// The numbers of this one
        series: Option<String>,
        #[command(flatten)]
        period: Period,
        /// Only those; expired: reserved, and older than the series' expires_after
        #[arg(long, requires = "series")]
        state: Option<State>,
        /// Only those behind this one, as the last line of a list that was cut names it
        #[arg(long)]
        after: Option<String>,
        /// At most so many, 1 to 1000
        #[arg(long, value_name = "COUNT", default_value_t = 100)]
        limit: usize,
        /// While the vaults are apart, list what this one has, and what it gave alone, marked so
        #[arg(long)]
        stale: bool,
    },
    /// Write all that the ledger says of a series to standard output, to be kept and verified
    Export(export::Export),
    /// Prove an export, or a whole journal: nothing altered, no number twice, no hole
    ///
    /// Needs no vault and no configuration. Exit code 1 where something is wrong.
    Verify(Verify),
    /// Give the other vault, whose journal is lost, or an etcd that has lost the ledger, a copy of
    /// this vault's
    ///
    /// Run it on the vault that still has its journal, with both running and the other's
    /// journal empty. Only you can know that this vault's journal is whole: if it was itself
    /// restored from a copy or repaired since the two were last together, numbers that were
    /// given may be missing in it, and would be given again. Then start new series instead.
    ///
    /// Where etcd is the ledger and has lost everything: run it on the vault with the longer journal,
    /// with both running as they were, and all of etcd's members new and empty.
    #[command(name = "re-seed")]
    Reseed,
    /// Make this vault the ledger's owner, in a new epoch that the other vault follows
    ///
    /// For when the owner is gone for long: either vault may give numbers of available series
    /// alone, but strict numbers, definitions and records need the owner. Nothing that was
    /// answered is lost; strict numbers go on when a second vault is there again.
    #[command(name = "take-over")]
    TakeOver {
        /// Let records, names and leases go on without the other vault. Only if it is off for
        /// sure: two owners that go on alone contradict each other. What this one answers alone gives
        /// way if it is lost or yields: its ETags and lease epochs may be given again then
        #[arg(long)]
        alone: bool,
    },
    /// Make a token with which one vault may give numbers while it is alone, though it was started anew
    ///
    /// A vault that stays up gives numbers of available series alone by itself; one that was started
    /// anew, with the other away, cannot know what it answered last and gives none. With this token,
    /// kept outside of both, it may give from numbers set aside for it. Run it on the owner while
    /// both are together. It works once; a newer one takes its place; and once the two are
    /// together again after its vault lost power or its journal, it is void: make a new one.
    Token {
        /// The vault that may use it
        #[arg(long = "for", value_name = "VAULT")]
        vault: String,
    },
    /// Let this vault, started anew and alone, give numbers of available series by its token
    ///
    /// Never use a token twice, and never after this vault was restored from a copy made before it
    /// was used: the vault knows of neither, and numbers would be given twice.
    Open {
        /// As vault number token printed it
        token: String,
    },
    /// Of two vaults that were both taken over, let the other one be the owner
    Yield,
    /// List the writes of records, names and leases that this vault answered alone, and that gave
    /// way to the other vault's
    ///
    /// Whoever wrote them was told that they hold. Write again what shall hold, then add --done. Their
    /// ETags and lease epochs may be given again, so that whoever has one passes for another: let the
    /// writers read again, and the leases' holders acquire again.
    Dropped(dropped::Dropped),
}

/// Which series.
#[derive(Debug, Args)]
pub struct Of {
    /// Its name
    series: String,
    /// Whose
    #[arg(long, value_name = "NAME")]
    owner: String,
}

/// Which period of it.
#[derive(Debug, Args)]
pub struct Period {
    /// Such as 2026 or 2026-03, where the series is counted so
    #[arg(long, value_name = "PERIOD")]
    period: Option<String>,
}

/// What became of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum State {
    /// Not used yet
    Reserved,
    /// Used by a document
    Confirmed,
    /// Spoiled
    Void,
    /// Its key was refused for good
    Doubtful,
    /// Reserved too long ago
    Expired,
}

impl Verb {
    /// Does it. [`Verb::Verify`] needs no socket: see [`Verify::run`].
    ///
    /// # Errors
    /// The vault does not run, or refuses.
    pub async fn run(&self, socket: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
        match self {
            Self::Define(define) => define.run(socket, output).await,
            Self::Reserve { of, keys, period, ticket } => {
                reserve(socket, &of.place("/numbers/batch", Some(period)), keys, ticket.as_deref(), output)
                    .await
            }
            Self::Life => {
                let answer: LifeAnswer = ask(socket, Method::GET, "/v1/life", None::<&()>).await?;
                output.show(&answer, &answer.life)
            }
            Self::Confirm { of, number, document_hash, period } => {
                let path = of.place(&format!("/numbers/{number}/confirm"), Some(period));
                let body = Confirm { document_hash: document_hash.clone() };
                let number: Number = ask(socket, Method::POST, &path, Some(&body)).await?;
                output.show(&number, &described(&number))
            }
            Self::Void { of, number, reason, period } => {
                let path = of.place(&format!("/numbers/{number}/void"), Some(period));
                let number: Number =
                    ask(socket, Method::POST, &path, Some(&Void { reason: reason.clone() })).await?;
                output.show(&number, &described(&number))
            }
            Self::Show { of, number: None, key: None, period: Period { period: None }, stale } => {
                let (series, note) = look::<Series>(socket, &of.place("", None), *stale).await?;
                note.show(&series, &described_series(&series), output)
            }
            Self::Show { number: None, key: None, .. } => {
                Err(CommandError::Usage("a period alone shows nothing: name a number, or --key"))
            }
            Self::Show { of, number, key, period, stale } => {
                let path = match (number, key) {
                    (_, Some(key)) => format!("{}&key={}", of.place("/numbers", Some(period)), encoded(key)),
                    (number, None) => {
                        of.place(&format!("/numbers/{}", number.unwrap_or_default()), Some(period))
                    }
                };
                let (number, note) = look::<Number>(socket, &path, *stale).await?;
                note.show(&number, &described(&number), output)
            }
            Self::List { owner, series: None, after, limit, stale, .. } => {
                let after = after.as_ref().map(|after| format!("&after={}", encoded(after)));
                let path =
                    format!("/v1/series?owner={}&limit={limit}{}", encoded(owner), after.unwrap_or_default());
                let (page, note) = look::<Page<Series>>(socket, &path, *stale).await?;
                note.show(&page, &table_of_series(&page), output)
            }
            Self::List { owner, series: Some(series), period, state, after, limit, stale } => {
                let of = Of { series: series.clone(), owner: owner.clone() };
                let mut path = format!("{}&limit={limit}", of.place("/numbers", Some(period)));
                if let Some(word) = state.and_then(|state| state.to_possible_value()) {
                    path.push_str(&format!("&state={}", word.get_name()));
                }
                path.extend(after.iter().map(|after| format!("&after={}", encoded(after))));
                let (page, note) = look::<Page<Number>>(socket, &path, *stale).await?;
                note.show(&page, &table(&page), output)
            }
            Self::Export(export) => export.run(socket, output).await,
            Self::Verify(verify) => verify.run(output),
            Self::Reseed => reseed(socket, output).await,
            Self::TakeOver { alone } => take_over(socket, *alone, output).await,
            Self::Token { vault } => token(socket, vault, output).await,
            Self::Open { token } => open(socket, token, output).await,
            Self::Yield => give_way(socket, output).await,
            Self::Dropped(dropped) => dropped.run(socket, output).await,
        }
    }
}

impl Of {
    fn place(&self, rest: &str, period: Option<&Period>) -> String {
        let period = period.and_then(|period| period.period.as_ref());
        let period = period.map(|period| format!("&period={}", encoded(period))).unwrap_or_default();
        format!("/v1/series/{}{rest}?owner={}{period}", encoded(&self.series), encoded(&self.owner))
    }
}

async fn reserve(
    socket: &Path,
    path: &str,
    keys: &[String],
    ticket: Option<&str>,
    output: &mut Output<'_>,
) -> Result<(), CommandError> {
    let tickets = ticket.map(|ticket| vec![Some(ticket.to_owned()); keys.len()]);
    let batch = Batch { keys: keys.to_vec(), tickets };
    let answer: BatchAnswer = ask(socket, Method::POST, path, Some(&batch)).await?;
    let mut text = String::new();
    let mut refused = 0;
    for item in &answer.items {
        match (&item.number, &item.problem) {
            (Some(number), _) => text.push_str(&format!("{}\n", line(number))),
            (None, Some(problem)) => {
                refused += 1;
                text.push_str(&format!("{}: {problem}\n", shown(&item.key)));
            }
            (None, None) => {}
        }
    }
    // One that is refused is told once, as the command's own failure.
    if output.json || keys.len() > 1 || refused == 0 {
        output.show(&answer, &text)?;
    }
    match answer.items.into_iter().find_map(|item| item.problem) {
        Some(problem) if keys.len() == 1 => Err(CommandError::Refused(problem)),
        Some(_) => Err(CommandError::WithoutNumber { refused, of: keys.len() }),
        None => Ok(()),
    }
}

async fn reseed(socket: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
    let reseeded: Reseeded = ask(socket, Method::POST, "/v1/numbers/re-seed", None::<&()>).await?;
    let text = format!(
        "what is empty is taken for the new one; {} entries are carried over to it.\n\
         Numbers go on when it has them all: vault status shows it",
        reseeded.entries
    );
    output.show(&reseeded, &text)
}

async fn take_over(socket: &Path, alone: bool, output: &mut Output<'_>) -> Result<(), CommandError> {
    let asked = TakeOver { alone };
    let now: Epoch = ask(socket, Method::POST, "/v1/numbers/take-over", Some(&asked)).await?;
    let rest = if alone {
        "records, names and leases go on here at once; keep the other vault off until it can reach this one.\n\
         what this vault answers alone stands on its disk alone, and gives way if it is lost or yields: ETags and lease \
         epochs given meanwhile may then be given again, and whoever has an old one passes for the new one;\n\
         so stop those writers and holders then, and let them read their records and acquire their leases again.\n\
         strict numbers wait until a second vault is there: the old one, or a new one and vault number re-seed"
    } else {
        "the other vault follows as soon as the two are connected; until then strict numbers and records wait"
    };
    output.show(&now, &format!("this vault owns the ledger in epoch {};\n{rest}", now.epoch))
}

async fn token(socket: &Path, vault: &str, output: &mut Output<'_>) -> Result<(), CommandError> {
    let asked = TokenFor { vault: vault.to_owned() };
    let made: TokenText = ask(socket, Method::POST, "/v1/numbers/token", Some(&asked)).await?;
    let text = format!(
        "{}\nkeep it outside of both vaults; if {vault} is started anew while the other is away, \
         run there, once: vault number open {}",
        made.token, made.token
    );
    output.show(&made, &text)
}

async fn open(socket: &Path, token: &str, output: &mut Output<'_>) -> Result<(), CommandError> {
    let asked = TokenText { token: token.to_owned() };
    let now: Epoch = ask(socket, Method::POST, "/v1/numbers/token/open", Some(&asked)).await?;
    output.show(
        &now,
        "this vault gives numbers of available series alone, from what is set aside for the token, \
         until the two are together again;\ndestroy the token: it must never be used again. \
         When both are together, make a new one: vault number token",
    )
}

async fn give_way(socket: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
    let now: Epoch = ask(socket, Method::POST, "/v1/numbers/yield", None::<&()>).await?;
    let mut text =
        "the other vault is the ledger's owner; this one follows as soon as the two are connected".to_owned();
    if now.given_up > 0 {
        text.push_str(&format!(
            "\nat most {} writes of records, names and leases that this vault answered alone give way then: vault number dropped lists them",
            now.given_up
        ));
    }
    output.show(&now, &text)
}

async fn ask<Q: Serialize + Sync, A: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    question: Option<&Q>,
) -> Result<A, CommandError> {
    let body = question.map(serde_json::to_vec).transpose().map_err(std::io::Error::from)?;
    let request = Request::builder().method(method).uri(path);
    let request = request.header(header::CONTENT_TYPE, "application/json");
    let request = request.body(whole(body.unwrap_or_default())).map_err(std::io::Error::other)?;
    let answer = control::call(socket, request, SOON, &Progress::default()).await?;
    control::json(socket, answer).await
}

fn word(state: NumberState, expired: bool) -> &'static str {
    match state {
        NumberState::Reserved if expired => "reserved, expired",
        NumberState::Reserved => "reserved",
        NumberState::Confirmed => "confirmed",
        NumberState::Void => "void",
        NumberState::Doubtful => "doubtful",
    }
}

/// One number on one line.
fn line(number: &Number) -> String {
    let text = number.text.as_deref().map_or_else(String::new, |text| format!("  {}", shown(text)));
    let why = number.reason.as_deref().or(number.document_hash.as_deref());
    let why = why.map_or_else(String::new, |why| format!("  {}", shown(why)));
    let state = word(number.state, number.expired);
    let alone = match (number.alone, number.in_doubt) {
        (true, _) => ", ALONE",
        (false, true) => ", IN DOUBT",
        (false, false) => "",
    };
    format!("{:>10}{text}  {state}{alone}  {}{why}", number.number, shown(&number.key))
}

fn described(number: &Number) -> String {
    let mut text = format!("series: {}\n", number.series);
    let mut add = |name: &str, value: Option<&str>| {
        text.extend(value.map(|value| format!("{name:<8}{}\n", shown(value))));
    };
    add("period:", number.period.as_deref());
    add("number:", Some(&number.number.to_string()));
    add("text:", number.text.as_deref());
    add("key:", Some(&number.key));
    add("state:", Some(word(number.state, number.expired)));
    add("used by:", number.document_hash.as_deref().map(|hash| format!(" {hash}")).as_deref());
    add("reason:", number.reason.as_deref());
    add("entry:", Some(&number.entry_hash));
    text
}

fn table(page: &Page<Number>) -> String {
    let mut text: String = page.items.iter().map(|number| line(number) + "\n").collect();
    if page.items.is_empty() {
        text.push_str("none\n");
    }
    text.extend(page.next.iter().map(|next| format!("… and more: --after {next}\n")));
    text
}

fn table_of_series(page: &Page<Series>) -> String {
    let mut text: String = page.items.iter().map(|series| described_series(series) + "\n").collect();
    if page.items.is_empty() {
        text.push_str("none\n");
    }
    text.extend(page.next.iter().map(|next| format!("… and more: --after {next}\n")));
    text
}

/// How it is counted.
fn kind_of(series: &Series) -> String {
    let kind = match series.kind {
        SeriesKind::Strict => "strict".to_owned(),
        SeriesKind::Available => format!("available, ranges of {}", series.range),
    };
    let pattern = series.pattern.as_deref().map_or_else(String::new, |text| format!(", {}", shown(text)));
    let expiry = series.expires_after.map_or_else(String::new, |after| format!(", expires after {after} s"));
    format!("{kind}{pattern}{expiry}")
}

fn described_series(series: &Series) -> String {
    let mut text = format!("{} of {}: {}\n", series.series, series.owner, kind_of(series));
    for Count { period, last, open, expired, alone, ranges, unaccounted } in &series.counts {
        let period = period.as_deref().map_or_else(String::new, |period| format!("{period}: "));
        text.push_str(&format!("  {period}last number {last}, {open} reserved, {expired} of them expired\n"));
        if *alone > 0 {
            text.push_str(&format!(
                "    {alone} more were given here alone, and are not in the ledger yet\n"
            ));
        }
        for Span { from, to, vault } in ranges {
            text.push_str(&format!("    {from} to {to}: set aside for {vault}\n"));
        }
        for Span { from, to, vault } in unaccounted {
            text.push_str(&format!(
                "    {from} to {to}: unaccounted, {vault} lost what it may have given of it\n"
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_stands_on_one_line() {
        let mut number = Number::reserved("INV".into(), 7, "order\n\u{1b}[2J".into(), "0".repeat(64));
        number.state = NumberState::Void;
        number.reason = Some("torn\u{202e}".to_owned());
        number.text = Some("INV-7".to_owned());
        assert_eq!(line(&number), "         7  INV-7  void  order\\n\\u{1b}[2J  torn\\u{202e}");
    }

    #[test]
    fn a_series_is_asked_for_by_its_name_whatever_that_is() {
        let of = Of { series: "a/../b".to_owned(), owner: "erp&x".to_owned() };
        let period = Period { period: Some("2026".to_owned()) };
        assert_eq!(
            of.place("/numbers", Some(&period)),
            "/v1/series/a%2F%2E%2E%2Fb/numbers?owner=erp%26x&period=2026"
        );
    }
}

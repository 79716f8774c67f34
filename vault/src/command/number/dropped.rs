//! `vault number dropped`: what this vault answered alone, by an operator's word, and what gave way
//! when the other vault's ledger prevailed. Shows it, and says when it was looked at.

use std::path::Path;

use clap::Args;
use http::Method;
use shared::api::{Dropped as One, Left, LookedAt, Page};

use super::ask;
use crate::command::file::shown;
use crate::command::{CommandError, Output};

/// As much of a text stands in a line.
const SHOWN: usize = 120;

/// What follows for those who were answered.
const GIVEN_AGAIN: &str = "the other vault gives these versions (ETags) and lease epochs again: have whoever wrote these read again before \
     writing, and whoever held such a lease stop and acquire it again\n";

/// See the module.
#[derive(Debug, Args)]
pub struct Dropped {
    /// Only those behind this one, as the last line of a list that was cut names it
    #[arg(long, value_name = "PLACE", default_value_t = 0)]
    after: u64,
    /// At most so many, 1 to 1000
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,
    /// Afterwards vault status tells of them no more, nor of those before them
    #[arg(long)]
    done: bool,
}

impl Dropped {
    /// Does it.
    ///
    /// # Errors
    /// The vault does not run, or refuses.
    pub(super) async fn run(&self, socket: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
        let Self { after, limit, done } = self;
        let path = format!("/v1/numbers/dropped?after={after}&limit={limit}");
        let page: Page<One> = ask(socket, Method::GET, &path, None::<&()>).await?;
        let mut text: String = page.items.iter().map(line).collect();
        match &page.next {
            Some(next) => text.push_str(&format!("there are more: --after {next}\n")),
            None if page.items.is_empty() => text.push_str("none\n"),
            None => {}
        }
        if !page.items.is_empty() {
            text.push_str(GIVEN_AGAIN);
        }
        if let (true, Some(last)) = (*done, page.items.last()) {
            let looked_at = LookedAt { place: last.place };
            let left: Left = ask(socket, Method::POST, "/v1/numbers/dropped", Some(&looked_at)).await?;
            let which = format!("looked at, up to {}", last.place);
            text.push_str(&match left.left {
                0 => format!("{which}; none is left\n"),
                left => format!("{which}; {left} are left: say it again with --after {}\n", last.place),
            });
        }
        output.show(&page, &text)
    }
}

fn line(one: &One) -> String {
    let One { place, owner, kind, name, version, text, .. } = one;
    let text = text
        .as_deref()
        .map_or_else(|| "removed".to_owned(), |text| shown(&text.chars().take(SHOWN).collect::<String>()));
    format!("{place:>6}  {kind} {} of {}, version {version}: {text}\n", shown(name), shown(owner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gave_way_stands_on_one_line() {
        let mut one = One {
            place: 3,
            owner: "erp".to_owned(),
            kind: "record".to_owned(),
            name: "lots\n7".to_owned(),
            version: 4,
            text: Some("{\"value\":\"100\"}".to_owned()),
            at: 0,
        };
        assert_eq!(line(&one), "     3  record lots\\n7 of erp, version 4: {\"value\":\"100\"}\n");
        one.text = None;
        assert!(line(&one).ends_with("version 4: removed\n"));
    }
}

//! `vault number define`: says of a series what is named, and keeps what is not. Knows that the
//! vault takes a definition as a whole; reads the present one first.

use std::path::Path;

use clap::Args;
use http::Method;
use shared::api::Series;

use super::{Of, ask, described_series, kind_of};
use crate::command::{CommandError, Output};
use crate::sequence::definition::Definition;

/// See [`super::Verb::Define`].
#[derive(Debug, Args)]
pub struct Define {
    #[command(flatten)]
    of: Of,
    /// Numbers set aside for each vault, to be given while the other is away; 0: strict
    #[arg(long, value_name = "COUNT")]
    range: Option<u64>,
    /// How numbers read, such as INV-{year}-{n:06}; with {year} or {year}{month} the series is
    /// counted anew in each. '' takes it away, where no number was given yet
    #[arg(long, value_name = "TEXT")]
    pattern: Option<String>,
    /// After so many seconds a reservation that was neither confirmed nor voided is flagged; 0: never
    #[arg(long, value_name = "SECONDS")]
    expires_after: Option<u64>,
}

impl Define {
    /// Does it.
    ///
    /// # Errors
    /// The vault does not run, or refuses.
    pub(super) async fn run(&self, socket: &Path, output: &mut Output<'_>) -> Result<(), CommandError> {
        let place = self.of.place("", None);
        let before: Option<Series> = match ask(socket, Method::GET, &place, None::<&()>).await {
            Ok(series) => Some(series),
            Err(CommandError::Refused(problem)) if problem.status == 404 => None,
            Err(error) => return Err(error),
        };
        let now: Series = ask(socket, Method::PUT, &place, Some(&self.over(before.as_ref()))).await?;
        let was = before.filter(|before| kind_of(before) != kind_of(&now));
        let was = was.map_or_else(String::new, |before| format!("  before: {}\n", kind_of(&before)));
        output.show(&now, &format!("{}{was}", described_series(&now)))
    }

    /// What is named in the place of what was.
    fn over(&self, before: Option<&Series>) -> Definition {
        let was = |before: &Series| Definition {
            range: before.range,
            pattern: before.pattern.clone(),
            expires_after: before.expires_after,
        };
        let mut definition = before.map_or_else(Definition::default, was);
        if let Some(range) = self.range {
            definition.range = range;
        }
        if let Some(pattern) = &self.pattern {
            definition.pattern = Some(pattern.clone()).filter(|pattern| !pattern.is_empty());
        }
        if let Some(seconds) = self.expires_after {
            definition.expires_after = Some(seconds).filter(|seconds| *seconds > 0);
        }
        definition
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::api::SeriesKind;

    #[test]
    fn what_is_not_named_stays_and_what_is_named_empty_goes() {
        let before = Series {
            owner: "erp".to_owned(),
            series: "INV".to_owned(),
            kind: SeriesKind::Available,
            range: 10,
            pattern: Some("{n}".to_owned()),
            expires_after: Some(60),
            counts: Vec::new(),
        };
        let over = |before: Option<&Series>, range, pattern: Option<&str>, expires_after| {
            let of = Of { series: "INV".to_owned(), owner: "erp".to_owned() };
            let pattern = pattern.map(str::to_owned);
            let Definition { range, pattern, expires_after } =
                Define { of, range, pattern, expires_after }.over(before);
            (range, pattern, expires_after)
        };
        let (all, some) = (Some(&before), Some("{n}".to_owned()));
        assert_eq!(over(all, None, None, None), (10, some.clone(), Some(60)));
        assert_eq!(over(all, Some(0), None, None), (0, some.clone(), Some(60)));
        assert_eq!(over(all, None, Some(""), Some(0)), (10, None, None));
        assert_eq!(over(None, None, Some("{n}"), None), (0, some, None));
    }
}

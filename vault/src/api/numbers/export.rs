//! `GET …/export`: a series' entries as they are read, however many there are.

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::header;
use serde::Deserialize;

use super::asked::{Asked, invalid, marked, refusal};
use crate::api::refusal::Refusal;
use crate::sequence::book::SeriesName;
use crate::sequence::entry::Tail;
use crate::sequence::export::{Format, Row};
use crate::sequence::{Sequence, SequenceError};

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    format: Option<Format>,
}

/// How far an export has got.
struct Walk {
    sequence: Sequence,
    name: SeriesName,
    format: Format,
    /// The last entry written.
    tail: Tail,
    /// The last one to be written.
    last: u64,
    /// Numbers that this vault gave alone, which are not among them, while the two are apart.
    alone: Option<u64>,
    begun: bool,
    ended: bool,
}

pub(super) async fn export(
    State(sequence): State<Sequence>,
    asked: Asked<Wanted>,
) -> Result<Response, Refusal> {
    if asked.period.is_some() {
        return Err(invalid("an export holds a series with all its periods; leave period out"));
    }
    let format = asked.more.format.unwrap_or(Format::Csv);
    let stale = sequence.stale(asked.stale);
    let (last, alone) = sequence.exportable(&asked.base, stale.is_some()).await.map_err(refusal)?;
    let (name, tail) = (asked.base, Tail::default());
    let walk = Walk { sequence, name, format, tail, last, alone, begun: false, ended: false };
    let body = Body::from_stream(stream::try_unfold(walk, Walk::next));
    Ok(marked(([(header::CONTENT_TYPE, format.media_type())], body), stale))
}

impl Walk {
    /// The next piece. One that cannot be read breaks the answer off: its `end` row is missing.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, SequenceError> {
        if self.ended {
            return Ok(None);
        }
        let mut text = if self.begun { String::new() } else { self.format.head() };
        let mut first = !std::mem::replace(&mut self.begun, true);
        let entries = if self.tail.index < self.last {
            self.sequence.entries(self.tail.index).await?
        } else {
            Vec::new()
        };
        for entry in entries.into_iter().filter(|entry| entry.index <= self.last) {
            self.tail = entry.tail();
            let row = Row::of(entry, &self.name.owner, &self.name.series);
            text.push_str(&row.text(self.format, std::mem::take(&mut first)));
        }
        if self.tail.index >= self.last {
            if let Some(alone) = self.alone {
                let apart = Row::Apart { tail: self.tail, alone };
                text.push_str(&apart.text(self.format, std::mem::take(&mut first)));
            }
            text.push_str(&Row::End(self.tail).text(self.format, first));
            text.push_str(self.format.foot());
            self.ended = true;
        }
        Ok(Some((Bytes::from(text), self)))
    }
}

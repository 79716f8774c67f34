//! `<name>` in a filter's options: fail2ban puts another option's value in its place, inner ones first,
//! so that `<lt_<logtype>/__prefix_line>` works; `<HOST>` and all others that no option is called by stay.
//! Knows texts; must not know files or what an option means.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;

use super::interpolate::MAX_VALUE;

/// How often one tag is put into one option.
const MAX_SAME: usize = 25;
/// Rounds over all options; each resolves at least one tag.
const MAX_ROUNDS: usize = 64;

/// Bytes that all filling in together may write; fail2ban's own filters need less than a hundredth of it.
const MAX_WRITTEN: usize = 64 << 20;

/// Why an option's tags cannot be filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TagLoop {
    pub(super) option: String,
    pub(super) tag: String,
}

/// Every option's tags filled in from the other options, or where there is none from `more`.
pub(super) fn substituted(
    mut options: IndexMap<String, String>,
    ignore: &BTreeSet<String>,
    more: &mut dyn FnMut(&str) -> Option<String>,
) -> Result<IndexMap<String, String>, TagLoop> {
    let mut counts: BTreeMap<usize, BTreeMap<String, usize>> = BTreeMap::new();
    let mut done = BTreeSet::new();
    let mut left = MAX_WRITTEN;
    for _ in 0..MAX_ROUNDS {
        let mut again = false;
        for index in 0..options.len() {
            let Some((name, value)) = options.get_index(index) else { continue };
            if done.contains(&index) || ignore.contains(name) || !value.contains('<') {
                continue;
            }
            let name = name.clone();
            let mut count = counts.get(&index).cloned().unwrap_or_default();
            let filled = one(&name, value.clone(), &options, ignore, more, &mut count, &mut left)?;
            if options[index] != filled {
                if tag_from(&filled, 0).is_some() {
                    counts.insert(index, count);
                    again = true;
                }
                options[index] = filled;
            }
            if !options[index].contains('<') {
                done.insert(index);
            }
        }
        if !again {
            return Ok(options);
        }
    }
    Err(TagLoop {
        option: options.first().map_or_else(String::new, |(name, _)| name.clone()),
        tag: String::new(),
    })
}

fn one(
    name: &str,
    mut value: String,
    options: &IndexMap<String, String>,
    ignore: &BTreeSet<String>,
    more: &mut dyn FnMut(&str) -> Option<String>,
    count: &mut BTreeMap<String, usize>,
    left: &mut usize,
) -> Result<String, TagLoop> {
    let mut from = 0;
    while let Some((start, end)) = tag_from(&value, from) {
        let tag = value[start + 1..end - 1].to_owned();
        if ignore.contains(&tag) {
            from = end;
            continue;
        }
        let looped = || TagLoop { option: name.to_owned(), tag: tag.clone() };
        if tag == name || count.get(&tag).is_some_and(|count| *count > MAX_SAME) {
            return Err(looped());
        }
        let Some(found) = options.get(&tag).cloned().or_else(|| more(&tag)) else {
            from = end;
            continue;
        };
        value = value.replace(&format!("<{tag}>"), &found);
        *left = left.saturating_sub(value.len());
        if value.len() > MAX_VALUE || *left == 0 {
            return Err(looped());
        }
        *count.entry(tag).or_default() += 1;
        from = start;
    }
    Ok(value)
}

/// The next `<name>` at or after `from`, as a byte range; a name holds no blank and no bracket.
fn tag_from(text: &str, from: usize) -> Option<(usize, usize)> {
    let mut start = None;
    for (at, byte) in text.bytes().enumerate().skip(from) {
        match (byte, start) {
            (b'<', _) => start = Some(at),
            (b' ', _) => start = None,
            (b'>', Some(open)) if at > open + 1 => return Some((open, at + 1)),
            (b'>', _) => start = None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(options: &[(&str, &str)]) -> Result<Vec<String>, TagLoop> {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut more = |tag: &str| (tag == "lt_file/p").then(|| "from <mode>".to_owned());
        substituted(options, &BTreeSet::new(), &mut more).map(|all| all.into_values().collect())
    }

    #[test]
    fn inner_tags_are_filled_in_first() {
        assert_eq!(
            filled(&[
                ("re", "^<lt_<logtype>/p> <<F-USER>x</F-USER>> <HOST>"),
                ("logtype", "file"),
                ("mode", "m")
            ])
            .unwrap(),
            ["^from m <<F-USER>x</F-USER>> <HOST>", "file", "m"]
        );
    }

    #[test]
    fn a_tag_that_leads_to_itself_is_told() {
        assert_eq!(
            filled(&[("a", "<b>"), ("b", "<c>"), ("c", "<b>")]),
            Err(TagLoop { option: "a".to_owned(), tag: "b".to_owned() })
        );
        assert!(filled(&[("a", "x<a>")]).is_err());
        assert!(
            filled(&[("a", &"<b>".repeat(100)), ("b", &"<c>".repeat(99)), ("c", &"x".repeat(99))]).is_err()
        );
    }

    #[test]
    fn tags_are_found_as_they_are_written() {
        assert_eq!(tag_from("a<b c><d>", 0), Some((6, 9)));
        assert_eq!(tag_from("<<x>>", 0), Some((1, 4)));
        assert_eq!(tag_from("<>", 0), None);
        assert_eq!(tag_from("<a", 0), None);
    }

    proptest::proptest! {
        #[test]
        fn no_options_make_it_panic_or_run_on(a in "[<>ab/ é]{0,24}", b in "[<>abc]{0,24}", c in "[<>abc]{0,24}") {
            let _ = filled(&[("a", &a), ("b", &b), ("c", &c)]);
        }
    }
}

//! `name[option=value, other="v,w"]`, as jails name their filter and their actions. Knows one text; must
//! not know what is named.

use indexmap::IndexMap;

/// The name and its options, or what is wrong.
pub(super) fn named(text: &str) -> Result<(String, IndexMap<String, String>), &'static str> {
    let text = text.trim_end();
    let Some(open) = text.find('[') else {
        return if text.is_empty() { Err("is empty") } else { Ok((text.to_owned(), IndexMap::new())) };
    };
    let Some(inner) = text[open + 1..].strip_suffix(']').filter(|_| open > 0) else {
        return Err("is not of the form name[option=value, …]");
    };
    let mut options = IndexMap::new();
    let mut rest = inner.trim_start();
    while !rest.is_empty() && rest != "," {
        let word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        let Some((name, after)) =
            rest.split_once('=').filter(|(name, _)| !name.is_empty() && name.chars().all(word))
        else {
            return Err("holds something that is no option=value");
        };
        let (value, after) = value(after);
        options.insert(name.to_owned(), value.trim().to_owned());
        rest = match (after.strip_prefix(','), after.strip_prefix(']')) {
            (Some(more), _) => more.trim_start(),
            (None, Some(more)) => match more.trim_start().strip_prefix('[') {
                Some(more) => more.trim_start(),
                None => return Err("goes on after an option's value"),
            },
            (None, None) if after.is_empty() => after,
            (None, None) => return Err("goes on after an option's value"),
        };
    }
    Ok((text[..open].to_owned(), options))
}

/// A value in quotes, or up to the next comma or bracket; and what follows.
fn value(text: &str) -> (&str, &str) {
    for quote in ['"', '\''] {
        if let Some((value, after)) = text.strip_prefix(quote).and_then(|inner| inner.split_once(quote)) {
            return (value, after);
        }
    }
    text.split_at(text.find([',', ']']).unwrap_or(text.len()))
}

/// Several `name[…]` between blanks and newlines.
pub(super) fn several(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut start, mut inside, mut quote) = (0, false, None);
    for (at, c) in text.char_indices() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            (_, Some(_)) => {}
            ('"' | '\'', None) if inside => quote = Some(c),
            ('[', None) => inside = true,
            (']', None) => inside = false,
            (c, None) if c.is_whitespace() && !inside => {
                found.push(&text[start..at]);
                start = at;
            }
            _ => {}
        }
    }
    found.push(&text[start..]);
    found.into_iter().map(str::trim).filter(|one| !one.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Vec<(String, String)> {
        named(text).unwrap().1.into_iter().collect()
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn options_may_be_quoted_and_grouped() {
        assert_eq!(named("sshd").unwrap().0, "sshd");
        assert_eq!(
            options("sshd[mode=aggressive, x='a,b', y=\"c]\"]"),
            [pair("mode", "aggressive"), pair("x", "a,b"), pair("y", "c]")]
        );
        assert_eq!(options("a[b=1][c=2] "), [pair("b", "1"), pair("c", "2")]);
        assert_eq!(options("a[b=1,\n c= 2 ,]"), [pair("b", "1"), pair("c", "2")]);
        assert_eq!(options("a[]"), []);
    }

    #[test]
    fn what_is_no_option_is_told() {
        for text in ["", "a[b", "[b=1]", "a[b]", "a[b='c'd]", "a[b=1]c", "a[b c=1]"] {
            assert!(named(text).is_err(), "{text}");
        }
    }

    #[test]
    fn actions_are_told_apart() {
        assert_eq!(
            several("iptables[port=\"a b\", x=1]\n  mail[dest='r o']\n\nlog"),
            ["iptables[port=\"a b\", x=1]", "mail[dest='r o']", "log"]
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-c=,\\[\\]\"' \né]{0,40}") {
            let _ = named(&text);
            let _ = several(&text);
        }
    }
}

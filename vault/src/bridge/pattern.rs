//! What destinations a name with wildcards means. Pure; follows ActiveMQ's manual ("Wildcards",
//! "Composite Destinations"): words between full stops, `*` for one, `>` for all that follow, several
//! names with commas; Artemis writes `#` for `>`.

use crate::openwire::Destination;

/// Queues that belong to the bridge itself begin so.
pub const OWN_QUEUES: &str = "vault.bridge.";

/// Is there a destination that both name?
#[must_use]
pub fn meet(one: &Destination, other: &Destination) -> bool {
    one.kind == other.kind
        && names(one).iter().any(|left| names(other).iter().any(|right| words_meet(left, right)))
}

/// Does it name a queue that a bridge may have for itself?
#[must_use]
pub fn names_own_queues(destination: &Destination) -> bool {
    let own: Vec<String> = OWN_QUEUES.split_terminator('.').chain(["*", ">"]).map(str::to_owned).collect();
    names(destination).iter().any(|name| words_meet(name, &own))
}

/// Each name that is listed, by its words.
fn names(destination: &Destination) -> Vec<Vec<String>> {
    let text = destination.name.to_string();
    text.split(',').map(words).collect()
}

/// One name, without its scheme and its options.
fn words(part: &str) -> Vec<String> {
    let part = part.trim();
    let part = part.strip_prefix("queue://").or_else(|| part.strip_prefix("topic://")).unwrap_or(part);
    part.split('?').next().unwrap_or_default().split('.').map(str::to_owned).collect()
}

fn words_meet(one: &[String], other: &[String]) -> bool {
    match (one.split_first(), other.split_first()) {
        (None, None) => true,
        (Some((word, _)), _) | (_, Some((word, _))) if is_rest(word) => true,
        (Some((left, one)), Some((right, other))) => {
            is_rest(right) || ((left == right || left == "*" || right == "*") && words_meet(one, other))
        }
        (None, Some(_)) | (Some(_), None) => false,
    }
}

/// `orders.>` also means `orders`.
fn is_rest(word: &str) -> bool {
    matches!(word, ">" | "#")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openwire::Text;

    fn queue(name: &str) -> Destination {
        Destination::queue(Text::shortened(name))
    }

    #[test]
    fn patterns_meet_where_one_destination_has_both_names() {
        let meeting = [
            ("a", "a"),
            ("a.>", "a.b"),
            ("a.>", "a"),
            ("a.*", "a.b"),
            ("*.b", "a.*"),
            ("a.*.c", "a.>"),
            ("x,a.b", "a.*,y"),
            (">", "anything.at.all"),
            ("a.#", "a.b.c"),
            ("queue://a?consumer.priority=1", "a"),
        ];
        let apart =
            [("a", "b"), ("a.*", "a"), ("a.*", "a.b.c"), ("a.b", "a.b.c"), ("a.>", "ab.c"), ("x,y", "z")];
        for (one, other) in meeting {
            assert!(meet(&queue(one), &queue(other)) && meet(&queue(other), &queue(one)), "{one} {other}");
        }
        for (one, other) in apart {
            assert!(!meet(&queue(one), &queue(other)) && !meet(&queue(other), &queue(one)), "{one} {other}");
        }
        assert!(!meet(&queue("a"), &Destination::topic(Text::shortened("a"))));
    }

    #[test]
    fn a_pattern_that_covers_the_bridges_own_queues_is_told() {
        let good = "orders.> orders.new orders.*,invoices.> * *.new vault.orders.> vault.* vaults.>";
        for good in good.split(' ') {
            assert!(!names_own_queues(&queue(good)), "{good}");
        }
        let through = [
            "vault.>",
            "vault.*.>",
            "vault.*.receipts.>",
            "*.*.receipts.*.*",
            "vault.bridge.*",
            "*.bridge.>",
        ];
        let plain =
            [">", "*.>", "orders.>,>", "vault.bridge.receipts.x", "orders,queue://>", "orders, #", ">?x=1"];
        for bad in through.into_iter().chain(plain) {
            assert!(names_own_queues(&queue(bad)), "{bad}");
        }
    }
}

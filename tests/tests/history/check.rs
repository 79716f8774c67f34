//! What must be true of every history. Pure: a story in, faults out. Each check has a unit test in
//! which it finds a made fault, and the controls show the same on real ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::time::Duration;

use crate::history::{Act, Call, Ending, Line, Outcome, Story};

/// How long the other vault may take to hear that what it has was answered.
const HEARSAY: Duration = Duration::from_secs(2);
/// Codes after which nothing was done, and nothing will be.
const HARMLESS: [&str; 5] = ["peer_away", "ledger_away", "numbering_closed", "busy", "version_differs"];

/// Which promise is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Promise {
    /// No number under two keys.
    OneKey,
    /// No key with two numbers.
    OneNumber,
    /// What was answered stands in the ledger at the end, at both vaults.
    Kept,
    /// Nothing is missing between given numbers but what the ledger names.
    NoHole,
    /// A strict series gives a later caller a higher number.
    InOrder,
    /// A number is confirmed by one document, then void, and nobody is told an earlier state.
    OneFate,
    /// Nobody is told that there is no number where one was answered.
    NotDenied,
    /// Records are linearizable.
    Record,
    /// A lease is one holder's at a time, and each new holder's epoch is higher.
    Lease,
    /// An available series goes on through every single failure, records where an operator said so.
    Answers,
    /// The database's outage alone stops nothing.
    Outage,
}

/// A broken promise, and how it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) promise: Promise,
    pub(crate) words: String,
}

impl Display for Fault {
    fn fmt(&self, form: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(form, "{:?}: {}", self.promise, self.words)
    }
}

/// Everything that is wrong with `story`.
pub(crate) fn faults(story: &Story) -> Vec<Fault> {
    let mut faults = Faults(Vec::new());
    once(story, &mut faults);
    for series in &story.strict {
        in_order(story, series, &mut faults);
    }
    for (series, ending) in &story.ending {
        kept(story, series, ending, &mut faults);
        no_hole(story, series, ending, &mut faults);
    }
    one_fate(story, &mut faults);
    crate::denials::check(story, |words| faults.add(Promise::NotDenied, words));
    crate::register::check(&story.calls, |words| faults.add(Promise::Record, words));
    crate::leases::check(&story.calls, |words| faults.add(Promise::Lease, words));
    crate::answers::alone(story, |words| faults.add(Promise::Answers, words));
    crate::answers::outages(story, |words| faults.add(Promise::Outage, words));
    faults.0
}

/// Did this refusal surely do nothing?
pub(crate) fn is_harmless(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused { code, .. } if HARMLESS.contains(&code.as_str()))
}

struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, promise: Promise, words: String) {
        self.0.push(Fault { promise, words });
    }
}

/// Every number that anybody was told or that stands at the end.
fn told(story: &Story) -> impl Iterator<Item = (&str, &Line)> {
    let answered = story.calls.iter().filter_map(Call::line);
    let listed = story
        .ending
        .iter()
        .flat_map(|(series, ending)| ending.listed.iter().flatten().map(move |line| (series.as_str(), line)));
    answered.chain(listed)
}

fn once(story: &Story, faults: &mut Faults) {
    let mut keys: BTreeMap<(&str, u64), BTreeSet<&str>> = BTreeMap::new();
    let mut numbers: BTreeMap<(&str, &str), BTreeSet<u64>> = BTreeMap::new();
    for (series, line) in told(story) {
        keys.entry((series, line.number)).or_default().insert(&line.key);
        numbers.entry((series, &line.key)).or_default().insert(line.number);
    }
    for ((series, number), keys) in keys.into_iter().filter(|(_, keys)| keys.len() > 1) {
        faults.add(Promise::OneKey, format!("{series} {number} was given to {keys:?}"));
    }
    for ((series, key), numbers) in numbers.into_iter().filter(|(_, numbers)| numbers.len() > 1) {
        faults.add(Promise::OneNumber, format!("{series}: key {key} has {numbers:?}"));
    }
}

/// When a key was first sent, and when somebody was first told its number.
pub(crate) struct Birth {
    sent: Duration,
    pub(crate) told: Option<(Duration, u64)>,
}

/// Of every key of a series.
pub(crate) fn births<'a>(story: &'a Story, series: &str) -> BTreeMap<&'a str, Birth> {
    let mut births: BTreeMap<&str, Birth> = BTreeMap::new();
    let of_series = || story.calls.iter().filter(|call| call.act.series() == Some(series));
    for call in of_series() {
        if let Act::Reserve { key, .. } = &call.act {
            let birth = births.entry(key).or_insert(Birth { sent: call.invoked, told: None });
            birth.sent = birth.sent.min(call.invoked);
        }
    }
    for call in of_series() {
        if let Some((_, line)) = call.line()
            && let Some(birth) = births.get_mut(line.key.as_str())
            && birth.told.is_none_or(|(at, _)| call.ended < at)
        {
            birth.told = Some((call.ended, line.number));
        }
    }
    births
}

fn in_order(story: &Story, series: &str, faults: &mut Faults) {
    let births = births(story, series);
    let mut sent: Vec<_> = births.values().filter_map(|birth| Some((birth.sent, birth.told?.1))).collect();
    let mut told: Vec<_> = births.values().filter_map(|birth| birth.told).collect();
    sent.sort_unstable();
    told.sort_unstable();
    let mut told = told.into_iter().peekable();
    let mut highest = 0;
    for (sent, number) in sent {
        while let Some((_, earlier)) = told.next_if(|(at, _)| *at < sent) {
            highest = highest.max(earlier);
        }
        if number < highest {
            let words = format!("{series} {number} was asked for after {highest} was answered");
            faults.add(Promise::InOrder, words);
        }
    }
}

/// May the ledger have forgotten this number, since one vault alone had it and lost its disk?
pub(crate) fn may_be_forgotten(story: &Story, series: &str, number: u64) -> bool {
    if story.strict.iter().any(|strict| strict == series) {
        return false;
    }
    story.losses.iter().any(|loss| {
        story.calls.iter().all(|call| {
            let about = call.line().is_some_and(|(own, line)| own == series && line.number == number);
            let alone = call.ended + HEARSAY >= loss.since && call.invoked <= loss.at;
            !about || call.vault == loss.vault && alone
        })
    })
}

fn kept(story: &Story, series: &str, ending: &Ending, faults: &mut Faults) {
    let [first, second] = ending.listed.each_ref().map(|lines| lines.iter().collect::<BTreeSet<_>>());
    if let Some(line) = first.symmetric_difference(&second).next() {
        faults.add(Promise::Kept, format!("{series}: the vaults do not list the same: {line:?}"));
    }
    let listed: BTreeMap<_, _> = ending.listed[0].iter().map(|line| (line.number, line)).collect();
    let voids = story.calls.iter().filter_map(|call| match &call.act {
        Act::Void { series: own, number } if own == series => Some(*number),
        _ => None,
    });
    let spoiled: BTreeSet<_> = voids.collect();
    let mut seen = BTreeSet::new();
    for (_, line) in story.calls.iter().filter_map(Call::line).filter(|(own, _)| *own == series) {
        if !seen.insert(line.number) || may_be_forgotten(story, series, line.number) {
            continue;
        }
        let words = match listed.get(&line.number) {
            None => "does not stand in the ledger at the end".to_owned(),
            // Under which key it stands is another check's matter.
            Some(last) if last.state == "doubtful" => "is doubtful at the end".to_owned(),
            Some(last) if last.state == "void" && !spoiled.contains(&line.number) => {
                "is void at the end, and nobody asked for that".to_owned()
            }
            Some(_) => continue,
        };
        faults.add(Promise::Kept, format!("{series} {}, answered to {}, {words}", line.number, line.key));
    }
}

fn no_hole(story: &Story, series: &str, ending: &Ending, faults: &mut Faults) {
    let given: BTreeSet<_> = ending.listed[0].iter().map(|line| line.number).collect();
    let is_named = |number: u64| ending.unaccounted.iter().any(|(from, to)| (*from..=*to).contains(&number));
    let upto = if story.strict.iter().any(|strict| strict == series) {
        given.last().copied().unwrap_or(0)
    } else {
        ending.upto
    };
    let missing: Vec<_> =
        (1..=upto).filter(|number| !given.contains(number) && !is_named(*number)).take(10).collect();
    if !missing.is_empty() {
        faults.add(Promise::NoHole, format!("{series}: up to {upto} these are missing: {missing:?}"));
    }
    unaccounted(story, series, ending, faults);
    let both: Vec<_> = given.iter().filter(|number| is_named(**number)).take(10).collect();
    if !both.is_empty() && story.losses.is_empty() {
        faults.add(Promise::NoHole, format!("{series}: given and called unaccounted: {both:?}"));
    }
}

/// A number is unaccounted only where a life was lost that held it: in a strict series none is, in an
/// available one no more than was set aside for those lives.
fn unaccounted(story: &Story, series: &str, ending: &Ending, faults: &mut Faults) {
    let is_strict = story.strict.iter().any(|strict| strict == series);
    let most = if is_strict { 0 } else { story.range.saturating_mul(story.unknown_ends) };
    let count: u64 = ending.unaccounted.iter().map(|(from, to)| to.saturating_sub(*from) + 1).sum();
    if count > most {
        let words = format!(
            "{series}: {count} are unaccounted, of which {} lives that were lost explain {most}: {:?}",
            story.unknown_ends, ending.unaccounted
        );
        faults.add(Promise::NoHole, words);
    }
}

/// After everything.
const AT_THE_END: Duration = Duration::MAX;

/// Somebody was told this of a number.
struct Sight<'a> {
    invoked: Duration,
    ended: Duration,
    line: &'a Line,
}

/// Reserved, then confirmed by one document, then void: never back, never by another document.
fn one_fate(story: &Story, faults: &mut Faults) {
    let stage = |line: &Line| match line.state.as_str() {
        "confirmed" => 1,
        "void" => 2,
        _ => 0,
    };
    let mut hashes: BTreeMap<(&str, u64), BTreeSet<&str>> = BTreeMap::new();
    for (series, line) in told(story) {
        hashes.entry((series, line.number)).or_default().extend(line.hash.as_deref());
    }
    for ((series, number), hashes) in hashes.into_iter().filter(|(_, hashes)| hashes.len() > 1) {
        faults.add(Promise::OneFate, format!("{series} {number} is confirmed by {hashes:?}"));
    }
    let mut sights: BTreeMap<(&str, u64), Vec<Sight>> = BTreeMap::new();
    for call in &story.calls {
        if let Some((series, line)) = call.line() {
            let sight = Sight { invoked: call.invoked, ended: call.ended, line };
            sights.entry((series, line.number)).or_default().push(sight);
        }
    }
    for (series, ending) in &story.ending {
        for line in &ending.listed[0] {
            let sights = sights.entry((series, line.number)).or_default();
            sights.push(Sight { invoked: AT_THE_END, ended: AT_THE_END, line });
        }
    }
    for ((series, number), sights) in sights {
        let back = sights.iter().find(|sight| {
            let is_more = |other: &&Sight| stage(other.line) > stage(sight.line);
            sights.iter().filter(is_more).any(|other| other.ended < sight.invoked)
        });
        if let Some(Sight { invoked, line, .. }) = back.filter(|_| !may_be_forgotten(story, series, number)) {
            let when =
                if *invoked == AT_THE_END { "at the end".to_owned() } else { format!("at {invoked:?}") };
            let words = format!("{series} {number} is {} {when}, and was further before", line.state);
            faults.add(Promise::OneFate, words);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Window;
    use crate::made::{Made, confirm, line, lookup, refused, reserve, strict};

    #[test]
    fn a_blameless_history_is_blamed_for_nothing() {
        let confirmed = line(2, "b", "confirmed");
        strict()
            .gets("a", 1)
            .call(1, reserve("INV", "b"), refused(503, "in_doubt"))
            .call(0, reserve("INV", "b"), Outcome::Unknown("late".to_owned()))
            .gets("b", 2)
            .gets("a", 1)
            .call(1, confirm(2), Outcome::Number(confirmed.clone()))
            .call(0, lookup("b"), Outcome::Number(confirmed.clone()))
            .call(0, lookup("c"), Outcome::Nothing)
            .ends(&[line(1, "a", "reserved"), confirmed])
            .is_well();
    }

    #[test]
    fn a_number_under_two_keys_is_found_in_answers_and_at_the_end() {
        strict().gets("a", 1).gets("b", 2).gets("c", 2).breaks(Promise::OneKey);
        strict()
            .gets("a", 1)
            .gets("b", 2)
            .ends(&[line(1, "a", "reserved"), line(2, "c", "reserved")])
            .breaks(Promise::OneKey);
    }

    #[test]
    fn a_key_with_two_numbers_is_found() {
        let twice = strict().gets("a", 1).gets("a", 2).broken();
        assert!(twice.contains(&Promise::OneNumber), "{twice:?}");
    }

    #[test]
    fn an_answered_number_that_the_ledger_lacks_is_found() {
        let forgotten = || strict().gets("a", 1).gets("b", 2).ends(&[line(1, "a", "reserved")]);
        forgotten().breaks(Promise::Kept);
        // A lost journal is no excuse where both vaults had it.
        forgotten().loses(0, 0, 100).breaks(Promise::Kept);
        for state in ["void", "doubtful"] {
            let lines = [line(1, "a", "reserved"), line(2, "b", state)];
            strict().gets("a", 1).gets("b", 2).ends(&lines).breaks(Promise::Kept);
        }
        let mut differ = strict().gets("a", 1).ends(&[line(1, "a", "reserved")]);
        differ.0.ending.get_mut("INV").unwrap().listed[1].clear();
        differ.breaks(Promise::Kept);
    }

    #[test]
    fn what_one_vault_gave_alone_may_be_lost_with_its_journal_and_never_given_again() {
        let alone = || {
            let mut made = Made::default().gets("a", 1).gets("b", 2).ends(&[line(1, "a", "reserved")]);
            let ending = made.0.ending.get_mut("INV").unwrap();
            (ending.unaccounted, ending.upto) = (vec![(2, 2)], 2);
            (made.0.range, made.0.unknown_ends) = (1, 1);
            made
        };
        alone().breaks(Promise::Kept);
        alone().loses(0, 1, 2).is_well();
        // The other vault's loss, or one of another time, excuses nothing.
        alone().loses(1, 1, 2).breaks(Promise::Kept);
        alone().loses(0, 4, 5).breaks(Promise::Kept);
        alone().loses(0, 0, 0).breaks(Promise::Kept);
        let again = alone().loses(0, 1, 2).gets("c", 2).broken();
        assert!(again.contains(&Promise::OneKey), "{again:?}");
    }

    #[test]
    fn a_hole_is_found_in_every_series() {
        let holed = |made: Made| made.ends(&[line(1, "a", "reserved"), line(3, "c", "reserved")]);
        holed(strict()).breaks(Promise::NoHole);
        holed(Made::default()).breaks(Promise::NoHole);
        let mut ahead = holed(Made::default());
        ahead.0.ending.get_mut("INV").unwrap().upto = 1;
        ahead.is_well();
    }

    #[test]
    fn what_the_ledger_calls_unaccounted_needs_a_life_that_was_lost() {
        let holed = |mut made: Made, spans: &[(u64, u64)], unknown_ends| {
            made = made.ends(&[line(1, "a", "reserved"), line(9, "c", "reserved")]);
            (made.0.range, made.0.unknown_ends) = (4, unknown_ends);
            made.0.ending.get_mut("INV").unwrap().unaccounted = spans.to_vec();
            made
        };
        let all = &[(2, 5), (6, 8)];
        holed(Made::default(), all, 2).is_well();
        // Each takes no more than was set aside for it.
        holed(Made::default(), all, 1).breaks(Promise::NoHole);
        holed(Made::default(), all, 0).breaks(Promise::NoHole);
        holed(Made::default(), &[(2, 5)], 2).breaks(Promise::NoHole);
        // In a strict series nothing is set aside.
        holed(strict(), all, 2).breaks(Promise::NoHole);
        holed(Made::default(), &[(2, 9)], 2).breaks(Promise::NoHole);
    }

    #[test]
    fn a_later_caller_with_a_lower_number_is_found_in_a_strict_series_alone() {
        strict().gets("b", 2).gets("a", 1).breaks(Promise::InOrder);
        // Who asked before the other was answered may get the lower one.
        strict().gets("b", 2).late().gets("a", 1).is_well();
        strict()
            .call(0, reserve("INV", "a"), Outcome::Unknown(String::new()))
            .gets("b", 2)
            .gets("a", 1)
            .is_well();
        Made::default().gets("b", 2).gets("a", 1).is_well();
    }

    #[test]
    fn a_number_with_two_fates_is_found() {
        let confirmed = || Outcome::Number(line(1, "a", "confirmed"));
        let void = || Outcome::Number(line(1, "a", "void"));
        let spoil = || Act::Void { series: "INV".to_owned(), number: 1 };
        let born = || strict().gets("a", 1).call(0, confirm(1), confirmed());
        born().call(1, spoil(), void()).is_well();
        let other = Line { hash: Some("other".to_owned()), ..line(1, "a", "confirmed") };
        born().call(1, confirm(1), Outcome::Number(other)).breaks(Promise::OneFate);
        // Nor may it be unsaid, to a reader, by a writer or at the end.
        born().gets("a", 1).breaks(Promise::OneFate);
        born().call(1, spoil(), void()).call(0, confirm(1), confirmed()).breaks(Promise::OneFate);
        born().ends(&[line(1, "a", "reserved")]).breaks(Promise::OneFate);
        strict().gets("a", 1).call(0, confirm(1), confirmed()).late().gets("a", 1).is_well();
    }

    #[test]
    fn silence_where_a_vault_must_go_on_alone_is_found() {
        let window = |outcome: Outcome, seconds: u64| {
            let mut made = Made::default();
            for _ in 0..8 {
                made = made.call(1, reserve("TKT", "a"), outcome.clone());
            }
            let (from, to) = (Duration::ZERO, Duration::from_secs(seconds));
            made.0.windows.push(Window {
                what: "Kill(0)".to_owned(),
                living: vec![1],
                from,
                to,
                records: None,
            });
            made
        };
        window(refused(503, "peer_away"), 9).breaks(Promise::Answers);
        window(Outcome::Number(line(1, "a", "reserved")), 9).is_well();
        // Nobody can have noticed yet.
        window(refused(503, "peer_away"), 4).is_well();
        // Each series, where no vault needs the other.
        let mut strict = window(Outcome::Number(line(1, "a", "reserved")), 20);
        strict.0.strict.push("TKT".to_owned());
        for call in &mut strict.0.calls {
            call.outcome = refused(503, "peer_away");
        }
        strict.is_well();
        strict.0.apart = true;
        strict.breaks(Promise::Answers);
        // Records too, where an operator has made it the owner to go on alone.
        for (outcome, is_well) in [(refused(503, "peer_away"), false), (made(1), true)] {
            let mut made = window(Outcome::Number(line(1, "a", "reserved")), 20);
            made.0.windows[0].records = Some(1);
            let made = made.late().call(1, write(0, "x"), outcome);
            if is_well { made.is_well() } else { made.breaks(Promise::Answers) }
        }
    }

    fn write(base: u64, value: &str) -> Act {
        Act::Write { record: "lot".to_owned(), base, value: value.to_owned() }
    }

    fn read() -> Act {
        Act::Read { record: "lot".to_owned() }
    }

    fn made(version: u64) -> Outcome {
        Outcome::Version { version, value: None }
    }

    fn saw(version: u64, value: &str) -> Outcome {
        Outcome::Version { version, value: Some(value.to_owned()) }
    }

    #[test]
    fn records_that_are_linearizable_are_blamed_for_nothing() {
        Made::default()
            .call(0, read(), Outcome::Nothing)
            .call(0, write(0, "x"), made(1))
            .call(1, write(0, "y"), refused(412, "version_differs"))
            .call(1, write(1, "z"), Outcome::Unknown(String::new()))
            .call(0, read(), saw(2, "z"))
            .call(0, write(2, "w"), made(3))
            .late()
            .call(1, read(), saw(2, "z"))
            .call(1, read(), saw(3, "w"))
            .call(0, write(3, "u"), Outcome::Unknown(String::new()))
            .call(0, read(), saw(4, "u"))
            .call(0, write(3, "u"), made(4))
            .call(0, read(), saw(4, "u"))
            .call(0, write(3, "u"), made(4))
            .is_well();
    }

    #[test]
    fn records_that_are_not_linearizable_are_found() {
        let born = || Made::default().call(0, write(0, "x"), made(1));
        for broken in [
            // Two winners of one version.
            born().call(0, write(1, "y"), made(2)).late().call(1, write(1, "z"), made(3)),
            // A version with two values, and one that nobody wrote.
            born().call(1, read(), saw(1, "y")).call(0, write(1, "y"), made(2)),
            born().call(1, write(1, "y"), refused(412, "version_differs")).call(0, read(), saw(2, "y")),
            // Back in time, to a version, to nothing, and by a write.
            born().call(0, write(1, "y"), made(2)).call(1, read(), saw(1, "x")),
            born().call(1, read(), Outcome::Nothing),
            born().call(0, read(), saw(1, "x")).call(0, write(0, "y"), made(1)),
            born().call(1, write(1, "y"), made(1)),
            born().call(1, write(1, "y"), made(3)),
        ] {
            broken.breaks(Promise::Record);
        }
    }
}

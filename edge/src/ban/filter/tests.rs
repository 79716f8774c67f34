//! The room's promises, through its front door.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// 2005-08-14T10:00:00Z
const NOW: Duration = Duration::from_secs(1_124_013_600);

fn filter(patterns: &[&str]) -> FilterText {
    let failregex = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
    FilterText { name: "sample".into(), failregex, max_lines: 1, ..FilterText::default() }
}

fn set(texts: &[FilterText]) -> FilterSet {
    let filters = texts.iter().map(|text| Filter::compile(text).unwrap()).collect();
    FilterSet::with(filters, Limits { zone: TimeZone::UTC, ..Limits::default() }).unwrap()
}

fn hits(set: &mut FilterSet, lines: &[&str]) -> Vec<(usize, Hit)> {
    let mut hits = Vec::new();
    lines.iter().for_each(|line| set.read(line.as_bytes(), None, NOW, &mut hits));
    hits
}

fn at(datepattern: &[&str], line: &str) -> Option<u64> {
    let datepattern = datepattern.iter().map(|pattern| (*pattern).to_owned()).collect();
    let mut set = set(&[FilterText { datepattern, ..filter(&["^.*<F-ID>end</F-ID>$"]) }]);
    let found = hits(&mut set, &[line]);
    found.first().unwrap_or_else(|| panic!("{line}")).1.at.map(|at| at.as_secs())
}

fn subject(pattern: &str, line: &str) -> Option<Subject> {
    hits(&mut set(&[filter(&[pattern])]), &[line]).pop().map(|(_, hit)| hit.subject)
}

#[test]
fn the_date_is_cut_out_and_tells_the_time() {
    let mut set = set(&[filter(&[r#"^<HOST> - - \[\] "GET "#])]);
    let found = hits(&mut set, &[r#"192.0.2.7 - - [14/Aug/2005:11:59:58 +0200] "GET / HTTP/1.1""#]);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].1.at, Some(Duration::from_secs(1_124_013_598)));
    assert_eq!(found[0].1.subject, Subject::Address("192.0.2.7".parse().unwrap()));
}

#[test]
fn edges_own_lines_have_no_date_and_none_is_looked_for() {
    let mut set = set(&[filter(&[r#"^<HOST> \S+ \S+ \[\] "[A-Z]+ /x"#])]);
    let mut found = Vec::new();
    let known = Duration::from_millis(1_700_000_000_123);
    set.read(br#"203.0.113.7 - - [] "GET /x HTTP/1.1" 404 153 "-" "curl/8""#, Some(known), NOW, &mut found);
    assert_eq!(found[0].1.at, Some(known));
    assert_eq!(set.figures(), Figures { lines: 1, hits: 1, ..Figures::default() });
}

#[test]
fn dates_of_many_forms_are_understood() {
    for (line, seconds) in [
        ("2005-08-14T12:00:00.5+02:00 end", 1_124_013_600),
        ("2005-08-14 10:00:00,123 end", 1_124_013_600),
        ("2005/08/14 10:00:00 end", 1_124_013_600),
        ("Aug 14 09:59:59 host end", 1_124_013_599),
        ("Sun Aug 14 09:59:59.011 2005 end", 1_124_013_599),
        ("<14/Aug/2005:12:00:00 +0200> end", 1_124_013_600),
        ("14-08-2005 10:00:00 end", 1_124_013_600),
        ("1124013600.250 end", 1_124_013_600),
        ("type=X msg=audit(1124013600.250:17): end", 1_124_013_600),
        ("@4000000042ff162000000000 end", 0x42ff_1620),
        ("050814 10:00:00 end", 1_124_013_600),
        ("Aug 14, 2005 10:00:00 AM end", 1_124_013_600),
        ("20050814T100000 end", 1_124_013_600),
    ] {
        assert_eq!(at(&[], line), Some(seconds), "{line}");
    }
}

#[test]
fn date_patterns_of_a_filter_are_fail2bans() {
    assert_eq!(at(&[r"^\[({DATE})\]"], "[2005-08-14 10:00:00] end"), Some(1_124_013_600));
    assert_eq!(at(&["{^LN-BEG}%d.%m.%Y %H:%M:%S"], "14.08.2005 10:00:00 end"), Some(1_124_013_600));
    assert_eq!(at(&["^at {LEPOCH}"], "at 1124013600123 end"), Some(1_124_013_600));
    assert_eq!(at(&["%Y-%j %I:%M:%S %p"], "2005-226 10:00:00 am end"), Some(1_124_013_600));
    assert_eq!(at(&["{NONE}"], "2005-08-14 10:00:00 end"), None);
    assert_eq!(at(&["%Y-%m-%d %H:%M:%S %Exz"], "2005-08-14 12:00:00 CEST end"), Some(1_124_013_600));
}

#[test]
fn a_line_without_date_has_that_of_the_line_before_for_a_minute() {
    let mut set = set(&[filter(&["^ ?from <ADDR>$"])]);
    let found = hits(&mut set, &["from 192.0.2.1", "2005-08-14T09:59:30Z from 192.0.2.1", "from 192.0.2.1"]);
    let times: Vec<_> = found.iter().map(|(_, hit)| hit.at.map(|at| at.as_secs())).collect();
    assert_eq!(times, [None, Some(1_124_013_570), Some(1_124_013_570)]);
    assert_eq!(set.figures().undated, 2);
    let mut later = Vec::new();
    set.read(b"from 192.0.2.1", None, NOW + Duration::from_secs(60), &mut later);
    assert_eq!(later[0].1.at, None);
}

#[test]
fn one_odd_date_does_not_decide_how_all_others_are_read() {
    let mut set =
        set(&[FilterText { datepattern: vec!["{^LN-BEG}".into()], ..filter(&[r"^\[\] from <HOST>$"]) }]);
    let lines = ["[CEST Sun Aug 14 11:59:00] from 192.0.2.1", "[Sun Aug 14 09:59:30 2005] from 192.0.2.1"];
    let times: Vec<_> = hits(&mut set, &lines).iter().map(|(_, hit)| hit.at.map(|at| at.as_secs())).collect();
    assert_eq!(times, [Some(1_124_013_540), Some(1_124_013_570)]);
}

#[test]
fn subjects_are_addresses_networks_names_and_ids() {
    let address = |text: &str| Some(Subject::Address(text.parse().unwrap()));
    assert_eq!(subject("^<HOST> x", "[2001:db8::1] x"), address("2001:db8::1"));
    assert_eq!(subject("^<HOST> x", "::ffff:192.0.2.1 x"), address("192.0.2.1"));
    assert_eq!(subject("^<HOST> x", "host.example x"), Some(Subject::Name("host.example".into())));
    assert_eq!(subject("^<ADDR> x", "host.example x"), None);
    assert_eq!(
        subject("^<SUBNET> x", "192.0.2.77/24 x"),
        Some(Subject::Network("192.0.2.0/24".parse().unwrap()))
    );
    assert_eq!(subject("^<ADDR>/<CIDR> x", "192.0.2.77/32 x"), address("192.0.2.77"));
    assert_eq!(subject("^<F-ID>\\w+</F-ID> x", "bob x"), Some(Subject::Id("bob".into())));
    assert_eq!(subject("^<F-ID/> x", "192.0.2.1 x"), address("192.0.2.1"));
    // No address: nobody can be banned for it.
    assert_eq!(subject("^<HOST> x", "999.1.1.1 x"), Some(Subject::Id("999.1.1.1".into())));
}

#[test]
fn other_tags_are_told_with_the_hit() {
    let text = filter(&[
        "^<F-METHOD>[A-Z]+</F-METHOD> (?:<F-USER>\\S+</F-USER>|<F-ALT_USER_1>-\\S+</F-ALT_USER_1>) <HOST>$",
    ]);
    let found = hits(&mut set(&[text]), &["PUT bob 192.0.2.1"]);
    assert_eq!(found[0].1.user.as_deref(), Some("bob"));
    assert_eq!(found[0].1.groups, [("method".to_owned(), "PUT".to_owned())]);
}

#[test]
fn an_ignoreregex_takes_a_match_back() {
    let text = FilterText { ignoreregex: vec!["monitoring".into()], ..filter(&["^from <HOST> by"]) };
    let mut set = set(&[text]);
    assert_eq!(hits(&mut set, &["from 192.0.2.1 by monitoring", "from 192.0.2.1 by bob"]).len(), 1);
    assert_eq!(set.figures().ignored, 1);
}

#[test]
fn a_connections_offence_is_told_when_its_host_is_known() {
    let text = FilterText {
        prefregex: Some(r"^<F-MLFID>s\[\d+\]</F-MLFID>: <F-CONTENT>.+</F-CONTENT>$".into()),
        ..filter(&[
            "^<F-NOFAIL>connect</F-NOFAIL> from <HOST>$",
            "^wrong password of <F-USER>\\S+</F-USER>$",
            "^<F-MLFGAINED>welcome</F-MLFGAINED>$",
            "^<F-NOFAIL><F-MLFFORGET>bye</F-MLFFORGET></F-NOFAIL>$",
        ])
    };
    let told = |lines: &[&str]| hits(&mut set(std::slice::from_ref(&text)), lines).len();
    assert_eq!(told(&["s[1]: connect from 192.0.2.1"]), 0);
    assert_eq!(told(&["s[1]: connect from 192.0.2.1", "s[1]: wrong password of bob"]), 1);
    assert_eq!(told(&["s[1]: connect from 192.0.2.1", "s[2]: wrong password of bob"]), 0);
    assert_eq!(told(&["s[1]: wrong password of bob", "s[1]: connect from 192.0.2.1"]), 1);
    assert_eq!(told(&["s[1]: wrong password of bob", "s[1]: welcome", "s[1]: connect from 192.0.2.1"]), 0);
    assert_eq!(
        told(&["s[1]: wrong password of bob", "s[1]: wrong password of eve", "s[1]: connect from 192.0.2.1"]),
        1
    );
    assert_eq!(told(&["s[1]: connect from 192.0.2.1", "s[1]: bye", "s[1]: wrong password of bob"]), 0);
    assert_eq!(told(&["s[1]: wrong password of bob", "s[1]: bye", "s[1]: connect from 192.0.2.1"]), 0);
}

#[test]
fn connections_are_forgotten_after_five_minutes_and_when_there_are_too_many() {
    let text = FilterText {
        prefregex: Some(r"^<F-MLFID>s\[\d+\]</F-MLFID>: <F-CONTENT>.+</F-CONTENT>$".into()),
        ..filter(&["^<F-NOFAIL>connect</F-NOFAIL> from <HOST>$", "^wrong$"])
    };
    let mut set = set(&[text]);
    let mut found = Vec::new();
    set.read(b"s[1]: connect from 192.0.2.1", None, NOW, &mut found);
    set.read(b"s[1]: wrong", None, NOW + Duration::from_secs(301), &mut found);
    assert_eq!(found, []);
    set.read(b"s[2]: connect from 192.0.2.1", None, NOW + Duration::from_secs(302), &mut found);
    for id in 10..10_000 {
        set.read(
            format!("s[{id}]: connect from 192.0.2.9").as_bytes(),
            None,
            NOW + Duration::from_secs(303),
            &mut found,
        );
    }
    set.read(b"s[2]: wrong", None, NOW + Duration::from_secs(303), &mut found);
    assert_eq!(found, []);
    set.read(b"s[9999]: wrong", None, NOW + Duration::from_secs(303), &mut found);
    assert_eq!(found.len(), 1);
}

#[test]
fn an_offence_may_span_several_lines_and_each_counts_once() {
    let text = FilterText {
        max_lines: 4,
        ..filter(&[r"^id=(?P<id>\d+) failed$<SKIPLINES>^id=(?P=id) from <HOST>$"])
    };
    let mut set = set(&[text]);
    let lines = [
        "id=1 failed",
        "noise",
        "id=2 failed",
        "id=1 from 192.0.2.1",
        "id=2 from 192.0.2.2",
        "id=1 from 192.0.2.3",
    ];
    let found = hits(&mut set, &lines);
    let subjects: Vec<String> = found.iter().map(|(_, hit)| hit.subject.to_string()).collect();
    assert_eq!(subjects, ["192.0.2.1", "192.0.2.2"]);
}

#[test]
fn filters_that_cut_dates_differently_read_the_same_source() {
    let texts = [
        filter(&[r#"^<HOST> - - \[\] "GET /a"#]),
        FilterText { datepattern: vec!["{^LN-BEG}".into()], ..filter(&[r#"^<HOST> - - \[\d"#]) },
        FilterText {
            datepattern: vec![r"^[^\[]*(\[{DATE}\s*\])".into()],
            ..filter(&[r#"^<HOST> - -  "GET"#])
        },
    ];
    let mut set = set(&texts);
    for second in 10..13 {
        let line = format!(r#"192.0.2.{second} - - [14/Aug/2005:09:59:{second} +0000] "GET /a""#);
        let found = hits(&mut set, &[&line]);
        assert_eq!(found.iter().map(|(filter, _)| *filter).collect::<Vec<_>>(), [0, 1, 2], "{line}");
    }
}

#[test]
fn every_fault_is_told_at_once_with_its_place() {
    let text = FilterText {
        ignoreregex: vec!["a{2,1}".into()],
        datepattern: vec!["%Q".into()],
        max_lines: 1000,
        ..filter(&["^<HOST>", r"^<HOST> (\S+"])
    };
    let faults: Vec<String> = Filter::compile(&text).unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(
        faults,
        [
            "maxlines: 1000 is above 100; write fewer, as filter sample would search them all for each line",
            r"failregex 2: position 8: this `(` is never closed; write `\(` for the character; filter sample is not used until it is put right",
            "ignoreregex 1: position 1: the least number of repetitions is above the greatest; filter sample is not used until it is put right",
            "datepattern 1: `%` stands before no code that is known; write `%%` for the character; filter sample is not used until it is put right",
        ]
    );
    let no_one = Filter::compile(&filter(&["^nobody$"])).unwrap_err();
    assert_eq!(no_one, [FilterFault::NoSubject { filter: "sample".into(), number: 1 }]);
    assert_eq!(Filter::compile(&filter(&[])).unwrap_err(), [FilterFault::Empty { filter: "sample".into() }]);
}

#[test]
fn long_lines_are_skipped_and_counted() {
    let mut set = set(&[filter(&["from <HOST>$"])]);
    let long = format!("{} from 192.0.2.1", "a".repeat(64 * 1024));
    assert_eq!(hits(&mut set, &[&long]), []);
    assert_eq!(set.figures(), Figures { lines: 1, too_long: 1, ..Figures::default() });
}

#[test]
fn a_pattern_that_goes_back_too_often_is_counted_and_its_line_not_matched() {
    let mut set = set(&[filter(&[r"^<HOST> (?:(?:a|aa|b)(?!b))+c$"])]);
    assert_eq!(hits(&mut set, &[&format!("192.0.2.1 {}bbc", "a".repeat(64))]), []);
    assert_eq!(set.figures().backtrack_limit, 1);
}

#[test]
fn bytes_that_are_no_utf8_hide_nothing() {
    let mut set = set(&[filter(&["^user .* from <HOST>$"])]);
    let mut found = Vec::new();
    for line in [
        &b"user \xff\xfe\x00\x1b[31m from 192.0.2.1"[..],
        b"user \xc3 from 192.0.2.1\r\n",
        b"user a\nb from 192.0.2.1",
    ] {
        set.read(line, None, NOW, &mut found);
    }
    assert_eq!(found.len(), 3);
}

/// The hand-written readers answer as the expressions do, or not at all.
fn by_template(shape: date::quick::Shape, pattern: &str, text: &str) -> (Option<Duration>, Option<Duration>) {
    let mut calendar = date::calendar::Calendar::new(TimeZone::UTC);
    let quick = date::quick::read(shape, text.as_bytes()).and_then(|(fields, _)| calendar.time(&fields, NOW));
    let template = date::template::Template::compile(pattern).unwrap();
    let slow = template
        .find(text)
        .filter(|found| found.start == 0)
        .and_then(|found| template.time(text, &found, &mut calendar, NOW));
    (quick, slow)
}

proptest! {
    #[test]
    fn quick_dates_are_the_templates_dates(
        text in "[0-3][0-9]/(Jan|Feb|Dec|dec)/20[0-9]{2}:[0-2][0-9]:[0-6][0-9]:[0-6][0-9] [+-][01][0-9][0-5][0-9][x\\] ]?",
        syslog in "(Jan|Feb|Aug|Sept) [ 0-3][0-9] [0-2][0-9]:[0-5][0-9]:[0-6][0-9][ .x]?[0-9]{0,4}",
        iso in "20[0-9]{2}-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-5][0-9]:[0-6][0-9]([.,][0-9]{1,7})?( ?Z|[+-][0-2][0-9]:?[0-9]{2}|x)?",
    ) {
        use date::quick::Shape;
        let patterns = date::template::DEFAULTS;
        for (shape, pattern, text) in [(Shape::Clf, patterns[4], text), (Shape::Syslog, patterns[1], syslog), (Shape::Iso, patterns[0], iso)] {
            let (quick, slow) = by_template(shape, pattern, &text);
            prop_assert!(quick.is_none() || quick == slow, "{text}: {quick:?} {slow:?}");
        }
    }

}

proptest! {
    // Each case compiles its patterns.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn patterns_and_lines_of_any_kind_do_no_harm(pattern in r"[\^$.*+?(){}\[\]|\\<>a-dHOSTF/=!:P0-9 \n-]{0,40}", data in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut text = pattern.into_bytes();
        text.push(b'\n');
        text.extend(&data);
        fuzz_pattern(&text);
    }

    #[test]
    fn dates_of_any_kind_do_no_harm(pattern in r"[%a-zA-Z{}()\^$*:/ -]{0,20}", line in r"[0-9/: .TZ+\[\]A-Za-z-]{0,60}") {
        fuzz_date(format!("{pattern}\n{line}").as_bytes());
    }

    #[test]
    fn lines_of_any_kind_do_no_harm(lines in proptest::collection::vec(r"(Aug 14 09:00:00 )?(h sshd\[1\]: )?(Failed a for b|Connection|Closed|Accepted|begin 1|end 1)?( from )?(192\.0\.2\.1|\PC{0,8})", 0..12)) {
        fuzz_line(lines.join("\n").as_bytes());
    }
}

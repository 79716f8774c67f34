//! The whole engine and visitors of foreign pages: who is slowed down, who is banned all the same, and
//! what a restart and other settings leave of it.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use prometheus::Registry;

use super::{LogWatch, Places};
use crate::access_log::Entry;
use crate::admission::{Banned, Rate, Rates, Standing};
use crate::ban::words::{Answer, Question, Receipt, Summary};
use crate::client::TrustedProxies;
use crate::config::{Bans, Config};
use crate::listen::live::{Connections, Idle};
use crate::listen::{seconds_now, wall_clock};
use crate::metrics::Metrics;

const VISITOR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 7));
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 8));

/// A jail of attacks with this action, if any, and one of whoever is refused too often.
fn settings(folder: &Path, action: Option<&str>) -> Bans {
    let attacks = action.map_or_else(String::new, |action| {
        format!(
            "[[filter]]\nname = \"attacks\"\nfailregex = ['^<HOST> - - \\[\\] \"GET /attack ']\n[[jail]]\n\
             name = \"attacks\"\nfilter = \"attacks\"\nmax_offences = 2\naction = \"{action}\"\n"
        )
    });
    let file = folder.join("edge.toml");
    let text = format!(
        "name = \"www.example.org\"\n[listen]\nhttps = [\"0.0.0.0:8443\"]\n[[certificate]]\n\
         names = [\"www.example.org\"]\ncertificate_file = \"/c\"\nkey_file = \"/k\"\n[[upstream]]\n\
         name = \"app\"\nservers = [\"127.0.0.1:9000\"]\n[[route]]\nupstream = \"app\"\n[bans]\n\
         builtin = false\njails_folder = \"none\"\nstore = \"bans.db\"\nfirewall = \"none\"\n{attacks}\
         [[filter]]\nname = \"refused\"\nfailregex = ['^<HOST> - - \\[\\] \"[^\"]*\" 429 ']\n[[jail]]\n\
         name = \"refused\"\nfilter = \"refused\"\nmax_offences = 3\n"
    );
    std::fs::write(&file, text).unwrap();
    let mut bans = Config::read(&file).unwrap().bans;
    bans.store = folder.join("bans.db");
    bans
}

struct Running {
    log_watch: LogWatch,
    banned: Arc<Banned>,
}

fn start(folder: &Path, action: &str) -> Running {
    let banned = Banned::new();
    let places = Places {
        banned: Arc::clone(&banned),
        connections: Connections::new(Idle::default(), 200, TrustedProxies::new(Vec::new()), Metrics::new()),
        rates: Rates::new(None, &[], Rate::OFFENDER),
    };
    let log_watch = LogWatch::start(settings(folder, Some(action)), places, &Registry::new()).unwrap();
    Running { log_watch, banned }
}

/// One request for `target`, as answered.
fn entry(target: &str, status: u16) -> Entry {
    Entry {
        at: SystemTime::UNIX_EPOCH + wall_clock(),
        client: VISITOR,
        method: "GET".to_owned(),
        target: target.as_bytes().to_vec(),
        protocol: "HTTP/1.1",
        scheme: "https",
        host: String::new(),
        status,
        bytes: 0,
        duration: Duration::ZERO,
        referer: Vec::new(),
        user_agent: Vec::new(),
        upstream: None,
        reason: None,
        request_id: String::new(),
        cross_site: false,
        spared: false,
    }
}

impl Running {
    fn hears(&self, times: usize, entry: &Entry) {
        let (tap, entry) = (self.log_watch.tap(), Arc::new(entry.clone()));
        (0..times).for_each(|_| tap(&entry));
    }

    /// A page makes its visitor attack, until it is slowed down for it.
    fn visit(&self) {
        self.hears(2, &Entry { cross_site: true, ..entry("/attack", 404) });
        self.until(Standing::Visitor);
    }

    /// Waits until all that was heard is dealt with: another visitor is noticed only after it.
    fn catch_up(&self) {
        self.hears(2, &Entry { client: OTHER, cross_site: true, ..entry("/attack", 404) });
        for _ in 0..1000 {
            if self.banned.standing(OTHER, seconds_now()) == Standing::Visitor {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("never noticed");
    }

    fn standing(&self) -> Standing {
        match self.banned.standing(VISITOR, seconds_now()) {
            Standing::Banned { .. } => Standing::Banned { until: 0 },
            other => other,
        }
    }

    fn until(&self, wanted: Standing) {
        for _ in 0..1000 {
            if self.standing() == wanted {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("never {wanted:?}: {:?}", self.standing());
    }

    fn ask(&self, question: Question) -> Answer {
        self.log_watch.asker()(question)
    }

    fn why(&self) -> Receipt {
        match self.ask(Question::Why { address: VISITOR }) {
            Answer::Why(receipt) => *receipt,
            other => panic!("{other:?}"),
        }
    }

    fn summary(&self) -> Summary {
        match self.ask(Question::Summary) {
            Answer::Summary(summary) => *summary,
            other => panic!("{other:?}"),
        }
    }
}

const BANNED: Standing = Standing::Banned { until: 0 };

#[test]
fn a_visitor_is_slowed_down_told_and_in_no_list() {
    for action in ["ban", "throttle"] {
        let folder = tempfile::tempdir().unwrap();
        let edge = start(folder.path(), action);
        edge.visit();
        let why = edge.why();
        assert!(why.bans.is_empty() && why.history.is_none(), "{why:?}");
        let told = why.to_string();
        assert!(told.starts_with("203.0.113.7: throttled\n  203.0.113.7 throttled until "), "{told}");
        assert!(
            told.contains(": cross-site: foreign pages may have asked (jail attacks, 2 offences)"),
            "{told}"
        );
        assert!(told.contains("GET /attack"), "{told}");
        let summary = edge.summary();
        assert_eq!((summary.bans, summary.visitors), (0, 1));
        assert!(summary.to_string().contains("; 1 throttled, no bans: cross-site"), "{summary}");
        // Its later refusals are no fault of its own, and they press no brake.
        edge.hears(29, &Entry { spared: true, ..entry("/", 429) });
        edge.hears(100, &Entry { spared: true, cross_site: true, ..entry("/attack", 429) });
        edge.catch_up();
        assert_eq!((edge.summary().bans, edge.standing()), (0, Standing::Visitor));
        let networks = ["203.0.113.7/32", "203.0.113.8/32"].map(|network| network.parse().unwrap()).to_vec();
        edge.ask(Question::Remove { networks });
        assert_eq!((edge.summary().visitors, edge.standing()), (0, Standing::Free));
        edge.log_watch.close();
    }
}

#[test]
fn a_visitors_flood_and_its_refusals_by_other_limits_ban_it() {
    let refusals = [(30, Entry { spared: true, ..entry("/", 429) }), (3, entry("/", 429))];
    for (times, refusal) in refusals {
        let folder = tempfile::tempdir().unwrap();
        let edge = start(folder.path(), "ban");
        edge.visit();
        edge.hears(times - 1, &refusal);
        assert_eq!((edge.summary().bans, edge.standing()), (0, Standing::Visitor), "{times}");
        edge.hears(1, &refusal);
        edge.until(BANNED);
        assert_eq!(edge.why().bans[0].jail, "refused");
        edge.log_watch.close();
    }
}

#[test]
fn what_a_visitor_asks_for_itself_bans_it_though_it_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let edge = start(folder.path(), "ban");
    edge.visit();
    edge.hears(2, &Entry { spared: true, ..entry("/attack", 429) });
    edge.until(BANNED);
    assert_eq!((edge.why().bans[0].jail.as_str(), edge.why().bans[0].times), ("attacks", 1));
    edge.log_watch.close();
}

#[test]
fn other_settings_keep_a_visitor_as_one_though_its_jail_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let edge = start(folder.path(), "ban");
    edge.visit();
    edge.log_watch.reload(settings(folder.path(), None)).unwrap();
    assert_eq!((edge.summary().visitors, edge.standing()), (1, Standing::Visitor));
    edge.hears(29, &Entry { spared: true, ..entry("/", 429) });
    assert_eq!((edge.summary().bans, edge.standing()), (0, Standing::Visitor), "spared as before");
    let told = edge.why().to_string();
    assert!(told.contains("(jail a jail of an earlier configuration"), "{told}");
    edge.log_watch.close();
}

#[test]
fn an_operators_ban_of_a_visitor_outlives_a_restart_and_the_visit_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let edge = start(folder.path(), "ban");
    edge.visit();
    let networks = vec!["203.0.113.7/32".parse().unwrap()];
    edge.ask(Question::Add { networks: networks.clone(), seconds: 3600, reason: "mine".to_owned() });
    assert_eq!(edge.standing(), BANNED);
    edge.log_watch.close();
    let edge = start(folder.path(), "ban");
    assert_eq!((edge.standing(), edge.summary().visitors), (BANNED, 0));
    let ban = edge.why().bans.remove(0);
    assert_eq!((ban.jail.as_str(), ban.times, ban.reason.as_str()), ("operator", 1, "mine"));
    edge.ask(Question::Remove { networks });
    assert_eq!(edge.standing(), Standing::Free);
    edge.log_watch.close();
}

//! Other filters and jails while the engine runs: made ready beside it, taken over on its own thread
//! between two lines. Knows what can change that way; must not know where the settings were read.
//!
//! Kept are the bans that stand and their history, positions in files, `off`, penetration tests, and
//! the counts of jails that stay as they are. A jail that has changed counts anew.

use std::sync::PoisonError;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use ipnet::IpNet;

use super::detector::Detector;
use super::engine::Engine;
use super::tail::{Tail, TailError};
use super::{LogWatch, LogWatchError, PATIENCE, protected, waker};
use crate::config::Bans;

/// Settings that the engine takes over.
pub(super) struct Fresh {
    detector: Detector,
    never: Vec<IpNet>,
    wake: Box<dyn Fn() + Send + Sync>,
    told: SyncSender<Result<(), TailError>>,
}

impl LogWatch {
    /// Takes over the filters, the jails and `never` of `settings`. Blocks for at most eight seconds.
    /// Returns what else is different and needs a restart.
    ///
    /// # Errors
    /// A bad filter, or files that cannot be followed: all stays as it was.
    pub fn reload(&self, settings: Bans) -> Result<Vec<&'static str>, LogWatchError> {
        let late = self.started.restart_only(&settings);
        let detector =
            Detector::new(&settings.filters, settings.jails, settings.never.clone(), settings.max_bans)
                .map_err(LogWatchError::Jails)?;
        let (told, answer) = sync_channel(1);
        let wake = Box::new(waker(&self.events, &self.flags));
        let fresh = Fresh { detector, never: settings.never, wake, told };
        *self.flags.fresh.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(fresh));
        self.events.wake();
        let outcome = answer.recv_timeout(PATIENCE).or_else(|_| {
            // Not begun: then it shall not happen later, behind the operator's back.
            let not_begun = self.flags.fresh.lock().unwrap_or_else(PoisonError::into_inner).take();
            if not_begun.is_some() { Err(RecvTimeoutError::Timeout) } else { answer.recv_timeout(PATIENCE) }
        });
        outcome.map_err(|_| LogWatchError::Busy)??;
        Ok(late)
    }
}

impl Bans {
    /// The keys in which these differ from `other` and which are read at start alone.
    fn restart_only(&self, other: &Self) -> Vec<&'static str> {
        let differ = [
            ("bans.enabled", self.enabled != other.enabled),
            ("bans.store", self.store != other.store),
            ("bans.firewall and bans.firewall_socket", self.firewall != other.firewall),
            ("bans.max_bans", self.max_bans != other.max_bans),
            ("bans.queue", self.queue != other.queue),
            ("bans.max_idle_connections", self.max_idle_connections != other.max_idle_connections),
        ];
        differ.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}

impl Engine {
    /// Takes over what was made ready, all or nothing.
    pub(super) fn take_over(&mut self, fresh: Fresh, now: Duration) {
        let Fresh { detector, never, wake, told } = fresh;
        let outcome = self.follow(&detector, wake);
        if outcome.is_ok() {
            // What they have to say is said under the names of before.
            self.tell_alarms();
            self.never = never;
            self.never_now = protected::never_banned(&self.never, &self.never_now);
            let freed = self.detector.jails.set_never(self.never_now.clone());
            let names: Vec<String> = detector.jails.settings().iter().map(|jail| jail.name.clone()).collect();
            for gone in self.enforcement.jails.iter().filter(|jail| !names.contains(jail)) {
                self.enforcement.counters.braked.with_label_values(&[gone]).set(0);
            }
            self.enforcement.counters.name(&names);
            self.enforcement.forgive(&freed, now);
            let freed = self.detector.replace(detector);
            self.enforcement.jails = names;
            self.enforcement.forgive(&freed, now);
        }
        // Whoever asked may have left.
        let _ = told.try_send(outcome);
    }

    /// Files are read on from where they were left; new ones as at a start.
    fn follow(&mut self, detector: &Detector, wake: Box<dyn Fn() + Send + Sync>) -> Result<(), TailError> {
        if detector.watched() == self.detector.watched() {
            return Ok(());
        }
        let positions = self.tail.as_ref().map(Tail::positions).unwrap_or_default();
        self.tail = match detector.watched() {
            [] => None,
            watched => Some(Tail::open(watched, &positions, wake)?),
        };
        self.save_positions();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::path::Path;
    use std::sync::Arc;
    use std::thread;
    use std::time::SystemTime;

    use prometheus::Registry;

    use super::*;
    use crate::access_log::Entry;
    use crate::admission::{Banned, Rate, Rates};
    use crate::ban::words::{Answer, Question};
    use crate::client::TrustedProxies;
    use crate::config::Config;
    use crate::listen::live::{Connections, Idle};
    use crate::log_watch::Places;
    use crate::metrics::Metrics;

    /// `[bans]` and what belongs to it, as a whole configuration says it.
    fn bans(folder: &Path, keys: &str, sections: &str) -> Bans {
        let file = folder.join("edge.toml");
        let text = format!(
            "name = \"www.example.org\"\n[listen]\nhttps = [\"0.0.0.0:8443\"]\n[[certificate]]\n\
             names = [\"www.example.org\"]\ncertificate_file = \"/c\"\nkey_file = \"/k\"\n[[upstream]]\n\
             name = \"app\"\nservers = [\"127.0.0.1:9000\"]\n[[route]]\nupstream = \"app\"\n[bans]\n\
             builtin = false\njails_folder = \"none\"\nstore = \"bans.db\"\nfirewall = \"none\"\n{keys}\n{sections}"
        );
        std::fs::write(&file, text).unwrap();
        let mut bans = Config::read(&file).unwrap().bans;
        bans.store = folder.join("bans.db");
        bans
    }

    fn jail(name: &str, max_offences: u32) -> String {
        format!(
            "[[filter]]\nname = \"{name}\"\nfailregex = ['^<HOST> - - \\[\\] \"GET /{name} ']\n\
             [[jail]]\nname = \"{name}\"\nfilter = \"{name}\"\nmax_offences = {max_offences}\n"
        )
    }

    fn start(settings: Bans) -> LogWatch {
        let trusted = TrustedProxies::new(Vec::new());
        let places = Places {
            banned: Banned::new(),
            connections: Connections::new(Idle::default(), 200, trusted, Metrics::new()),
            rates: Rates::new(None, &[], Rate::OFFENDER),
        };
        LogWatch::start(settings, places, &Registry::new()).unwrap()
    }

    fn asks(log_watch: &LogWatch, last: u8, target: &str) {
        let entry = Entry {
            at: SystemTime::UNIX_EPOCH + crate::listen::wall_clock(),
            client: IpAddr::from([203, 0, 113, last]),
            method: "GET".to_owned(),
            target: target.as_bytes().to_vec(),
            protocol: "HTTP/1.1",
            scheme: "https",
            host: String::new(),
            status: 404,
            bytes: 0,
            duration: Duration::ZERO,
            referer: Vec::new(),
            user_agent: Vec::new(),
            upstream: None,
            reason: None,
            request_id: String::new(),
            cross_site: false,
            spared: false,
        };
        log_watch.tap()(&Arc::new(entry));
    }

    /// Last byte and jail of each ban, once there are so many.
    fn banned(log_watch: &LogWatch, so_many: usize) -> Vec<(u8, String)> {
        let ask = log_watch.asker();
        let mut seen = Vec::new();
        for _ in 0..1000 {
            let Answer::Bans { bans, .. } = ask(Question::List { limit: 100 }) else { panic!("no list") };
            seen = bans
                .into_iter()
                .filter_map(|ban| match ban.network.addr() {
                    IpAddr::V4(v4) => Some((v4.octets()[3], ban.jail)),
                    IpAddr::V6(_) => None,
                })
                .collect();
            seen.sort();
            if seen.len() >= so_many {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        seen
    }

    #[test]
    fn other_jails_take_over_and_bans_and_counts_stay() {
        let folder = tempfile::tempdir().unwrap();
        let log_watch = start(bans(folder.path(), "", &(jail("old", 1) + &jail("kept", 2))));
        asks(&log_watch, 1, "/old");
        asks(&log_watch, 2, "/kept");
        assert_eq!(banned(&log_watch, 1), [(1, "old".to_owned())]);

        let sections = jail("new", 1) + &jail("kept", 2) + &jail("spares", 1);
        let fresh = bans(folder.path(), "never = [\"203.0.113.9\"]", &sections);
        assert_eq!(log_watch.reload(fresh.clone()).unwrap(), Vec::<&str>::new());
        for (last, target) in [(4, "/old"), (9, "/new"), (2, "/kept"), (3, "/new")] {
            asks(&log_watch, last, target);
        }
        let now = banned(&log_watch, 3);
        let retired = "a jail of an earlier configuration".to_owned();
        assert_eq!(now, [(1, retired), (2, "kept".to_owned()), (3, "new".to_owned())]);

        // Whom nobody may ban any more is let in.
        let never = Bans { never: vec!["203.0.113.3/32".parse().unwrap()], queue: 7, ..fresh };
        assert_eq!(log_watch.reload(never).unwrap(), ["bans.queue"]);
        assert_eq!(banned(&log_watch, 2).iter().map(|(last, _)| *last).collect::<Vec<_>>(), [1, 2]);
        log_watch.close();
    }

    #[test]
    fn what_was_handed_over_before_the_end_still_bans() {
        let folder = tempfile::tempdir().unwrap();
        let settings = bans(folder.path(), "", &jail("old", 50));
        let log_watch = start(settings.clone());
        for _ in 0..50 {
            asks(&log_watch, 1, "/old");
        }
        log_watch.close();
        let log_watch = start(settings);
        assert_eq!(banned(&log_watch, 1), [(1, "old".to_owned())]);
        log_watch.close();
    }

    #[test]
    fn what_cannot_be_used_leaves_all_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let log_watch = start(bans(folder.path(), "", &jail("old", 1)));
        let broken = jail("old", 1).replace("failregex = ['", "failregex = ['(");
        let told = log_watch.reload(bans(folder.path(), "", &broken)).unwrap_err().to_string();
        assert!(told.contains("edge.toml:21:14: "), "{told}");
        let names: Vec<String> = (0..1025).map(|number| format!("\"/log/{number}\"")).collect();
        let many = jail("new", 1) + &format!("logs = [{}]\n", names.join(", "));
        let told = log_watch.reload(bans(folder.path(), "", &many)).unwrap_err().to_string();
        assert!(told.contains("1025 log names are more than 1024"), "{told}");
        asks(&log_watch, 2, "/new");
        asks(&log_watch, 1, "/old");
        assert_eq!(banned(&log_watch, 1), [(1, "old".to_owned())]);
        log_watch.close();
    }

    #[test]
    fn files_are_read_on_where_they_were_left() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("app.log");
        std::fs::write(&log, "").unwrap();
        let mut file = std::fs::OpenOptions::new().append(true).open(&log).unwrap();
        let mut write = |last: u8| {
            use std::io::Write;
            writeln!(file, "203.0.113.{last} - - [] \"GET /app HTTP/1.1\" 404 0 \"-\" \"-\"").unwrap();
        };
        let of_file = |also: &str| jail("app", 2) + &format!("logs = [\"{}\"{also}]\n", log.display());
        let log_watch = start(bans(folder.path(), "", &of_file("")));
        for last in [1, 1, 2] {
            write(last);
        }
        assert_eq!(banned(&log_watch, 1).len(), 1);
        let other = format!(", \"{}\"", folder.path().join("other.log").display());
        log_watch.reload(bans(folder.path(), "", &of_file(&other))).unwrap();
        // Other files make it another jail, which counts anew, and no line counts twice.
        for last in [3, 2, 3] {
            write(last);
        }
        let app = |last| (last, "app".to_owned());
        assert_eq!(banned(&log_watch, 2), [app(1), app(3)]);
        write(2);
        assert_eq!(banned(&log_watch, 3), [app(1), app(2), app(3)]);
        log_watch.close();
    }
}

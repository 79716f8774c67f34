//! What the ban engine counts, as Prometheus reads it. No label holds an address: the number of
//! series is fixed by the configuration.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::metrics::registered;

/// Every handle.
#[derive(Clone, Debug)]
pub(super) struct Counters {
    /// Bans in force.
    pub(super) active: IntGauge,
    /// Bans made, by `jail`.
    pub(super) bans: IntCounterVec,
    /// Visitors of foreign pages that were throttled.
    pub(super) visitors: IntCounter,
    /// Offences, by `jail`.
    pub(super) offences: IntCounterVec,
    /// Bans that were due and not made, by `reason`.
    pub(super) excused: IntCounterVec,
    /// Events that were lost because the engine could not follow.
    pub(super) lost: IntCounter,
    /// Lines read, of files and of edge's own.
    pub(super) lines: IntCounter,
    /// 1 where bans reach the kernel.
    pub(super) kernel: IntGauge,
    /// 1 where somebody changed the kernel's rules by hand.
    pub(super) drift: IntGauge,
    /// 1 for each `jail` that went log-only by itself.
    pub(super) braked: IntGaugeVec,
    /// Lines that were too long to be read.
    pub(super) too_long: IntCounter,
    /// Matches that ran into the limit of backtracking.
    pub(super) backtracked: IntCounter,
    /// Bans that left before their time because there was no more room.
    pub(super) evicted: IntCounter,
    /// Changes that the file of bans did not take.
    pub(super) unsaved: IntGauge,
}

impl Counters {
    /// Registers all, with a series at 0 for each jail.
    pub(super) fn new(registry: &Registry, jails: &[String]) -> Self {
        let counter = |name: &str, help: &str| registered(registry, IntCounter::new(name, help));
        let gauge = |name: &str, help: &str| registered(registry, IntGauge::new(name, help));
        let by = |name: &str, help: &str, label: &str| {
            registered(registry, IntCounterVec::new(Opts::new(name, help), &[label]))
        };
        let braked = Opts::new("edge_jail_log_only", "1 for a jail that went log-only by itself.");
        let counters = Self {
            active: gauge("edge_bans", "Bans in force."),
            bans: by("edge_bans_total", "Bans made, by jail.", "jail"),
            visitors: counter("edge_visitors_throttled_total", "Visitors of foreign pages throttled."),
            offences: by("edge_offences_total", "Offences counted, by jail.", "jail"),
            excused: by("edge_bans_excused_total", "Bans that were due and not made, by reason.", "reason"),
            lost: counter("edge_ban_events_lost_total", "Events that the ban engine could not follow."),
            lines: counter("edge_ban_lines_total", "Log lines and events read by the ban engine."),
            kernel: gauge("edge_firewall_up", "1 where rules are loaded and bans reach them."),
            drift: gauge("edge_firewall_drift", "1 where the firewall's rules were changed by hand."),
            braked: registered(registry, IntGaugeVec::new(braked, &["jail"])),
            too_long: counter("edge_ban_lines_too_long_total", "Log lines too long to be read."),
            backtracked: counter("edge_ban_backtrack_limit_total", "Matches given up as too costly."),
            evicted: counter("edge_bans_evicted_total", "Bans ended early because the book was full."),
            unsaved: gauge("edge_ban_store_failing", "1 while the file of bans does not take changes."),
        };
        counters.name(jails);
        counters
    }

    /// A series for each jail; one that is there stays as it is.
    pub(super) fn name(&self, jails: &[String]) {
        for jail in jails {
            self.bans.with_label_values(&[jail]);
            self.offences.with_label_values(&[jail]);
            self.braked.with_label_values(&[jail]);
        }
    }
}

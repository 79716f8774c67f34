//! One offence → a ruling: who is spared, who is counted, what the sentence is and what excuses it.
//! Knows the order in which that is asked; must not know how bans are held or counts kept.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::book::{Key, millis};
use super::brake::Verdict;
use super::tally::Offender;
use super::{Alarm, Excuse, Jail, Jails, Offence, Ruling, SINGLE, Sentence, TEN_YEARS};
use crate::ban::{Action, JailSettings};

impl Jails {
    /// Decides one offence. `active_clients` is how many clients had requests in the last minute,
    /// for the brake. After it, [`Jails::evicted`] and [`Jails::alarms`] may hold something.
    pub fn judge(&mut self, offence: &Offence<'_>, now: Duration, active_clients: usize) -> Ruling {
        let now = self.advance(now);
        let (Some(jail), Some(settings), Ok(number)) =
            (self.jails.get(offence.jail), self.settings.get(offence.jail), u16::try_from(offence.jail))
        else {
            return Ruling::TooOld;
        };
        let (measure, action) = (jail.measure, settings.action);
        let address = offence.address.to_canonical();
        let single = SINGLE.network(address);
        if self.never.overlaps(single) {
            return Ruling::Protected;
        }
        if jail.allow.overlaps(single) {
            return Ruling::Allowed;
        }
        let at = millis(offence.at).min(now);
        if at.saturating_add(measure.find_time) < now {
            return Ruling::TooOld;
        }
        if let Some(sentence) = self.in_the_way(address, action, now) {
            return Ruling::Already(sentence);
        }
        let Some(key) = Key::new(self.offender(jail, address)) else { return Ruling::Protected };
        let offender = Offender { jail: number, key };
        let (offences, forgot) = self.tally.count(offender, at, now, measure, offence.line);
        if forgot {
            self.tell_forgetful(now);
        }
        if offences < measure.max_offences {
            return Ruling::Counted(offences);
        }
        let sentence = self.verdict(offence.jail, offender, offences, now);
        let excused_until = self.tally.excused_until(offender);
        match self.excuse(offence.jail, &sentence, excused_until, active_clients) {
            None => {
                self.tally.restart(offender);
                self.enter(key, &sentence);
                Ruling::Sentenced(sentence)
            }
            Some(_) if excused_until > now => {
                self.tally.restart_excused(offender, excused_until);
                Ruling::Counted(offences)
            }
            Some(excuse) => {
                self.tally.restart_excused(offender, millis(sentence.until));
                Ruling::Excused(sentence, excuse)
            }
        }
    }

    /// A ban under which a jail of this action has nothing to add: the strictest, longest one.
    fn in_the_way(&self, address: IpAddr, action: Action, now: u64) -> Option<Sentence> {
        self.book
            .covering(address, now)
            .filter(|ban| ban.action == Action::Ban || action != Action::Ban)
            .max_by_key(|ban| (ban.action == Action::Ban, ban.until))
    }

    /// Who is counted and banned for this address: the jail's network, or the address alone where
    /// that holds somebody who may not be banned.
    fn offender(&self, jail: &Jail, address: IpAddr) -> IpNet {
        let wide = jail.prefixes.network(address);
        let single = SINGLE.network(address);
        let spares = self.never.overlaps(wide) || jail.allow.overlaps(wide) || self.leased(wide, self.clock);
        if wide != single && spares { single } else { wide }
    }

    /// What the jail would do now.
    fn verdict(&self, jail: usize, offender: Offender, offences: u32, now: u64) -> Sentence {
        let settings = self.settings.get(jail);
        let forgiveness = settings.and_then(|jail| jail.escalation).map(|escalation| escalation.forgiveness);
        let times = self.times(offender.key, forgiveness.unwrap_or_else(|| self.memory()), now);
        let lasting = settings.map_or(Duration::ZERO, |jail| lasting(jail, times));
        let throttles = settings.is_some_and(|jail| jail.action == Action::Throttle);
        Sentence {
            network: offender.key.network(),
            jail: offender.jail,
            since: Duration::from_millis(now),
            until: Duration::from_millis(now.saturating_add(millis(lasting).max(1))),
            offences,
            times,
            action: if throttles { Action::Throttle } else { Action::Ban },
        }
    }

    /// Why the sentence is not carried out. The brake hears of it only where it would be, and not
    /// again of whom it was told already.
    fn excuse(
        &mut self,
        jail: usize,
        sentence: &Sentence,
        excused_until: u64,
        active_clients: usize,
    ) -> Option<Excuse> {
        let now = self.clock;
        if self.settings.get(jail).is_none_or(|jail| jail.action == Action::Log) {
            return Some(Excuse::LogOnly);
        }
        if self.leased(sentence.network, now) {
            return Some(Excuse::Pentest);
        }
        if self.suspended.is_some() {
            return Some(Excuse::Off);
        }
        let pedal = &mut self.jails.get_mut(jail)?.pedal;
        if pedal.is_pulled() && excused_until > now {
            return Some(Excuse::Brake);
        }
        match pedal.press(now, active_clients) {
            Verdict::Free => None,
            Verdict::Held => Some(Excuse::Brake),
            Verdict::Pulled(bans_in_minute) => {
                self.tell(Alarm::Brake { jail, bans_in_minute, active_clients });
                Some(Excuse::Brake)
            }
        }
    }
}

/// `ban_time` × `factor` for each ban before this one, within `cap`; the first is never capped.
fn lasting(settings: &JailSettings, times: u16) -> Duration {
    let first = settings.ban_time.min(TEN_YEARS);
    let Some(escalation) = settings.escalation.filter(|_| times > 1) else { return first };
    let factor = escalation.factor.max(1.0).powi(i32::from(times) - 1);
    let longer = Duration::try_from_secs_f64(first.as_secs_f64() * factor).unwrap_or(escalation.cap);
    longer.min(escalation.cap).max(first).min(TEN_YEARS)
}

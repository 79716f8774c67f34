//! A jail's settings made ready to be asked, and other settings while jails run. Knows which jail is
//! which by its name; must not know how anything is decided.

use super::brake::Pedal;
use super::networks::Networks;
use super::record::millis;
use super::tally::Measure;
use super::{Jails, Lifted, RETIRED, Sentence};
use crate::ban::{JailSettings, Prefixes};

/// One jail's settings, ready to be asked.
#[derive(Debug)]
pub(super) struct Jail {
    pub(super) allow: Networks,
    pub(super) prefixes: Prefixes,
    pub(super) measure: Measure,
    pub(super) pedal: Pedal,
}

impl Jail {
    pub(super) fn new(settings: &JailSettings) -> Self {
        let Prefixes { v4, v6 } = settings.prefixes;
        Self {
            allow: Networks::new(&settings.allow),
            prefixes: Prefixes { v4: v4.clamp(24, 32), v6: v6.clamp(48, 64) },
            measure: Measure {
                find_time: millis(settings.find_time),
                max_offences: settings.max_offences.max(1),
            },
            pedal: Pedal::new(settings.brake),
        }
    }
}

impl Jails {
    /// New settings while running. Jails are known by name: bans stay (of a jail that is gone as
    /// [`RETIRED`]) and so do visitors, counts and a pulled brake where a jail's settings are the same.
    /// Bans whose jail allows their network now end at once and are forgotten.
    pub fn set_jails(&mut self, jails: Vec<JailSettings>) -> Lifted {
        let place = |jail: u16| -> Option<(usize, bool)> {
            let old = self.settings.get(usize::from(jail))?;
            let place = jails.iter().position(|new| new.name == old.name)?;
            Some((place, jails.get(place) == Some(old)))
        };
        let number = |place: usize| u16::try_from(place).unwrap_or(RETIRED);
        self.book.renumber(|jail| match place(jail) {
            _ if jail >= RETIRED => jail,
            Some((place, _)) => number(place),
            None => RETIRED,
        });
        self.visitors.renumber(|jail| place(jail).map_or(RETIRED, |(place, _)| number(place)));
        self.tally.renumber(|jail| place(jail).filter(|(_, same)| *same).map(|(place, _)| number(place)));
        let mut ready: Vec<_> = jails.iter().map(Jail::new).collect();
        for (old, jail) in self.jails.drain(..).enumerate() {
            if let Some((place, true)) = place(number(old))
                && let Some(new) = ready.get_mut(place)
            {
                new.pedal = jail.pedal;
            }
        }
        (self.settings, self.jails) = (jails, ready);
        let jails = &self.jails;
        let allowed = |sentence: &Sentence| {
            jails.get(usize::from(sentence.jail)).is_some_and(|jail| jail.allow.overlaps(sentence.network))
        };
        self.visitors.dismiss(|visit| {
            jails.get(usize::from(visit.jail)).is_some_and(|jail| jail.allow.overlaps(visit.network))
        });
        self.book.pardon(allowed, |_| false)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Ruling;
    use super::super::trial::{START, address, jail, net, offence};
    use super::*;

    #[test]
    fn new_settings_keep_bans_and_counts_under_the_jails_new_places() {
        let mut jails = Jails::new(vec![jail("gone"), jail("stays"), jail("allows")], Vec::new(), 100);
        let ban = |jails: &mut Jails, jail, who, times: u32| {
            for _ in 0..times {
                jails.judge(&offence(jail, address(who), START), START, 0);
            }
        };
        ban(&mut jails, 0, "203.0.113.1", 3);
        ban(&mut jails, 1, "203.0.113.2", 3);
        ban(&mut jails, 2, "203.0.113.3", 3);
        ban(&mut jails, 1, "203.0.113.4", 2);
        let allows = JailSettings { allow: vec![net("203.0.113.3/32")], ..jail("allows") };
        let freed = jails.set_jails(vec![jail("stays"), allows]);
        assert_eq!(
            freed.ended.iter().map(|ban| ban.network).collect::<Vec<_>>(),
            vec![net("203.0.113.3/32")]
        );
        assert_eq!(jails.covering(address("203.0.113.1"))[0].jail, RETIRED);
        assert_eq!(jails.covering(address("203.0.113.2"))[0].jail, 0);
        assert_eq!(jails.counters(address("203.0.113.4"))[0].offences, 2);
        let third = jails.judge(&offence(0, address("203.0.113.4"), START), START, 0);
        assert!(matches!(third, Ruling::Sentenced(_)), "{third:?}");
    }
}

//! fail2ban's configuration → our filters and jails, with a report of what could not be carried
//! over and why. Reads the folder it is given; must not know how filters match or jails count.

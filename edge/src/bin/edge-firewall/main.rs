//! The only privileged program: loads the base rules and adds bans, with CAP_NET_ADMIN and nothing
//! else. Takes addresses and times from edge, never rule text.

fn main() {}

//! Stories of bans, told through the front door: real programs, a real kernel, real clients, each
//! story in network namespaces of its own. What an attacker, an office, a tester and an operator
//! see when somebody is banned, when a program is killed, when a log is forged.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

mod attack;
mod crash;
mod foreign_pages;
mod jails;
mod limits;
mod logs;
mod operator;
mod protected;
mod reload;
mod scene;

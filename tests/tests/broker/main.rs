//! Stories of the vault's own broker, told by the stock Java client of ActiveMQ: each is called after
//! the behaviour that ActiveMQ documents. Those that harm nobody share one pair of vaults and one
//! virtual machine, each with queues of its own.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

mod acknowledge;
mod choice;
mod client;
mod delivery;
mod failover;
mod house;
mod neighbours;
mod peer;
mod redelivery;
mod room;
mod strangers;

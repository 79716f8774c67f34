//! Counts offences and decides who is banned, for how long, and who never is. Pure.

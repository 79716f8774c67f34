//! The room's promises, through its front door.

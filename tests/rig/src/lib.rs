//! The proof rig of the refresh protocol: whole clusters of `bearerd-refresh` in one thread, without I/O.
//!
//! [`world`] is what they live in; [`scheduler`] lets chance decide what happens next, [`explorer`] tries everything at
//! small bounds; [`history`] judges both. [`bugs`] shows that they would find what they are there to find.

pub mod bugs;
pub mod explorer;
pub mod history;
pub mod random;
pub mod scheduler;
pub mod server;
pub mod world;

//! How a connection is refreshed, alone and in company: the decisions, without I/O.
//!
//! Losing a refresh token or spending it twice is what this crate is there to prevent. A refresh is a protocol:
//!
//! ```text
//!   ask ─▶ Enter ─▶ Load ─▶ Replace (claim) ─▶ Call ─▶ Keep ─▶ Replace (commit) ─▶ Publish
//!          a place   the    the intent: epoch,  the     the     the grant, if no     now it
//!          at the    store  owner, deadline     token   spill   later state is       is used
//!          instance  still                      endpoint log    there
//!                    answers
//! ```
//!
//! - **Claim.** The intent is written by compare-and-swap before the refresh token is spent. While it stands, no other
//!   process exchanges; each keeps the time for itself, so that no clock needs to agree with another.
//! - **Epochs** order everything: a claim has a greater one than all before it, and a grant carries that of the claim
//!   which brought it. A state replaces a smaller one ([`GrantVersion`](bearerd_model::GrantVersion)), nothing else
//!   does: correctness rests on that comparison and the store's compare-and-swap, never on the lease.
//! - **Keep.** A refresh token that has been exchanged for another one is on this machine's disk before the store is
//!   asked to take it; if the store does not, memory serves it and offers it until it does.
//! - **Doubt.** An intent that outlives its owner, or a call without an answer, leaves the exchange in doubt. The token
//!   that it spent is tried again; a refusal then is a strike and not yet the grant's end. Before the last strike the
//!   one before it is tried, once, and never an older one.
//! - **Without the store** a refresh token that rotates is not spent. One that stays is: nothing can be lost by it.
//!
//! [`machine`](Refresher) is one connection in one process; [`transition`](grant_from) what each outcome makes of a
//! grant; [`Breaker`] the way to an instance; [`Due`] which connection comes next.

mod due;
mod failure;
mod gate;
mod machine;
mod transition;

pub use due::Due;
pub use failure::{RefreshFailure, TokenCallError};
pub use gate::Breaker;
pub use machine::{
    Action, Actions, Cause, Event, Gone, NotBegun, Note, Now, Passage, Protocol, Purpose, Refresher, Spends,
    Terms,
};
pub use transition::{Obtained, TokenCall, can_refresh, grant_from};

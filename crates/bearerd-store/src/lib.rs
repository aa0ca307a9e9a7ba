//! The record store. A [`Backend`] keeps sealed bytes and knows nothing of what they mean; a [`Store`] puts typed
//! records over it, sealing on the way in and opening on the way out. Backends: [`MemoryBackend`] here, redb in
//! `bearerd-store-embedded`, Redis in `bearerd-store-redis`; each passes the module `contract`.
//!
//! Two crates write: `bearerd-control` (what operators decide) and `bearerd-tokens` (what refreshes bring). Every
//! write of a record that exists is a compare-and-swap on its [`Revision`].

mod backend;
#[cfg(feature = "contract")]
pub mod contract;
mod memory;
mod records;
mod store;

pub use backend::{
    Backend, CHANGES_KEPT_MAX, ChangeCounter, Changes, DueRecord, Kind, RecordKey, Revision, StoreError,
    StoredRecord, Times,
};
pub use memory::MemoryBackend;
pub use records::{
    Claim, ExpiryNotice, Record, RecordFault, Revocation, RevocationCall, RevocationGate, RevokedGrant,
    RevokedToken, Root,
};
pub use store::{OpenStoreError, Page, Store, UpdateError, Versioned};

//! The acts, over a real engine, a real socket and a store that fails on demand.

mod connections;
mod consent;
mod expiry;
mod integrations;
mod keys;
mod policies;
mod publish;
mod revocation;

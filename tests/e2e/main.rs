//! The end-to-end suite: the real binary against the simulator, one module for each thing that it must do.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod attack;
mod cli;
mod clients;
mod company;
mod consent;
mod consent_browser;
mod crash;
mod demo;
mod errors;
mod failover;
mod leaks;
mod memory;
mod network;
mod overload;
mod reload;
mod restart;
mod revocation;
mod scale;
mod sockets;
mod spread;
mod startup;
mod tokens;

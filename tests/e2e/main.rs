//! The end-to-end suite: the real binary against the simulator, one module for each thing that it must do.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod cli;
mod clients;
mod consent;
mod consent_browser;
mod demo;
mod errors;
mod leaks;
mod memory;
mod restart;
mod startup;
mod tokens;

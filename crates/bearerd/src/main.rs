//! The binary: settings, start-up, signals, drain, command line. Decides nothing about tokens; this is the only
//! crate that reads the environment and the wall clock.

mod cli;
mod clock;
mod daemon;
#[cfg(feature = "demo")]
mod demo;
mod hardening;
mod inherited;
mod init;
mod logging;
mod secrets;
mod settings;
mod settings_keys;

use std::process::ExitCode;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    hardening::keep_pages_small(); // before there is a heap to speak of
    bearerd_net::init_crypto();
    cli::run()
}

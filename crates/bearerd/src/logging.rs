//! Log lines: for people or for machines, on standard error.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::settings::{LogFormat, ProcessSettings};

/// # Errors
/// The level is not one.
pub(crate) fn start(settings: &ProcessSettings) -> Result<()> {
    let is_directive = |part: &str| part.contains('=') || part.parse::<LevelFilter>().is_ok();
    let directives = settings.log.split(',').map(str::trim).all(is_directive);
    let log = format!("{QUIET},{}", settings.log);
    let filter = directives.then(|| EnvFilter::try_new(log).ok()).flatten();
    let filter = filter.with_context(|| {
        format!("process.log: {:?} is neither a level nor tracing directives; write info, or info,bearerd_tokens=debug", settings.log)
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Whoever can connect could fill the log with these: rustls warns of each handshake that names an address.
const QUIET: &str = "rustls=error";

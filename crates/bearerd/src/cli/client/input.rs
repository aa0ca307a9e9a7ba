//! What commands read beside their arguments: secrets from files and standard input, durations, labels, a yes.

use std::{
    io::{BufRead, IsTerminal, Read, Write},
    path::Path,
    time::Duration,
};

use bearerd_admin::wire::WireSecret;
use bearerd_model::SecretText;
use serde::de::DeserializeOwned;

use super::error::CliError;

/// Reads a secret from a file, or from standard input where `path` is `-`. A trailing newline is not part of it.
///
/// # Errors
/// The file cannot be read, or what is in it is no secret.
pub(crate) fn secret_file(path: &Path, what: &str) -> Result<SecretText, CliError> {
    let text = read_text(path, what)?;
    SecretText::parse(text.trim_end_matches(['\r', '\n']).to_owned()).map_err(|fault| {
        let what = format!("{} does not hold {what}: {fault}", shown(path));
        CliError::usage(what, "The file holds the secret alone, on one line.")
    })
}

pub(crate) fn client_secret(path: &Path) -> Result<WireSecret, CliError> {
    secret_file(path, "the client secret").map(|secret| WireSecret::new(secret.expose().to_owned()))
}

/// Reads a JSON file, or standard input where `path` is `-`. A fault names line and column, and quotes nothing.
///
/// # Errors
/// The file cannot be read, or is not what `what` says.
pub(crate) fn json_file<T: DeserializeOwned>(path: &Path, what: &str) -> Result<T, CliError> {
    let text = read_text(path, what)?;
    serde_json::from_str(&text).map_err(|fault| {
        let place = format!("line {}, column {}", fault.line(), fault.column());
        let what = format!("{} does not hold {what} ({place})", shown(path));
        CliError::usage(what, "See the command's --help for the shape.")
    })
}

/// `90d`, `24h`, `30m`, `45s`.
///
/// # Errors
/// Says what to write.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a number and a unit: 90d, 24h, 30m or 45s".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let secs_per_unit = match unit {
        'd' => 86_400,
        'h' => 3_600,
        'm' => 60,
        's' => 1,
        _ => return Err(wrong()),
    };
    let count: u32 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(u64::from(count) * secs_per_unit))
}

/// `name=value`.
///
/// # Errors
/// Says what to write.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE, such as env=prod".to_owned()),
    }
}

/// Asks on a terminal; elsewhere (in a script) the command itself is the answer.
///
/// # Errors
/// The operator said no.
pub(crate) fn confirm(question: &str, yes: bool) -> Result<(), CliError> {
    if yes || !std::io::stdin().is_terminal() {
        return Ok(());
    }
    let mut answer = String::new();
    let asked = write!(std::io::stderr(), "{question} [y/N] ")
        .and_then(|()| std::io::stdin().lock().read_line(&mut answer));
    match asked {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(CliError::usage("nothing was done", "Answer y, or give --yes.")),
    }
}

fn read_text(path: &Path, what: &str) -> Result<String, CliError> {
    let unreadable = |error: std::io::Error| {
        let what = format!("{} cannot be read: {error}", shown(path));
        CliError::usage(what, "Give a file that you may read, or - for standard input.")
    };
    let mut text = String::new();
    if path == Path::new("-") {
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            // A prompt is a courtesy: what matters is what is typed.
            let _ = writeln!(std::io::stderr(), "Paste {what}, then press Enter and Ctrl-D:");
        }
        stdin.lock().take(INPUT_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
    } else {
        let file = std::fs::File::open(path).map_err(unreadable)?;
        file.take(INPUT_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
    }
    Ok(text)
}

fn shown(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() }
}

/// As much as the admin API takes.
const INPUT_BYTES_MAX: u64 = 64 * 1024;

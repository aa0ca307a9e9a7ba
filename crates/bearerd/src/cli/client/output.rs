//! What commands print. No colours, so that `NO_COLOR` has nothing to switch off: states are words.

use std::io::{ErrorKind, IsTerminal, Write};

use bearerd_admin::wire::WireTime;
use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde_json::Value;

use super::error::{CliError, Exit};

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OutputFormat {
    /// For people
    Table,
    /// For programs: what the admin API answered
    Json,
}

/// A command's result, for people and for programs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Report {
    pub(crate) json: Value,
    pub(crate) text: String,
    /// What to mind, for the person, whoever reads the result: goes to standard error.
    pub(crate) notes: Vec<String>,
}

/// The format asked for; else a table where a person looks, and JSON where a program reads.
pub(crate) fn chosen(asked: Option<OutputFormat>) -> OutputFormat {
    let by_place = if std::io::stdout().is_terminal() { OutputFormat::Table } else { OutputFormat::Json };
    asked.unwrap_or(by_place)
}

impl Report {
    pub(crate) fn new(json: Value, text: impl Into<String>) -> Self {
        Self { json, text: text.into(), notes: Vec::new() }
    }

    /// # Errors
    /// Standard output cannot be written; a reader that left early (`| head`) is no error.
    pub(crate) fn print(&self, format: OutputFormat) -> Result<(), CliError> {
        for note in &self.notes {
            // Nobody is left to tell where standard error is closed.
            let _ = writeln!(std::io::stderr(), "note: {}", plain(note));
        }
        let text = match format {
            OutputFormat::Table => plain(self.text.trim_end()),
            OutputFormat::Json if self.json.is_null() => return Ok(()),
            OutputFormat::Json => format!("{:#}", self.json),
        };
        match writeln!(std::io::stdout().lock(), "{text}") {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                let what = format!("standard output cannot be written: {error}");
                Err(CliError::new(Exit::Failed, "output", what, "The command itself was done."))
            }
            _ => Ok(()),
        }
    }
}

/// Text from elsewhere steers no terminal: control and bidirectional characters become U+FFFD.
fn plain(text: &str) -> String {
    let steers = |char: char| {
        (char.is_control() && char != '\n')
            || matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|char| if steers(char) { char::REPLACEMENT_CHARACTER } else { char }).collect()
}

/// Rows under headings; `empty` says what to do where there are none.
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: Vec<[String; N]>, empty: &str) -> String {
    if rows.is_empty() {
        return empty.to_owned();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headings);
    for row in rows {
        table.add_row(row);
    }
    trimmed(&table)
}

/// Names and values, one pair a line.
pub(crate) fn fields(pairs: &[(&str, String)]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (name, value) in pairs {
        table.add_row([*name, value.as_str()]);
    }
    trimmed(&table)
}

/// Without the padding around the whole: an empty first column keeps its width.
fn trimmed(table: &Table) -> String {
    let lines: Vec<String> =
        table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned()).collect();
    lines.join("\n")
}

/// Each line of `text` set in by two spaces.
pub(crate) fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |set_in, line| set_in + "  " + line + "\n")
}

/// What is shown where there is nothing.
pub(crate) fn or_dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or("-").to_owned()
}

/// `in 24 min`, `3 days ago`; `-` where there is none.
pub(crate) fn when(time: Option<WireTime>, now: Timestamp) -> String {
    time.map_or_else(|| "-".to_owned(), |time| relative(time, now))
}

/// `2026-11-21T20:00:00Z (in 24 min)`.
pub(crate) fn when_exactly(time: Option<WireTime>, now: Timestamp) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{:.0} ({})", time.0, relative(time, now)))
}

fn relative(time: WireTime, now: Timestamp) -> String {
    let secs = time.0.as_second().saturating_sub(now.as_second());
    let span = span(secs.unsigned_abs());
    match secs {
        0 => "now".to_owned(),
        1.. => format!("in {span}"),
        _ => format!("{span} ago"),
    }
}

/// The greatest unit that gives at least two, so that a rounded figure is never far off.
fn span(secs: u64) -> String {
    match secs {
        0..120 => format!("{secs} s"),
        120..7_200 => format!("{} min", secs / 60),
        7_200..172_800 => format!("{} h", secs / 3_600),
        _ => format!("{} days", secs / 86_400),
    }
}

/// The row of a record that bearerd could not read.
pub(crate) fn damaged<const N: usize>(entry: &Value) -> [String; N] {
    std::array::from_fn(|column| match column {
        0 => entry["id"].as_str().unwrap_or("?").to_owned(),
        1 => "DAMAGED: restore it from a backup".to_owned(),
        _ => "-".to_owned(),
    })
}

//! The settings `[access]`.

use std::path::PathBuf;

use crate::queue::BATCH_RECORDS;

/// The settings `[access]`. Units are in the names; ranges are in `config/bearerd.toml`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessSettings {
    pub sink: SinkKind,
    /// The file, where the sink is one.
    pub path: PathBuf,
    /// A file that would grow beyond this is rolled. 0: never, something else does it.
    pub file_bytes_max: u64,
    /// Files kept, with the one being written.
    pub files_max: u32,
    pub on_stall: OnStall,
    /// Records that were handed over and are not written: the bound of the queue.
    pub queue_records: usize,
}

/// Where the lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub enum SinkKind {
    None,
    Stdout,
    File,
}

/// What happens once the queue is full, because the sink takes nothing, fails, or is too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub enum OnStall {
    /// Further records are dropped and counted; calls go on.
    DropAndCount,
    /// No new call is begun until there is room; no record is dropped.
    Block,
}

impl Default for AccessSettings {
    fn default() -> Self {
        Self {
            sink: SinkKind::Stdout,
            path: "access.jsonl".into(),
            file_bytes_max: 100 * 1024 * 1024,
            files_max: 10,
            on_stall: OnStall::DropAndCount,
            queue_records: 16_384,
        }
    }
}

/// Why the settings cannot be used; names the setting and what it may be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessSettingsError {
    #[error("access.{name} is {given}, it must be between {min} and {max}")]
    Range { name: &'static str, given: u64, min: u64, max: u64 },
    #[error(
        "access.file_bytes_max is {given}, it must be 0 (never rolled) or between {FILE_BYTES_MIN} and {FILE_BYTES_MAX}"
    )]
    FileBytes { given: u64 },
    #[error("access.path names no file; write one, such as /var/log/bearerd/access.jsonl")]
    Path,
}

impl AccessSettings {
    /// # Errors
    /// [`AccessSettingsError`]: the first setting that is out of its range.
    pub fn check(&self) -> Result<(), AccessSettingsError> {
        let range = |name, given, min, max| {
            let within = (min..=max).contains(&given);
            if within { Ok(()) } else { Err(AccessSettingsError::Range { name, given, min, max }) }
        };
        range("files_max", self.files_max.into(), 2, 1_000)?;
        range("queue_records", self.queue_records as u64, QUEUE_RECORDS_MIN, QUEUE_RECORDS_MAX)?;
        let given = self.file_bytes_max;
        if given != 0 && !(FILE_BYTES_MIN..=FILE_BYTES_MAX).contains(&given) {
            return Err(AccessSettingsError::FileBytes { given });
        }
        if self.sink == SinkKind::File && self.path.file_name().is_none() {
            return Err(AccessSettingsError::Path);
        }
        Ok(())
    }
}

// Read by hand, so that a wrong word is answered with the right ones.
impl TryFrom<String> for SinkKind {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        match word.as_str() {
            "none" => Ok(Self::None),
            "stdout" => Ok(Self::Stdout),
            "file" => Ok(Self::File),
            _ => Err(format!("{word:?} is not known; write none, stdout or file")),
        }
    }
}

impl TryFrom<String> for OnStall {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        match word.as_str() {
            "drop_and_count" => Ok(Self::DropAndCount),
            "block" => Ok(Self::Block),
            _ => Err(format!("{word:?} is not known; write drop_and_count or block")),
        }
    }
}

/// A few batches a worker.
const QUEUE_RECORDS_MIN: u64 = 1_024;
/// Some 600 MB.
const QUEUE_RECORDS_MAX: u64 = 1 << 20;
/// Many times the longest write, so that a file is never smaller than what is to go into it.
const FILE_BYTES_MIN: u64 = 1 << 20;
const FILE_BYTES_MAX: u64 = 1 << 40;
const _: () = assert!(QUEUE_RECORDS_MIN >= 4 * BATCH_RECORDS as u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_range_and_unknown_names_are_not() {
        let settings: AccessSettings = toml::from_str("").unwrap();
        assert_eq!(settings, AccessSettings::default());
        assert_eq!(settings.check(), Ok(()));
        assert!(toml::from_str::<AccessSettings>("file = 'x'").is_err());
        let text = "sink = 'file'\npath = '/x/y'\non_stall = 'block'\nfile_bytes_max = 0";
        let settings: AccessSettings = toml::from_str(text).unwrap();
        assert_eq!((settings.sink, settings.on_stall), (SinkKind::File, OnStall::Block));
        assert_eq!(settings.check(), Ok(()));
    }

    #[track_caller]
    fn check_refused(text: &str, expected: &str) {
        let said = match toml::from_str::<AccessSettings>(text) {
            Ok(settings) => settings.check().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(said.contains(expected), "{said}");
    }

    #[test]
    fn a_wrong_setting_is_answered_with_the_right_ones() {
        check_refused("sink = 'syslog'", "\"syslog\" is not known; write none, stdout or file");
        check_refused("on_stall = 'drop'", "write drop_and_count or block");
        check_refused("queue_records = 9", "access.queue_records is 9, it must be between 1024 and 1048576");
        check_refused("files_max = 1", "access.files_max is 1, it must be between 2 and 1000");
        check_refused("file_bytes_max = 5", "it must be 0 (never rolled) or between 1048576 and");
        check_refused("sink = 'file'\npath = ''", "access.path names no file");
        check_refused("sink = 'file'\npath = '/'", "access.path names no file");
    }
}

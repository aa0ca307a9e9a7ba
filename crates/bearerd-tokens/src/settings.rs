//! Settings of the token engine, `[tokens]`.

use std::{path::PathBuf, time::Duration};

/// Each member documents its unit and range in `config/bearerd.toml`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenSettings {
    /// Longest that a call waits for an access token, in seconds: 1 to 60.
    pub wait_max_s: u64,
    /// Limit for one token call, from dialling to the last byte, in seconds: 1 to 120.
    pub call_timeout_s: u64,
    /// A connection used within this many hours is refreshed ahead of expiry: 0 to 8760.
    pub warm_for_h: u64,
    /// Folder on a disk of this machine that keeps what the store has not taken.
    pub spill_dir: Option<PathBuf>,
}

impl Default for TokenSettings {
    fn default() -> Self {
        Self { wait_max_s: 15, call_timeout_s: 15, warm_for_h: 24, spill_dir: None }
    }
}

impl TokenSettings {
    pub fn wait_max(&self) -> Duration {
        Duration::from_secs(self.wait_max_s)
    }

    pub fn call_timeout(&self) -> Duration {
        Duration::from_secs(self.call_timeout_s)
    }

    pub fn warm_for(&self) -> Duration {
        Duration::from_secs(self.warm_for_h.saturating_mul(3_600))
    }

    /// # Errors
    /// Names the member that is out of its range.
    pub fn validate(&self) -> Result<(), String> {
        for (name, value, range) in [
            ("tokens.wait_max_s", self.wait_max_s, 1..=60),
            ("tokens.call_timeout_s", self.call_timeout_s, 1..=120),
            ("tokens.warm_for_h", self.warm_for_h, 0..=8_760),
        ] {
            if !range.contains(&value) {
                return Err(format!("{name} is {value}; it may be {} to {}", range.start(), range.end()));
            }
        }
        if self.spill_dir.as_ref().is_some_and(|folder| folder.as_os_str().is_empty()) {
            return Err("tokens.spill_dir is empty; name a folder, or leave it out".to_owned());
        }
        Ok(())
    }
}

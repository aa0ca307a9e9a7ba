//! Settings that the acts read. `bearerd` parses text into them, once.

use std::time::Duration;

/// How consents run.
#[derive(Debug, Clone)]
pub struct ConnectRules {
    /// Where browsers reach the connect door: `https://connect.example`, no path, no trailing slash. From settings,
    /// never from a request (O-16).
    pub public_url: String,
    /// Whether an operator confirms who consented, where `expected_user` does not already say so.
    pub confirm: bool,
    /// Life of a connect link: 1 minute to 24 hours.
    pub link_lifetime: Duration,
}

/// Which instances an integration may name.
#[derive(Debug, Clone)]
pub struct InstanceRules {
    /// Host patterns: a name, or `*.` and a name. Literal loopback addresses need none.
    pub hosts: Vec<String>,
    /// Allow literal loopback addresses: development and tests.
    pub allow_loopback: bool,
}

impl Default for InstanceRules {
    fn default() -> Self {
        let hosts = ["*.service-now.com", "*.servicenowservices.com"].map(str::to_owned).to_vec();
        Self { hosts, allow_loopback: true }
    }
}

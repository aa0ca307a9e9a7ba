//! How the process stands.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::WireTime;

/// How this process stands.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub version: String,
    pub started_at: WireTime,
    pub uptime_secs: u64,
    pub ready: bool,
    pub checks: Vec<Check>,
}

/// What a probe answers to whoever shows an admin key. Others get the status alone.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ProbeReport {
    pub ok: bool,
    pub checks: Vec<Check>,
}

/// One thing that readiness rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    #[schema(example = "store_reachable")]
    pub name: String,
    pub ok: bool,
}

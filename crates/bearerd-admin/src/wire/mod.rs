//! The admin API's messages. They are types of their own, not the model's: a record may change its shape without the
//! API changing, and a secret has no way into an answer but the three that are named here. The command line reads
//! and writes the same types.

mod connection;
mod explain;
mod integration;
mod key;
mod policy;
mod problem;
mod secret;
mod status;
mod time;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use connection::{
    ConfirmRequest, ConnectLink, Connection, ConnectionHealth, ConnectionRequest, ConnectionState,
    ConnectionTest, ConnectionWritten, FreezeRequest, Frozen, ImportRequest, User,
};
pub use explain::{ExplainRequest, Explanation, Limits, RewrittenQuery};
pub use integration::{
    FormField, GrantType, Integration, IntegrationRequest, Profile, Provider, ServicenowForm,
    TokenEndpointAuth,
};
pub use key::{CallerKey, IssuedCallerKey, KeyRequest, LiveSecret, RotateRequest};
pub use policy::{
    ConnectionSelector, Policy, PolicyRequest, RateLimit, RecordRule, Rule, TableSet, Unchecked,
};
pub use problem::Problem;
pub use secret::WireSecret;
pub use status::{Check, ProbeReport, Status};
pub use time::WireTime;

/// Part of a list.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Items<T> {
    pub items: Vec<T>,
    /// Give it as `cursor` to continue the list; null at the end.
    pub next: Option<String>,
    /// Ids within this part whose records cannot be read; they are left as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<String>,
}

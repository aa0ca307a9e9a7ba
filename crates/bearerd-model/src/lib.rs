//! The words of the project as types: ids, secrets, grants, connections, integrations, caller keys, policies and
//! time. Nothing here does I/O, and nothing here knows how a record is stored or shown.

mod caller;
mod clock;
mod connection;
mod consent;
mod exchange;
mod family;
mod grant;
mod ids;
mod instance;
mod integration;
mod secret;

pub use caller::{
    CallerKey, CallerKeyUse, ConnectionSelector, KeySecret, MethodSet, Policy, RateLimit, RecordRule, Rule,
    TableSet,
};
pub use clock::{Clock, FakeClock, UnixTime};
pub use connection::{Connection, DeathCause, Freeze, Health, InstanceUser, Lifecycle};
pub use consent::{ConnectLink, ConsentFlow, ConsentOutcome, ConsentResult};
pub use exchange::{Epoch, Exchanges, GrantVersion, Intent, Owner};
pub use family::{FamilyName, MalformedFamily};
pub use grant::{Freshness, Generation, Grant, RefreshRules};
pub use ids::{CallerKeyId, ConnectionId, IntegrationId, MalformedId, PolicyId, ProfileName};
pub use instance::{InstanceOrigin, MalformedOrigin};
pub use integration::{Endpoints, GrantType, Integration, Profile, Provider, TokenEndpointAuth};
pub use secret::{
    AccessToken, AuthorizationCode, ClientSecret, MalformedSecret, PkceVerifier, RefreshToken, SecretText,
};

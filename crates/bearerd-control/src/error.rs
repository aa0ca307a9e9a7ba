//! Why an act did not happen, and what the operator does about it.

use std::time::Duration;

use bearerd_store::StoreError;

/// One member of a request that was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// As the admin API spells it: `client_secret`, `profiles.default.scopes`.
    pub name: String,
    pub problem: String,
}

/// Why an act was not done. Nothing was changed, except where a variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    #[error("there is no {what} {id:?}")]
    NotFound { what: &'static str, id: String },
    #[error("{}: {}", .0.name, .0.problem)]
    Invalid(Field),
    /// The act contradicts what is there. `code` is stable.
    #[error("{message}")]
    Conflict { code: &'static str, message: String, fix: String },
    /// `If-Match` named another revision.
    #[error("it was changed since it was read")]
    Changed,
    #[error("it exists already")]
    Exists,
    /// The instance or its authorization server did not do its part. `code` is stable.
    #[error("{message}")]
    Upstream { code: &'static str, message: String, fix: String, retry_after: Option<Duration> },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ActError {
    /// An act that did not come to its end.
    pub(crate) fn cut_short() -> Self {
        Self::Store(StoreError::OutcomeUnknown("the act was cut short by a fault in bearerd".to_owned()))
    }

    pub(crate) fn invalid(name: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid(Field { name: name.into(), problem: problem.into() })
    }

    /// The stable code, as the admin API and the command line show it; `docs/errors.md` lists them.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::Invalid(_) => "invalid_request",
            Self::Conflict { code, .. } | Self::Upstream { code, .. } => code,
            Self::Changed => "changed_meanwhile",
            Self::Exists => "exists",
            Self::Store(StoreError::Damaged { .. }) => "record_damaged",
            Self::Store(StoreError::OutcomeUnknown(_)) => "outcome_unknown",
            Self::Store(_) => "store_unavailable",
        }
    }

    /// What the operator does now, in one sentence.
    pub fn fix(&self) -> String {
        match self {
            Self::NotFound { what, .. } => {
                format!("List what there is: bearerd {} list.", what.replace("caller ", ""))
            }
            Self::Invalid(field) => format!("Correct {} and send the request again.", field.name),
            Self::Conflict { fix, .. } | Self::Upstream { fix, .. } => fix.clone(),
            Self::Changed => "Read it again and repeat the change with its new ETag.".to_owned(),
            Self::Exists => "Choose another id, or change the existing one.".to_owned(),
            Self::Store(StoreError::Damaged { .. }) => {
                "Restore this record from a backup, or delete it and make it anew; others are unaffected."
                    .to_owned()
            }
            Self::Store(StoreError::OutcomeUnknown(_)) => {
                "Read it again to see whether it happened.".to_owned()
            }
            Self::Store(_) => "Bring the store back (see /readyz) and repeat the request.".to_owned(),
        }
    }
}

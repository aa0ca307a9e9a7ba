//! Why an exchange brought nothing.

use std::time::Duration;

use bearerd_oauth::{TokenEndpointError, Verdict};

/// Why a token call brought no token response.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TokenCallError {
    #[error(transparent)]
    Endpoint(#[from] TokenEndpointError),
    /// The server saw nothing.
    #[error("the instance cannot be reached: {reason}")]
    NotSent { reason: String },
    /// The server may have done what was asked, and its answer is lost.
    #[error("the token endpoint gave no usable reply: {reason}")]
    NoReply { reason: String },
    #[error("{0}")]
    Misconfigured(String),
}

impl TokenCallError {
    /// Whether the server may have answered with tokens that never arrived, or that could not be read.
    pub fn leaves_doubt(&self) -> bool {
        match self {
            Self::NoReply { .. } => true,
            Self::Endpoint(error) => matches!(
                error,
                TokenEndpointError::Malformed { .. }
                    | TokenEndpointError::Unavailable { .. }
                    | TokenEndpointError::Asleep { status: 200..=299 }
            ),
            Self::NotSent { .. } | Self::Misconfigured(_) => false,
        }
    }
}

/// Why a refresh brought nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RefreshFailure {
    #[error(transparent)]
    Call(#[from] TokenCallError),
    #[error("the grant came without a refresh token and its access token has ended")]
    NoRefreshToken,
}

impl RefreshFailure {
    /// What it says about the grant. In doubt, a refusal may only say that an earlier exchange was answered after all:
    /// several of them decide.
    pub fn verdict(&self, in_doubt: bool) -> Verdict {
        match self {
            Self::Call(TokenCallError::Endpoint(error)) => match error.verdict() {
                Verdict::GrantDead if in_doubt => Verdict::Suspect,
                verdict => verdict,
            },
            Self::Call(_) => Verdict::Transient,
            Self::NoRefreshToken => Verdict::GrantDead,
        }
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Call(TokenCallError::Endpoint(error)) => error.retry_after(),
            _ => None,
        }
    }

    /// Whether tokens may be under way that never arrived.
    pub(crate) fn leaves_doubt(&self) -> bool {
        matches!(self, Self::Call(error) if error.leaves_doubt())
    }

    /// The metric's label.
    pub fn outcome(&self) -> &'static str {
        match self.verdict(false) {
            Verdict::GrantDead => "grant_refused",
            Verdict::Suspect => "denied",
            Verdict::ClientRefused => "client_refused",
            Verdict::Throttled => "throttled",
            Verdict::Transient => match self {
                Self::Call(TokenCallError::NoReply { .. }) => "uncertain",
                _ => "transient",
            },
        }
    }
}

/// For the token endpoint's own errors.
impl From<TokenEndpointError> for RefreshFailure {
    fn from(error: TokenEndpointError) -> Self {
        Self::Call(TokenCallError::Endpoint(error))
    }
}

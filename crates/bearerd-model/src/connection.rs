//! One grant held under one integration, and the state an operator sees.

use std::collections::BTreeMap;

use crate::{ConnectionId, Epoch, Exchanges, Generation, Grant, IntegrationId, ProfileName, UnixTime};

/// Who consented, as the instance's `sys_user` table names them.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct InstanceUser {
    pub sys_id: String,
    pub user_name: String,
    pub name: String,
}

/// Why a human must consent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeathCause {
    /// The authorization server refused the newest refresh token, repeatedly or by `invalid_grant`.
    GrantRefused,
    /// The refresh token's life ended.
    RefreshTokenExpired,
    /// The access token ended and there was no refresh token.
    NoRefreshToken,
    /// The integration's client or instance was changed.
    IntegrationChanged,
}

/// Where a connection stands in its life. A deleted connection has no record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lifecycle {
    /// Nobody has consented yet.
    AwaitingConsent {
        since: UnixTime,
    },
    /// Someone consented; the tokens are held but not lent until an operator confirms the user.
    AwaitingConfirmation {
        since: UnixTime,
    },
    Active {
        since: UnixTime,
    },
    ReauthorizationRequired {
        since: UnixTime,
        cause: DeathCause,
    },
}

/// An operator's stop: no call uses the connection, refreshes go on.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Freeze {
    pub since: UnixTime,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Health {
    #[default]
    Ok,
    /// Refreshes fail; the access token may still be valid.
    Failing {
        since: UnixTime,
        /// Consecutive failures, of any kind.
        failures: u32,
        /// Consecutive refusals that look like the grant's end (`401 server_error`).
        strikes: u32,
        /// One sentence for an operator; never a body or a secret.
        reason: String,
    },
}

#[derive(Debug, Clone)]
pub struct Connection {
    pub id: ConnectionId,
    pub integration: IntegrationId,
    pub profile: ProfileName,
    pub labels: BTreeMap<String, String>,
    /// `user_name` or `sys_id` that must consent; equal means no confirmation is needed.
    pub expected_user: Option<String>,
    pub user: Option<InstanceUser>,
    pub lifecycle: Lifecycle,
    pub frozen: Option<Freeze>,
    pub health: Health,
    /// Changed by [`Connection::put_grant`], [`Connection::purge_grant`] and [`Connection::advance_grant`] alone: they
    /// keep `exchanges` in step.
    pub grant: Option<Grant>,
    pub exchanges: Exchanges,
    /// When a process should look after the connection next, whoever that is: for the store's index.
    pub due_at: Option<UnixTime>,
    pub created_at: UnixTime,
    pub last_used_at: Option<UnixTime>,
}

impl Connection {
    /// Begins a grant: a consent, an import, tokens of a client. Whatever is under way for the one before it is void.
    pub fn put_grant(&mut self, grant: Grant, now: UnixTime) {
        let epoch = self.exchanges.next_epoch(now);
        self.exchanges.begin(epoch);
        self.due_at = Some(grant.overdue_at());
        self.set_grant(grant);
    }

    /// Ends the grant; so does whatever is under way for it.
    pub fn purge_grant(&mut self, now: UnixTime) {
        let epoch = self.exchanges.next_epoch(now);
        self.exchanges.begin(epoch);
        self.exchanges.generation = self.newest_generation();
        self.grant = None;
        self.due_at = None;
    }

    /// Puts in what the exchange `epoch` made of the grant.
    pub fn advance_grant(&mut self, grant: Grant, epoch: Epoch) {
        self.exchanges.advance(epoch);
        self.set_grant(grant);
    }

    /// A grant that holds other tokens than the one before it is a generation of its own, and generations only grow
    /// (I-3).
    fn set_grant(&mut self, mut grant: Grant) {
        let same = self.grant.as_ref().is_some_and(|held| held.has_same_tokens(&grant));
        grant.generation = match &self.grant {
            Some(held) if same => held.generation,
            _ => grant.generation.max(self.newest_generation().next()),
        };
        self.exchanges.generation = self.newest_generation().max(grant.generation);
        self.grant = Some(grant);
    }

    /// A record of before generations outlived their grants has that of its grant only.
    fn newest_generation(&self) -> Generation {
        let held = self.grant.as_ref().map(|grant| grant.generation).unwrap_or_default();
        self.exchanges.generation.max(held)
    }

    /// Whether an exchange was left in doubt: its owner is gone, or got no answer.
    pub fn is_uncertain(&self, now: UnixTime) -> bool {
        self.exchanges.intent.as_ref().is_some_and(|intent| intent.deadline <= now)
    }
}

impl Lifecycle {
    /// The state's stable name, as the admin API, the CLI and the metrics show it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AwaitingConsent { .. } | Self::AwaitingConfirmation { .. } => "pending",
            Self::Active { .. } => "active",
            Self::ReauthorizationRequired { .. } => "reauthorization_required",
        }
    }

    pub fn since(&self) -> UnixTime {
        match self {
            Self::AwaitingConsent { since }
            | Self::AwaitingConfirmation { since }
            | Self::Active { since }
            | Self::ReauthorizationRequired { since, .. } => *since,
        }
    }
}

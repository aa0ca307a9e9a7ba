//! The authorization server: knows which refresh tokens it has given out, and which of them it still takes.

use bearerd_model::{AccessToken, RefreshToken, UnixTime};
use bearerd_oauth::{TokenEndpointError, TokenResponse};
use bearerd_refresh::{Obtained, TokenCallError};
use std::time::Duration;

/// What the server does with a refresh token that has been exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerRules {
    /// A refresh brings another refresh token.
    pub rotates: bool,
    /// How long the previous refresh token is still taken, in milliseconds, unless its successor was used before.
    /// `u64::MAX`: until then (FAPI 2.0 §5.3.2.1: a retry must work).
    pub leeway_ms: u64,
    pub again: Again,
    /// A refresh token that is presented too late ends the whole grant (RFC 9700 §4.14.2).
    pub reuse_revokes: bool,
    /// Life of an access token, in seconds.
    pub life_secs: u64,
}

/// What the previous refresh token brings, while it is still taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Again {
    /// The successor that it brought before.
    Same,
    /// Another one; each of them is good until one is used.
    Another,
    /// Another one, and the one before is good no more.
    Instead,
}

impl ServerRules {
    /// Whether a client that does nothing wrong can lose its grant: the answer was lost, and the retry is refused.
    pub fn forgives(self) -> bool {
        !self.rotates || self.leeway_ms == u64::MAX
    }
}

/// See the module.
#[derive(Debug, Clone, Hash)]
pub struct Server {
    refresh: Vec<Refresh>,
    access: Vec<Access>,
    revoked: Vec<bool>,
}

#[derive(Debug, Clone, Hash)]
struct Refresh {
    family: usize,
    parent: Option<usize>,
    successor: Option<usize>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Current,
    Retired { at: u64 },
    Dead,
}

#[derive(Debug, Clone, Hash)]
struct Access {
    family: usize,
    ends: u64,
    /// The instance takes it no more.
    refused: bool,
}

/// What came of a call, as it goes over the network.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Answer {
    Issued { access: usize, refresh: usize, life_secs: u64 },
    InvalidGrant,
    Denied,
    Unavailable,
    Asleep,
    Throttled { secs: u64 },
    NotSent,
    NoReply,
}

impl Answer {
    /// As the token endpoint's client hands it on.
    ///
    /// # Errors
    /// What is not an issue.
    pub fn into_result(self, sent_at: UnixTime) -> Result<Obtained, TokenCallError> {
        let error = match self {
            Self::Issued { access, refresh, life_secs } => {
                let response = TokenResponse {
                    access_token: AccessToken::parse(format!("at-{access}")).expect("visible"),
                    expires_in: Some(Duration::from_secs(life_secs)),
                    refresh_token: Some(refresh_token(refresh)),
                    // Shows in `Debug` from which answer a grant is; tokens do not.
                    scope: Some(format!("at-{access} rt-{refresh}")),
                };
                return Ok(Obtained { response, sent_at });
            }
            Self::InvalidGrant => TokenEndpointError::GrantRefused,
            Self::Denied => TokenEndpointError::Denied,
            Self::Unavailable => TokenEndpointError::Unavailable { status: 503, retry_after: None },
            Self::Asleep => TokenEndpointError::Asleep { status: 200 },
            Self::Throttled { secs } => {
                TokenEndpointError::Throttled { retry_after: Some(Duration::from_secs(secs)) }
            }
            Self::NotSent => return Err(TokenCallError::NotSent { reason: "refused".to_owned() }),
            Self::NoReply => return Err(TokenCallError::NoReply { reason: "cut off".to_owned() }),
        };
        Err(error.into())
    }
}

pub fn refresh_token(number: usize) -> RefreshToken {
    RefreshToken::parse(format!("rt-{number}")).expect("visible")
}

/// The number of a token that this server made.
pub fn number(text: &str) -> usize {
    text.rsplit('-').next().and_then(|number| number.parse().ok()).expect("a token of the rig's server")
}

impl Server {
    pub fn new() -> Self {
        Self { refresh: Vec::new(), access: Vec::new(), revoked: Vec::new() }
    }

    /// A person consents: a new family, its first refresh token and its first access token.
    pub fn consent(&mut self, rules: ServerRules, now: u64) -> (usize, Answer) {
        let family = self.revoked.len();
        self.revoked.push(false);
        let refresh = self.mint(family, None);
        (family, self.issue(rules, refresh, now))
    }

    /// The token endpoint, `grant_type=refresh_token`.
    pub fn exchange(&mut self, rules: ServerRules, spent: usize, now: u64) -> Answer {
        let Refresh { family, parent, successor, state } = self.refresh[spent];
        if self.revoked[family] {
            return Answer::InvalidGrant;
        }
        let first_use = match state {
            State::Current => true,
            State::Retired { at } if now <= at.saturating_add(rules.leeway_ms) => false,
            State::Retired { .. } | State::Dead => {
                self.revoked[family] |= rules.reuse_revokes;
                return Answer::InvalidGrant;
            }
        };
        if !rules.rotates {
            return self.issue(rules, spent, now);
        }
        if first_use && let Some(parent) = parent {
            // It has worked: its siblings and the token that they came from are no longer needed.
            self.refresh[parent].state = State::Dead;
            for (number, sibling) in self.refresh.iter_mut().enumerate() {
                if sibling.parent == Some(parent) && number != spent {
                    sibling.state = State::Dead;
                }
            }
        }
        let next = if let (false, Again::Same, Some(successor)) = (first_use, rules.again, successor) {
            successor
        } else {
            if let (false, Again::Instead, Some(before)) = (first_use, rules.again, successor) {
                self.refresh[before].state = State::Dead;
            }
            self.mint(family, Some(spent))
        };
        let spent = &mut self.refresh[spent];
        spent.successor = Some(next);
        if first_use {
            spent.state = State::Retired { at: now };
        }
        self.issue(rules, next, now)
    }

    /// Whether an exchange of the token would bring tokens now.
    pub fn honours(&self, rules: ServerRules, refresh: usize, now: u64) -> bool {
        let token = &self.refresh[refresh];
        !self.revoked[token.family]
            && match token.state {
                State::Current => true,
                State::Retired { at } => now <= at.saturating_add(rules.leeway_ms),
                State::Dead => false,
            }
    }

    pub fn is_revoked(&self, family: usize) -> bool {
        self.revoked[family]
    }

    pub fn family_of(&self, refresh: usize) -> usize {
        self.refresh[refresh].family
    }

    /// Whether the instance takes the access token.
    pub fn takes(&self, access: usize, now: u64) -> bool {
        now < self.access[access].ends && !self.access[access].refused
    }

    pub fn access_ends(&self, access: usize) -> u64 {
        self.access[access].ends
    }

    pub fn access_family(&self, access: usize) -> usize {
        self.access[access].family
    }

    /// The instance forgets an access token before its end.
    pub fn forget_access(&mut self, access: usize) {
        self.access[access].refused = true;
    }

    fn mint(&mut self, family: usize, parent: Option<usize>) -> usize {
        self.refresh.push(Refresh { family, parent, successor: None, state: State::Current });
        self.refresh.len() - 1
    }

    fn issue(&mut self, rules: ServerRules, refresh: usize, now: u64) -> Answer {
        let family = self.refresh[refresh].family;
        self.access.push(Access { family, ends: now + rules.life_secs * 1_000, refused: false });
        Answer::Issued { access: self.access.len() - 1, refresh, life_secs: rules.life_secs }
    }
}

impl Default for Server {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: ServerRules = ServerRules {
        rotates: true,
        leeway_ms: 10_000,
        again: Again::Another,
        reuse_revokes: true,
        life_secs: 60,
    };

    fn next(answer: &Answer) -> usize {
        let Answer::Issued { refresh, .. } = answer else { panic!("{answer:?}") };
        *refresh
    }

    #[test]
    fn the_previous_refresh_token_is_taken_for_a_while() {
        let mut server = Server::new();
        let (family, first) = server.consent(RULES, 0);
        let first = next(&first);
        let second = next(&server.exchange(RULES, first, 0));
        let sibling = next(&server.exchange(RULES, first, 10_000));
        assert!(server.honours(RULES, second, 10_000) && server.honours(RULES, sibling, 10_000));
        let third = next(&server.exchange(RULES, sibling, 11_000));
        assert!(!server.honours(RULES, second, 11_000) && !server.honours(RULES, first, 11_000));
        assert_eq!(server.exchange(RULES, first, 11_000), Answer::InvalidGrant);
        assert!(server.is_revoked(family) && !server.honours(RULES, third, 11_000));
    }

    #[test]
    fn what_the_previous_one_brings_is_a_matter_of_the_server() {
        for (again, same, before_is_good) in
            [(Again::Same, true, true), (Again::Another, false, true), (Again::Instead, false, false)]
        {
            let rules = ServerRules { again, ..RULES };
            let mut server = Server::new();
            let first = next(&server.consent(rules, 0).1);
            let second = next(&server.exchange(rules, first, 0));
            let other = next(&server.exchange(rules, first, 1));
            assert_eq!(other == second, same, "{again:?}");
            assert_eq!(server.honours(rules, second, 1), before_is_good, "{again:?}");
            assert!(server.honours(rules, other, 1), "{again:?}");
        }
        let rules = ServerRules { rotates: false, ..RULES };
        let mut server = Server::new();
        let first = next(&server.consent(rules, 0).1);
        assert_eq!(next(&server.exchange(rules, first, 99_999)), first);
    }
}

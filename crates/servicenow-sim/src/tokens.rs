//! The instance's tokens as a state machine without I/O: the caller passes `now`, the rules in force and a way to make
//! new token strings. A *family* is what one consent (or one shared client and user) has: a current access token, a
//! current refresh token, and those that came before.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use serde::Serialize;

use crate::behaviour::RefreshWithinLife;
use crate::clock::SimTime;

/// Which client acts as which user.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct TokenOwner {
    pub client_id: String,
    pub user_name: String,
}

/// The rules in force for one grant: behaviour and client record, put together.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "mirrors the switches of `Behaviour`")]
pub(crate) struct GrantRules {
    pub(crate) access_life: Duration,
    pub(crate) refresh_life: Duration,
    pub(crate) within_life: RefreshWithinLife,
    pub(crate) new_access_ends_old: bool,
    pub(crate) shared: bool,
    pub(crate) fresh_extends: bool,
    pub(crate) rotation: bool,
    /// How long after its replacement the previous refresh token re-answers the current pair.
    pub(crate) previous_ok_for: Duration,
    pub(crate) reuse_revokes: bool,
    pub(crate) rotation_extends: bool,
}

/// What to make a token string for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mint<'a> {
    Access { owner: &'a TokenOwner, expires_at: SimTime },
    Refresh,
}

/// Makes token strings; the state machine does not know how.
pub(crate) type Minter<'m> = &'m mut dyn FnMut(Mint<'_>) -> String;

/// What the token endpoint hands out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IssuedTokens {
    pub(crate) owner: TokenOwner,
    pub(crate) access_token: String,
    /// Whole seconds, rounded down; 0 in the last second of a token that is answered again.
    pub(crate) expires_in_s: u64,
    pub(crate) refresh_token: Option<String>,
    /// The access token was already the current one.
    pub(crate) repeated: bool,
}

/// Why a refresh token, an access token or a code is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenRefusal {
    Unknown,
    Expired,
    Revoked,
    WrongClient,
    /// A refresh token that rotation had replaced.
    Reused,
}

impl TokenRefusal {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::WrongClient => "wrong_client",
            Self::Reused => "reused",
        }
    }
}

/// Which tokens a control act means; `None` = any.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenSelection {
    pub client_id: Option<String>,
    pub user: Option<String>,
    pub which: WhichTokens,
}

/// Access tokens, refresh tokens, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhichTokens {
    #[default]
    Access,
    Refresh,
    All,
}

impl TokenSelection {
    fn names(&self, owner: &TokenOwner) -> bool {
        self.client_id.as_ref().is_none_or(|id| *id == owner.client_id)
            && self.user.as_ref().is_none_or(|user| *user == owner.user_name)
    }
}

/// One family as `GET /__sim/tokens` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct TokenFamily {
    #[serde(flatten)]
    pub owner: TokenOwner,
    pub access_token: Option<String>,
    pub access_expires_at: Option<SimTime>,
    pub refresh_token: Option<String>,
    pub refresh_expires_at: Option<SimTime>,
}

/// What one family has now, as `GET /__sim/ledger` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct FamilyStanding {
    #[serde(flatten)]
    pub owner: TokenOwner,
    /// The current refresh token.
    pub refresh_token: Option<String>,
    /// The current refresh token would be taken now.
    pub refresh_token_live: bool,
    /// The refresh token that the current one replaced.
    pub previous: Option<String>,
    /// The previous one would still be answered with the current pair.
    pub previous_honoured: bool,
}

#[derive(Debug)]
struct Family {
    owner: TokenOwner,
    access: Option<String>,
    refresh: Option<String>,
    /// The refresh token that `refresh` replaced.
    previous: Option<String>,
    /// Tokens with a smaller serial number are revoked, however many there are.
    access_live_from: u64,
    refresh_live_from: u64,
}

#[derive(Debug)]
struct Token {
    family: u64,
    serial: u64,
    expires_at: SimTime,
    revoked: bool,
    /// When rotation replaced it; only refresh tokens.
    replaced_at: Option<SimTime>,
}

/// All tokens of the instance.
#[derive(Debug)]
pub(crate) struct TokenStore {
    families: HashMap<u64, Family>,
    families_by_age: VecDeque<u64>,
    shared: HashMap<TokenOwner, u64>,
    access: HashMap<String, Token>,
    refresh: HashMap<String, Token>,
    next_serial: u64,
    sweep_at_count: usize,
}

impl TokenStore {
    pub(crate) fn new() -> Self {
        Self {
            families: HashMap::new(),
            families_by_age: VecDeque::new(),
            shared: HashMap::new(),
            access: HashMap::new(),
            refresh: HashMap::new(),
            next_serial: 0,
            sweep_at_count: SWEEP_COUNT_MIN,
        }
    }

    /// A grant other than refresh: the current tokens of the owner if it has live ones, else new ones.
    pub(crate) fn grant(
        &mut self,
        owner: &TokenOwner,
        with_refresh: bool,
        rules: &GrantRules,
        now: SimTime,
        mint: Minter<'_>,
    ) -> IssuedTokens {
        self.sweep(now);
        let family = self.family_for(owner, rules);
        let access = self.access_for_grant(family, rules, now, mint);
        let refresh_token = with_refresh.then(|| self.refresh_for_grant(family, rules, now, mint));
        self.issued(family, access, refresh_token, now)
    }

    /// The refresh grant (RFC 6749 §6).
    pub(crate) fn refresh(
        &mut self,
        refresh_token: &str,
        client_id: &str,
        rules: &GrantRules,
        now: SimTime,
        mint: Minter<'_>,
    ) -> Result<IssuedTokens, TokenRefusal> {
        self.sweep(now);
        let token = self.refresh.get(refresh_token).ok_or(TokenRefusal::Unknown)?;
        let (id, expires_at) = (token.family, token.expires_at);
        let family = self.families.get(&id).ok_or(TokenRefusal::Unknown)?;
        if family.owner.client_id != client_id {
            return Err(TokenRefusal::WrongClient);
        }
        if token.revoked || token.serial < family.refresh_live_from {
            return Err(TokenRefusal::Revoked);
        }
        let is_previous = family.previous.as_deref() == Some(refresh_token);
        if family.refresh.as_deref() != Some(refresh_token) {
            let honoured = is_previous && self.is_honoured(refresh_token, rules.previous_ok_for, now);
            return self.refresh_with_replaced(id, honoured, rules, now, mint);
        }
        if now >= expires_at {
            return Err(TokenRefusal::Expired);
        }
        let access = self.access_for_refresh(id, rules, now, mint);
        let answered = if rules.rotation {
            self.rotate(id, refresh_token, expires_at, rules, now, mint)
        } else {
            refresh_token.to_owned()
        };
        Ok(self.issued(id, access, Some(answered), now))
    }

    /// Whose a refresh token is, whatever its state.
    pub(crate) fn refresh_token_user(&self, refresh_token: &str) -> Option<&str> {
        let token = self.refresh.get(refresh_token)?;
        self.families.get(&token.family).map(|family| family.owner.user_name.as_str())
    }

    /// Whose a refresh token is, and whether it is the current one of its family.
    pub(crate) fn refresh_token_standing(&self, refresh_token: &str) -> Option<(TokenOwner, bool)> {
        let family = self.families.get(&self.refresh.get(refresh_token)?.family)?;
        Some((family.owner.clone(), family.refresh.as_deref() == Some(refresh_token)))
    }

    /// What each family has, oldest first, while the previous refresh token is honoured for `previous_ok_for`.
    pub(crate) fn standings(&self, previous_ok_for: Duration, now: SimTime) -> Vec<FamilyStanding> {
        let families = self.families_by_age.iter().filter_map(|id| self.families.get(id));
        families
            .map(|family| {
                let live = family.refresh.as_ref().is_some_and(|token| self.refresh_is_live(token, now));
                let previous = family.previous.as_ref();
                let honoured = previous.is_some_and(|token| self.is_honoured(token, previous_ok_for, now));
                FamilyStanding {
                    owner: family.owner.clone(),
                    refresh_token: family.refresh.clone(),
                    refresh_token_live: live,
                    previous: family.previous.clone(),
                    previous_honoured: live && honoured,
                }
            })
            .collect()
    }

    /// Who the bearer of an access token is.
    pub(crate) fn check_access(&self, access_token: &str, now: SimTime) -> Result<&TokenOwner, TokenRefusal> {
        let token = self.access.get(access_token).ok_or(TokenRefusal::Unknown)?;
        let family = self.families.get(&token.family).ok_or(TokenRefusal::Unknown)?;
        if token.revoked || token.serial < family.access_live_from {
            return Err(TokenRefusal::Revoked);
        }
        if now >= token.expires_at { Err(TokenRefusal::Expired) } else { Ok(&family.owner) }
    }

    /// `/oauth_revoke_token.do`: marks that token expired. `true` if it was one of ours.
    pub(crate) fn revoke(&mut self, token: &str, refresh_ends_access: bool) -> bool {
        if let Some(access) = self.access.get_mut(token) {
            access.revoked = true;
            return true;
        }
        let Some(refresh) = self.refresh.get_mut(token) else { return false };
        refresh.revoked = true;
        let family = refresh.family;
        if refresh_ends_access && let Some(family) = self.families.get_mut(&family) {
            family.access_live_from = self.next_serial;
        }
        true
    }

    /// Ends every selected token. Answers how many families that touched.
    pub(crate) fn end(&mut self, selection: &TokenSelection) -> usize {
        let live_from = self.next_serial;
        let mut touched = 0;
        for family in self.families.values_mut().filter(|family| selection.names(&family.owner)) {
            if selection.which != WhichTokens::Refresh {
                family.access_live_from = live_from;
            }
            if selection.which != WhichTokens::Access {
                family.refresh_live_from = live_from;
            }
            touched += 1;
        }
        touched
    }

    /// The families, oldest first.
    pub(crate) fn list(&self) -> Vec<TokenFamily> {
        self.families_by_age
            .iter()
            .filter_map(|id| self.families.get(id))
            .map(|family| self.show(family))
            .collect()
    }

    fn show(&self, family: &Family) -> TokenFamily {
        let expiry = |tokens: &HashMap<String, Token>, token: &Option<String>| {
            token.as_ref().and_then(|token| tokens.get(token)).map(|token| token.expires_at)
        };
        TokenFamily {
            owner: family.owner.clone(),
            access_token: family.access.clone(),
            access_expires_at: expiry(&self.access, &family.access),
            refresh_token: family.refresh.clone(),
            refresh_expires_at: expiry(&self.refresh, &family.refresh),
        }
    }

    /// Whether a replaced refresh token is not revoked, and within its leeway.
    fn is_honoured(&self, refresh_token: &str, previous_ok_for: Duration, now: SimTime) -> bool {
        let Some(token) = self.refresh.get(refresh_token) else { return false };
        let live_from = self.families.get(&token.family).map_or(u64::MAX, |family| family.refresh_live_from);
        !token.revoked
            && token.serial >= live_from
            && token.replaced_at.is_some_and(|at| now < at.after(previous_ok_for))
    }

    /// A refresh token that rotation replaced: the previous one may pass (a lost answer), an older one is reuse.
    fn refresh_with_replaced(
        &mut self,
        id: u64,
        honoured: bool,
        rules: &GrantRules,
        now: SimTime,
        mint: Minter<'_>,
    ) -> Result<IssuedTokens, TokenRefusal> {
        let current = self.families.get(&id).and_then(|family| family.refresh.clone());
        if let Some(current) = current
            && honoured
            && self.refresh_is_live(&current, now)
        {
            // The access token of the lost answer is the current one: it is answered again, not replaced.
            let again = GrantRules { within_life: RefreshWithinLife::Remaining, ..*rules };
            let access = self.access_for_refresh(id, &again, now, mint);
            return Ok(self.issued(id, access, Some(current), now));
        }
        let live_from = self.next_serial;
        if rules.reuse_revokes
            && let Some(family) = self.families.get_mut(&id)
        {
            family.access_live_from = live_from;
            family.refresh_live_from = live_from;
        }
        Err(TokenRefusal::Reused)
    }

    fn rotate(
        &mut self,
        id: u64,
        replaced: &str,
        replaced_expires_at: SimTime,
        rules: &GrantRules,
        now: SimTime,
        mint: Minter<'_>,
    ) -> String {
        let expires_at =
            if rules.rotation_extends { now.after(rules.refresh_life) } else { replaced_expires_at };
        let successor = self.new_refresh(id, expires_at, mint);
        if let Some(token) = self.refresh.get_mut(replaced) {
            token.replaced_at = Some(now);
        }
        if let Some(family) = self.families.get_mut(&id) {
            family.previous = Some(replaced.to_owned());
        }
        successor
    }

    fn family_for(&mut self, owner: &TokenOwner, rules: &GrantRules) -> u64 {
        let share = rules.shared && !rules.rotation;
        if share && let Some(id) = self.shared.get(owner) {
            return *id;
        }
        let id = self.take_serial();
        let family = Family {
            owner: owner.clone(),
            access: None,
            refresh: None,
            previous: None,
            access_live_from: 0,
            refresh_live_from: 0,
        };
        self.families.insert(id, family);
        self.families_by_age.push_back(id);
        if share {
            self.shared.insert(owner.clone(), id);
        }
        if self.families_by_age.len() > FAMILIES_MAX {
            self.forget_oldest_family();
        }
        id
    }

    fn forget_oldest_family(&mut self) {
        let Some(oldest) = self.families_by_age.pop_front() else { return };
        if let Some(family) = self.families.remove(&oldest)
            && self.shared.get(&family.owner) == Some(&oldest)
        {
            self.shared.remove(&family.owner);
        }
        // Its tokens have no family now, so they are unknown; the next sweep drops them.
    }

    fn access_for_grant(
        &mut self,
        id: u64,
        rules: &GrantRules,
        now: SimTime,
        mint: Minter<'_>,
    ) -> (String, bool) {
        let within_life =
            if rules.fresh_extends { RefreshWithinLife::Renewed } else { RefreshWithinLife::Remaining };
        self.access_for_refresh(id, &GrantRules { within_life, ..*rules }, now, mint)
    }

    /// The access token to answer, and whether it already was the current one.
    fn access_for_refresh(
        &mut self,
        id: u64,
        rules: &GrantRules,
        now: SimTime,
        mint: Minter<'_>,
    ) -> (String, bool) {
        let current = self.families.get(&id).and_then(|family| family.access.clone());
        let full_life = now.after(rules.access_life);
        if let Some(current) = current
            && rules.within_life != RefreshWithinLife::New
            && self.check_access(&current, now).is_ok()
        {
            if rules.within_life == RefreshWithinLife::Renewed
                && let Some(token) = self.access.get_mut(&current)
            {
                token.expires_at = full_life;
            }
            return (current, true);
        }
        (self.new_access(id, full_life, rules.new_access_ends_old, mint), false)
    }

    fn refresh_for_grant(&mut self, id: u64, rules: &GrantRules, now: SimTime, mint: Minter<'_>) -> String {
        let full_life = now.after(rules.refresh_life);
        let current = self.families.get(&id).and_then(|family| family.refresh.clone());
        if let Some(current) = current
            && self.refresh_is_live(&current, now)
        {
            if rules.fresh_extends
                && let Some(token) = self.refresh.get_mut(&current)
            {
                token.expires_at = full_life;
            }
            return current;
        }
        self.new_refresh(id, full_life, mint)
    }

    fn new_access(&mut self, id: u64, expires_at: SimTime, ends_old: bool, mint: Minter<'_>) -> String {
        let serial = self.take_serial();
        let Some(family) = self.families.get_mut(&id) else { return String::new() };
        let text = mint(Mint::Access { owner: &family.owner, expires_at });
        family.access = Some(text.clone());
        if ends_old {
            family.access_live_from = serial;
        }
        self.access.insert(
            text.clone(),
            Token { family: id, serial, expires_at, revoked: false, replaced_at: None },
        );
        text
    }

    fn new_refresh(&mut self, id: u64, expires_at: SimTime, mint: Minter<'_>) -> String {
        let serial = self.take_serial();
        let text = mint(Mint::Refresh);
        if let Some(family) = self.families.get_mut(&id) {
            family.refresh = Some(text.clone());
        }
        self.refresh.insert(
            text.clone(),
            Token { family: id, serial, expires_at, revoked: false, replaced_at: None },
        );
        text
    }

    fn issued(
        &self,
        id: u64,
        (access_token, repeated): (String, bool),
        refresh_token: Option<String>,
        now: SimTime,
    ) -> IssuedTokens {
        let expires_in_s =
            self.access.get(&access_token).map_or(0, |token| token.expires_at.since(now).as_secs());
        let owner = self.families.get(&id).map_or_else(
            || TokenOwner { client_id: String::new(), user_name: String::new() },
            |family| family.owner.clone(),
        );
        IssuedTokens { owner, access_token, expires_in_s, refresh_token, repeated }
    }

    fn refresh_is_live(&self, text: &str, now: SimTime) -> bool {
        let Some(token) = self.refresh.get(text) else { return false };
        let Some(family) = self.families.get(&token.family) else { return false };
        !token.revoked && token.serial >= family.refresh_live_from && now < token.expires_at
    }

    fn take_serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial - 1
    }

    /// Drops what can never matter again, once in a while: access tokens long expired, refresh tokens long replaced.
    /// A current refresh token is never dropped while its family exists.
    fn sweep(&mut self, now: SimTime) {
        if self.access.len() + self.refresh.len() < self.sweep_at_count {
            return;
        }
        let families = &self.families;
        let expired_before = now.before(EXPIRED_KEPT_FOR);
        let replaced_before = now.before(REPLACED_KEPT_FOR);
        self.access
            .retain(|_, token| families.contains_key(&token.family) && token.expires_at > expired_before);
        self.refresh.retain(|_, token| {
            families.contains_key(&token.family) && token.replaced_at.is_none_or(|at| at > replaced_before)
        });
        if self.access.len() + self.refresh.len() > TOKENS_MAX {
            self.access.retain(|_, token| token.expires_at > now);
            self.refresh.retain(|_, token| token.replaced_at.is_none());
        }
        self.sweep_at_count = SWEEP_COUNT_MIN.max(2 * (self.access.len() + self.refresh.len()));
    }
}

/// Consents remembered; past it the oldest is forgotten as if it never was.
const FAMILIES_MAX: usize = 100_000;
/// Tokens at which the store starts to look for dead ones.
const SWEEP_COUNT_MIN: usize = 20_000;
/// Tokens above which replaced refresh tokens are forgotten at once (their reuse is then `Unknown`).
const TOKENS_MAX: usize = 500_000;
const EXPIRED_KEPT_FOR: Duration = Duration::from_hours(1);
const REPLACED_KEPT_FOR: Duration = Duration::from_hours(24);

#[cfg(test)]
#[path = "tokens_tests.rs"]
mod tests;

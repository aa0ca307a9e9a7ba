//! A caller key with its policies, laid out for the question "may it?". Deny by default: only a rule opens, and
//! nothing closes what a rule opened.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bearerd_model::{
    CallerKey, CallerKeyId, ConnectionId, ConnectionSelector, KeySecret, PolicyId, UnixTime,
};
use subtle::ConstantTimeEq;

use crate::{
    Call, ConnectionFacts, Decision, DenyReason, KeyLimits, KeyRefusal, Opened,
    rule::{CompiledPolicy, CompiledRule},
};

/// The connection of a call that names none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sole<'a> {
    /// The policies name exactly one.
    Named(&'a ConnectionId),
    /// The policies select connections by other than their ids: [`CompiledKey::sole_of`] those that there are.
    Selected,
    /// There is none, or there are several: the caller has to say.
    None,
}

/// One caller key in a [`crate::Snapshot`].
#[derive(Debug)]
pub struct CompiledKey {
    id: CallerKeyId,
    secrets: Vec<KeySecret>,
    expires_at: Option<UnixTime>,
    default_connection: Option<ConnectionId>,
    policies: Vec<HeldPolicy>,
    /// A record rule in any policy leaves the key nothing but reads of table collections, by every rule.
    has_record_rule: bool,
    last_used: Arc<LastUse>,
}

/// A policy as one key has it.
#[derive(Debug)]
struct HeldPolicy {
    policy: Arc<CompiledPolicy>,
    limits: Arc<KeyLimits>,
}

/// When a key was last used, in milliseconds; 0: not since the mark was drained. Survives the snapshot it was made
/// for, see [`crate::SharedSnapshot::publish`].
#[derive(Debug, Default)]
pub(crate) struct LastUse(AtomicU64);

impl CompiledKey {
    /// Policies that no longer exist open nothing.
    pub(crate) fn new(key: CallerKey, policies: &BTreeMap<PolicyId, Arc<CompiledPolicy>>) -> Self {
        let held: Vec<HeldPolicy> =
            key.policies.iter().filter_map(|id| policies.get(id)).map(HeldPolicy::new).collect();
        Self {
            has_record_rule: held.iter().any(|held| held.policy.has_record_rule()),
            policies: held,
            id: key.id,
            secrets: key.secrets,
            expires_at: key.expires_at,
            default_connection: key.default_connection,
            last_used: Arc::default(),
        }
    }

    pub fn id(&self) -> &CallerKeyId {
        &self.id
    }

    /// Used where a call names no connection.
    pub fn default_connection(&self) -> Option<&ConnectionId> {
        self.default_connection.as_ref()
    }

    /// May the key make `call` through `connection`? The first rule that opens decides. Allocates nothing.
    pub fn decide(&self, connection: ConnectionFacts<'_>, call: &Call<'_>) -> Decision<'_> {
        let source = call.source.map(|source| source.to_canonical());
        let mut nearest = None;
        for (held, rule, compiled) in self.rules() {
            let policy = &held.policy.id;
            match compiled.opens(connection, call, source, self.has_record_rule) {
                Ok(records) => {
                    return Decision::Allow(Opened { policy, rule, records, limits: &held.limits });
                }
                // The earlier one, where both are equally near.
                Err(miss) if nearest.is_none_or(|(nearest, _, _)| miss > nearest) => {
                    nearest = Some((miss, policy, rule));
                }
                Err(_) => {}
            }
        }
        let reason = nearest.map(|(miss, policy, rule)| miss.reason(policy, rule, call));
        Decision::Deny(reason.unwrap_or(DenyReason::NoPolicy))
    }

    /// `false`: no rule covers `id`, whatever its labels are, so that it need not even be looked up.
    pub fn may_open(&self, id: &ConnectionId) -> bool {
        self.rules().any(|(_, _, rule)| match &rule.connections {
            ConnectionSelector::All | ConnectionSelector::Labels(_) => true,
            ConnectionSelector::Ids(ids) => ids.contains(id),
        })
    }

    /// When the key ends, whichever of its secrets is used.
    pub fn ends_at(&self) -> Option<UnixTime> {
        self.expires_at
    }

    pub fn has_rules(&self) -> bool {
        self.rules().next().is_some()
    }

    /// The only connection that the rules allow.
    pub fn sole_connection(&self) -> Sole<'_> {
        let mut sole = Sole::None;
        for (_, _, rule) in self.rules() {
            let ConnectionSelector::Ids(ids) = &rule.connections else { return Sole::Selected };
            for id in ids {
                match sole {
                    Sole::Named(named) if named != id => return self.several(),
                    _ => sole = Sole::Named(id),
                }
            }
        }
        sole
    }

    /// The only one of `connections` that the rules allow.
    pub fn sole_of<'a>(
        &self,
        connections: impl IntoIterator<Item = (&'a ConnectionId, &'a BTreeMap<String, String>)>,
    ) -> Option<&'a ConnectionId> {
        let selected = |(id, labels): &(&ConnectionId, &BTreeMap<String, String>)| {
            self.rules().any(|(_, _, rule)| rule.connections.selects(id, labels))
        };
        let mut selected = connections.into_iter().filter(selected);
        match (selected.next(), selected.next()) {
            (Some((only, _)), None) => Some(only),
            _ => None,
        }
    }

    /// Stamps the key as used, at most once a second: on a busy key this is one relaxed load a call.
    pub fn mark_used(&self, now: UnixTime) {
        self.last_used.mark(now);
    }

    /// When the key was last used, if it was since the last time this was asked. For control, at most once a minute.
    pub fn drain_last_used(&self) -> Option<UnixTime> {
        let millis = self.last_used.0.swap(0, Ordering::Relaxed);
        (millis != 0).then(|| UnixTime::from_millis(millis))
    }

    /// Compares with every secret, so that the time does not tell which one it was.
    pub(crate) fn check_secret(&self, hmac: &[u8; 32], now: UnixTime) -> Result<(), KeyRefusal> {
        let mut refusal = Err(KeyRefusal::Invalid);
        for secret in &self.secrets {
            if bool::from(secret.hmac.ct_eq(hmac)) {
                refusal = if is_over(secret.expires_at, now) { Err(KeyRefusal::Expired) } else { Ok(()) };
            }
        }
        match refusal {
            Ok(()) if is_over(self.expires_at, now) => Err(KeyRefusal::Expired),
            refusal => refusal,
        }
    }

    /// Goes on with the mark of last use and with what is counted, as `earlier` has them for the same key.
    pub(crate) fn go_on_from(&mut self, earlier: &Self) {
        self.last_used = Arc::clone(&earlier.last_used);
        for held in &mut self.policies {
            let same = |earlier: &&HeldPolicy| earlier.policy.id == held.policy.id;
            if let Some(earlier) = earlier.policies.iter().find(same) {
                held.limits = Arc::new(held.limits.going_on_from(&earlier.limits));
            }
        }
    }

    /// With more than one named, a further rule could still open any.
    fn several(&self) -> Sole<'_> {
        let open = |rule: &CompiledRule| !matches!(rule.connections, ConnectionSelector::Ids(_));
        if self.rules().any(|(_, _, rule)| open(rule)) { Sole::Selected } else { Sole::None }
    }

    fn rules(&self) -> impl Iterator<Item = (&HeldPolicy, usize, &CompiledRule)> {
        self.policies.iter().flat_map(|held| {
            held.policy.rules.iter().enumerate().map(move |(index, rule)| (held, index + 1, rule))
        })
    }
}

impl HeldPolicy {
    fn new(policy: &Arc<CompiledPolicy>) -> Self {
        let limits = KeyLimits::new(policy.rate, policy.concurrency_max);
        Self { policy: Arc::clone(policy), limits: Arc::new(limits) }
    }
}

impl LastUse {
    fn mark(&self, now: UnixTime) {
        let now = now.as_millis();
        if now.saturating_sub(self.0.load(Ordering::Relaxed)) >= MARK_EVERY_MS {
            self.0.store(now, Ordering::Relaxed);
        }
    }
}

fn is_over(expires_at: Option<UnixTime>, now: UnixTime) -> bool {
    expires_at.is_some_and(|expires_at| now >= expires_at)
}

/// Last-use marks are this coarse, so that a busy key's cache line stays shared between the workers.
const MARK_EVERY_MS: u64 = 1_000;

#[cfg(test)]
#[path = "compiled_tests.rs"]
mod tests;

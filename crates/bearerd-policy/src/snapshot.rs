//! All caller keys and their policies at one moment. Immutable: a change is a new snapshot.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bearerd_crypto::KeyedHash;
use bearerd_model::{CallerKey, CallerKeyId, Policy, PolicyId, UnixTime};

use crate::{CompiledKey, KeyKind, PresentedKey, rule::CompiledPolicy};

/// Why a well-formed key is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefusal {
    #[error("no such key")]
    Invalid,
    #[error("the key, or this secret of it, has expired")]
    Expired,
}

#[derive(Debug)]
pub struct Snapshot {
    keys: HashMap<CallerKeyId, CompiledKey>,
    hash: KeyedHash,
}

impl Snapshot {
    /// `hash` is the keyed hash under which the secrets of `keys` are stored. A key that names a policy which is not
    /// among `policies` simply lacks its rules.
    pub fn compile(
        keys: impl IntoIterator<Item = CallerKey>,
        policies: impl IntoIterator<Item = Policy>,
        hash: KeyedHash,
    ) -> Self {
        let policies: BTreeMap<PolicyId, Arc<CompiledPolicy>> = policies
            .into_iter()
            .map(|policy| (policy.id.clone(), Arc::new(CompiledPolicy::new(&policy))))
            .collect();
        let keys = keys.into_iter().map(|key| (key.id.clone(), CompiledKey::new(key, &policies))).collect();
        Self { keys, hash }
    }

    /// Whose key is it? One HMAC and one look-up; the HMAC is computed for unknown ids too, so that the time does not
    /// tell which ids exist.
    ///
    /// # Errors
    /// [`KeyRefusal::Expired`] only to one who holds the right secret; else [`KeyRefusal::Invalid`].
    pub fn authenticate(
        &self,
        presented: &PresentedKey<'_>,
        now: UnixTime,
    ) -> Result<&CompiledKey, KeyRefusal> {
        let hmac = presented.secret_hmac(&self.hash);
        let key = self.keys.get(presented.id()).ok_or(KeyRefusal::Invalid)?;
        key.check_secret(&hmac, now)?;
        if presented.kind() == KeyKind::Caller { Ok(key) } else { Err(KeyRefusal::Invalid) }
    }

    /// A key by its id, for `explain` and for last-use marks.
    pub fn key(&self, id: &CallerKeyId) -> Option<&CompiledKey> {
        self.keys.get(id)
    }

    pub fn keys(&self) -> impl Iterator<Item = &CompiledKey> {
        self.keys.values()
    }

    /// Keys that were used since this was last asked, with the time.
    pub fn drain_last_used(&self) -> Vec<(CallerKeyId, UnixTime)> {
        let drained = |key: &CompiledKey| Some((key.id().clone(), key.drain_last_used()?));
        self.keys.values().filter_map(drained).collect()
    }

    /// Keys that stay go on with the marks and counts they have.
    pub(crate) fn go_on_from(&mut self, earlier: &Self) {
        for (id, key) in &mut self.keys {
            if let Some(earlier) = earlier.keys.get(id) {
                key.go_on_from(earlier);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bearerd_crypto::RootSecret;
    use bearerd_model::KeySecret;

    use super::*;
    use crate::{ApiKey, SharedSnapshot};

    fn hash() -> KeyedHash {
        RootSecret::from_bytes([9; 32]).keyed_hash("caller key")
    }

    fn stored(key: &ApiKey, secrets: Vec<KeySecret>, expires_at: Option<u64>) -> CallerKey {
        CallerKey {
            id: key.id(),
            description: String::new(),
            secrets,
            policies: vec![],
            default_connection: None,
            expires_at: expires_at.map(UnixTime::from_secs),
            created_at: UnixTime::from_secs(0),
            last_used_at: None,
        }
    }

    fn secret(key: &ApiKey, expires_at: Option<u64>) -> KeySecret {
        KeySecret {
            hmac: key.secret_hmac(&hash()),
            created_at: UnixTime::from_secs(0),
            expires_at: expires_at.map(UnixTime::from_secs),
        }
    }

    /// S-14: two live secrets, the older with an end; S-13: only one who holds a secret learns that it expired.
    #[test]
    fn a_key_is_valid_with_each_live_secret_until_it_expires() {
        let old = ApiKey::generate(KeyKind::Caller);
        let new = ApiKey::generate_for(KeyKind::Caller, &old.id()).unwrap();
        let wrong = ApiKey::generate_for(KeyKind::Caller, &old.id()).unwrap();
        let record = stored(&old, vec![secret(&old, Some(100)), secret(&new, None)], Some(200));
        let snapshot = Snapshot::compile([record], [], hash());
        let check = |key: &ApiKey, now: u64| {
            snapshot.authenticate(&key.presented(), UnixTime::from_secs(now)).map(|key| key.id().clone())
        };
        for (key, now, expected) in [
            (&old, 99, Ok(())),
            (&old, 100, Err(KeyRefusal::Expired)),
            (&new, 199, Ok(())),
            (&new, 200, Err(KeyRefusal::Expired)),
            (&wrong, 99, Err(KeyRefusal::Invalid)),
            (&wrong, 300, Err(KeyRefusal::Invalid)),
        ] {
            assert_eq!(check(key, now), expected.map(|()| old.id()), "at {now}");
        }
    }

    /// An operator's key opens nothing at the proxy door, even one that somehow has a caller's record.
    #[test]
    fn an_admin_key_is_no_caller_key() {
        let admin = ApiKey::generate(KeyKind::Admin);
        let snapshot = Snapshot::compile([stored(&admin, vec![secret(&admin, None)], None)], [], hash());
        let refusal = snapshot.authenticate(&admin.presented(), UnixTime::from_secs(1)).unwrap_err();
        assert_eq!(refusal, KeyRefusal::Invalid);
    }

    #[test]
    fn a_published_snapshot_reaches_readers_and_keeps_the_marks() {
        let (stays, goes) = (ApiKey::generate(KeyKind::Caller), ApiKey::generate(KeyKind::Caller));
        let snapshot = |keys: &[&ApiKey]| {
            Snapshot::compile(keys.iter().map(|key| stored(key, vec![secret(key, None)], None)), [], hash())
        };
        let now = UnixTime::from_secs(1_000);
        let shared = SharedSnapshot::new(snapshot(&[&stays, &goes]), now);
        let mut reader = shared.reader();
        let in_flight = Arc::clone(reader.load());
        shared.publish(snapshot(&[&stays]), now);
        assert!(reader.load().authenticate(&goes.presented(), now).is_err());
        assert!(reader.load().authenticate(&stays.presented(), now).is_ok());
        // A call that began under the old snapshot still leaves its mark.
        in_flight.key(&stays.id()).unwrap().mark_used(now);
        assert_eq!(shared.load().drain_last_used(), [(stays.id(), now)]);
        assert_eq!(shared.load().drain_last_used(), []);
        assert_eq!(shared.load().keys().count(), 1);
    }

    #[test]
    fn a_snapshot_is_usable_as_long_as_it_may_be_stale() {
        let confirmed = UnixTime::from_secs(1_000);
        let shared = SharedSnapshot::new(Snapshot::compile([], [], hash()), confirmed);
        let hour = Duration::from_hours(1);
        for (stale_max, age_secs, usable) in [
            (hour, 0, true),
            (hour, 3_600, true),
            (hour, 3_603, false),
            (Duration::ZERO, 1, true),
            (Duration::ZERO, 3, false),
        ] {
            let now = confirmed + Duration::from_secs(age_secs);
            assert_eq!(shared.is_usable(stale_max, now), usable, "{stale_max:?} {age_secs}");
        }
        shared.confirm(confirmed + hour);
        shared.confirm(confirmed); // a late message does not turn time back
        assert_eq!(shared.confirmed_at(), confirmed + hour);
    }
}

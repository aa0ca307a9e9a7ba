use std::{collections::BTreeSet, time::Duration};

use bearerd_model::{
    CallerKeyId, Clock, ConnectionSelector, MethodSet, PolicyId, Rule, SecretText, TableSet, UnixTime,
};
use bearerd_policy::{KeyRefusal, PresentedKey, SharedSnapshot};

use crate::{
    ActError, IssuedKey, KeySpec, PolicySpec,
    testing::{World, connection_id},
};

pub(super) fn policy_id(text: &str) -> PolicyId {
    PolicyId::parse(text).unwrap()
}

pub(super) fn policy() -> PolicySpec {
    let rule = Rule::new(
        ConnectionSelector::All,
        TableSet::Named(BTreeSet::from(["incident".to_owned()])),
        MethodSet(BTreeSet::from(["GET".to_owned()])),
    );
    PolicySpec { description: String::new(), rules: vec![rule], rate: None, concurrency_max: None }
}

pub(super) fn key_spec(policies: &[&str]) -> KeySpec {
    KeySpec {
        description: "reports".to_owned(),
        policies: policies.iter().map(|id| policy_id(id)).collect(),
        default_connection: None,
        expires_at: None,
    }
}

pub(super) fn check(snapshot: &SharedSnapshot, key: &SecretText, now: UnixTime) -> Result<(), KeyRefusal> {
    let presented = PresentedKey::parse(key.expose().as_bytes()).unwrap();
    snapshot.load().authenticate(&presented, now).map(drop)
}

impl World {
    /// A key for policy `p`, which is made where it is not there.
    pub(super) async fn key(&self) -> IssuedKey {
        self.control.put_policy(policy_id("p"), policy(), None).await.unwrap();
        self.control.create_key(key_spec(&["p"])).await.unwrap()
    }

    fn check(&self, key: &SecretText) -> Result<(), KeyRefusal> {
        check(&self.control.snapshot(), key, self.clock.now())
    }
}

fn code<T>(outcome: Result<T, ActError>) -> &'static str {
    outcome.map_or_else(|error| error.code(), |_| "done")
}

#[tokio::test]
async fn a_key_is_in_force_when_it_is_shown() {
    let world = World::new().await;
    let key = world.key().await;
    assert_eq!(world.check(&key.text), Ok(()));
    let stored = format!("{:?}", key.versioned.record);
    let secret = key.text.expose().rsplit('_').next().unwrap();
    assert!(!stored.contains(secret));
    world.control.delete_key(&key.versioned.record.id, None).await.unwrap();
    assert_eq!(world.check(&key.text), Err(KeyRefusal::Invalid));
}

/// S-14: two live secrets; the older one ends with its overlap, the one before it at once.
#[tokio::test]
async fn s_14_a_rotation_leaves_two_live_secrets() {
    let world = World::new().await;
    let first = world.key().await;
    let id = first.versioned.record.id.clone();
    let hour = Duration::from_hours(1);
    let second = world.control.rotate_key(&id, hour).await.unwrap();
    assert_eq!((world.check(&first.text), world.check(&second.text)), (Ok(()), Ok(())));
    world.clock.leap(hour / 2);
    let third = world.control.rotate_key(&id, hour).await.unwrap();
    assert_eq!(third.versioned.record.secrets.len(), 2);
    assert_eq!(world.check(&first.text), Err(KeyRefusal::Invalid));
    assert_eq!((world.check(&second.text), world.check(&third.text)), (Ok(()), Ok(())));
    world.clock.leap(hour);
    assert_eq!((world.check(&second.text), world.check(&third.text)), (Err(KeyRefusal::Expired), Ok(())));
    let fourth = world.control.rotate_key(&id, Duration::ZERO).await.unwrap();
    assert_eq!((world.check(&third.text), world.check(&fourth.text)), (Err(KeyRefusal::Expired), Ok(())));
    // An overlap never gives a secret more life than it had.
    world.control.rotate_key(&id, Duration::from_secs(10)).await.unwrap();
    let too_long = world.control.rotate_key(&id, Duration::from_hours(91 * 24)).await;
    assert_eq!(code(too_long), "invalid_request");
    let unknown = CallerKeyId::parse("unknown").unwrap();
    assert_eq!(code(world.control.rotate_key(&unknown, hour).await), "not_found");
}

#[tokio::test]
async fn a_key_ends_when_it_expires() {
    let world = World::new().await;
    world.key().await;
    let expires_at = Some(world.clock.now() + Duration::from_hours(1));
    let key = world.control.create_key(KeySpec { expires_at, ..key_spec(&["p"]) }).await.unwrap();
    assert_eq!(world.check(&key.text), Ok(()));
    world.clock.leap(Duration::from_hours(1));
    assert_eq!(world.check(&key.text), Err(KeyRefusal::Expired));
    let id = &key.versioned.record.id;
    let still = KeySpec { expires_at, ..key_spec(&["p"]) };
    assert_eq!(code(world.control.change_key(id, still, None).await), "invalid_request");
    world.control.change_key(id, key_spec(&["p"]), None).await.unwrap();
    assert_eq!(world.check(&key.text), Ok(()));
}

#[tokio::test]
async fn what_cannot_be_a_key_is_refused() {
    let world = World::new().await;
    world.key().await;
    let base = key_spec(&["p"]);
    let many = vec!["p"; 65];
    for (name, spec) in [
        ("unknown policy", key_spec(&["p", "unknown"])),
        ("no policy", key_spec(&[])),
        ("too many policies", key_spec(&many)),
        ("expired", KeySpec { expires_at: Some(world.clock.now()), ..base.clone() }),
        (
            "unknown connection",
            KeySpec { default_connection: Some(connection_id("unknown")), ..base.clone() },
        ),
        ("description", KeySpec { description: "x".repeat(1_001), ..base.clone() }),
    ] {
        assert_eq!(code(world.control.create_key(spec).await), "invalid_request", "{name}");
    }
    world.connect("c", "a", None).await;
    let with_connection = KeySpec { default_connection: Some(connection_id("c")), ..base };
    assert_eq!(code(world.control.create_key(with_connection).await), "done");
}

#[tokio::test]
async fn a_policy_in_use_is_not_deleted() {
    let world = World::new().await;
    let key = world.key().await;
    let refused = world.control.delete_policy(&policy_id("p"), None).await.unwrap_err();
    assert_eq!(refused.code(), "in_use");
    assert!(refused.to_string().contains(key.versioned.record.id.as_str()));
    world.control.delete_key(&key.versioned.record.id, None).await.unwrap();
    world.control.delete_policy(&policy_id("p"), None).await.unwrap();
    assert_eq!(code(world.control.delete_policy(&policy_id("p"), None).await), "not_found");
}

#[tokio::test]
async fn the_same_policy_again_changes_nothing() {
    let world = World::new().await;
    let put = async |spec, expected| {
        world.control.put_policy(policy_id("p"), spec, expected).await.map(|put| put.written)
    };
    let first = put(policy(), None).await.unwrap();
    assert!(first.created);
    world.clock.leap(Duration::from_mins(1));
    let again = put(policy(), None).await.unwrap();
    assert_eq!((again.created, again.versioned.revision), (false, first.versioned.revision));
    let other = PolicySpec { description: "other".to_owned(), ..policy() };
    let changed = put(other.clone(), Some(first.versioned.revision)).await.unwrap();
    assert_eq!(changed.versioned.record.created_at, first.versioned.record.created_at);
    assert_eq!(code(put(other, Some(first.versioned.revision)).await), "changed_meanwhile");
    let nothing = PolicySpec { rules: Vec::new(), ..policy() };
    let mut unnamed = policy();
    unnamed.rules[0].tables = TableSet::Named(BTreeSet::from(["No Table".to_owned()]));
    assert_eq!(code(put(unnamed, None).await), "invalid_request");
    let _ = code(put(nothing, None).await);
}

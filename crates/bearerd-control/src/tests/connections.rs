use std::{collections::BTreeMap, time::Duration};

use bearerd_model::{AccessToken, Lifecycle, ProfileName, RefreshToken};
use bearerd_tokens::LendError;

use crate::{
    ActError, ConnectionChange, ConnectionSpec, ImportedTokens,
    testing::{World, connection_id, connection_spec, operator},
};

fn import(access_token: Option<&str>, refresh_token: Option<&str>) -> ImportedTokens {
    ImportedTokens {
        access_token: access_token.map(|text| AccessToken::parse(text.to_owned()).unwrap()),
        expires_in: Some(Duration::from_mins(10)),
        refresh_token: refresh_token.map(|text| RefreshToken::parse(text.to_owned()).unwrap()),
        refresh_expires_at: None,
    }
}

fn importing(tokens: ImportedTokens, expected: Option<&str>) -> ConnectionSpec {
    ConnectionSpec {
        expected_user: expected.map(str::to_owned),
        import: Some(tokens),
        ..connection_spec("a")
    }
}

impl World {
    async fn create(&self, id: &str, spec: ConnectionSpec) -> Result<Option<String>, ActError> {
        let created = self.control.create_connection(connection_id(id), spec, &operator()).await?;
        Ok(created.connect_link.map(|link| link.url))
    }
}

#[tokio::test]
async fn imported_tokens_are_lent_at_once() {
    let world = World::new().await;
    world.instance.knows_token("elsewhere", "abel");
    let tokens = import(Some("elsewhere"), Some("rt-abel"));
    assert_eq!(world.create("c", importing(tokens, Some("abel"))).await.unwrap(), None);
    assert_eq!((world.lent_to("c").await.as_deref(), world.instance.count()), (Some("abel"), 0));
    world.clock.leap(Duration::from_mins(10));
    assert_eq!((world.lent_to("c").await.as_deref(), world.instance.count()), (Some("abel"), 1));
    assert_eq!(world.create("d", importing(import(None, Some("rt-abel")), None)).await.unwrap(), None);
    assert_eq!(world.lent_to("d").await.as_deref(), Some("abel"));
    assert_eq!(world.stored("d").await.grant.unwrap().refresh_expires_at, None); // the same token: its end is not known
}

/// O-23 holds for imports too: the wrong user's tokens are never lent. They are kept only where the call rotated the
/// operator's refresh token away.
#[tokio::test]
async fn o_23_imported_tokens_of_another_user_are_not_lent() {
    let world = World::new().await;
    world.instance.knows_token("elsewhere", "mallory");
    for tokens in [import(Some("elsewhere"), None), import(None, Some("rt-mallory"))] {
        let refused = world.create("c", importing(tokens, Some("abel"))).await.unwrap_err();
        assert_eq!(refused.code(), "other_user");
        assert_eq!(world.acquire("c").await.unwrap_err(), LendError::Unknown);
    }
    world.instance.rotates();
    assert!(world.create("c", importing(import(None, Some("rt-mallory")), Some("abel"))).await.is_ok());
    let stored = world.stored("c").await;
    assert!(matches!(stored.lifecycle, Lifecycle::AwaitingConfirmation { .. }));
    assert_eq!(stored.user.unwrap().user_name, "mallory");
    assert!(stored.grant.unwrap().refresh_token.is_some());
    assert_eq!(world.acquire("c").await.unwrap_err(), LendError::Pending);
    world.control.confirm(&connection_id("c"), "mallory").await.unwrap();
    world.acquire("c").await.unwrap();
}

/// O-23: nobody could be asked whose the tokens are, and somebody was expected: not lent.
#[tokio::test]
async fn o_23_an_untested_import_waits_for_the_expected_user() {
    let world = World::new().await;
    world.instance.next_user_answer(403, "application/json", "{}");
    world.create("c", importing(import(None, Some("rt-mallory")), Some("abel"))).await.unwrap();
    assert_eq!(world.acquire("c").await.unwrap_err(), LendError::Pending);
    assert_eq!(world.control.test(&connection_id("c")).await.unwrap().user.user_name, "mallory");
    assert_eq!(world.acquire("c").await.unwrap_err(), LendError::Pending);
}

/// A refresh token that the instance refuses for good leaves nothing behind.
#[tokio::test]
async fn a_refused_import_is_forgotten() {
    let world = World::new().await;
    world.instance.next_token_answer(400, "application/json", r#"{"error":"invalid_grant"}"#);
    let refused = world.create("c", importing(import(None, Some("rt-abel")), None)).await.unwrap_err();
    assert_eq!(refused.code(), "grant_refused");
    assert_eq!(world.acquire("c").await.unwrap_err(), LendError::Unknown);
    world.create("c", importing(import(None, Some("rt-abel")), None)).await.unwrap();
}

/// I-1: a refresh token that was spent here is stored even if nobody could be asked whose it is.
#[tokio::test]
async fn i_1_a_spent_refresh_token_is_kept_untested() {
    let world = World::new().await;
    world.instance.rotates();
    world.instance.next_user_answer(403, "application/json", "{}");
    world.create("c", importing(import(None, Some("rt-abel")), None)).await.unwrap();
    let stored = world.stored("c").await;
    assert!(stored.user.is_none() && stored.grant.unwrap().refresh_expires_at.is_some());
    world.acquire("c").await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_a_connection_is_refused() {
    let world = World::new().await;
    let labels = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
    for (name, spec, expected) in [
        ("nothing to import", importing(import(None, None), None), "invalid_request"),
        ("unknown integration", connection_spec("unknown"), "not_found"),
        (
            "unknown profile",
            ConnectionSpec { profile: ProfileName::parse("x").unwrap(), ..connection_spec("a") },
            "invalid_request",
        ),
        ("label", ConnectionSpec { labels: labels("", "x"), ..connection_spec("a") }, "invalid_request"),
        ("label", ConnectionSpec { labels: labels("a", "b\nc"), ..connection_spec("a") }, "invalid_request"),
        (
            "user",
            ConnectionSpec { expected_user: Some(String::new()), ..connection_spec("a") },
            "invalid_request",
        ),
    ] {
        assert_eq!(world.create("c", spec).await.unwrap_err().code(), expected, "{name}");
    }
    world.create("c", connection_spec("a")).await.unwrap().unwrap();
    assert_eq!(world.create("c", connection_spec("a")).await.unwrap_err().code(), "exists");
}

#[tokio::test]
async fn a_freeze_is_in_force_when_it_returns() {
    let world = World::new().await;
    world.connected("c", "abel").await;
    let id = connection_id("c");
    world.acquire("c").await.unwrap();
    let (_other, other_tokens) = world.another_process().await;
    bearerd_tokens::AccessTokens::acquire(&*other_tokens, &id).await.unwrap();
    for _ in 0..2 {
        world.control.freeze(&id, "incident 4711".to_owned()).await.unwrap();
        assert_eq!(world.acquire("c").await.unwrap_err(), LendError::Frozen);
        world.control.unfreeze(&id).await.unwrap();
        world.acquire("c").await.unwrap();
    }
    assert_eq!(
        world.control.freeze(&id, "two\nlines".to_owned()).await.unwrap_err().code(),
        "invalid_request"
    );
    world.control.delete_connection(&id, None).await.unwrap();
    assert_eq!(world.acquire("c").await.unwrap_err(), LendError::Unknown);
}

#[tokio::test]
async fn a_change_is_made_at_the_revision_that_was_read() {
    let world = World::new().await;
    world.connect("c", "a", None).await;
    let id = connection_id("c");
    let read = world.control.connection(&id).await.unwrap().revision;
    let labels = ConnectionChange { labels: Some(BTreeMap::new()), expected_user: None };
    let changed = world.control.change_connection(&id, labels.clone(), Some(read)).await.unwrap().revision;
    assert_eq!(
        world.control.change_connection(&id, labels, Some(read)).await.unwrap_err().code(),
        "changed_meanwhile"
    );
    assert_eq!(
        world.control.delete_connection(&id, Some(read)).await.unwrap_err().code(),
        "changed_meanwhile"
    );
    world.control.delete_connection(&id, Some(changed)).await.unwrap();
}

#[tokio::test]
async fn machines_are_not_asked_for_a_consent() {
    let world = World::new().await;
    let machine = ConnectionSpec { profile: ProfileName::parse("machine").unwrap(), ..connection_spec("a") };
    assert_eq!(world.create("m", machine).await.unwrap(), None);
    assert_eq!(world.stored("m").await.user.unwrap().user_name, "application");
    let refused = world.control.reauthorize(&connection_id("m"), &operator()).await.unwrap_err();
    assert_eq!(refused.code(), "no_consent_needed");
    world.control.refresh(&connection_id("m")).await.unwrap();
    assert_eq!(world.control.test(&connection_id("m")).await.unwrap().user.user_name, "application");
}

#[tokio::test]
async fn a_refresh_says_what_went_wrong() {
    let world = World::new().await;
    world.connected("c", "abel").await;
    let id = connection_id("c");
    let before = world.stored("c").await.grant.unwrap().generation;
    world.instance.next_token_answer(503, "application/json", "{}");
    let failed = world.control.refresh(&id).await.unwrap_err();
    assert_eq!(failed.code(), "refresh_failed");
    assert!(failed.to_string().contains("503"), "{failed}");
    world.acquire("c").await.unwrap(); // still valid, still lent
    let refreshed = world.control.refresh(&id).await.unwrap().record;
    assert_eq!(refreshed.grant.unwrap().generation, before.next());
    assert!(world.control.fingerprint(&world.stored("c").await).is_some());
    let unknown = world.control.refresh(&connection_id("unknown")).await.unwrap_err();
    assert_eq!(unknown.code(), "not_found");
}

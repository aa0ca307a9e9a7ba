//! Tokens that were wiped here end at the instance too, and no live grant is killed by that (product contract §5).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bearerd_model::{ClientSecret, Connection, ConsentResult};
use bearerd_store::{Kind, Revocation, RevocationGate};
use tokio_util::sync::CancellationToken;

use crate::{
    ActError, IntegrationSpec,
    gate::GateBusy,
    testing::{Instance, Point, World, callback, connection_id, eventually, integration_id, spec},
};

impl World {
    async fn sharing() -> Self {
        let world = Self::new().await;
        world.instance.shares_tokens();
        world
    }

    async fn delete(&self, id: &str) {
        self.control.delete_connection(&connection_id(id), None).await.unwrap();
    }

    /// The tokens that the instance was asked to revoke, in order.
    fn asked_to_revoke(&self) -> Vec<String> {
        self.instance.revocations().iter().map(|form| form["token"].clone()).collect()
    }

    fn revoked(&self, outcome: &str) -> u64 {
        self.control.work.metrics.revocations.with_label_values(&[outcome]).get()
    }
}

/// O-41: the refresh token first, each with its hint, by the client that it was given to.
#[tokio::test]
async fn o_41_a_deleted_connection_s_tokens_are_revoked() {
    let world = World::new().await;
    world.connected("c", "abel").await;
    world.delete("c").await;
    assert_eq!(world.count::<Revocation>().await, 2);
    assert_eq!(world.revoke().await, 2);
    assert_eq!(world.asked_to_revoke(), ["rt-abel", "at-1"]);
    let forms = world.instance.revocations();
    for (form, hint) in forms.iter().zip(["refresh_token", "access_token"]) {
        let client = (&*form["client_id"], &*form["client_secret"], &*form["token_type_hint"]);
        assert_eq!(client, ("our-client", "our-secret", hint));
    }
    assert_eq!((world.count::<Revocation>().await, world.revoked("revoked")), (0, 2));
    assert_eq!(world.revoke().await, 0);
}

/// The issue's own case: delete, revocation endpoint down, the same user connects again and is given the same tokens,
/// endpoint up: the new connection still works.
#[tokio::test]
async fn a_token_that_a_new_connection_was_given_again_is_not_revoked() {
    let world = World::sharing().await;
    world.connected("c", "abel").await;
    let before = world.stored("c").await.grant.unwrap();
    world.instance.answers_revocations(503);
    world.delete("c").await; // does not wait for the instance
    world.revoke().await;
    assert_eq!((world.asked_to_revoke().len(), world.revoked("failed")), (1, 1));
    world.connected("again", "abel").await;
    assert!(world.stored("again").await.grant.unwrap().has_same_tokens(&before));
    world.instance.answers_revocations(200);
    world.clock.leap(Duration::from_mins(1));
    assert_eq!(world.revoke().await, 2);
    assert_eq!((world.asked_to_revoke().len(), world.revoked("kept")), (1, 2));
    assert_eq!(world.count::<Revocation>().await, 0);
    world.control.refresh(&connection_id("again")).await.unwrap();
    assert_eq!(world.lent_to("again").await.as_deref(), Some("abel"));
    // The last holder's are.
    world.delete("again").await;
    assert_eq!(world.revoke().await, 2);
    assert_eq!(world.revoked("revoked"), 2);
}

/// Two connections of one user: the first that goes takes nothing from the other.
#[tokio::test]
async fn a_token_that_another_connection_holds_is_not_revoked() {
    let world = World::sharing().await;
    world.connected("b", "abel").await;
    world.connected("c", "abel").await;
    world.delete("b").await;
    world.revoke().await;
    assert_eq!((world.asked_to_revoke().len(), world.revoked("kept")), (0, 2));
    world.control.refresh(&connection_id("c")).await.unwrap();
}

/// The access token that came with a refresh token goes with it: whoever holds that may be given this one again.
#[tokio::test]
async fn an_access_token_stays_with_the_refresh_token_that_it_came_with() {
    let world = World::new().await; // another access token each time, one refresh token
    world.connected("b", "abel").await;
    world.connected("c", "abel").await;
    world.delete("b").await;
    world.revoke().await;
    assert!(world.asked_to_revoke().is_empty());
}

/// A consent that begins while a token is being revoked waits for the end, and is given another.
#[tokio::test]
async fn a_consent_waits_for_a_call_under_way() {
    let world = World::sharing().await;
    world.connected("c", "abel").await;
    world.connect("again", "a", Some("abel")).await;
    world.delete("c").await;
    world.instance.holds_revocations(true);
    let control = world.control.clone();
    let revoking = tokio::spawn(async move { control.revoke_due().await });
    eventually("the first call is under way", async || world.asked_to_revoke().len() == 1).await;
    let begun = world.begin(&world.link("again").await).await;
    let code = world.instance.allows(&begun.authorization_url, "abel");
    let (control, exchanges) = (world.control.clone(), world.instance.count());
    let finishing =
        tokio::spawn(async move { control.finish_consent(callback(&begun, Some(&code))).await.unwrap() });
    eventually("the consent is announced", async || {
        let gates = world.store.list::<RevocationGate>(None, 10).await.unwrap().records;
        gates.iter().any(|gate| !gate.record.obtaining.is_empty())
    })
    .await;
    assert_eq!(world.instance.count(), exchanges, "the code waits");
    world.instance.holds_revocations(false);
    let outcome = finishing.await.unwrap();
    assert!(matches!(outcome.result, ConsentResult::Connected { .. }), "{outcome:?}");
    revoking.await.unwrap().unwrap();
    assert_eq!(world.asked_to_revoke(), ["rt-abel"], "the access token's turn did not come");
    world.clock.leap(Duration::from_mins(1));
    world.revoke().await;
    assert_eq!(world.stored("again").await.grant.unwrap().refresh_token.unwrap().expose(), "rt-rt-abel");
    world.control.refresh(&connection_id("again")).await.unwrap();
    assert_eq!(world.lent_to("again").await.as_deref(), Some("abel"));
}

/// No call begins while a consent is under way, and none that was decided before it.
#[tokio::test]
async fn a_call_does_not_begin_while_a_consent_is_under_way() {
    let world = World::sharing().await;
    world.connected("c", "abel").await;
    world.connect("again", "a", Some("abel")).await;
    world.delete("c").await;
    let begun = world.begin(&world.link("again").await).await;
    let code = world.instance.allows(&begun.authorization_url, "abel");
    world.instance.holds(true);
    let (control, exchanges) = (world.control.clone(), world.instance.count());
    let finishing =
        tokio::spawn(async move { control.finish_consent(callback(&begun, Some(&code))).await.unwrap() });
    eventually("the code is on its way", async || world.instance.count() > exchanges).await;
    world.revoke().await;
    assert!(world.asked_to_revoke().is_empty());
    assert_eq!(world.count::<Revocation>().await, 2);
    world.instance.holds(false);
    let outcome = finishing.await.unwrap();
    assert!(matches!(outcome.result, ConsentResult::Connected { .. }), "{outcome:?}");
    world.clock.leap(Duration::from_secs(5));
    world.revoke().await;
    assert_eq!((world.asked_to_revoke().len(), world.revoked("kept")), (0, 2));
    assert_eq!(world.lent_to("again").await.as_deref(), Some("abel"));
}

/// A consent that begins and ends between the look for holders and the call: the decision is made anew.
#[tokio::test]
async fn a_consent_between_look_and_call_counts() {
    let world = World::sharing().await;
    world.connected("c", "abel").await;
    world.connect("again", "a", Some("abel")).await;
    world.delete("c").await;
    let begun = world.begin(&world.link("again").await).await;
    let code = world.instance.allows(&begun.authorization_url, "abel");
    let control = world.control.clone();
    // The gate is read once before the look, and once to begin the call.
    world.backend.on(Point::AfterLoad(Kind::RevocationGate), 1, async move || {
        control.finish_consent(callback(&begun, Some(&code))).await.unwrap();
    });
    world.revoke().await;
    assert_eq!(world.stored("again").await.lifecycle.name(), "active");
    assert!(world.asked_to_revoke().is_empty());
    world.clock.leap(Duration::from_secs(5));
    world.revoke().await;
    assert_eq!((world.asked_to_revoke().len(), world.revoked("kept")), (0, 2));
}

/// Many people may consent at once: each passes the gate of their client, and none stays in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_obtain_tokens_at_once() {
    let world = World::new().await;
    let (other, _tokens) = world.another_process().await;
    let integration = world.control.integration(&integration_id("a")).await.unwrap().record;
    let all: Vec<_> = (0..200)
        .map(|number| {
            let control = if number % 2 == 0 { world.control.clone() } else { other.clone() };
            let integration = integration.clone();
            tokio::spawn(async move { control.while_obtaining(&integration, async { number }).await })
        })
        .collect();
    for (number, one) in (0..).zip(all) {
        assert_eq!(one.await.unwrap().unwrap(), number);
    }
    let gate = world.store.list::<RevocationGate>(None, 10).await.unwrap().records.remove(0).record;
    assert!(gate.obtaining.is_empty() && gate.entered >= 200, "{gate:?}");
}

/// Of many processes, one works on an entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_processes_revoke_each_token_once() {
    let world = World::new().await;
    let mut expected = BTreeSet::new();
    for number in 0..8 {
        let (id, user) = (format!("c{number}"), format!("user{number}"));
        world.connected(&id, &user).await;
        let grant = world.stored(&id).await.grant.unwrap();
        expected.insert(grant.refresh_token.unwrap().expose().to_owned());
        expected.insert(grant.access_token.expose().to_owned());
        world.delete(&id).await;
    }
    let (other, _tokens) = world.another_process().await;
    let all = [world.control.clone(), other]
        .map(|control| tokio::spawn(async move { control.revoke_due().await.unwrap() }));
    for one in all {
        one.await.unwrap();
    }
    while world.count::<Revocation>().await > 0 {
        world.clock.leap(Duration::from_secs(3)); // those that met the other process's call
        world.revoke().await;
    }
    let asked = world.asked_to_revoke();
    assert_eq!(asked.iter().cloned().collect::<BTreeSet<_>>(), expected);
    assert_eq!(asked.len(), expected.len(), "each once: {asked:?}");
}

/// A process that crashed between queueing and wiping has wiped nothing: the connection goes on.
#[tokio::test]
async fn what_was_not_wiped_is_not_revoked() {
    let world = World::new().await;
    world.connected("c", "abel").await;
    let connection = world.stored("c").await;
    drop(world.control.queue_revocations(&connection).await.unwrap());
    assert_eq!(world.revoke().await, 0, "not due before it is wiped");
    world.clock.leap(Duration::from_secs(31));
    assert_eq!(world.revoke().await, 2);
    assert_eq!((world.asked_to_revoke().len(), world.revoked("kept")), (0, 2));
    // Between wiping and arming: it is revoked a little later.
    drop(world.control.queue_revocations(&connection).await.unwrap());
    let stored = world.control.connection(&connection_id("c")).await.unwrap();
    world.store.delete::<bearerd_model::Connection>("c", stored.revision).await.unwrap();
    world.clock.leap(Duration::from_secs(31));
    world.revoke().await;
    assert_eq!(world.asked_to_revoke(), ["rt-abel", "at-1"]);
}

/// A process that was killed in the middle of a call: another one repeats it.
#[tokio::test]
async fn a_call_of_a_dead_process_is_repeated() {
    let world = World::new().await;
    world.connected("c", "abel").await;
    world.delete("c").await;
    world.instance.holds_revocations(true);
    let control = world.control.clone();
    let dying = tokio::spawn(async move { control.revoke_due().await });
    eventually("the call is under way", async || world.asked_to_revoke().len() == 1).await;
    dying.abort();
    let _ = dying.await;
    world.instance.holds_revocations(false);
    assert_eq!(world.revoke().await, 0, "its own for a while");
    world.clock.leap(Duration::from_mins(3));
    assert_eq!(world.revoke().await, 2);
    assert_eq!(world.asked_to_revoke(), ["rt-abel", "rt-abel", "at-1"]);
}

/// The pauses grow; after a week the token is left to its own end, unless that came before.
#[tokio::test]
async fn a_revocation_is_given_up_after_a_week() {
    let world = World::new().await;
    world.connected("c", "abel").await;
    world.delete("c").await;
    world.instance.answers_revocations(503);
    let mut calls = Vec::new();
    for hour in 0..200 {
        world.revoke().await;
        if world.count::<Revocation>().await == 0 {
            break;
        }
        assert!(hour < 199, "never given up");
        calls.push(world.asked_to_revoke().len());
        world.clock.leap(Duration::from_hours(1));
    }
    let count = *calls.last().unwrap();
    assert!((40..=80).contains(&count), "{count} calls in a week");
    assert_eq!((world.revoked("given_up"), world.revoked("ended")), (1, 1), "refresh token, access token");
    assert_eq!(world.revoked("failed"), world.asked_to_revoke().len() as u64 - 1);
}

/// An instance that is down is asked for one token a round, not for each.
#[tokio::test]
async fn an_instance_that_is_down_is_asked_once_a_round() {
    let world = World::new().await;
    for number in 0..4 {
        world.connected(&format!("c{number}"), &format!("user{number}")).await;
        world.delete(&format!("c{number}")).await;
    }
    world.instance.answers_revocations(503);
    assert_eq!(world.revoke().await, 8);
    assert_eq!(world.asked_to_revoke().len(), 1);
    world.instance.answers_revocations(200);
    world.clock.leap(Duration::from_mins(1));
    world.revoke().await;
    assert_eq!((world.asked_to_revoke().len(), world.count::<Revocation>().await), (9, 0));
}

/// What is needed for the call outlives the integration.
#[tokio::test]
async fn tokens_are_revoked_after_their_integration_is_gone() {
    let world = World::new().await;
    world.connected("c", "abel").await;
    world.delete("c").await;
    world.control.delete_integration(&integration_id("a"), None).await.unwrap();
    world.revoke().await;
    assert_eq!(world.asked_to_revoke(), ["rt-abel", "at-1"]);
}

/// Tokens of the client before are purged with its change, and revoked by its own name.
#[tokio::test]
async fn purged_tokens_are_revoked_by_their_own_client() {
    let world = World::new().await;
    world.connected("c", "abel").await;
    let mut other = spec(&world.instance);
    other.client_id = "another-client".to_owned();
    other.client_secret = Some(ClientSecret::parse("another-secret".to_owned()).unwrap());
    world.control.put_integration(integration_id("a"), other, None, true).await.unwrap();
    assert!(world.stored("c").await.grant.is_none());
    world.revoke().await;
    assert_eq!(world.asked_to_revoke(), ["rt-abel", "at-1"]);
    assert!(world.instance.revocations().iter().all(|form| form["client_id"] == "our-client"));
}

/// O-23: tokens of somebody else are refused and revoked.
#[tokio::test]
async fn o_23_tokens_of_another_user_are_revoked() {
    let world = World::new().await;
    world.connected("c", "abel").await;
    let before = world.stored("c").await.grant.unwrap();
    world.consent("c", "mallory").await;
    assert!(world.stored("c").await.grant.unwrap().has_same_tokens(&before));
    world.revoke().await;
    assert_eq!(world.asked_to_revoke(), ["rt-mallory", "at-3"]);
}

/// S-04: an entry that does not open holds up no other.
#[tokio::test]
async fn s_04_a_damaged_entry_holds_up_no_other() {
    let world = World::new().await;
    for user in ["abel", "beth"] {
        world.connected(user, user).await;
        world.delete(user).await;
    }
    let page = world.store.list::<Revocation>(None, 10).await.unwrap();
    world.backend.corrupt(Kind::Revocation, &page.records[0].record.id).await;
    assert_eq!(world.revoke().await, 3);
    assert_eq!(world.asked_to_revoke().len(), 3);
}

/// The queue of this process is heard at once, that of others with the next look; the gauge shows what waits.
#[tokio::test]
async fn a_running_control_revokes_by_itself() {
    let world = World::new().await;
    for user in ["abel", "beth"] {
        world.connected(user, user).await;
    }
    let closing = CancellationToken::new();
    let (control, ended) = (world.control.clone(), closing.clone());
    let running = tokio::spawn(async move { control.run(ended).await });
    world.delete("abel").await;
    eventually("revoked", async || world.asked_to_revoke().len() == 2).await;
    world.instance.answers_revocations(503);
    let (other, _tokens) = world.another_process().await;
    other.delete_connection(&connection_id("beth"), None).await.unwrap();
    eventually("another process's are tried", async || world.asked_to_revoke().len() > 2).await;
    let queued = || world.control.work.metrics.revocations_queued.get();
    eventually("counted", async || queued() == 2).await;
    closing.cancel();
    running.await.unwrap();
}

/// A deletion that a refresh overtook has wiped nothing: what it queued is of a grant that lives on, whatever has been
/// rotated since. A server may end the whole grant with the old refresh token.
#[tokio::test]
async fn the_tokens_of_a_refreshed_grant_are_not_revoked() {
    let world = Arc::new(World::new().await);
    world.instance.rotates();
    world.connected("c", "abel").await;
    let stored = world.control.connection(&connection_id("c")).await.unwrap();
    let control = world.control.clone();
    world.backend.on(Point::BeforeCreate(Kind::Revocation), 0, async move || {
        for _ in 0..2 {
            control.refresh(&connection_id("c")).await.unwrap(); // the first token is not even the one before
        }
    });
    let deleted = world.control.delete_connection(&connection_id("c"), Some(stored.revision)).await;
    assert!(matches!(deleted, Err(ActError::Changed)), "{deleted:?}");
    world.clock.leap(Duration::from_secs(31));
    assert_eq!(world.revoke().await, 2);
    assert_eq!((world.asked_to_revoke().len(), world.revoked("kept")), (0, 2));
    world.control.refresh(&connection_id("c")).await.unwrap();
    // A connection of the same name that was made anew is another.
    let old = world.stored("c").await;
    drop(world.control.queue_revocations(&old).await.unwrap());
    let stored = world.control.connection(&connection_id("c")).await.unwrap();
    world.store.delete::<Connection>("c", stored.revision).await.unwrap();
    world.connected("c", "beth").await;
    world.clock.leap(Duration::from_secs(31));
    world.revoke().await;
    assert_eq!(world.revoked("revoked"), 3, "refresh token, the one before it, access token");
    assert_eq!(world.lent_to("c").await.as_deref(), Some("beth"));
}

/// Whoever came upon the entries while the connection was still there has dropped them: they are queued anew.
#[tokio::test]
async fn dropped_entries_are_queued_anew_once_the_tokens_are_wiped() {
    let world = World::new().await;
    world.connected("c", "abel").await;
    let stored = world.control.connection(&connection_id("c")).await.unwrap();
    let queued = world.control.queue_revocations(&stored.record).await.unwrap();
    world.clock.leap(Duration::from_secs(31));
    world.revoke().await;
    assert_eq!((world.revoked("kept"), world.count::<Revocation>().await), (2, 0));
    world.store.delete::<Connection>("c", stored.revision).await.unwrap();
    world.control.arm(queued).await;
    world.revoke().await;
    assert_eq!(world.asked_to_revoke(), ["rt-abel", "at-1"]);
}

/// S-04: a connection that does not open may hold the token.
#[tokio::test]
async fn s_04_a_damaged_connection_puts_revocations_off() {
    let world = World::new().await;
    world.connected("b", "abel").await;
    world.connected("c", "abel").await;
    world.backend.corrupt(Kind::Connection, "b").await;
    world.delete("c").await;
    for attempts in 1..=3 {
        world.revoke().await;
        let queued = world.store.list::<Revocation>(None, 10).await.unwrap().records;
        assert!(queued.len() == 2 && queued.iter().all(|entry| entry.record.attempts == attempts));
        world.clock.leap(Duration::from_mins(2));
    }
    world.clock.leap(Duration::from_hours(8 * 24));
    world.revoke().await;
    assert!(world.asked_to_revoke().is_empty());
    assert_eq!((world.revoked("given_up"), world.revoked("ended")), (1, 1), "not for ever");
}

/// Nobody looks for holders while a call of the same client is under way.
#[tokio::test]
async fn a_gate_is_busy_while_a_call_is_under_way() {
    let world = World::new().await;
    let call = world.control.begin_call("gate", 0, Duration::from_secs(15)).await.unwrap().unwrap();
    assert_eq!(world.control.look_at_gate("gate").await.unwrap(), Err(GateBusy));
    world.clock.leap(Duration::from_secs(15));
    assert_eq!(world.control.look_at_gate("gate").await.unwrap(), Ok(0), "over at the latest");
    world.control.end_call("gate", &call).await.unwrap();
}

/// An instance that hangs holds up no other client's tokens, not even those that are queued later.
#[tokio::test]
async fn an_instance_that_hangs_holds_up_no_other() {
    let world = World::new().await;
    let elsewhere = Instance::start().await;
    let other_client = IntegrationSpec { client_id: "other-client".to_owned(), ..spec(&elsewhere) };
    world.put("b", other_client).await.unwrap();
    world.connected("c", "abel").await;
    let begun = world.begin(&world.connect("d", "b", Some("beth")).await).await;
    let code = elsewhere.allows(&begun.authorization_url, "beth");
    world.control.finish_consent(callback(&begun, Some(&code))).await.unwrap();
    let closing = CancellationToken::new();
    let (control, ended) = (world.control.clone(), closing.clone());
    let running = tokio::spawn(async move { control.run(ended).await });
    world.instance.holds_revocations(true);
    world.delete("c").await;
    eventually("one hangs", async || world.asked_to_revoke().len() == 1).await;
    world.delete("d").await;
    eventually("the other's are revoked", async || elsewhere.revocations().len() == 2).await;
    assert_eq!(world.revoked("failed"), 0, "it still hangs");
    closing.cancel();
    running.await.unwrap();
}

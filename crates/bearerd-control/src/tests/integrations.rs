use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use bearerd_model::{ClientSecret, DeathCause, InstanceOrigin, Lifecycle, ProfileName, Provider};
use bearerd_store::Kind;
use bearerd_tokens::AccessTokens;
use tokio::sync::oneshot;

use crate::{
    ActError, IntegrationSpec,
    testing::{
        Instance, PUBLIC_URL, Point, World, connection_id, connection_spec, integration_id, operator, spec,
    },
};

/// Another client at the same instance.
fn client(world: &World, client_id: &str) -> IntegrationSpec {
    IntegrationSpec { client_id: client_id.to_owned(), ..spec(&world.instance) }
}

fn code(outcome: Result<(), ActError>) -> &'static str {
    outcome.map_or_else(|error| error.code(), |()| "done")
}

async fn redirect_uri(world: &World, id: &str) -> String {
    world.control.integration(&integration_id(id)).await.unwrap().record.redirect_uri
}

/// O-18: the first integration has the shared redirect URI, each further one its own, and no two have the same.
#[tokio::test]
async fn o_18_redirect_uris_are_shared_by_none() {
    let world = World::new().await;
    world.put("b", client(&world, "b")).await.unwrap();
    let shared = format!("{PUBLIC_URL}/oauth/callback");
    assert_eq!(redirect_uri(&world, "a").await, shared);
    assert_eq!(redirect_uri(&world, "b").await, format!("{shared}/b"));
    for (id, asked, expected) in [
        ("b", shared.clone(), "redirect_uri_taken"),
        ("c", shared.clone(), "redirect_uri_taken"),
        ("c", format!("{shared}/b"), "invalid_request"),
        ("c", format!("{shared}/"), "invalid_request"),
        ("c", "https://evil.example/oauth/callback".to_owned(), "invalid_request"),
        ("b", format!("{shared}/b"), "done"),
    ] {
        let asking = IntegrationSpec { redirect_uri: Some(asked.clone()), ..client(&world, id) };
        assert_eq!(code(world.put(id, asking).await), expected, "{id} {asked}");
    }
    // Given back by a change, and by a deletion; a change that says nothing keeps what there is.
    let own = IntegrationSpec { redirect_uri: Some(format!("{shared}/a")), ..spec(&world.instance) };
    world.put("a", own).await.unwrap();
    world.put("a", spec(&world.instance)).await.unwrap();
    assert_eq!(redirect_uri(&world, "a").await, format!("{shared}/a"));
    world.put("c", client(&world, "c")).await.unwrap();
    assert_eq!(redirect_uri(&world, "c").await, shared);
    world.control.delete_integration(&integration_id("c"), None).await.unwrap();
    world.put("d", client(&world, "d")).await.unwrap();
    assert_eq!(redirect_uri(&world, "d").await, shared);
}

/// O-18: of two that are made at once in one process, each gets a redirect URI of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o_18_integrations_made_at_once_share_no_redirect_uri() {
    let world = Arc::new(World::new().await);
    world.control.delete_integration(&integration_id("a"), None).await.unwrap();
    let other = world.clone();
    let (began, second) = oneshot::channel();
    world.backend.on(Point::BeforeCreate(Kind::Integration), 0, async move || {
        let putting = other.clone();
        let mut second = tokio::spawn(async move { putting.put("b", client(&putting, "b")).await });
        // Either it waits for the first to be made, or it is through before.
        let _ = tokio::time::timeout(Duration::from_millis(200), &mut second).await;
        let _ = began.send(second);
    });
    world.put("a", spec(&world.instance)).await.unwrap();
    second.await.unwrap().await.unwrap().unwrap();
    let shared = format!("{PUBLIC_URL}/oauth/callback");
    assert_eq!(redirect_uri(&world, "a").await, shared);
    assert_eq!(redirect_uri(&world, "b").await, format!("{shared}/b"));
}

/// Redirect URIs and clients of all integrations: none twice.
async fn check_claims(world: &World, expected: usize) {
    let all = world.control.integrations(None, 10).await.unwrap().records;
    let uris: HashSet<_> = all.iter().map(|one| one.record.redirect_uri.clone()).collect();
    let clients: HashSet<_> = all.iter().map(|one| one.record.client_id.clone()).collect();
    assert_eq!((all.len(), uris.len(), clients.len()), (expected, expected, expected));
}

/// What two integrations may not have in common, as one spec each.
fn rivals(world: &World) -> [(IntegrationSpec, IntegrationSpec); 2] {
    let shared = format!("{PUBLIC_URL}/oauth/callback");
    let at = |client_id, uri: &str| IntegrationSpec {
        redirect_uri: Some(uri.to_owned()),
        ..client(world, client_id)
    };
    [(at("one", &shared), at("two", &shared)), (at("one", &shared), at("one", &format!("{shared}/second")))]
}

/// O-18, O-20: another process takes a claim over before the record of its owner is there to be seen: the owner finds
/// out, and steps back.
#[tokio::test]
async fn o_18_20_an_owner_whose_claim_was_taken_over_steps_back() {
    for at in 0..2 {
        let world = World::new().await;
        world.control.delete_integration(&integration_id("a"), None).await.unwrap();
        let (other, _tokens) = world.another_process().await;
        let (first, second) = rivals(&world)[at].clone();
        world.backend.on(Point::BeforeCreate(Kind::Integration), 0, async move || {
            other.put_integration(integration_id("second"), second, None, false).await.unwrap();
        });
        assert_eq!(code(world.put("first", first).await), "changed_meanwhile");
        check_claims(&world, 1).await;
    }
}

/// O-18, O-20: a claim's owner comes to be between the look for it and the taking over: the claim is given back.
#[tokio::test]
async fn o_18_20_a_claim_is_given_back_to_an_owner_that_came_to_be() {
    for (at, taken) in [(0, "redirect_uri_taken"), (1, "client_taken")] {
        let world = Arc::new(World::new().await);
        world.control.delete_integration(&integration_id("a"), None).await.unwrap();
        let (other, _tokens) = world.another_process().await;
        let (first, second) = rivals(&world)[at].clone();
        // The first has its claims, and is held up before its record is made ...
        let looked = Arc::new(Mutex::new(None));
        let (begun, result) = (world.clone(), looked.clone());
        world.backend.on(Point::BeforeCreate(Kind::Integration), 0, async move || {
            // ... while the second looks for the claim's owner, finds none, and is held up in turn.
            let (resume, resumed) = oneshot::channel::<()>();
            let (reached, there) = oneshot::channel::<()>();
            begun.backend.on(Point::AfterLoad(Kind::Integration), 1, async move || {
                let _ = reached.send(());
                let _ = resumed.await;
            });
            let second = tokio::spawn(async move {
                other.put_integration(integration_id("second"), second, None, false).await.map(drop)
            });
            there.await.unwrap();
            *result.lock().unwrap() = Some((resume, second));
        });
        world.put("first", first).await.unwrap();
        let (resume, second) = looked.lock().unwrap().take().unwrap();
        resume.send(()).unwrap();
        assert_eq!(code(second.await.unwrap()), taken);
        check_claims(&world, 1).await;
        assert_eq!(code(world.put("first", rivals(&world)[at].0.clone()).await), "done");
    }
}

/// O-20: one registered client, one owner.
#[tokio::test]
async fn o_20_a_client_has_one_owner() {
    let world = World::new().await;
    assert_eq!(code(world.put("b", spec(&world.instance)).await), "client_taken");
    world.put("b", client(&world, "b")).await.unwrap();
    assert_eq!(code(world.put("b", spec(&world.instance)).await), "client_taken");
    let elsewhere = Instance::start().await;
    world.put("c", spec(&elsewhere)).await.unwrap(); // the same name at another instance is another client
    // Given back by a change and by a deletion.
    world.put("a", client(&world, "a2")).await.unwrap();
    world.put("b", spec(&world.instance)).await.unwrap();
    world.control.delete_integration(&integration_id("b"), None).await.unwrap();
    world.put("d", spec(&world.instance)).await.unwrap();
}

/// A claim whose owner never came to be, or was refused, is in nobody's way.
#[tokio::test]
async fn a_claim_without_an_owner_is_taken_over() {
    let world = World::new().await;
    let shared = format!("{PUBLIC_URL}/oauth/callback");
    world.control.delete_integration(&integration_id("a"), None).await.unwrap();
    let without_secret = IntegrationSpec { client_secret: None, ..client(&world, "b") };
    assert_eq!(code(world.put("b", without_secret).await), "invalid_request");
    world.put("c", client(&world, "c")).await.unwrap();
    assert_eq!(redirect_uri(&world, "c").await, shared);
}

/// The number is told first; then the tokens go, and each connection says why.
#[tokio::test]
async fn another_client_purges_tokens_after_saying_how_many() {
    let secret = |text: &str| Some(ClientSecret::parse(text.to_owned()).unwrap());
    for change in ["client id", "client secret", "instance"] {
        let world = World::new().await;
        world.connected("c", "abel").await;
        world.connected("d", "beth").await;
        world.connect("pending", "a", None).await;
        let elsewhere = Instance::start().await;
        let next = match change {
            "client id" => client(&world, "another"),
            "client secret" => IntegrationSpec { client_secret: secret("another"), ..spec(&world.instance) },
            _ => spec(&elsewhere),
        };
        let refusal = world.put("a", next.clone()).await.unwrap_err();
        assert_eq!(refusal.code(), "would_purge_connections", "{change}");
        assert!(refusal.to_string().contains("2 connection(s)"), "{refusal}");
        for id in ["c", "d"] {
            assert!(world.acquire(id).await.is_ok(), "{change}: nothing has happened yet");
        }
        world.control.put_integration(integration_id("a"), next, None, true).await.unwrap();
        for id in ["c", "d"] {
            let connection = world.stored(id).await;
            assert!(connection.grant.is_none(), "{change}");
            let cause = DeathCause::IntegrationChanged;
            assert!(
                matches!(connection.lifecycle, Lifecycle::ReauthorizationRequired { cause: told, .. } if told == cause)
            );
            assert!(world.acquire(id).await.is_err(), "{change}");
        }
        assert!(matches!(world.stored("pending").await.lifecycle, Lifecycle::AwaitingConsent { .. }));
    }
}

/// I-4: the old tokens are gone before the new instance is in force, in each process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i_4_no_token_of_the_old_instance_meets_the_new_one() {
    let world = Arc::new(World::new().await);
    let ids = ["c", "d", "e"];
    for id in ids {
        world.connected(id, "abel").await;
    }
    let (other, other_tokens) = world.another_process().await;
    for id in ids {
        other_tokens.acquire(&connection_id(id)).await.unwrap();
    }
    let elsewhere = Instance::start().await;
    let moved = elsewhere.origin.clone();
    let is_safe = {
        let engines = [world.tokens.clone(), other_tokens.clone()];
        move || {
            for engine in &engines {
                for id in ids {
                    let Some(view) = engine.peek(&connection_id(id)) else { continue };
                    let lends = matches!(view.standing, bearerd_tokens::Standing::Ready(_));
                    assert!(!(lends && view.upstream.instance == moved), "{id}");
                }
            }
        }
    };
    let stop = tokio_util::sync::CancellationToken::new();
    let watching = tokio::spawn({
        let (stop, is_safe) = (stop.clone(), is_safe.clone());
        async move {
            while !stop.is_cancelled() {
                is_safe();
                tokio::task::yield_now().await;
            }
        }
    });
    // Another process looks at each step of the purge, and finds nothing to mix up either.
    for _ in ids {
        let (other, other_tokens, is_safe) = (other.clone(), other_tokens.clone(), is_safe.clone());
        world.backend.on(Point::BeforeReplace(Kind::Connection), 0, async move || {
            other.follow().await.unwrap();
            for id in ids {
                let _ = other_tokens.load(&connection_id(id)).await;
            }
            is_safe();
        });
    }
    world.control.put_integration(integration_id("a"), spec(&elsewhere), None, true).await.unwrap();
    other.follow().await.unwrap();
    for id in ids {
        assert!(world.acquire(id).await.is_err() && other_tokens.acquire(&connection_id(id)).await.is_err());
    }
    stop.cancel();
    watching.await.unwrap();
    assert_eq!(elsewhere.count(), 0);
}

/// Client credentials come back by themselves, from the new client.
#[tokio::test]
async fn client_credentials_begin_again_with_the_new_client() {
    let world = World::new().await;
    let machine =
        crate::ConnectionSpec { profile: ProfileName::parse("machine").unwrap(), ..connection_spec("a") };
    world.control.create_connection(connection_id("m"), machine, &operator()).await.unwrap();
    assert_eq!(world.lent_to("m").await.as_deref(), Some("application"));
    let elsewhere = Instance::start().await;
    world.control.put_integration(integration_id("a"), spec(&elsewhere), None, true).await.unwrap();
    world.acquire("m").await.unwrap();
    assert_eq!(elsewhere.count(), 1);
    let view = world.tokens.peek(&connection_id("m")).unwrap();
    assert_eq!(view.upstream.instance, elsewhere.origin);
}

/// A connection that is deleted while its siblings are purged does not stop the purge.
#[tokio::test]
async fn a_purge_goes_on_past_a_deleted_connection() {
    let world = Arc::new(World::new().await);
    for id in ["c", "d", "e"] {
        world.connected(id, "abel").await;
    }
    let other = world.clone();
    world.backend.on(Point::BeforeReplace(Kind::Connection), 0, async move || {
        other.control.delete_connection(&connection_id("d"), None).await.unwrap();
    });
    let next = client(&world, "another");
    world.control.put_integration(integration_id("a"), next, None, true).await.unwrap();
    for id in ["c", "e"] {
        assert!(world.stored(id).await.grant.is_none(), "{id}");
    }
}

#[tokio::test]
async fn the_same_content_again_changes_nothing() {
    let world = World::new().await;
    world.connected("c", "abel").await;
    let revision = async || world.control.integration(&integration_id("a")).await.unwrap().revision;
    let before = revision().await;
    world.clock.leap(Duration::from_mins(1));
    world.put("a", spec(&world.instance)).await.unwrap();
    // `None` keeps the secret: it is not another one.
    world.put("a", IntegrationSpec { client_secret: None, ..spec(&world.instance) }).await.unwrap();
    assert_eq!(revision().await, before);
    let scoped = |scope: &str| {
        let mut next = spec(&world.instance);
        next.profiles.entry(ProfileName::default()).or_default().scopes = vec![scope.to_owned()];
        next
    };
    world.put("a", scoped("useraccount")).await.unwrap(); // other scopes purge nothing
    assert_ne!(revision().await, before);
    world.acquire("c").await.unwrap();
    let stale = world.control.put_integration(integration_id("a"), scoped("x"), Some(before), false).await;
    assert_eq!(stale.unwrap_err().code(), "changed_meanwhile");
    let new =
        world.control.put_integration(integration_id("new"), client(&world, "n"), Some(before), false).await;
    assert_eq!(new.unwrap_err().code(), "changed_meanwhile");
}

#[tokio::test]
async fn an_integration_in_use_is_not_deleted() {
    let world = World::new().await;
    world.connect("c", "a", None).await;
    let id = integration_id("a");
    assert_eq!(world.control.delete_integration(&id, None).await.unwrap_err().code(), "in_use");
    world.control.delete_connection(&connection_id("c"), None).await.unwrap();
    world.control.delete_integration(&id, None).await.unwrap();
    assert_eq!(world.control.delete_integration(&id, None).await.unwrap_err().code(), "not_found");
}

/// P-13: only where the operator's list allows, and only what can work.
#[tokio::test]
async fn what_cannot_be_an_integration_is_refused() {
    let world = World::new().await;
    let base = client(&world, "b");
    let with = |change: &dyn Fn(&mut IntegrationSpec)| {
        let mut spec = base.clone();
        change(&mut spec);
        spec
    };
    let origin = |text: &str| InstanceOrigin::parse(text).unwrap();
    for (name, spec, expected) in [
        ("good", base.clone(), "done"),
        ("host", with(&|spec| spec.instance = origin("https://evil.example")), "instance_not_allowed"),
        ("listed host", with(&|spec| spec.instance = origin("https://dev1.service-now.com")), "done"),
        (
            "token endpoint elsewhere",
            with(&|spec| spec.token_endpoint = Some("https://evil.example/token".into())),
            "instance_not_allowed",
        ),
        (
            "plain http",
            with(&|spec| spec.authorization_endpoint = Some("http://dev1.service-now.com/".into())),
            "invalid_request",
        ),
        (
            "a user in a URL",
            with(&|spec| spec.token_endpoint = Some("https://u:p@dev1.service-now.com/".into())),
            "invalid_request",
        ),
        (
            "a fragment",
            with(&|spec| spec.authorization_endpoint = Some("https://dev1.service-now.com/#x".into())),
            "invalid_request",
        ),
        ("no client id", with(&|spec| spec.client_id = String::new()), "invalid_request"),
        ("a blank", with(&|spec| spec.client_id = "a b".into()), "invalid_request"),
        ("no life", with(&|spec| spec.refresh_token_lifetime = Some(Duration::ZERO)), "invalid_request"),
        ("a relative path", with(&|spec| spec.ca_file = Some("ca.pem".into())), "invalid_request"),
        ("no CA", with(&|spec| spec.ca_file = Some("/nonexistent".into())), "invalid_request"),
        (
            "a certificate without its key",
            with(&|spec| spec.client_certificate_file = Some("/nonexistent".into())),
            "invalid_request",
        ),
        (
            "a key without its certificate",
            with(&|spec| spec.client_key_file = Some("/nonexistent".into())),
            "invalid_request",
        ),
        (
            "a scope of two words",
            with(&|spec| {
                spec.profiles.entry(ProfileName::default()).or_default().scopes = vec!["a b".into()];
            }),
            "invalid_request",
        ),
    ] {
        assert_eq!(code(world.put("b", spec).await), expected, "{name}");
    }
}

/// Where processes share a store, a rotated refresh token that the store does not take must be kept on the machine.
#[tokio::test]
async fn rotation_needs_a_place_for_what_the_store_does_not_take() {
    let world = World::new().await;
    let (other, _tokens) = world.another_process().await;
    let endpoint = |path: &str| Some(format!("{}{path}", world.instance.origin));
    let generic = || IntegrationSpec {
        provider: Provider::Generic,
        authorization_endpoint: endpoint("/authorize"),
        token_endpoint: endpoint("/token"),
        ..client(&world, "b")
    };
    for (name, spec, rotates) in [
        ("servicenow", client(&world, "b"), false),
        (
            "servicenow, said",
            IntegrationSpec { rotates_refresh_tokens: Some(true), ..client(&world, "b") },
            true,
        ),
        ("generic", generic(), true),
        ("generic, said", IntegrationSpec { rotates_refresh_tokens: Some(false), ..generic() }, false),
    ] {
        for admits in [true, false] {
            let control = other.clone().admitting_rotation(admits);
            let written = control.put_integration(integration_id("b"), spec.clone(), None, true).await;
            match written {
                Ok(written) => assert_eq!(written.versioned.record.rotates_refresh_tokens, rotates, "{name}"),
                Err(error) => {
                    assert_eq!(error.code(), "spill_dir_missing", "{name}");
                    assert!(error.fix().contains("tokens.spill_dir"), "{}", error.fix());
                    assert!(rotates && !admits, "{name}");
                    continue;
                }
            }
            assert!(admits || !rotates, "{name}");
        }
    }
}

/// A generic provider has no endpoints that could be derived.
#[tokio::test]
async fn a_generic_provider_s_endpoints_are_given() {
    let world = World::new().await;
    let endpoint = |path: &str| Some(format!("{}{path}", world.instance.origin));
    let generic = |authorization: Option<&str>, token: Option<&str>| IntegrationSpec {
        provider: Provider::Generic,
        authorization_endpoint: authorization.and_then(endpoint),
        token_endpoint: token.and_then(endpoint),
        ..client(&world, "b")
    };
    for (authorization, token, expected) in [
        (None, Some("/token"), "invalid_request"),
        (Some("/authorize"), None, "invalid_request"),
        (Some("/authorize"), Some("/token"), "done"),
    ] {
        assert_eq!(code(world.put("b", generic(authorization, token)).await), expected);
    }
    let stored = world.control.integration(&integration_id("b")).await.unwrap().record;
    assert_eq!(stored.endpoints.revocation, "", "none was given, so there is none");
}

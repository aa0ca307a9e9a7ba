//! The end of refresh tokens: told 14, 7 and 1 days ahead, once, by whichever process looks first.

use std::time::Duration;

use bearerd_store::{ExpiryNotice, Kind};

use crate::{
    ConnectionSpec, Control, ImportedTokens, IntegrationSpec,
    testing::{World, connection_id, connection_spec, operator, spec},
};

fn days(days: u64) -> Duration {
    Duration::from_hours(days * 24)
}

/// How often each threshold was told, the farthest first.
fn told(controls: &[&Control]) -> [u64; 3] {
    let counts = |days| {
        let of_one =
            |control: &&Control| control.work.metrics.expiry_notices.with_label_values(&[days]).get();
        controls.iter().map(of_one).sum()
    };
    ["14", "7", "1"].map(counts)
}

async fn expiring(control: &Control) -> [i64; 3] {
    control.count_expiring(control.clock.now()).await.unwrap();
    ["14", "7", "1"].map(|days| control.work.metrics.expiring.with_label_values(&[days]).get())
}

#[tokio::test]
async fn each_threshold_is_told_once_by_all_processes() {
    let world = World::new().await;
    world.connected("c", "abel").await;
    let (other, _tokens) = world.another_process().await;
    let both = [&world.control, &other];
    for (leap, expected, within) in [
        (days(1), [0, 0, 0], [0, 0, 0]),
        (days(84), [0, 0, 0], [0, 0, 0]), // 15 days are left
        (days(2), [1, 0, 0], [1, 0, 0]),
        (days(5), [1, 0, 0], [1, 0, 0]),
        (days(2), [1, 1, 0], [1, 1, 0]),
        (days(5), [1, 1, 1], [1, 1, 1]),
        (days(1), [1, 1, 1], [0, 0, 0]),
    ] {
        world.clock.leap(leap);
        for _ in 0..2 {
            let (one, two) = tokio::join!(world.control.tell_what_is_due(), other.tell_what_is_due());
            one.unwrap();
            two.unwrap();
        }
        assert_eq!(told(&both), expected, "{leap:?}");
        assert_eq!(expiring(&other).await, within, "{leap:?}");
    }
    assert_eq!(world.count::<ExpiryNotice>().await, 0, "it is over");
}

/// A new consent begins a new life, and nobody is told of the old one's end any more.
#[tokio::test]
async fn a_new_consent_puts_the_notice_off() {
    let world = World::new().await;
    world.connected("c", "abel").await;
    world.clock.leap(days(87));
    world.control.tell_what_is_due().await.unwrap();
    world.consent("c", "abel").await;
    for _ in 0..10 {
        world.clock.leap(days(8));
        world.control.tell_what_is_due().await.unwrap();
    }
    assert_eq!((told(&[&world.control]), expiring(&world.control).await), ([1, 0, 0], [0, 0, 0]));
    world.clock.leap(days(7));
    world.control.tell_what_is_due().await.unwrap();
    assert_eq!(told(&[&world.control]), [2, 0, 0]);
}

/// A consent that comes to nothing leaves the old grant's notice in its place.
#[tokio::test]
async fn a_failed_consent_changes_no_notice() {
    let world = World::new().await;
    world.connected("c", "abel").await;
    world.clock.leap(days(80));
    world.consent("c", "mallory").await;
    world.clock.leap(days(7));
    world.control.tell_what_is_due().await.unwrap();
    assert_eq!(told(&[&world.control]), [1, 0, 0]);
}

/// A server that rotates grants ten days with each refresh: that they are ten is no news, that seven are left is.
#[tokio::test]
async fn a_short_life_is_not_told_after_each_refresh() {
    let world = World::new().await;
    world.instance.rotates();
    let short = IntegrationSpec { refresh_token_lifetime: Some(days(10)), ..spec(&world.instance) };
    world.put("a", short).await.unwrap();
    world.connected("c", "abel").await;
    for _ in 0..3 {
        world.control.refresh(&connection_id("c")).await.unwrap();
        world.clock.leap(Duration::from_hours(12));
        world.control.tell_what_is_due().await.unwrap();
        assert_eq!(told(&[&world.control]), [0, 0, 0]);
    }
    world.clock.leap(days(3));
    world.control.tell_what_is_due().await.unwrap();
    assert_eq!(told(&[&world.control]), [0, 1, 0]);
}

/// A notice that was written without a confirmation is told of all the same.
#[tokio::test]
async fn an_unconfirmed_notice_is_told() {
    let world = World::new().await;
    world.connected("c", "abel").await;
    world.clock.leap(days(87));
    *world.backend.unconfirmed.lock().unwrap() = Some(Kind::ExpiryNotice);
    for _ in 0..2 {
        world.control.tell_what_is_due().await.unwrap();
        assert_eq!(told(&[&world.control]), [1, 0, 0]);
    }
}

#[tokio::test]
async fn a_deleted_connection_has_no_notice() {
    let world = World::new().await;
    world.connected("c", "abel").await;
    assert_eq!(world.count::<ExpiryNotice>().await, 1);
    world.control.delete_connection(&connection_id("c"), None).await.unwrap();
    assert_eq!(world.count::<ExpiryNotice>().await, 0);
}

/// The end of an imported refresh token is what the operator says; a rotated one has an end of its own.
#[tokio::test]
async fn imported_tokens_have_their_own_end() {
    let world = World::new().await;
    let import = |ends_in: Option<Duration>| {
        let token = bearerd_model::RefreshToken::parse("rt-abel".to_owned()).unwrap();
        let tokens = ImportedTokens {
            access_token: None,
            expires_in: None,
            refresh_token: Some(token),
            refresh_expires_at: ends_in.map(|span| world.control.clock.now() + span),
        };
        ConnectionSpec { import: Some(tokens), ..connection_spec("a") }
    };
    for (id, ends_in) in [("known", Some(days(3))), ("unknown", None)] {
        world.control.create_connection(connection_id(id), import(ends_in), &operator()).await.unwrap();
    }
    world.clock.leap(Duration::from_mins(11));
    world.control.tell_what_is_due().await.unwrap();
    assert_eq!(told(&[&world.control]), [0, 1, 0], "the nearest alone");
    world.instance.rotates();
    world.control.refresh(&connection_id("unknown")).await.unwrap();
    for _ in 0..13 {
        world.clock.leap(days(7));
        world.control.tell_what_is_due().await.unwrap();
    }
    assert_eq!(told(&[&world.control]), [1, 1, 0]);
}

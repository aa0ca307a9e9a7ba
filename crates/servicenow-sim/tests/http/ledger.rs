//! `/__sim/ledger`: what a fault run is judged by.

use std::time::Duration;

use serde_json::{Value, json};
use servicenow_sim::{ExchangeOutcome, Fault, FaultOn, FaultRule, Ledger, Sim};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::client::*;

fn refreshes(ledger: &Ledger) -> Vec<&servicenow_sim::Exchange> {
    ledger.exchanges.iter().filter(|exchange| exchange.grant_type == "refresh_token").collect()
}

/// The ledger, once every exchange has ended.
async fn settled(sim: &Sim) -> Ledger {
    for _ in 0..5_000 {
        if sim.state().exchanges_in_flight() == 0 {
            return sim.state().ledger();
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("exchanges do not end: {:?}", sim.state().ledger())
}

#[tokio::test]
async fn every_exchange_is_told_with_what_it_spent_and_what_came_of_it() {
    let sim =
        sim_with(json!({"rotation": true, "rotation_previous_ok_s": 30, "refresh_within_life": "new"})).await;
    let (_, first) = consented(&sim).await;
    let second = refresh(&sim, &first).await.member("refresh_token");
    assert_eq!(refresh(&sim, &first).await.status, 200, "within the leeway");
    let third = refresh(&sim, &second).await.member("refresh_token");
    assert_eq!(refresh(&sim, &first).await.status, 401, "two rotations old");
    assert_eq!(refresh(&sim, &third).await.status, 401, "the family is revoked");
    assert_eq!(refresh(&sim, "nobody's").await.status, 401);

    let ledger = settled(&sim).await;
    assert_eq!(ledger.exchanges[0].grant_type, "authorization_code");
    assert_eq!(ledger.exchanges[0].refresh_token.as_deref(), Some(first.as_str()));
    let seen: Vec<_> = refreshes(&ledger)
        .iter()
        .map(|one| (one.spent.as_str(), one.outcome, one.reason, one.spent_current))
        .collect();
    assert_eq!(
        seen,
        [
            (first.as_str(), ExchangeOutcome::Issued, None, true),
            (first.as_str(), ExchangeOutcome::Repeated, None, false),
            (second.as_str(), ExchangeOutcome::Issued, None, true),
            (first.as_str(), ExchangeOutcome::FamilyRevoked, Some("reused"), false),
            (third.as_str(), ExchangeOutcome::Refused, Some("revoked"), true),
            ("nobody's", ExchangeOutcome::Refused, Some("unknown"), false),
        ]
    );
    assert!(ledger.exchanges.iter().all(|one| !one.reply_lost && one.ended_at >= Some(one.began_at)));
    let family = &ledger.families[0];
    assert_eq!((&family.refresh_token, family.refresh_token_live), (&Some(third), false));
    assert_eq!((&family.previous, family.previous_honoured), (&Some(second), false));

    let shown = control(&sim, "GET", "ledger", &Value::Null).await.json();
    assert_eq!(shown["exchanges"][1]["outcome"], "issued");
    assert_eq!(shown["exchanges"][1]["owner"]["user_name"], "abel.tuter");
    assert_eq!(shown["families"][0]["client_id"], "bearerd-demo");
    assert_eq!(control(&sim, "DELETE", "ledger", &Value::Null).await.status, 200);
    assert!(sim.state().ledger().exchanges.is_empty());
}

#[tokio::test]
async fn lost_and_prevented_answers_are_told_apart() {
    let sim =
        sim_with(json!({"rotation": true, "rotation_previous_ok_s": 30, "refresh_within_life": "new"})).await;
    let (_, token) = consented(&sim).await;
    let status = |after_effect| Fault::Status {
        status: 502,
        body: String::new(),
        headers: std::collections::BTreeMap::new(),
        after_effect,
    };
    for (fault, outcome, lost) in [
        (Fault::DropBefore, ExchangeOutcome::Prevented, false),
        (status(false), ExchangeOutcome::Prevented, false),
        (Fault::Unauthorized401, ExchangeOutcome::Refused, false),
        (Fault::DropAfter, ExchangeOutcome::Issued, true),
        (status(true), ExchangeOutcome::Repeated, true),
        (Fault::CutBody { after_bytes: 5 }, ExchangeOutcome::Repeated, true),
        (Fault::BrokenJson, ExchangeOutcome::Repeated, true),
        (Fault::DelayMs { ms: 1, after_effect: true }, ExchangeOutcome::Repeated, false),
    ] {
        sim.state().reset_ledger();
        sim.state().add_fault(FaultRule::new(FaultOn::Token, fault.clone()).once()).unwrap();
        let body = format!("grant_type=refresh_token&refresh_token={token}&{CLIENT}");
        let _ = try_form(&sim, "/oauth_token.do", &body).await; // some faults answer nothing
        let ledger = settled(&sim).await;
        let [exchange] = &ledger.exchanges[..] else { panic!("{fault:?}: {ledger:?}") };
        assert_eq!((exchange.outcome, exchange.reply_lost), (outcome, lost), "{fault:?}");
        assert_eq!(exchange.owner.as_ref().unwrap().user_name, "abel.tuter", "{fault:?}");
    }
}

#[tokio::test]
async fn an_exchange_ends_when_its_client_leaves_and_takes_effect_all_the_same() {
    let sim = sim_with(json!({"rotation": true, "refresh_within_life": "new"})).await;
    let (_, token) = consented(&sim).await;
    sim.state().reset_ledger();
    sim.state()
        .add_fault(FaultRule::new(FaultOn::Token, Fault::Hold { gate: String::new(), after_effect: false }));
    let body = format!("grant_type=refresh_token&refresh_token={token}&{CLIENT}");
    let head = format!(
        "POST /oauth_token.do HTTP/1.1\r\nHost: sim\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut leaving = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(sim.local_addr()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        leaving.push(stream);
    }
    sim.state().wait_for(|counters| counters.held_now == 2).await;
    let ledger = sim.state().ledger();
    assert_eq!((ledger.in_flight, ledger.in_flight_max_per_token), (2, 2));
    drop(leaving);
    let left = settled(&sim).await;
    assert!(left.exchanges.iter().all(|one| one.outcome == ExchangeOutcome::Undecided && !one.reply_lost));
    sim.state().release(None);
    sim.state().wait_for(|counters| counters.token_calls("refresh_token", "issued") == 1).await;
    sim.state().wait_for(|counters| counters.token_calls("refresh_token", "reused") == 1).await;
    let ledger = sim.state().ledger();
    assert!(ledger.exchanges.iter().all(|one| one.reply_lost), "nobody was there to hear it: {ledger:?}");
    assert_eq!((ledger.in_flight, ledger.in_flight_max), (0, 2));
}

#[tokio::test]
async fn revocations_are_counted_and_can_fail() {
    let sim = sim_with(json!({})).await;
    let (_, token) = consented(&sim).await;
    let revoke = || format!("token={token}");
    for fault in [Fault::DropBefore, Fault::Html { status: 500 }] {
        sim.state().add_fault(FaultRule::new(FaultOn::Revoke, fault).once()).unwrap();
        let answer = try_form(&sim, "/oauth_revoke_token.do", &revoke()).await;
        assert!(answer.is_none_or(|answer| answer.status == 500));
    }
    assert!(sim.state().ledger().revocations.is_empty(), "neither was carried out");
    assert_eq!(form(&sim, "/oauth_revoke_token.do", &revoke()).await.status, 200);
    assert_eq!(form(&sim, "/oauth_revoke_token.do", "token=x").await.status, 200);
    let ledger = sim.state().ledger();
    let seen: Vec<_> = ledger.revocations.iter().map(|one| (one.token.as_deref(), one.known)).collect();
    assert_eq!(seen, [(Some(token.as_str()), true), (Some("x"), false)]);
    assert!(!ledger.families[0].refresh_token_live);
}

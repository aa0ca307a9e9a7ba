use bearerd_model::{AccessToken, ConnectionId, Exchanges, IntegrationId, ProfileName};
use bearerd_oauth::{TokenEndpointError, TokenResponse};

use super::*;

const NOW: UnixTime = UnixTime::from_secs(1_000_000);
const LIFE: Duration = Duration::from_mins(30);
const OURS: Owner = Owner { node: 1, run: 10 };
const THEIRS: Owner = Owner { node: 2, run: 20 };

fn at(secs: u64) -> Now {
    Now { at: NOW + Duration::from_secs(secs), jitter: 0.5 }
}

fn obtained(number: u64, rotated: bool, sent_at: UnixTime) -> Obtained {
    let refresh_token = rotated.then(|| RefreshToken::parse(format!("rt-{number}")).unwrap());
    let access_token = AccessToken::parse(format!("at-{number}")).unwrap();
    Obtained {
        response: TokenResponse { access_token, expires_in: Some(LIFE), refresh_token, scope: None },
        sent_at,
    }
}

/// A connection whose access token has ended long ago.
fn record() -> Connection {
    let long_ago = NOW - LIFE * 2;
    let mut record = Connection {
        id: ConnectionId::parse("c").unwrap(),
        integration: IntegrationId::parse("i").unwrap(),
        profile: ProfileName::default(),
        labels: std::collections::BTreeMap::new(),
        expected_user: None,
        user: None,
        lifecycle: Lifecycle::Active { since: long_ago },
        frozen: None,
        health: Health::Ok,
        grant: None,
        exchanges: Exchanges::default(),
        due_at: None,
        created_at: long_ago,
        last_used_at: None,
    };
    record
        .put_grant(grant_from(None, TokenCall::NewGrant, obtained(1, true, long_ago), LIFE * 100), long_ago);
    record
}

/// `record` after an exchange of the epoch `millis` after [`NOW`]; its access token has ended too.
fn refreshed(mut record: Connection, number: u64, millis: u64) -> Connection {
    let sent_at = NOW - LIFE * 2;
    let grant =
        grant_from(record.grant.as_ref(), TokenCall::Refresh, obtained(number, true, sent_at), LIFE * 100);
    record_issue(&mut record, grant, Epoch(NOW.as_millis() + millis), NOW);
    record
}

fn refresher(rotates: bool, record: Connection) -> Refresher {
    let protocol = Protocol::new(OURS, false, Duration::from_secs(10), LIFE);
    let terms =
        Terms { grant_type: GrantType::AuthorizationCode, rotates, refresh_token_lifetime: LIFE * 100 };
    Refresher::new(protocol, terms, record, NOW)
}

/// The record's only store, and what the machine last asked of it.
struct Bench {
    refresher: Refresher,
    stored: Connection,
    actions: Actions,
}

impl Bench {
    fn new(rotates: bool) -> Self {
        Self { refresher: refresher(rotates, record()), stored: record(), actions: Vec::new() }
    }

    fn tell(&mut self, event: Event, now: Now) {
        self.actions.clear();
        self.refresher.handle(event, now, &mut self.actions);
    }

    fn load(&mut self, now: Now) {
        let found = Some((Revision(1), Box::new(self.stored.clone())));
        self.tell(Event::Loaded(Ok(found)), now);
    }

    /// What the machine wants written.
    #[track_caller]
    fn wanted(&self) -> Connection {
        let write = self.actions.iter().find_map(|action| match action {
            Action::Replace { next, .. } => Some((**next).clone()),
            _ => None,
        });
        write.unwrap_or_else(|| panic!("no write in {:?}", self.actions))
    }

    fn write(&mut self, now: Now) {
        self.stored = self.wanted();
        self.tell(Event::Replaced(Ok(Some(Revision(1)))), now);
    }

    /// As far as the answer of the call that follows a written claim.
    fn claim(&mut self, now: Now) {
        self.refresher.ask(Cause::Due, now, &mut self.actions).unwrap();
        self.tell(Event::Admitted, now);
        self.load(now);
        self.write(now);
        assert!(self.called().is_some(), "{:?}", self.actions);
    }

    fn called(&self) -> Option<String> {
        self.actions.iter().find_map(|action| match action {
            Action::Call { spends: Spends::RefreshToken(token), .. } => Some(token.expose().to_owned()),
            _ => None,
        })
    }

    fn refuse(&mut self, now: Now) {
        self.tell(Event::Answered(Err(TokenEndpointError::GrantRefused.into())), now);
    }

    fn strikes(&self) -> u32 {
        match self.stored.health {
            Health::Failing { strikes, .. } => strikes,
            Health::Ok => 0,
        }
    }
}

fn unknown() -> Event {
    Event::Replaced(Err(StoreError::OutcomeUnknown(String::new())))
}

fn unreachable() -> StoreError {
    StoreError::Unreachable(String::new())
}

/// I-2: two processes claim in the same millisecond. The one whose claim was not confirmed finds the other's, of the
/// same epoch, and does not take it for its own.
#[test]
fn a_claim_of_the_same_epoch_is_another_process_s() {
    let mut bench = Bench::new(true);
    bench.refresher.ask(Cause::Due, at(0), &mut Vec::new()).unwrap();
    bench.tell(Event::Admitted, at(0));
    bench.load(at(0));
    bench.stored = bench.wanted();
    bench.stored.exchanges.intent.as_mut().unwrap().owner = THEIRS;
    bench.tell(unknown(), at(0));
    bench.load(at(0));
    assert_eq!(bench.called(), None);
    assert!(!bench.refresher.is_exchanging());
    // Nor, later, for one whose outcome it knows: the token that it spent is in doubt.
    bench.refresher.ask(Cause::Due, at(60), &mut Vec::new()).unwrap();
    bench.tell(Event::Admitted, at(60));
    bench.load(at(60));
    assert!(bench.wanted().exchanges.intent.unwrap().in_doubt);
}

/// I-3: what memory holds comes after other tokens that were stored under the same generation, also if the offer is
/// written twice.
#[test]
fn an_offer_s_generation_is_greater_than_what_it_replaces() {
    let mut bench = Bench::new(false);
    let kept = refreshed(record(), 3, 2_000);
    bench.stored = refreshed(record(), 2, 1_000);
    let stored = bench.stored.exchanges.generation;
    assert_eq!(stored, kept.exchanges.generation);
    bench.tell(Event::Recovered(Box::new(kept)), at(3));
    bench.load(at(3));
    let first = bench.wanted();
    assert!(first.grant.as_ref().unwrap().generation > stored);
    assert_eq!(first.grant.as_ref().unwrap().generation, first.exchanges.generation);
    bench.stored = first.clone();
    bench.tell(unknown(), at(3));
    bench.tell(Event::Woken, at(4));
    bench.load(at(4));
    assert_eq!(bench.wanted().grant.unwrap().generation, first.grant.unwrap().generation);
}

/// I-1: that the store shows a state does not mean that it has confirmed it: what was kept is offered once more before it
/// is forgotten.
#[test]
fn what_was_kept_is_confirmed_before_it_is_forgotten() {
    let kept = refreshed(record(), 2, 1_000);
    let version = kept.exchanges.version;
    let mut bench = Bench::new(true);
    bench.refresher = refresher(true, kept.clone());
    bench.stored = kept.clone();
    let settles = |actions: &Actions| {
        actions.iter().any(|action| matches!(action, Action::Settle(it) if *it == version))
    };
    bench.tell(Event::Recovered(Box::new(kept)), at(2));
    assert!(!settles(&bench.actions));
    bench.load(at(2));
    bench.write(at(2));
    assert!(settles(&bench.actions));
}

/// I-6: one refusal is one strike, however often its write is not confirmed.
#[test]
fn a_refusal_counts_once() {
    let mut bench = Bench::new(true);
    bench.stored.exchanges.claimed = Epoch(1);
    bench.stored.exchanges.intent = Some(Intent {
        epoch: Epoch(1),
        owner: THEIRS,
        generation: bench.stored.exchanges.generation,
        began_at: NOW - LIFE,
        deadline: NOW - LIFE,
        in_doubt: false,
    });
    bench.claim(at(0));
    bench.refuse(at(1));
    bench.load(at(1));
    for _ in 0..8 {
        bench.stored = bench.wanted();
        bench.tell(unknown(), at(1));
        bench.load(at(1));
        if !bench.refresher.is_exchanging() {
            break;
        }
    }
    assert_eq!(bench.strikes(), 1);
    assert!(matches!(bench.stored.lifecycle, Lifecycle::Active { .. }));
}

/// I-6: while the previous token is about to be tried, another process brings a newer grant. Its previous token is not the
/// one to try.
#[test]
fn the_previous_token_of_another_grant_is_not_tried() {
    let mut bench = Bench::new(true);
    let stored = refreshed(record(), 2, 1);
    bench.stored = stored.clone();
    bench.claim(at(0));
    assert_eq!(bench.called().as_deref(), Some("rt-2"));
    bench.refuse(at(1));
    bench.stored = refreshed(stored.clone(), 3, 1_500);
    bench.load(at(2));
    assert!(!bench.refresher.is_exchanging(), "{:?}", bench.actions);
    // Where it is the same grant, it is.
    let mut bench = Bench { refresher: refresher(true, stored.clone()), stored, actions: Vec::new() };
    bench.claim(at(0));
    bench.refuse(at(1));
    bench.load(at(1));
    bench.write(at(1));
    assert_eq!(bench.called().as_deref(), Some("rt-1"));
}

/// In doubt the previous token is the last resort: tried once, before a person is asked.
#[test]
fn in_doubt_the_previous_token_is_tried_before_the_grant_counts_as_dead() {
    let mut bench = Bench::new(true);
    bench.stored = refreshed(record(), 2, 1);
    let generation = bench.stored.exchanges.generation;
    bench.stored.exchanges.intent = Some(Intent {
        epoch: Epoch(NOW.as_millis() + 2),
        owner: Owner { node: 1, run: 9 },
        generation,
        began_at: NOW,
        deadline: NOW,
        in_doubt: false,
    });
    bench.refresher = refresher(true, bench.stored.clone());
    let mut secs = 1;
    for _ in 0..4 {
        bench.claim(at(secs));
        assert_eq!(bench.called().as_deref(), Some("rt-2"));
        bench.refuse(at(secs));
        bench.load(at(secs));
        bench.write(at(secs));
        secs += 120;
    }
    assert_eq!(bench.strikes(), 4);
    bench.claim(at(secs));
    bench.refuse(at(secs));
    bench.load(at(secs));
    bench.write(at(secs));
    assert_eq!(bench.called().as_deref(), Some("rt-1"));
    bench.refuse(at(secs));
    bench.load(at(secs));
    bench.write(at(secs));
    assert!(matches!(bench.stored.lifecycle, Lifecycle::ReauthorizationRequired { .. }));
}

/// I-8: a store that is behind memory does not end a pause.
#[test]
fn failures_from_memory_keep_their_pause() {
    let mut bench = Bench::new(false);
    let begin = |bench: &mut Bench, now| {
        bench.refresher.ask(Cause::Due, now, &mut Vec::new()).unwrap();
        bench.tell(Event::Admitted, now);
        bench.tell(Event::Loaded(Err(unreachable())), now);
    };
    begin(&mut bench, at(0));
    bench.tell(Event::Answered(Ok(obtained(2, false, NOW))), at(0));
    bench.tell(Event::Loaded(Err(unreachable())), at(0));
    assert!(bench.refresher.is_unsettled());
    // Claimed on a store that reads and does not write, or writes late: the version in memory is ahead of it.
    bench.refresher.ask(Cause::Operator, at(2), &mut Vec::new()).unwrap();
    bench.tell(Event::Admitted, at(2));
    bench.load(at(2));
    bench.tell(Event::Replaced(Err(StoreError::Refused("read-only".to_owned()))), at(2));
    let refused = TokenCallError::Endpoint(TokenEndpointError::Denied);
    bench.tell(Event::Answered(Err(refused)), at(2));
    bench.load(at(2));
    assert!(bench.refresher.failures() > 0);
    assert!(bench.refresher.next_refresh(at(2).at).unwrap() > at(2).at);
}

/// I-1: a commit that comes late, over what another exchange of the same refresh token brought, keeps that one's token.
#[test]
fn a_late_commit_keeps_the_token_that_it_replaces() {
    let mut bench = Bench::new(true);
    bench.claim(at(5));
    bench.tell(Event::Answered(Ok(obtained(3, true, at(5).at))), at(6));
    bench.tell(Event::Kept(true), at(6));
    bench.stored = refreshed(record(), 2, 1_000);
    bench.tell(Event::Replaced(Ok(None)), at(6));
    bench.load(at(6));
    let grant = bench.wanted().grant.unwrap();
    assert_eq!(grant.refresh_token.unwrap().expose(), "rt-3");
    assert_eq!(grant.previous_refresh_token.unwrap().expose(), "rt-2");
}

/// I-6: the same where the claim for it was not confirmed, and a newer grant was put under it.
#[test]
fn an_unconfirmed_claim_for_the_previous_token_spends_what_is_newest_by_now() {
    let mut bench = Bench::new(true);
    bench.stored = refreshed(record(), 2, 1);
    bench.claim(at(0));
    bench.refuse(at(1));
    bench.load(at(1));
    bench.stored = refreshed(bench.wanted(), 3, 2);
    bench.stored.exchanges.intent = bench.wanted().exchanges.intent;
    bench.tell(unknown(), at(1));
    bench.load(at(1));
    assert_eq!(bench.called().as_deref(), Some("rt-3"));
}

/// I-3: an exchange without the store comes after what memory has taken over meanwhile, which the store has lost since.
#[test]
fn memory_does_not_go_back_to_an_exchange_that_was_overtaken() {
    let mut bench = Bench::new(false);
    bench.refresher.ask(Cause::Due, at(0), &mut Vec::new()).unwrap();
    bench.tell(Event::Admitted, at(0));
    bench.tell(Event::Loaded(Err(unreachable())), at(0));
    bench.tell(Event::Told, at(0));
    let before = std::mem::replace(&mut bench.stored, refreshed(record(), 3, 5_000));
    bench.load(at(1));
    let version = bench.refresher.connection().exchanges.version;
    bench.stored = before;
    bench.tell(Event::Answered(Ok(obtained(2, false, NOW))), at(1));
    bench.load(at(1));
    assert_eq!(bench.refresher.connection().exchanges.version, version);
    assert!(bench.refresher.is_unsettled(), "it is offered again");
}

/// I-14: a forced refresh that made no call is asked for again, whatever kept it from calling.
#[test]
fn a_forced_refresh_that_made_no_call_does_not_count() {
    let mut bench = Bench::new(true);
    let generation = bench.stored.exchanges.generation;
    for told in [Event::Barred { until: at(1).at }, Event::Admitted] {
        let is_admitted = matches!(told, Event::Admitted);
        bench.refresher.ask_refused(generation, at(5), &mut Vec::new()).unwrap();
        bench.tell(told, at(5));
        if is_admitted {
            bench.tell(Event::Loaded(Err(unreachable())), at(5));
        }
        assert!(!bench.refresher.is_exchanging());
    }
    bench.refresher.ask_refused(generation, at(9), &mut Vec::new()).unwrap();
    assert!(bench.refresher.is_exchanging());
}

// --- hours in virtual time ----------------------------------------------------------------------------------------------

/// One process, its store and a token endpoint, second by second.
struct Hours {
    bench: Bench,
    breaker: crate::Breaker,
    wakes: Vec<UnixTime>,
    life: Duration,
    issued: u64,
    calls: u64,
}

impl Hours {
    /// With a token that was issued at [`NOW`].
    fn new(rotates: bool, life: Duration) -> Self {
        let mut bench = Bench::new(rotates);
        let mut first = obtained(2, rotates, NOW);
        first.response.expires_in = Some(life);
        let grant = grant_from(bench.stored.grant.as_ref(), TokenCall::Refresh, first, LIFE * 100);
        record_issue(&mut bench.stored, grant, Epoch(NOW.as_millis() + 1), NOW);
        bench.refresher = refresher(rotates, bench.stored.clone());
        Self { bench, breaker: crate::Breaker::default(), wakes: Vec::new(), life, issued: 2, calls: 0 }
    }

    /// One second. Whether a call that comes in it gets a token.
    fn second(&mut self, secs: u64, endpoint_is_up: bool, store_is_up: bool) -> bool {
        let now = at(secs);
        let due = self.bench.refresher.next_refresh(now.at).is_some_and(|due| due <= now.at);
        let mut actions = Actions::new();
        if due {
            let _ = self.bench.refresher.ask(Cause::Due, now, &mut actions);
        }
        let (woken, later): (Vec<UnixTime>, _) = self.wakes.drain(..).partition(|at| *at <= now.at);
        self.wakes = later;
        for _ in woken {
            self.bench.refresher.handle(Event::Woken, now, &mut actions);
        }
        while !actions.is_empty() {
            let action = actions.remove(0);
            if let Some(event) = self.perform(action, now, endpoint_is_up, store_is_up) {
                self.bench.refresher.handle(event, now, &mut actions);
            }
        }
        let grant = self.bench.refresher.connection().grant.as_ref();
        grant.is_some_and(|grant| now.at < grant.usable_until())
    }

    fn perform(
        &mut self,
        action: Action,
        now: Now,
        endpoint_is_up: bool,
        store_is_up: bool,
    ) -> Option<Event> {
        Some(match action {
            Action::Enter => match self.breaker.enter(now.at) {
                Ok(_) => Event::Admitted,
                Err(until) => Event::Barred { until },
            },
            Action::Load | Action::Look if store_is_up => {
                Event::Loaded(Ok(Some((Revision(1), Box::new(self.bench.stored.clone())))))
            }
            Action::Load | Action::Look => Event::Loaded(Err(unreachable())),
            Action::Replace { next, .. } if store_is_up => {
                self.bench.stored = *next;
                Event::Replaced(Ok(Some(Revision(1))))
            }
            Action::Replace { .. } => Event::Replaced(Err(unreachable())),
            Action::Call { .. } => {
                self.calls += 1;
                self.issued += u64::from(endpoint_is_up);
                let mut answer = obtained(self.issued, false, now.at);
                answer.response.expires_in = Some(self.life);
                let down = TokenEndpointError::Unavailable { status: 503, retry_after: None };
                Event::Answered(if endpoint_is_up { Ok(answer) } else { Err(down.into()) })
            }
            Action::Keep(_) => Event::Kept(true),
            Action::Leave(passage) => {
                self.breaker.leave(passage, true, now.at, now.jitter);
                return None;
            }
            Action::Wake(at) => {
                self.wakes.push(at);
                return None;
            }
            _ => return None,
        })
    }
}

/// I-7: the token endpoint is down for 25 of a token's 30 minutes, whenever that begins: no call fails, and the endpoint is
/// not asked in a storm.
#[test]
fn a_token_endpoint_down_for_25_of_30_minutes_fails_no_call() {
    for rotates in [false, true] {
        // It ends just before the token does at the latest.
        for begins in (0..=280).step_by(20) {
            let mut hours = Hours::new(rotates, LIFE);
            for secs in 0..2 * 3_600 {
                let endpoint_is_up = !(begins..begins + 25 * 60).contains(&secs);
                assert!(hours.second(secs, endpoint_is_up, true), "{rotates}, from {begins} s, at {secs} s");
            }
            assert!(hours.calls < 40, "{} calls", hours.calls);
        }
    }
}

/// The store is away for ten minutes, and tokens live for two: what does not rotate is refreshed from memory and stored
/// when the store is back.
#[test]
fn a_store_away_for_ten_minutes_fails_no_call() {
    let mut hours = Hours::new(false, Duration::from_mins(2));
    for secs in 0..3_600 {
        let away = (600..1_200).contains(&secs);
        assert!(hours.second(secs, true, !away), "at {secs} s");
    }
    let version = |connection: &Connection| connection.exchanges.version;
    assert_eq!(version(&hours.bench.stored), version(hours.bench.refresher.connection()));
    assert!(!hours.bench.refresher.is_unsettled());
    assert!(hours.calls < 60, "{} calls", hours.calls);
}

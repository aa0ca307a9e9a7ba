//! Several engines on one store, as several processes are.

use bearerd_store::{ChangeCounter, Changes};
use tokio::task::JoinHandle;

use super::*;

/// A world with further engines, each following the store as `bearerd-control` does.
struct Company {
    world: World,
    engines: Vec<Arc<TokenEngine>>,
    following: Vec<JoinHandle<()>>,
}

impl Drop for Company {
    fn drop(&mut self) {
        self.following.iter().for_each(JoinHandle::abort);
    }
}

impl Company {
    fn of(world: World, size: usize) -> Self {
        let settings = &world.engine.inner.settings;
        let start = |_| {
            let connector = Connector::new(&EgressSettings::default()).unwrap();
            let (store, clock) = (world.store.clone(), world.clock.clone());
            let (place, registry) = (ProcessPlace::shared(), Registry::new());
            let engine =
                TokenEngine::start(store, connector, clock, settings.clone(), place, &registry).unwrap();
            engine.begin();
            Arc::new(engine)
        };
        let engines: Vec<_> = (0..size).map(start).collect();
        let following =
            engines.iter().map(|engine| tokio::spawn(follow(world.store.clone(), engine.clone()))).collect();
        Self { world, engines, following }
    }

    fn slot(&self, engine: usize) -> Option<Arc<Slot>> {
        self.engines[engine].inner.held(&c())
    }
}

async fn follow(store: Store, engine: Arc<TokenEngine>) {
    let mut counter = store.changes(ChangeCounter::default()).await.unwrap().counter();
    loop {
        if let Ok(changes) = store.changes(counter).await {
            let taken_over = match &changes {
                Changes::Since { keys, .. } => engine.apply(keys).await,
                Changes::Missed { .. } => engine.apply_all().await,
            };
            if taken_over.is_empty() {
                counter = changes.counter();
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// I-8: 10,000 waiters on one expired token, in three processes: one token call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_waiters_of_three_processes_share_one_token_call() {
    let company = Company::of(World::expired(Habit::Rotating(LIFE)).await, 3);
    company.world.server.answers(false);
    let waiting: Vec<_> =
        (0..10_000).map(|number| tokio::spawn(company.engines[number % 3].acquire(&c()))).collect();
    eventually("all wait", async || {
        let waiting = |engine| company.slot(engine).map_or(0, |slot| slot.waiting());
        (0..3).map(waiting).sum::<usize>() == 10_000
    })
    .await;
    eventually("a token call", async || company.world.server.count() == 1).await;
    company.world.server.answers(true);
    for waiter in waiting {
        assert_eq!(bearer(&waiter.await.unwrap().unwrap()), "at-2");
    }
    assert_eq!(company.world.server.count(), 1);
    assert_eq!(company.world.stored_tokens().await, (2, "at-2".into(), "rt-2".into()));
}

/// I-2: whoever asks, in whatever process, a refresh token that rotates is spent once, and by one at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotating_refresh_token_is_spent_once() {
    let company = Company::of(World::expired(Habit::Rotating(LIFE)).await, 3);
    for _ in 0..20 {
        let forced = company.engines.iter().map(|engine| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.refresh_now(&c()).await.unwrap().unwrap() })
        });
        for forced in forced.collect::<Vec<_>>() {
            assert_eq!(forced.await.unwrap().health, Health::Ok);
        }
    }
    let spent: Vec<String> =
        company.world.server.calls().iter().map(|call| call["refresh_token"].clone()).collect();
    let expected: Vec<String> = (1..=spent.len()).map(|number| format!("rt-{number}")).collect();
    assert_eq!(spent, expected, "each is spent once, in its order");
    assert_eq!(company.world.server.most_in_flight(), 1);
}

/// A refused token is exchanged once, whichever process meets the refusal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_in_three_processes_make_one_token_call() {
    let company = Company::of(World::fresh(Habit::Rotating(LIFE)).await, 3);
    let mut lent = Vec::new();
    for engine in &company.engines {
        lent.push(engine.acquire(&c()).await.unwrap());
    }
    company.world.server.answers(false);
    let refused: Vec<_> = (0..3_000)
        .map(|number| tokio::spawn(company.engines[number % 3].refused(&c(), &lent[number % 3])))
        .collect();
    eventually("a token call", async || company.world.server.count() == 1).await;
    company.world.server.answers(true);
    for refused in refused {
        let AfterRefusal::Replay(token) = refused.await.unwrap() else { panic!("not replayed") };
        assert_eq!(bearer(&token), "at-2");
    }
    assert_eq!(company.world.server.count(), 1);
}

/// An owner that vanished: its claim keeps the others off until it ends, and then its token is tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_without_an_owner_ends_by_its_deadline() {
    let company = Company::of(World::expired(Habit::Rotating(LIFE)).await, 1);
    let world = &company.world;
    let began_at = world.clock.now();
    let deadline = began_at + Duration::from_secs(3);
    world
        .write(|connection| {
            let epoch = connection.exchanges.next_epoch(began_at);
            connection.exchanges.claimed = epoch;
            connection.exchanges.intent = Some(Intent {
                epoch,
                owner: Owner { node: 1, run: 1 },
                generation: Generation(1),
                began_at,
                deadline,
                in_doubt: false,
            });
        })
        .await;
    let waiting = tokio::spawn(company.engines[0].acquire(&c()));
    while world.clock.now() < deadline {
        assert_eq!(world.server.count(), 0, "not before the claim has ended");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(bearer(&waiting.await.unwrap().unwrap()), "at-2");
    assert_eq!(world.server.calls()[0]["refresh_token"], "rt-1", "the token that was spent, no other");
    assert_eq!((world.server.count(), world.stored().await.exchanges.intent), (1, None));
}

/// A token that is refused and cannot be replaced is told so at once, however many report it (I-8: no loop).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_that_lead_to_no_call_do_not_loop() {
    let world = World::fresh(NEW).await;
    world.write(|connection| connection.grant.as_mut().unwrap().refresh_token = None).await;
    let lent = world.acquire().await.unwrap();
    let before = world.backend.loads.load(SeqCst);
    let refused: Vec<_> = (0..100).map(|_| tokio::spawn(world.engine.refused(&c(), &lent))).collect();
    for refused in refused {
        assert!(matches!(refused.await.unwrap(), AfterRefusal::PassThrough));
    }
    assert!(world.backend.loads.load(SeqCst) - before < 10, "the store is not asked in a loop");
    assert_eq!(world.server.count(), 0);
}

/// F-12: 10,000 connections end in the same second: never more token calls than the limit, and no ended token is lent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connections_due_at_once_keep_to_the_limit() {
    const CONNECTIONS: usize = 10_000;
    let settings = TokenSettings { wait_max_s: 60, ..TokenSettings::default() };
    let world = World::with(NEW, Some((LIFE, LIFE)), settings).await;
    let id = |number: usize| ConnectionId::parse(&format!("n{number}")).unwrap();
    let now = world.clock.now();
    for number in 0..CONNECTIONS {
        let connection = connection_under(id(number).as_str(), "i", Some(grant(now, LIFE, LIFE)), now);
        world.store.create(&connection).await.unwrap().unwrap();
        world.engine.acquire(&id(number)).await.unwrap();
    }
    assert_eq!(world.server.count(), 0);
    world.clock.leap(LIFE);
    let callers: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let (engine, clock) = (world.engine.clone(), world.clock.clone());
            tokio::spawn(async move {
                let lent = engine.acquire(&id(number)).await;
                lent.map(|lent| lent.usable_until > clock.now())
            })
        })
        .collect();
    for caller in callers {
        assert!(caller.await.unwrap().unwrap(), "a token that has ended was lent");
    }
    assert!(world.server.most_in_flight() <= crate::gates::TOKEN_CALLS_MAX);
    assert!(world.server.most_in_flight() > 1, "the limit is made use of");
    assert_eq!(world.server.count(), CONNECTIONS, "one call each");
}

/// After a restart nobody has called yet: what was in use is taken up from the store's index, and let go again.
#[tokio::test]
async fn what_is_due_is_taken_up_without_callers() {
    let settings = TokenSettings { warm_for_h: 1, ..TokenSettings::default() };
    let world = World::with(NEW, Some((LIFE, LIFE)), settings).await;
    let now = world.clock.now();
    world
        .write(|connection| {
            connection.last_used_at = Some(now);
            connection.due_at = Some(now + LIFE / 2);
        })
        .await;
    world.clock.leap(LIFE * 9 / 10);
    eventually("it is refreshed", async || world.stored_tokens().await.1 == "at-2").await;
    assert!(
        world.stored().await.due_at > Some(world.clock.now()),
        "when it is due next is written beside it"
    );
    // The next one was due while it still counted as in use; after that it is nobody's.
    world.clock.leap(Duration::from_hours(2));
    eventually("it is refreshed once more", async || world.stored_tokens().await.1 == "at-3").await;
    world.clock.leap(Duration::from_mins(5));
    eventually("it leaves memory", async || world.engine.peek(&c()).is_none()).await;
    assert_eq!(world.server.count(), 2);
    // Once a day its grant is proved to be alive, by whoever comes first.
    world.clock.leap(Duration::from_hours(24));
    eventually("it is probed", async || world.server.count() == 3).await;
}

/// What a machine kept of an earlier run is the newest there is: it is in use before anything else is exchanged, and
/// the store gets it.
#[tokio::test]
async fn what_was_kept_comes_back_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::fresh(Habit::Rotating(LIFE)).await;
    let (spill, _) = bearerd_spill::Spill::open(folder.path()).await.unwrap();
    // A run that exchanged rt-1, kept what came, and died before the store had it.
    let now = world.clock.now();
    let mut claimed = world.stored().await;
    let epoch = claimed.exchanges.next_epoch(now);
    claimed.exchanges.claimed = epoch;
    claimed.exchanges.intent = Some(Intent {
        epoch,
        owner: Owner { node: spill.node(), run: 1 },
        generation: Generation(1),
        began_at: now,
        deadline: now + Duration::from_mins(10),
        in_doubt: false,
    });
    world.write(|connection| *connection = claimed.clone()).await;
    let mut kept = claimed.clone();
    let newer = Grant {
        access_token: AccessToken::parse("at-kept".to_owned()).unwrap(),
        refresh_token: Some(RefreshToken::parse("rt-kept".to_owned()).unwrap()),
        ..grant(now, LIFE, LIFE)
    };
    kept.advance_grant(newer, epoch);
    let entry = bearerd_spill::SpillEntry {
        id: c(),
        version: kept.exchanges.version,
        sealed: world.store.seal(&kept),
    };
    spill.keep(entry).await.unwrap();
    drop(spill);

    let (spill, found) = bearerd_spill::Spill::open(folder.path()).await.unwrap();
    let place = ProcessPlace::shared().with_spill(spill.clone(), found.entries);
    let connector = Connector::new(&EgressSettings::default()).unwrap();
    let engine = TokenEngine::start(
        world.store.clone(),
        connector,
        world.clock.clone(),
        TokenSettings::default(),
        place,
        &Registry::new(),
    )
    .unwrap();
    engine.begin();
    assert_eq!(bearer(&engine.acquire(&c()).await.unwrap()), "at-kept");
    eventually("the store has it", async || world.stored_tokens().await.2 == "rt-kept").await;
    eventually("nothing is left in the log", async || spill.unsettled() == 0).await;
    assert_eq!(world.stored().await.exchanges.intent, None);
    assert_eq!(world.server.count(), 0, "nothing had to be exchanged again");
}

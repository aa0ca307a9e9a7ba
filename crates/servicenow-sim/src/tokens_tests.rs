//! The life of tokens, told in steps of time.

use super::*;

const RULES: GrantRules = GrantRules {
    access_life: Duration::from_mins(30),
    refresh_life: Duration::from_hours(2400),
    within_life: RefreshWithinLife::Remaining,
    new_access_ends_old: false,
    shared: true,
    fresh_extends: true,
    rotation: false,
    previous_ok_for: Duration::ZERO,
    reuse_revokes: true,
    rotation_extends: false,
};
const ROTATING: GrantRules = GrantRules { rotation: true, within_life: RefreshWithinLife::New, ..RULES };

struct Bench {
    store: TokenStore,
    minted: u32,
    now: SimTime,
}

impl Bench {
    fn new() -> Self {
        Self { store: TokenStore::new(), minted: 0, now: SimTime::from_secs(1_000_000) }
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
    }

    fn grant(&mut self, user: &str, rules: &GrantRules) -> IssuedTokens {
        let owner = TokenOwner { client_id: "client".to_owned(), user_name: user.to_owned() };
        let minted = &mut self.minted;
        self.store.grant(&owner, true, rules, self.now, &mut |mint| name(minted, mint))
    }

    fn refresh(&mut self, token: &str, rules: &GrantRules) -> Result<IssuedTokens, TokenRefusal> {
        let minted = &mut self.minted;
        self.store.refresh(token, "client", rules, self.now, &mut |mint| name(minted, mint))
    }

    fn access(&self, token: &str) -> Result<(), TokenRefusal> {
        self.store.check_access(token, self.now).map(|_| ())
    }
}

fn name(minted: &mut u32, mint: Mint<'_>) -> String {
    *minted += 1;
    match mint {
        Mint::Access { .. } => format!("access-{minted}"),
        Mint::Refresh => format!("refresh-{minted}"),
    }
}

#[test]
fn refresh_inside_life_answers_what_is_left_rounded_down() {
    let mut bench = Bench::new();
    let first = bench.grant("abel", &RULES);
    let refresh = first.refresh_token.clone().unwrap();
    assert_eq!(first.expires_in_s, 1_800);
    for (pass_s, left_s) in [(1, 1_799), (1_000, 799), (798, 1)] {
        bench.pass(pass_s);
        let again = bench.refresh(&refresh, &RULES).unwrap();
        assert!(again.repeated);
        assert_eq!((again.access_token.as_str(), again.expires_in_s), (first.access_token.as_str(), left_s));
        assert_eq!(again.refresh_token.as_deref(), Some(refresh.as_str()), "the refresh token stays");
    }
    bench.now = bench.now.after(Duration::from_millis(999));
    assert_eq!(bench.refresh(&refresh, &RULES).unwrap().expires_in_s, 0, "floored in the last second");
    bench.pass(1);
    assert_eq!(bench.access(&first.access_token), Err(TokenRefusal::Expired));
    let new = bench.refresh(&refresh, &RULES).unwrap();
    assert_ne!(new.access_token, first.access_token);
    assert_eq!(new.expires_in_s, 1_800);
}

#[test]
fn refresh_inside_life_renews_or_replaces_by_switch() {
    let mut bench = Bench::new();
    let first = bench.grant("abel", &RULES);
    let refresh = first.refresh_token.clone().unwrap();
    bench.pass(1_000);
    let renewed =
        bench.refresh(&refresh, &GrantRules { within_life: RefreshWithinLife::Renewed, ..RULES }).unwrap();
    assert_eq!((&renewed.access_token, renewed.expires_in_s), (&first.access_token, 1_800));
    let replacing = GrantRules { within_life: RefreshWithinLife::New, ..RULES };
    let new = bench.refresh(&refresh, &replacing).unwrap();
    assert_ne!(new.access_token, first.access_token);
    assert_eq!(bench.access(&first.access_token), Ok(()), "the old one lives on");
    let ending = bench.refresh(&refresh, &GrantRules { new_access_ends_old: true, ..replacing }).unwrap();
    assert_eq!(bench.access(&new.access_token), Err(TokenRefusal::Revoked));
    assert_eq!(bench.access(&ending.access_token), Ok(()));
}

#[test]
fn hundred_days_are_absolute() {
    let mut bench = Bench::new();
    let refresh = bench.grant("abel", &RULES).refresh_token.unwrap();
    for _ in 0..99 {
        bench.pass(86_400);
        assert!(bench.refresh(&refresh, &RULES).is_ok());
    }
    bench.pass(86_399);
    assert!(bench.refresh(&refresh, &RULES).is_ok(), "last second of day 100");
    bench.pass(1);
    assert_eq!(bench.refresh(&refresh, &RULES), Err(TokenRefusal::Expired));
    let consented = bench.grant("abel", &RULES).refresh_token.unwrap();
    assert_ne!(consented, refresh);
    assert!(bench.refresh(&consented, &RULES).is_ok());
}

#[test]
fn same_client_and_user_share_one_pair() {
    let mut bench = Bench::new();
    let first = bench.grant("abel", &RULES);
    bench.pass(600);
    let second = bench.grant("abel", &RULES);
    assert_eq!(first.access_token, second.access_token);
    assert_eq!(first.refresh_token, second.refresh_token);
    assert_eq!(second.expires_in_s, 1_800, "a fresh grant extends");
    assert_ne!(bench.grant("beth", &RULES).access_token, first.access_token);
    let apart = bench.grant("abel", &GrantRules { shared: false, ..RULES });
    assert_ne!(apart.access_token, first.access_token);
    bench.pass(600);
    let left = bench.grant("abel", &GrantRules { fresh_extends: false, ..RULES });
    assert_eq!(left.expires_in_s, 1_200);
}

#[test]
fn rotation_replaces_and_detects_reuse() {
    let mut bench = Bench::new();
    let first = bench.grant("abel", &ROTATING).refresh_token.unwrap();
    let second = bench.refresh(&first, &ROTATING).unwrap();
    let second_refresh = second.refresh_token.unwrap();
    assert_ne!(first, second_refresh);
    assert_eq!(bench.refresh(&first, &ROTATING), Err(TokenRefusal::Reused));
    assert_eq!(bench.refresh(&second_refresh, &ROTATING), Err(TokenRefusal::Revoked), "the family is gone");
    assert_eq!(bench.access(&second.access_token), Err(TokenRefusal::Revoked));
}

#[test]
fn previous_refresh_token_re_answers_the_current_pair() {
    let mut bench = Bench::new();
    let lenient = GrantRules { previous_ok_for: Duration::MAX, ..ROTATING };
    let first = bench.grant("abel", &lenient).refresh_token.unwrap();
    let second = bench.refresh(&first, &lenient).unwrap();
    let again = bench.refresh(&first, &lenient).unwrap();
    assert_eq!(again.refresh_token, second.refresh_token);
    assert_eq!(again.access_token, second.access_token);
    assert_eq!(
        bench.refresh(&first, &lenient).unwrap().refresh_token,
        second.refresh_token,
        "any number of times"
    );
    let third = bench.refresh(&second.refresh_token.unwrap(), &lenient).unwrap();
    assert_eq!(
        bench.refresh(&first, &lenient),
        Err(TokenRefusal::Reused),
        "only the immediately previous one"
    );
    assert_eq!(bench.refresh(&third.refresh_token.unwrap(), &lenient), Err(TokenRefusal::Revoked));
}

#[test]
fn rotation_keeps_the_clock_of_consent_unless_told() {
    for (rotation_extends, alive) in [(false, false), (true, true)] {
        let rules = GrantRules { rotation_extends, ..ROTATING };
        let mut bench = Bench::new();
        let first = bench.grant("abel", &rules).refresh_token.unwrap();
        bench.pass(99 * 86_400);
        let second = bench.refresh(&first, &rules).unwrap().refresh_token.unwrap();
        bench.pass(86_400);
        assert_eq!(bench.refresh(&second, &rules).is_ok(), alive, "extends: {rotation_extends}");
    }
}

#[test]
fn revocation_ends_that_token_and_by_switch_its_access_token() {
    for refresh_ends_access in [false, true] {
        let mut bench = Bench::new();
        let issued = bench.grant("abel", &RULES);
        let refresh = issued.refresh_token.unwrap();
        assert!(bench.store.revoke(&refresh, refresh_ends_access));
        assert_eq!(bench.refresh(&refresh, &RULES), Err(TokenRefusal::Revoked));
        assert_eq!(bench.access(&issued.access_token).is_err(), refresh_ends_access);
    }
    let mut bench = Bench::new();
    let issued = bench.grant("abel", &RULES);
    assert!(bench.store.revoke(&issued.access_token, false));
    assert_eq!(bench.access(&issued.access_token), Err(TokenRefusal::Revoked));
    let next = bench.refresh(&issued.refresh_token.unwrap(), &RULES).unwrap();
    assert_ne!(next.access_token, issued.access_token);
    assert!(!bench.store.revoke("never issued", true));
}

#[test]
fn a_refresh_token_belongs_to_its_client() {
    let mut bench = Bench::new();
    let refresh = bench.grant("abel", &RULES).refresh_token.unwrap();
    let stolen = bench.store.refresh(&refresh, "other", &RULES, bench.now, &mut |_| String::new());
    assert_eq!(stolen, Err(TokenRefusal::WrongClient));
    assert_eq!(bench.refresh("nonsense", &RULES), Err(TokenRefusal::Unknown));
}

#[test]
fn selected_tokens_end() {
    let mut bench = Bench::new();
    let abel = bench.grant("abel", &RULES);
    let beth = bench.grant("beth", &RULES);
    let selection = TokenSelection { user: Some("abel".to_owned()), ..TokenSelection::default() };
    assert_eq!(bench.store.end(&selection), 1);
    assert_eq!(bench.access(&abel.access_token), Err(TokenRefusal::Revoked));
    assert_eq!(bench.access(&beth.access_token), Ok(()));
    assert!(bench.refresh(&abel.refresh_token.clone().unwrap(), &RULES).is_ok(), "refresh token untouched");
    let all = TokenSelection { which: WhichTokens::All, ..TokenSelection::default() };
    assert_eq!(bench.store.end(&all), 2);
    assert_eq!(bench.refresh(&abel.refresh_token.unwrap(), &RULES), Err(TokenRefusal::Revoked));
}

#[test]
fn memory_stays_bounded_and_current_refresh_tokens_survive() {
    let mut bench = Bench::new();
    let replacing =
        GrantRules { within_life: RefreshWithinLife::New, access_life: Duration::from_secs(5), ..RULES };
    let idle = bench.grant("idle", &RULES).refresh_token.unwrap();
    let busy = bench.grant("busy", &replacing).refresh_token.unwrap();
    for _ in 0..3 * SWEEP_COUNT_MIN {
        bench.pass(5);
        bench.refresh(&busy, &replacing).unwrap();
    }
    assert!(bench.store.access.len() <= SWEEP_COUNT_MIN + 1_000, "{}", bench.store.access.len());
    assert!(bench.refresh(&idle, &RULES).is_ok());
}

#[test]
fn leeway_ends_with_its_seconds_and_with_the_next_rotation() {
    let rules = GrantRules { previous_ok_for: Duration::from_secs(30), ..ROTATING };
    let mut bench = Bench::new();
    let first = bench.grant("abel", &rules).refresh_token.unwrap();
    let second = bench.refresh(&first, &rules).unwrap();
    let standing = |bench: &Bench| bench.store.standings(rules.previous_ok_for, bench.now).remove(0);
    bench.pass(29);
    assert!(standing(&bench).previous_honoured);
    let again = bench.refresh(&first, &rules).unwrap();
    assert_eq!((&again.refresh_token, &again.access_token), (&second.refresh_token, &second.access_token));
    bench.pass(1);
    let shown = standing(&bench);
    assert!(!shown.previous_honoured && shown.refresh_token_live);
    assert_eq!((shown.previous, &shown.refresh_token), (Some(first.clone()), &second.refresh_token));
    let third = bench.refresh(&second.refresh_token.unwrap(), &rules).unwrap();
    assert_eq!(bench.refresh(&first, &rules), Err(TokenRefusal::Reused), "two rotations old");
    assert_eq!(bench.refresh(&third.refresh_token.unwrap(), &rules), Err(TokenRefusal::Revoked));
    assert!(!standing(&bench).refresh_token_live);
}

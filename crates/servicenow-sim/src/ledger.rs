//! The instance's own book of exchanges: which refresh token or code was spent when, with what outcome, whether the
//! client got the answer, and how many were under way at once. What a fault run is judged by.
//!
//! An exchange is under way from the moment its request is read until its answer is written, its connection is cut,
//! or its client has left: what the server still does after that is no longer the client's exchange.

use std::collections::{HashMap, VecDeque};

use serde::Serialize;

use crate::clock::SimTime;
use crate::tokens::{FamilyStanding, TokenOwner};

/// One exchange of a refresh token or an authorization code. Secrets are shown: they are a simulator's.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Counts up from 1.
    pub seq: u64,
    /// `refresh_token` or `authorization_code`.
    pub grant_type: &'static str,
    /// The refresh token or code that was sent.
    pub spent: String,
    /// Whose it is; `None` for one that the instance never issued, and for codes that were not taken.
    pub owner: Option<TokenOwner>,
    pub began_at: SimTime,
    /// `None` while it is under way.
    pub ended_at: Option<SimTime>,
    pub outcome: ExchangeOutcome,
    /// The refusal's or the fault's name.
    pub reason: Option<&'static str>,
    /// `spent` was the family's current refresh token when the instance decided.
    pub spent_current: bool,
    /// The refresh token that the answer holds.
    pub refresh_token: Option<String>,
    /// The instance did its part, and the client did not get the answer, or not all of it.
    pub reply_lost: bool,
    /// Exchanges of the same token under way when this one began, itself included.
    pub at_once: u64,
}

/// What the instance did.
#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "snake_case")]
pub enum ExchangeOutcome {
    /// Not decided: under way, or the connection was cut before.
    Undecided,
    /// A new access token.
    Issued,
    /// The current access token once more.
    Repeated,
    Refused,
    /// Refused, and every token of the family ended: a refresh token that rotation had replaced was used.
    FamilyRevoked,
    /// A fault without effect answered instead.
    Prevented,
}

impl ExchangeOutcome {
    /// The instance handed out tokens.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Issued | Self::Repeated)
    }

    /// The instance decided, and said so.
    fn is_answer(self) -> bool {
        self.is_success() || self.is_refusal()
    }

    /// The instance said no to what was spent.
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::Refused | Self::FamilyRevoked)
    }
}

/// One request to the revocation endpoint that was carried out.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    pub at: SimTime,
    pub token: Option<String>,
    /// It was one of this instance's.
    pub known: bool,
}

/// `GET /__sim/ledger`.
#[derive(Serialize, Clone, Debug, Default)]
pub struct Ledger {
    /// The latest 100,000, oldest first.
    pub exchanges: Vec<Exchange>,
    /// Exchanges that were forgotten for want of room.
    pub forgotten: u64,
    pub in_flight: u64,
    pub in_flight_max: u64,
    /// The greatest number of exchanges of one refresh token that were under way at once.
    pub in_flight_max_per_token: u64,
    /// The latest 100,000, oldest first.
    pub revocations: Vec<Revocation>,
    /// What each consent (or each shared client and user) has now, oldest first.
    pub families: Vec<FamilyStanding>,
}

/// What is decided of an exchange.
#[derive(Clone, Debug)]
pub(crate) struct Decision {
    pub(crate) outcome: ExchangeOutcome,
    pub(crate) reason: Option<&'static str>,
    pub(crate) owner: Option<TokenOwner>,
    pub(crate) spent_current: bool,
    pub(crate) refresh_token: Option<String>,
}

#[derive(Debug, Default)]
pub(crate) struct ExchangeBook {
    exchanges: VecDeque<Exchange>,
    last_seq: u64,
    forgotten: u64,
    /// By refresh token or code; only of exchanges under way.
    under_way: HashMap<String, u64>,
    in_flight: u64,
    in_flight_max: u64,
    in_flight_max_per_token: u64,
    revocations: VecDeque<Revocation>,
}

impl ExchangeBook {
    /// An exchange's request has been read; answers its number.
    pub(crate) fn begin(&mut self, grant_type: &'static str, spent: &str, now: SimTime) -> u64 {
        let at_once = self.under_way.entry(spent.to_owned()).or_default();
        *at_once += 1;
        let at_once = *at_once;
        self.in_flight += 1;
        self.in_flight_max = self.in_flight_max.max(self.in_flight);
        if grant_type == "refresh_token" {
            self.in_flight_max_per_token = self.in_flight_max_per_token.max(at_once);
        }
        self.last_seq += 1;
        self.exchanges.push_back(Exchange {
            seq: self.last_seq,
            grant_type,
            spent: spent.to_owned(),
            owner: None,
            began_at: now,
            ended_at: None,
            outcome: ExchangeOutcome::Undecided,
            reason: None,
            spent_current: false,
            refresh_token: None,
            reply_lost: false,
            at_once,
        });
        if self.exchanges.len() > RECORDS_MAX
            && let Some(oldest) = self.exchanges.pop_front()
        {
            self.forgotten += 1;
            if oldest.ended_at.is_none() {
                self.leave(&oldest.spent); // its own end will not find it any more
            }
        }
        self.last_seq
    }

    pub(crate) fn decide(&mut self, seq: u64, decision: Decision) {
        let Some(exchange) = self.find(seq) else { return };
        exchange.outcome = decision.outcome;
        exchange.reason = decision.reason;
        exchange.owner = decision.owner.or(exchange.owner.take());
        exchange.spent_current = decision.spent_current;
        exchange.refresh_token = decision.refresh_token;
        // Whose client has left before the decision never sees it.
        exchange.reply_lost |= exchange.ended_at.is_some() && decision.outcome.is_answer();
    }

    /// The answer goes out, but what it says is unusable.
    pub(crate) fn spoil(&mut self, seq: u64) {
        if let Some(exchange) = self.find(seq) {
            exchange.reply_lost = true;
        }
    }

    /// The answer is written whole (`complete`), or the connection has ended.
    pub(crate) fn end(&mut self, seq: u64, complete: bool, now: SimTime) {
        let Some(exchange) = self.find(seq) else { return };
        if exchange.ended_at.is_some() {
            return;
        }
        exchange.ended_at = Some(now);
        exchange.reply_lost |= !complete && exchange.outcome.is_answer();
        let spent = exchange.spent.clone();
        self.leave(&spent);
    }

    fn leave(&mut self, spent: &str) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(count) = self.under_way.get_mut(spent) {
            *count -= 1;
            if *count == 0 {
                self.under_way.remove(spent);
            }
        }
    }

    pub(crate) fn revoked(&mut self, token: Option<String>, known: bool, now: SimTime) {
        self.revocations.push_back(Revocation { at: now, token, known });
        if self.revocations.len() > RECORDS_MAX {
            self.revocations.pop_front();
        }
    }

    /// Forgets what has ended; what is under way stays.
    pub(crate) fn reset(&mut self) {
        self.exchanges.retain(|exchange| exchange.ended_at.is_none());
        self.revocations.clear();
        self.forgotten = 0;
        self.in_flight_max = self.in_flight;
        self.in_flight_max_per_token =
            self.exchanges.iter().map(|exchange| exchange.at_once).max().unwrap_or(0);
    }

    pub(crate) fn show(&self, families: Vec<FamilyStanding>) -> Ledger {
        Ledger {
            exchanges: self.exchanges.iter().cloned().collect(),
            forgotten: self.forgotten,
            in_flight: self.in_flight,
            in_flight_max: self.in_flight_max,
            in_flight_max_per_token: self.in_flight_max_per_token,
            revocations: self.revocations.iter().cloned().collect(),
            families,
        }
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Numbers grow from front to back, not always by one: see [`Self::reset`].
    fn find(&mut self, seq: u64) -> Option<&mut Exchange> {
        let index = self.exchanges.binary_search_by_key(&seq, |exchange| exchange.seq).ok()?;
        self.exchanges.get_mut(index)
    }
}

/// Exchanges, and revocations, that are kept.
const RECORDS_MAX: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SimTime = SimTime::from_secs(1_000);
    const LATER: SimTime = SimTime::from_secs(1_001);

    fn issued() -> Decision {
        Decision {
            outcome: ExchangeOutcome::Issued,
            reason: None,
            owner: None,
            spent_current: true,
            refresh_token: Some("next".to_owned()),
        }
    }

    #[test]
    fn exchanges_at_once_are_counted_by_token_and_in_all() {
        let mut book = ExchangeBook::default();
        let first = book.begin("refresh_token", "a", NOW);
        let other = book.begin("refresh_token", "b", NOW);
        let again = book.begin("refresh_token", "a", NOW);
        book.end(first, true, LATER);
        book.end(first, true, LATER); // an end counts once
        let third = book.begin("refresh_token", "a", LATER);
        for seq in [other, again, third] {
            book.end(seq, true, LATER);
        }
        let shown = book.show(Vec::new());
        assert_eq!(shown.exchanges.iter().map(|one| one.at_once).collect::<Vec<_>>(), [1, 1, 2, 2]);
        assert_eq!((shown.in_flight, shown.in_flight_max, shown.in_flight_max_per_token), (0, 3, 2));
        book.reset();
        assert_eq!(book.show(Vec::new()).in_flight_max_per_token, 0);
    }

    #[test]
    fn an_answer_that_nobody_got_is_lost() {
        let mut book = ExchangeBook::default();
        let [sent, cut, left, before] = [(); 4].map(|()| book.begin("refresh_token", "a", NOW));
        book.decide(sent, issued());
        book.end(sent, true, LATER);
        book.decide(cut, issued());
        book.end(cut, false, LATER);
        book.end(left, false, LATER); // the client leaves, then the server decides
        book.decide(left, issued());
        book.end(before, false, LATER); // never decided: nothing to lose
        let shown = book.show(Vec::new());
        let lost: Vec<bool> = shown.exchanges.iter().map(|one| one.reply_lost).collect();
        assert_eq!(lost, [false, true, true, false]);
        assert_eq!(shown.exchanges[3].outcome, ExchangeOutcome::Undecided);
    }

    #[test]
    fn what_is_under_way_survives_a_reset() {
        let mut book = ExchangeBook::default();
        let ended = book.begin("refresh_token", "a", NOW);
        let open = book.begin("refresh_token", "b", NOW);
        book.end(ended, true, NOW);
        book.reset();
        book.decide(open, issued());
        book.end(open, true, LATER);
        let shown = book.show(Vec::new());
        assert_eq!(shown.exchanges.len(), 1);
        assert_eq!(shown.exchanges[0].outcome, ExchangeOutcome::Issued);
        assert_eq!(shown.exchanges[0].ended_at, Some(LATER));
    }
}

//! Scripted failures: rules that say which requests go wrong, how, and how often. Choosing is pure; `server` carries
//! the choice out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Which kind of route a rule is about.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum FaultOn {
    Token,
    Authorize,
    Revoke,
    Table,
    /// Everything below `/api`.
    Api,
    /// Every route but `/__sim`.
    #[default]
    Any,
}

/// One rule: all conditions must hold.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct FaultRule {
    #[serde(default)]
    pub on: FaultOn,
    /// Text that path and query must contain.
    #[serde(default)]
    pub path_contains: Option<String>,
    #[serde(default)]
    pub method: Option<String>,
    /// Only token requests with this `grant_type`.
    #[serde(default)]
    pub grant_type: Option<String>,
    /// How many requests are hit; `None` = until cleared.
    #[serde(default)]
    pub times: Option<u64>,
    /// How many matching requests pass before.
    #[serde(default)]
    pub after: u64,
    /// Chance of each matching request, 0 to 1; drawn from a fixed seed, so runs repeat.
    #[serde(default)]
    pub probability: Option<f64>,
    pub fault: Fault,
}

impl FaultRule {
    /// A rule without conditions, until cleared.
    pub fn new(on: FaultOn, fault: Fault) -> Self {
        Self {
            on,
            path_contains: None,
            method: None,
            grant_type: None,
            times: None,
            after: 0,
            probability: None,
            fault,
        }
    }

    /// The same rule for one request only.
    #[must_use]
    pub fn once(mut self) -> Self {
        self.times = Some(1);
        self
    }
}

/// How a request goes wrong. *Effect* is what the request does on the instance: tokens issued, records written.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Fault {
    /// Waits before the effect, or after it; then goes on.
    DelayMs {
        ms: u64,
        #[serde(default)]
        after_effect: bool,
    },
    /// Waits until `POST /__sim/release` names the gate (or none); then goes on.
    Hold {
        #[serde(default)]
        gate: String,
        #[serde(default)]
        after_effect: bool,
    },
    /// Answers this instead; the effect happens only with `after_effect`.
    Status {
        status: u16,
        #[serde(default)]
        body: String,
        #[serde(default)]
        headers: BTreeMap<String, String>,
        #[serde(default)]
        after_effect: bool,
    },
    /// Cuts the TCP connection, on HTTP/2 the stream, without an answer; no effect.
    DropBefore,
    /// Cuts the TCP connection, on HTTP/2 the stream, without an answer after the effect: the lost reply.
    DropAfter,
    /// Cuts the TCP connection, on HTTP/2 with every request on it; no effect.
    DropConnection,
    /// An HTML page, as of a gateway or an upgrade; no effect.
    Html {
        #[serde(default = "status_ok")]
        status: u16,
    },
    /// The request was dropped by a full session queue (fact 5); no effect.
    #[serde(rename = "accepted_202")]
    Accepted202,
    /// `401 User Not Authenticated`, on the token route the flattened refusal; no effect.
    #[serde(rename = "unauthorized_401")]
    Unauthorized401,
    /// A rate rule: `Retry-After`, `X-RateLimit-*` and JSON; no effect.
    #[serde(rename = "rate_limit_429")]
    RateLimit429 {
        #[serde(default = "one")]
        retry_after_s: u64,
    },
    /// The full `API_INT` queue: no body, no header; no effect.
    #[serde(rename = "queue_full_429")]
    QueueFull429,
    /// 200, but the JSON is followed by an error object (fact 9); effect happened.
    BrokenJson,
    /// `500 Transaction cancelled: maximum execution time exceeded`; effect happened.
    #[serde(rename = "cancelled_500")]
    Cancelled500,
    /// The body stops after this many bytes and the connection is cut; effect happened.
    CutBody {
        #[serde(default = "one")]
        after_bytes: u64,
    },
    /// The body comes in small pieces; effect happened.
    SlowDrip {
        #[serde(default = "one_usize")]
        chunk_bytes: usize,
        #[serde(default = "fifty")]
        interval_ms: u64,
    },
    /// The instance hibernates: 200 with an HTML page; no effect.
    Asleep,
    /// Answers before the body is read; no effect. With `close` the rest is not read and the connection ends.
    AnswerEarly {
        #[serde(default = "status_too_large")]
        status: u16,
        #[serde(default)]
        close: bool,
    },
    /// Waits before it reads the body, and so before `100 Continue`: for this long and, if a gate is named, until it is
    /// released; then goes on.
    ContinueLate {
        #[serde(default)]
        ms: u64,
        #[serde(default)]
        gate: Option<String>,
    },
    /// Waits after each piece of the body that it reads; then goes on.
    SlowRead {
        #[serde(default = "fifty")]
        interval_ms: u64,
    },
    /// Informational answers come before the final one (RFC 9110 §15.2); effect happened.
    Informational {
        #[serde(default = "status_early_hints")]
        status: u16,
        #[serde(default = "one")]
        count: u64,
    },
    /// Trailers follow the body; effect happened.
    Trailers {
        #[serde(default = "trailers_default")]
        trailers: BTreeMap<String, String>,
    },
    /// A header this long; effect happened.
    HugeHeader {
        #[serde(default = "mebibyte")]
        bytes: usize,
    },
    /// `Content-Length` and `Transfer-Encoding` at once (RFC 9112 §6.3); effect happened.
    LengthAndChunked,
    /// A second answer that nobody asked for comes right after the first; effect happened.
    TwoAnswers,
    /// The chunked body breaks the rules of RFC 9112 §7.1; effect happened.
    BadChunks { flaw: ChunkFlaw },
    /// A body after a status that has none; effect happened.
    GhostBody {
        #[serde(default = "status_not_modified")]
        status: u16,
    },
    /// These bytes instead of an answer; the effect happens only with `after_effect`.
    Raw {
        text: String,
        #[serde(default)]
        close: bool,
        #[serde(default)]
        after_effect: bool,
    },
}

/// How a chunked body goes wrong.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ChunkFlaw {
    /// A size that is no number.
    NotHex,
    /// A size with a sign.
    Signed,
    /// A size over 64 bits.
    TooLarge,
    /// More bytes than the size says.
    TooLong,
    /// Lines end in LF alone.
    BareLf,
    /// The connection ends before the last chunk.
    NoEnd,
}

fn status_too_large() -> u16 {
    413
}

fn status_early_hints() -> u16 {
    103
}

fn status_not_modified() -> u16 {
    304
}

fn mebibyte() -> usize {
    1024 * 1024
}

fn trailers_default() -> BTreeMap<String, String> {
    [("x-sim-trailer".to_owned(), "set-cookie: no".to_owned())].into()
}

fn status_ok() -> u16 {
    200
}

fn one() -> u64 {
    1
}

fn one_usize() -> usize {
    1
}

fn fifty() -> u64 {
    50
}

impl Fault {
    /// Waits and then lets the request go on, so that a further rule can apply to it.
    pub(crate) fn only_waits(&self) -> bool {
        matches!(
            self,
            Self::DelayMs { .. } | Self::Hold { .. } | Self::ContinueLate { .. } | Self::SlowRead { .. }
        )
    }

    /// Happens before the body is read, when its `grant_type` is not known yet.
    fn is_early(&self) -> bool {
        matches!(self, Self::AnswerEarly { .. } | Self::ContinueLate { .. } | Self::SlowRead { .. })
    }
}

/// One rule and what became of it.
#[derive(Serialize, Clone, Debug)]
pub struct FaultStatus {
    pub id: u64,
    #[serde(flatten)]
    pub rule: FaultRule,
    /// Requests that met the conditions.
    pub matched: u64,
    /// Requests that were hit.
    pub fired: u64,
}

/// What a rule looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FaultSubject<'a> {
    pub(crate) on: FaultOn,
    pub(crate) method: &'a str,
    pub(crate) target: &'a str,
    pub(crate) grant_type: Option<&'a str>,
}

/// The rules in force, oldest first.
#[derive(Debug)]
pub(crate) struct FaultBook {
    rules: Vec<FaultStatus>,
    next_id: u64,
    dice: u64,
}

impl Default for FaultBook {
    fn default() -> Self {
        Self { rules: Vec::new(), next_id: 1, dice: DICE_SEED }
    }
}

impl FaultBook {
    /// Answers the rule's id; `None` if there are too many rules.
    pub(crate) fn add(&mut self, rule: FaultRule) -> Option<u64> {
        if self.rules.len() >= RULES_MAX {
            self.rules.retain(|status| !is_spent(status));
        }
        if self.rules.len() >= RULES_MAX {
            return None;
        }
        let id = self.next_id;
        self.next_id += 1;
        self.rules.push(FaultStatus { id, rule, matched: 0, fired: 0 });
        Some(id)
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
        self.dice = DICE_SEED;
    }

    pub(crate) fn remove(&mut self, id: u64) -> bool {
        let before = self.rules.len();
        self.rules.retain(|status| status.id != id);
        self.rules.len() < before
    }

    pub(crate) fn list(&self) -> &[FaultStatus] {
        &self.rules
    }

    /// What happens to this request: any number of waits, then at most one other fault.
    pub(crate) fn choose(&mut self, subject: FaultSubject<'_>) -> Vec<Fault> {
        self.pick(subject, false)
    }

    /// The same, for what happens before its body is read.
    pub(crate) fn choose_early(&mut self, subject: FaultSubject<'_>) -> Vec<Fault> {
        self.pick(subject, true)
    }

    fn pick(&mut self, subject: FaultSubject<'_>, early: bool) -> Vec<Fault> {
        let mut chosen = Vec::new();
        let mut decided = false;
        for status in &mut self.rules {
            let waits = status.rule.fault.only_waits();
            let is_due = status.rule.fault.is_early() == early && !is_spent(status);
            if !is_due || (decided && !waits) || !matches(&status.rule, subject) {
                continue;
            }
            status.matched += 1;
            if status.matched <= status.rule.after {
                continue;
            }
            if let Some(probability) = status.rule.probability
                && roll(&mut self.dice) >= probability
            {
                continue;
            }
            status.fired += 1;
            decided |= !waits;
            chosen.push(status.rule.fault.clone());
        }
        chosen
    }
}

fn is_spent(status: &FaultStatus) -> bool {
    status.rule.times.is_some_and(|times| status.fired >= times)
}

fn matches(rule: &FaultRule, subject: FaultSubject<'_>) -> bool {
    let on = match rule.on {
        FaultOn::Any => true,
        FaultOn::Api => subject.target.starts_with("/api/"),
        on => on == subject.on,
    };
    on && rule.path_contains.as_ref().is_none_or(|text| subject.target.contains(text.as_str()))
        && rule.method.as_ref().is_none_or(|method| method.eq_ignore_ascii_case(subject.method))
        && rule.grant_type.as_ref().is_none_or(|grant| subject.grant_type == Some(grant.as_str()))
}

/// The next number in 0..1 (`xorshift64*`).
fn roll(dice: &mut u64) -> f64 {
    *dice ^= *dice >> 12;
    *dice ^= *dice << 25;
    *dice ^= *dice >> 27;
    let high = u32::try_from(dice.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32).unwrap_or(u32::MAX);
    f64::from(high) / 4_294_967_296.0
}

const DICE_SEED: u64 = 0x5EED_0F5E_2F1C_E001;
/// Rules at a time; spent ones make room.
const RULES_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TOKEN: FaultSubject<'_> = FaultSubject {
        on: FaultOn::Token,
        method: "POST",
        target: "/oauth_token.do",
        grant_type: Some("refresh_token"),
    };
    const TABLE: FaultSubject<'_> = FaultSubject {
        on: FaultOn::Table,
        method: "GET",
        target: "/api/now/table/incident?x=1",
        grant_type: None,
    };

    fn book(rules: &[serde_json::Value]) -> FaultBook {
        let mut book = FaultBook::default();
        for rule in rules {
            book.add(serde_json::from_value(rule.clone()).unwrap()).unwrap();
        }
        book
    }

    #[test]
    fn conditions_must_all_hold() {
        for (conditions, token, table) in [
            (json!({}), true, true),
            (json!({"on": "any"}), true, true),
            (json!({"on": "token"}), true, false),
            (json!({"path_contains": "incident"}), false, true),
            (json!({"method": "get"}), false, true),
            (json!({"grant_type": "refresh_token"}), true, false),
            (json!({"grant_type": "client_credentials"}), false, false),
            (json!({"on": "table", "method": "POST"}), false, false),
        ] {
            let mut rule = conditions.clone();
            rule["fault"] = json!({"kind": "drop_before"});
            let mut book = book(&[rule]);
            assert_eq!(!book.choose(TOKEN).is_empty(), token, "{conditions}");
            assert_eq!(!book.choose(TABLE).is_empty(), table, "{conditions}");
        }
    }

    #[test]
    fn after_and_times_count() {
        let mut book = book(&[json!({"after": 1, "times": 2, "fault": {"kind": "asleep"}})]);
        let hits: Vec<bool> = (0..5).map(|_| !book.choose(TOKEN).is_empty()).collect();
        assert_eq!(hits, [false, true, true, false, false]);
    }

    #[test]
    fn waits_combine_with_one_other() {
        let mut book = book(&[
            json!({"fault": {"kind": "delay_ms", "ms": 1}}),
            json!({"fault": {"kind": "drop_after"}}),
            json!({"fault": {"kind": "html"}}),
            json!({"fault": {"kind": "hold", "gate": "a", "after_effect": true}}),
        ]);
        let names: Vec<_> = book.choose(TOKEN);
        assert_eq!(
            names,
            [
                Fault::DelayMs { ms: 1, after_effect: false },
                Fault::DropAfter,
                Fault::Hold { gate: "a".to_owned(), after_effect: true },
            ]
        );
    }

    #[test]
    fn chance_repeats_and_is_about_right() {
        let rule = json!({"probability": 0.3, "fault": {"kind": "accepted_202"}});
        let draw = || {
            let mut book = book(std::slice::from_ref(&rule));
            (0..1_000).map(|_| !book.choose(TABLE).is_empty()).collect::<Vec<_>>()
        };
        let hits = draw();
        assert_eq!(hits, draw());
        let count = hits.into_iter().filter(|hit| *hit).count();
        assert!((230..370).contains(&count), "{count}");
    }

    #[test]
    fn every_kind_is_spelt_as_documented() {
        for kind in [
            json!({"kind": "delay_ms", "ms": 5}),
            json!({"kind": "hold"}),
            json!({"kind": "status", "status": 503}),
            json!({"kind": "drop_before"}),
            json!({"kind": "drop_after"}),
            json!({"kind": "drop_connection"}),
            json!({"kind": "html"}),
            json!({"kind": "accepted_202"}),
            json!({"kind": "unauthorized_401"}),
            json!({"kind": "rate_limit_429"}),
            json!({"kind": "queue_full_429"}),
            json!({"kind": "broken_json"}),
            json!({"kind": "cancelled_500"}),
            json!({"kind": "cut_body"}),
            json!({"kind": "slow_drip"}),
            json!({"kind": "asleep"}),
            json!({"kind": "answer_early"}),
            json!({"kind": "continue_late"}),
            json!({"kind": "slow_read"}),
            json!({"kind": "informational"}),
            json!({"kind": "trailers"}),
            json!({"kind": "huge_header"}),
            json!({"kind": "length_and_chunked"}),
            json!({"kind": "two_answers"}),
            json!({"kind": "bad_chunks", "flaw": "not_hex"}),
            json!({"kind": "ghost_body"}),
            json!({"kind": "raw", "text": ""}),
        ] {
            assert!(serde_json::from_value::<Fault>(kind.clone()).is_ok(), "{kind}");
        }
        assert!(serde_json::from_value::<FaultRule>(json!({"fault": {"kind": "nonsense"}})).is_err());
        assert!(
            serde_json::from_value::<FaultRule>(json!({"onn": "any", "fault": {"kind": "html"}})).is_err()
        );
    }
}

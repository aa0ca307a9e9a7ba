//! Two instances that differ only in what a rule hides must answer alike: rows, counts, order and error texts. The
//! simulator ignores conditions that it does not understand, as ServiceNow does.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use proptest::{
    strategy::{Strategy, ValueTree as _},
    test_runner::TestRunner,
};
use serde_json::Value;
use servicenow_sim::{Record, SeedData, Sim, SimSettings};
use tokio::net::TcpStream;

use crate::{
    invariants::{SAMPLES, Sample},
    queries,
};

/// Records that every sample permits; the other ones differ between the instances in number and content.
const INSIDE: usize = 9;
/// For each of three samples.
const ACCEPTED_EACH: usize = 1_000;
/// Texts that only hidden records, and only hidden fields, hold.
const OUTSIDE: &str = "zqoutside";
const HIDDEN: &str = "zqhidden";

/// One instance and a connection to it.
struct Instance {
    sim: Sim,
    sender: SendRequest<Empty<Bytes>>,
}

/// What a caller can see of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    total: Option<String>,
    link: Option<String>,
    body: String,
}

impl Instance {
    async fn start(sample: &Sample, variant: usize) -> Self {
        let records = records(sample, variant).into_iter().map(|row| ("incident".to_owned(), row)).collect();
        let seed = SeedData { schemas: SeedData::empty().schemas, records };
        let sim = Sim::start(SimSettings { seed, ..SimSettings::default() }).await.unwrap();
        sim.state()
            .change_behaviour(|behaviour| behaviour.public_origin = Some("http://instance".to_owned()));
        let stream = TcpStream::connect(sim.local_addr()).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { sim, sender }
    }

    async fn ask(&mut self, query: &str) -> Answer {
        let request = Request::get(format!("/api/now/table/incident?{query}"))
            .header(header::HOST, "instance")
            .header(header::ACCEPT, "application/json")
            .header(header::AUTHORIZATION, ADMIN)
            .body(Empty::new())
            .unwrap();
        self.sender.ready().await.unwrap();
        let reply = self.sender.send_request(request).await.unwrap();
        let header = |name: &str| reply.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let (status, total, link) = (reply.status().as_u16(), header("x-total-count"), header("link"));
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        Answer { status, total, link, body: String::from_utf8(body.to_vec()).unwrap() }
    }
}

impl Answer {
    fn numbers(&self) -> Vec<String> {
        let body: Value = serde_json::from_str(&self.body).unwrap();
        let rows = body["result"].as_array().unwrap_or_else(|| panic!("{}", self.body));
        rows.iter().map(|row| row["number"].as_str().unwrap().to_owned()).collect()
    }
}

/// Both variants of the instance, asked the same.
struct Pair([Instance; 2]);

impl Pair {
    async fn start(sample: &Sample) -> Self {
        Self([Instance::start(sample, 0).await, Instance::start(sample, 1).await])
    }

    fn make_strict(&self, strict: bool) {
        for Instance { sim, .. } in &self.0 {
            sim.state().change_behaviour(|behaviour| behaviour.invalid_query_returns_no_rows = strict);
        }
    }

    /// What the answers tell of what is hidden.
    async fn leak(&mut self, query: &str) -> Option<String> {
        let answers = [self.0[0].ask(query).await, self.0[1].ask(query).await];
        let [one, other] = &answers;
        if one != other {
            return Some(format!("{one:?} differs from {other:?}"));
        }
        if [OUTSIDE, HIDDEN].iter().any(|text| one.body.contains(text)) {
            return Some(format!("{one:?} shows what is hidden"));
        }
        if one.total.as_deref().is_some_and(|total| total.parse::<usize>().unwrap() > INSIDE) {
            return Some(format!("{one:?} counts what is hidden"));
        }
        None
    }

    async fn stop(self) {
        for instance in self.0 {
            instance.sim.stop().await;
        }
    }
}

/// Permitted records, the same in both variants but for fields that the sample hides, and hidden ones between them.
fn records(sample: &Sample, variant: usize) -> Vec<Record> {
    let mut records = Vec::new();
    for index in 0..INSIDE {
        records.extend((0..=variant + index % 2).map(|more| outside(variant, index, more)));
        let hidden = |field: &str| {
            if sample.permits(field) {
                "plain".to_owned()
            } else {
                format!("{HIDDEN} {}", (index * 7 + variant * 5) % 9)
            }
        };
        records.push(record(&[
            ("sys_id", &format!("{index:032x}")),
            ("number", &format!("INC{index:07}")),
            ("short_description", ["printer on fire", "Grüße", "x"][index % 3]),
            ("priority", ["1", "2", "3", "4"][index % 4]),
            ("state", ["1", "2", ""][index % 3]),
            ("category", "network"),
            ("active", "true"),
            ("opened_at", &format!("2026-01-0{} 00:00:00", index % 3 + 1)),
            ("work_notes", &hidden("work_notes")),
            ("description", &hidden("description")),
            ("close_notes", &hidden("close_notes")),
        ]));
    }
    records
}

fn outside(variant: usize, index: usize, more: usize) -> Record {
    let id = 1_000 + variant * 500 + index * 10 + more;
    let (category, active) = [("software", "true"), ("network", "false"), ("software", "false")][id % 3];
    let text = format!("{OUTSIDE} {id}");
    record(&[
        ("sys_id", &format!("{id:032x}")),
        ("number", &format!("INC{id:07}")),
        ("short_description", &text),
        ("priority", "1"),
        ("category", category),
        ("active", active),
        ("opened_at", "2026-01-02 00:00:00"),
        ("work_notes", &text),
        ("description", &text),
    ])
}

fn record(members: &[(&str, &str)]) -> Record {
    members.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Whether the query can be sent at all.
fn is_target(query: &str) -> bool {
    query.bytes().all(|byte| byte.is_ascii_graphic() && !b"#\"<>`{}\\^".contains(&byte))
}

/// Sends accepted queries, rewritten, until enough were sent: none tells of a hidden record or field.
#[tokio::test]
async fn no_accepted_query_tells_of_what_the_rule_hides() {
    let mut runner = TestRunner::deterministic();
    for sample in &SAMPLES[..3] {
        let rule = sample.rule();
        let mut pair = Pair::start(sample).await;
        let (mut sent, mut tried, mut with_rows) = (0, 0, 0);
        while sent < ACCEPTED_EACH {
            tried += 1;
            let query = queries::any_query().new_tree(&mut runner).unwrap().current();
            let Ok(rewritten) = rule.rewrite(Some(&query)) else { continue };
            sent += 1;
            pair.make_strict(sent % 4 == 0);
            let leak = pair.leak(&rewritten).await;
            assert!(leak.is_none(), "{query}\nbecame {rewritten}\n{}", leak.unwrap_or_default());
            with_rows += usize::from(pair.0[0].ask(&rewritten).await.body != r#"{"result":[]}"#);
        }
        println!("{sample:?}: {sent} of {tried} accepted, {with_rows} with rows");
        assert!(with_rows * 4 > sent, "{with_rows}");
        pair.stop().await;
    }
}

/// The test above would notice: the same queries as they were given, and with the rule merely put before them.
#[tokio::test]
async fn without_the_rewriting_hidden_records_and_fields_show() {
    let mut runner = TestRunner::deterministic();
    let sample = &SAMPLES[0];
    let mut pair = Pair::start(sample).await;
    let (mut as_given, mut merely_before) = (0, 0);
    for _ in 0..500 {
        let query = queries::any_query().new_tree(&mut runner).unwrap().current();
        let rule = sample.condition.replace('^', "%5E");
        let before = query.replace("sysparm_query=", &format!("sysparm_query={rule}%5E"));
        let before = format!("sysparm_fields={}&{before}", sample.fields.join(","));
        for (query, leaks) in [(query, &mut as_given), (before, &mut merely_before)] {
            if is_target(&query) {
                *leaks += usize::from(pair.leak(&query).await.is_some());
            }
        }
    }
    println!("of 500 queries, {as_given} leak as given, {merely_before} with the rule merely before");
    assert!(as_given >= 100, "{as_given}");
    assert!(merely_before >= 20, "{merely_before}");
    pair.stop().await;
}

/// The rule takes nothing away that it permits: what an honest query finds is what it finds without the rule, less
/// the hidden records, in the same order.
#[tokio::test]
async fn an_honest_query_finds_everything_that_is_permitted() {
    let mut runner = TestRunner::deterministic();
    let sample = &SAMPLES[0];
    let rule = sample.rule();
    let mut pair = Pair::start(sample).await;
    let inside: BTreeSet<String> = (0..INSIDE).map(|index| format!("INC{index:07}")).collect();
    let mut narrowed = 0;
    for _ in 0..500 {
        let query = queries::honest_encoded_query().new_tree(&mut runner).unwrap().current();
        let escaped = queries::escape(query.as_bytes(), |_| false);
        let given = format!("sysparm_fields=number&sysparm_query={escaped}");
        let rewritten = rule.rewrite(Some(&given)).unwrap_or_else(|refused| panic!("{query}: {refused}"));
        let all = pair.0[0].ask(&given).await.numbers();
        let permitted: Vec<String> = all.iter().filter(|number| inside.contains(*number)).cloned().collect();
        assert_eq!(pair.0[0].ask(&rewritten).await.numbers(), permitted, "{query}");
        narrowed += usize::from(permitted.len() < all.len() && !permitted.is_empty());
    }
    assert!(narrowed >= 50, "{narrowed}");
    pair.stop().await;
}

/// `admin` with the password `admin`.
const ADMIN: &str = "Basic YWRtaW46YWRtaW4=";

//! More calls than can be served: who is shed, who is not, and whether everything is counted.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use bearerd_tests::{
    Deployment, Flood, FloodAnswer, FloodCall, Request, Setup, another_instance, get, outcomes, wait_until,
};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use servicenow_sim::{Behaviour, Sim};

const WORKERS: &str = "2";
/// Calls at an instance at once, and calls that wait for it: together far fewer than there are callers.
const PLACES: &str = "4";
const QUEUE: &str = "8";
/// What the slow instance takes for each call: with its places, 20 calls a second.
const SLOW: Duration = Duration::from_millis(200);
const SERVED: &str = "200";
const SHED: &str = "503 overloaded";
/// How long a count may take to come about on a busy machine.
const LIMIT: Duration = Duration::from_secs(90);

/// For a probe, a scrape and an operator's look alike: far more than they take here, less than any of them waits.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
const PROBE_ROUNDS: usize = 50;

/// An instance that is slow, another that is not, and keys for both.
struct Stand {
    deployment: Deployment,
    slow: Option<Sim>,
    flooding_key: String,
    flooding_key_id: String,
    modest_key: String,
}

impl Stand {
    fn start(setup: Setup) -> Self {
        let setup = setup
            .set("proxy.workers", WORKERS)
            .set("proxy.instance_calls_max", PLACES)
            .set("proxy.instance_queue_max", QUEUE);
        let deployment = Deployment::start(setup, Behaviour::default());
        let latency_ms = u64::try_from(SLOW.as_millis()).unwrap();
        let slow = another_instance(Behaviour { latency_ms, ..Behaviour::default() });
        deployment.add_application("slow", &slow.origin());
        deployment.add_application("quick", &deployment.instance);
        deployment.add_open_policy("open");
        let (flooding_key, flooding_key_id) = deployment.daemon.new_key_with_id("open");
        let modest_key = deployment.daemon.new_key("open");
        Self { deployment, slow: Some(slow), flooding_key, flooding_key_id, modest_key }
    }

    fn call(&self, connection: &str, key: &str) -> Request {
        self.request(Method::GET, &format!("/c/{connection}/api/now/table/incident?sysparm_limit=1"), key)
    }

    fn request(&self, method: Method, path: &str, key: &str) -> Request {
        self.deployment.daemon.call(method, path, key)
    }

    fn flood(&self, callers: usize) -> Flood {
        Flood::start(vec![self.call("slow", &self.flooding_key); callers])
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        if let Some(slow) = self.slow.take() {
            bearerd_tests::block_on(slow.stop());
        }
    }
}

/// §5.1, overload: two hundred callers without pause at an instance that serves twenty calls a second. They are shed;
/// probes, scrapes, operators, callers of another instance and a modest caller of the same one are not. Then the operator
/// takes the flooding key away (S-14).
#[test]
fn a_flood_starves_nobody_else() {
    let stand = Stand::start(Setup::new("overload-doors"));
    let daemon = &stand.deployment.daemon;
    let flood = stand.flood(200);
    let modest = Flood::start([stand.call("slow", &stand.modest_key)]);
    let elsewhere = Flood::start(vec![stand.call("quick", &stand.modest_key); 2]);
    wait_until("calls are shed", LIMIT, || (flood.count(|call| call.is(SHED)) >= 200).then_some(()));

    let probe = |path: &str| (path.to_owned(), get(&format!("{}{path}", daemon.admin_origin())));
    let read = |path: &str| (path.to_owned(), daemon.admin(Method::GET, path));
    let probes = [
        probe("/livez"),
        probe("/readyz"),
        probe("/metrics"),
        read("/v1/keys"),
        read("/v1/connections/slow"),
    ];
    let probing_from = Instant::now();
    let mut slowest = BTreeMap::<&str, Duration>::new();
    for _ in 0..PROBE_ROUNDS {
        for (path, probe) in &probes {
            let began = Instant::now();
            let reply = probe.send();
            assert_eq!(reply.status, 200, "{path}: {}", reply.text());
            let longest = slowest.entry(path).or_default();
            *longest = began.elapsed().max(*longest);
        }
    }
    let probing_until = Instant::now();
    let meanwhile = |call: &FloodCall| call.began >= probing_from && call.ended <= probing_until;
    let shed_meanwhile = flood.count(|call| meanwhile(call) && call.is(SHED));
    println!(
        "{} probes in {:.1?}, with {shed_meanwhile} calls shed meanwhile; the slowest: {slowest:.1?}",
        PROBE_ROUNDS * probes.len(),
        probing_until - probing_from
    );
    assert!(shed_meanwhile >= PROBE_ROUNDS, "there was no flood meanwhile");
    assert!(slowest.values().all(|took| *took <= PROBE_LIMIT), "{slowest:?}");
    wait_until("the others are served", LIMIT, || {
        (modest.count(|_| true) >= 8 && elsewhere.count(|_| true) >= 50).then_some(())
    });

    let path = format!("/v1/keys/{}", stand.flooding_key_id);
    drop(daemon.admin(Method::DELETE, &path).send().expect(StatusCode::NO_CONTENT));
    let in_force_at = Instant::now() + Duration::from_secs(1);
    let after = |call: &FloodCall| call.began >= in_force_at;
    wait_until("the flooding key is refused", LIMIT, || (flood.count(after) >= 200).then_some(()));

    for (who, calls) in
        [("the modest caller", modest.stop()), ("callers of the other instance", elsewhere.stop())]
    {
        let slowest = calls.iter().map(FloodCall::took).max().unwrap();
        println!("{who}: {:?}, the slowest {slowest:.1?}", outcomes(&calls));
        assert!(calls.iter().all(|call| call.is(SERVED)), "{who}: {:?}", outcomes(&calls));
    }
    let flood = flood.stop();
    let (after, before): (Vec<_>, Vec<_>) = flood.iter().partition(|call| after(call));
    let before = outcomes(before);
    println!("the flood: {before:?}; then {:?}", outcomes(after.iter().copied()));
    assert!(after.iter().all(|call| call.is("401 caller_key_invalid")), "{:?}", outcomes(after));
    assert!([SERVED, SHED].iter().all(|what| before.contains_key(*what)), "{before:?}");
    assert!(
        before.keys().all(|what| [SERVED, SHED, "401 caller_key_invalid"].contains(&what.as_str())),
        "{before:?}"
    );
    for answer in
        flood.iter().filter_map(|call| call.answer.as_ref().ok()).filter(|answer| answer.status == 503)
    {
        assert!(answer.retry_after.parse::<u64>().is_ok_and(|secs| secs >= 1), "{answer:?}");
    }
}

/// Under the same flood, with everything else that a door refuses beside it: what callers counted, what the metrics
/// count and what the records hold is the same, call by call (docs/access-records.md: with `block` no record is dropped),
/// in files that are rolled meanwhile.
#[test]
fn every_answer_is_counted_once_and_recorded_once() {
    let setup = Setup::new("overload-records")
        .set("access.sink", "file")
        .set("access.path", "access.jsonl")
        .set("access.on_stall", "block")
        .set("access.file_bytes_max", "1048576")
        .set("access.files_max", "1000");
    let mut stand = Stand::start(setup);
    stand.deployment.daemon.put(
        "/v1/policies/narrow",
        &json!({"rules": [{"connections": "all", "tables": {"named": ["problem"]}, "methods": ["GET"]}]}),
    );
    let narrow = stand.deployment.daemon.new_key("narrow");
    let (quick, key) = ("/c/quick/api/now/table/incident", &stand.modest_key);
    let nowhere = "00000000000000000000000000000000";
    let others = [
        stand.call("quick", key),
        stand.request(Method::HEAD, quick, key),
        stand.request(Method::POST, quick, key).json(&json!({"short_description": "counted"})),
        stand.request(Method::GET, &format!("{quick}/{nowhere}"), key),
        stand.call("quick", "nonsense"),
        stand.call("quick", &narrow),
        stand.call("nowhere", key),
        stand.request(Method::GET, "/api/now//table/incident", key),
        stand.request(Method::OPTIONS, quick, key),
    ];
    let expected = [
        SERVED,
        SHED,
        "201",
        "404",
        "401 caller_key_invalid",
        "403 policy_denied",
        "404 connection_unknown",
        "400 path_refused",
        "405 method_refused",
    ];
    let floods = [stand.flood(40), Flood::start(others)];
    let rolled = stand.deployment.daemon.folder().join("access.jsonl.1");
    wait_until("every kind of answer came often, and the file was rolled", LIMIT, || {
        let often = |what: &&str| floods.iter().any(|flood| flood.count(|call| call.is(what)) >= 50);
        (rolled.exists() && expected.iter().all(often)).then_some(())
    });
    let calls: Vec<FloodCall> = floods.into_iter().flat_map(Flood::stop).collect();
    let by_outcome = outcomes(&calls);
    assert!(by_outcome.keys().all(|what| expected.contains(&what.as_str())), "{by_outcome:?}");
    let answers: BTreeMap<&str, &FloodAnswer> = calls
        .iter()
        .map(|call| call.answer.as_ref().unwrap())
        .map(|answer| (answer.request_id.as_str(), answer))
        .collect();
    assert_eq!(answers.len(), calls.len(), "each answer has a request id of its own");

    let daemon = &mut stand.deployment.daemon;
    let count = |name: &str| daemon.metrics(name).values().sum::<u64>();
    let total = calls.len() as u64;
    wait_until("every record is written", Duration::from_secs(10), || {
        (count("bearerd_access_records_written_total") >= total).then_some(())
    });
    assert_eq!(count("bearerd_access_records_written_total"), total);
    assert_eq!(count("bearerd_access_records_dropped_total"), 0);
    assert_eq!(count("bearerd_proxy_requests_in_flight"), 0);
    check_metrics(
        &answers,
        &daemon.metrics("bearerd_proxy_requests_total"),
        &daemon.metrics("bearerd_proxy_errors_total"),
    );

    assert!(daemon.terminate().success());
    let (records, files) = read_records(daemon.folder());
    println!("{total} calls, {} records in {files} files: {by_outcome:?}", records.len());
    assert_eq!(records.len(), calls.len(), "a record for each call");
    for record in &records {
        let id = record["request_id"].as_str().unwrap();
        let answer =
            answers.get(id).unwrap_or_else(|| panic!("a record of a call that nobody made: {record}"));
        assert_eq!(record["status"], answer.status, "{record} {answer:?}");
        assert_eq!(record["error"].as_str().unwrap_or_default(), answer.code, "{record} {answer:?}");
        assert_eq!(record["bytes_out"], answer.body_bytes, "{record} {answer:?}");
        assert!(record["caller_left"].is_null(), "{record}");
    }
    let recorded: std::collections::BTreeSet<_> =
        records.iter().map(|record| record["request_id"].as_str()).collect();
    assert_eq!(recorded.len(), records.len(), "no call is recorded twice");
}

/// Requests by class and by who answered, and bearerd's own answers by code, as the callers saw them.
#[track_caller]
fn check_metrics(
    answers: &BTreeMap<&str, &FloodAnswer>,
    requests: &BTreeMap<String, u64>,
    errors: &BTreeMap<String, u64>,
) {
    let (mut by_class, mut by_code) = (BTreeMap::<_, u64>::new(), BTreeMap::<_, u64>::new());
    for answer in answers.values() {
        let origin = if answer.code.is_empty() { "instance" } else { "bearerd" };
        *by_class.entry((origin.to_owned(), format!("{}xx", answer.status / 100))).or_default() += 1;
        if !answer.code.is_empty() {
            *by_code.entry(answer.code.clone()).or_default() += 1;
        }
    }
    let mut counted = BTreeMap::<_, u64>::new();
    for (labels, count) in requests {
        *counted.entry((label(labels, "origin"), label(labels, "status_class"))).or_default() += count;
    }
    assert_eq!(counted, by_class);
    let errors = errors.iter().filter(|(_, count)| **count > 0);
    assert_eq!(
        errors.map(|(labels, count)| (label(labels, "code"), *count)).collect::<BTreeMap<_, _>>(),
        by_code
    );
}

/// Of `{method="GET",origin="instance"}`.
#[track_caller]
fn label(labels: &str, name: &str) -> String {
    let (_, rest) =
        labels.split_once(&format!("{name}=\"")).unwrap_or_else(|| panic!("no {name} in {labels}"));
    rest.split('"').next().unwrap().to_owned()
}

/// The records of `access.jsonl` and of what it was rolled to, and in how many files they are.
fn read_records(folder: &Path) -> (Vec<Value>, usize) {
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let of_records =
        |path: &std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("access.jsonl");
    let texts: Vec<String> =
        files.filter(of_records).map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let read = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    (texts.iter().flat_map(|text| text.lines()).map(read).collect(), texts.len())
}

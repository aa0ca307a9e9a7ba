use std::collections::BTreeSet;

use bearerd_model::{
    ConnectionSelector, FamilyName, MethodSet, Policy, PolicyId, RateLimit, RecordRule, Rule, TableSet,
};
use bearerd_policy::Method;

use super::keys::policy_id;
use crate::{
    ActError, CallSpec, ConnectionChange, Explanation, Holder, PolicySpec, WrittenPolicy,
    testing::{Instance, World, connection_id, spec},
};

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn ids(names: &[&str]) -> ConnectionSelector {
    ConnectionSelector::Ids(names.iter().map(|name| connection_id(name)).collect())
}

fn record_rule(connections: ConnectionSelector, condition: &str, fields: Option<&[&str]>) -> Rule {
    let records = RecordRule {
        condition: condition.to_owned(),
        fields: fields.map(set),
        limit_max: 100,
        checked_at: BTreeSet::new(),
    };
    let tables = TableSet::Named(set(&["incident"]));
    Rule { records: Some(records), ..Rule::new(connections, tables, MethodSet(set(&["GET"]))) }
}

fn spec_of(rules: Vec<Rule>) -> PolicySpec {
    PolicySpec { description: String::new(), rules, rate: None, concurrency_max: None }
}

/// The instances that vouch for the first rule.
fn checked_at(policy: &Policy) -> Vec<&str> {
    let records = policy.rules[0].records.as_ref().unwrap();
    records.checked_at.iter().map(bearerd_model::InstanceOrigin::as_str).collect()
}

fn code_and_text(error: &ActError) -> (&'static str, String) {
    (error.code(), error.to_string())
}

impl World {
    async fn save(&self, rules: Vec<Rule>) -> Result<WrittenPolicy, ActError> {
        self.control.put_policy(policy_id("p"), spec_of(rules), None).await
    }

    async fn policy(&self) -> Policy {
        self.control.policy(&policy_id("p")).await.unwrap().record
    }

    /// `hr` works at an instance with incidents, which extend tasks.
    async fn with_incidents() -> Self {
        let world = Self::new().await;
        has_incidents(&world.instance);
        world.connected("hr", "abel").await;
        world
    }
}

fn has_incidents(instance: &Instance) {
    instance.has_table("incident", "task", &["category", "u_gone"]);
    instance.has_table("task", "", &["number", "active", "state"]);
}

/// A typo would open the whole table, since an instance ignores a condition on a field that it does not know.
#[tokio::test]
async fn a_record_rule_names_fields_that_are_there() {
    let world = World::with_incidents().await;
    let origin = world.instance.origin.to_string();
    let rule = |condition, fields| record_rule(ids(&["hr"]), condition, fields);
    let saved = world.save(vec![rule("active=true^category=network", Some(&["number"]))]).await.unwrap();
    assert_eq!(
        (saved.unchecked, checked_at(&saved.written.versioned.record)),
        (vec![], vec![origin.as_str()])
    );
    for (condition, fields, missing) in [
        ("aktive=true", None, "field aktive of table incident"),
        ("u_gone=1", None, "field u_gone of table incident"), // it is switched off
        ("active=true", Some(&["numbers"][..]), "field numbers of table incident"),
    ] {
        let error = world.save(vec![rule("active=true", None), rule(condition, fields)]).await.unwrap_err();
        let (code, text) = code_and_text(&error);
        assert_eq!(code, "invalid_request", "{text}");
        for word in ["rule 2: ", missing, &origin] {
            assert!(text.contains(word), "{word} in {text}");
        }
    }
    let mut elsewhere = rule("active=true", None);
    elsewhere.tables = TableSet::Named(set(&["incident", "incidents"]));
    let (code, text) = code_and_text(&world.save(vec![elsewhere]).await.unwrap_err());
    assert!(code == "invalid_request" && text.contains("no table incidents"), "{text}");
    assert_eq!(checked_at(&world.policy().await), [origin], "nothing was changed");
}

#[tokio::test]
async fn who_vouches_is_no_operators_word() {
    let world = World::with_incidents().await;
    let mut rule = record_rule(ids(&["hr"]), "active=true", None);
    let claimed = bearerd_model::InstanceOrigin::parse("https://claimed.service-now.com").unwrap();
    rule.records.as_mut().unwrap().checked_at.insert(claimed);
    let saved = world.save(vec![rule]).await.unwrap().written.versioned.record;
    assert_eq!(checked_at(&saved), [world.instance.origin.as_str()]);
}

/// Where nobody can be asked, nothing is vouched for; what was vouched for before goes on, for the same fields.
#[tokio::test]
async fn an_instance_that_cannot_be_asked_vouches_for_nothing() {
    let world = World::new().await;
    has_incidents(&world.instance);
    let rule = |condition| record_rule(ids(&["hr", "it"]), condition, None);
    let (code, text) = code_and_text(&world.save(vec![rule("active=true")]).await.unwrap_err());
    assert!(code == "unchecked" && text.contains("no connection that exists"), "{text}");
    world.connect("hr", "a", Some("abel")).await;
    let (code, text) = code_and_text(&world.save(vec![rule("active=true")]).await.unwrap_err());
    assert!(code == "unchecked" && text.contains("no connection there is in use"), "{text}");
    world.consent("hr", "abel").await;
    // A second instance, with no connection in use.
    let other = Instance::start().await;
    world.put("b", spec(&other)).await.unwrap();
    world.connect("it", "b", Some("abel")).await;
    let (here, there) = (world.instance.origin.as_str(), other.origin.clone());
    let saved = world.save(vec![rule("active=true")]).await.unwrap();
    assert_eq!(checked_at(&saved.written.versioned.record), [here]);
    let unchecked: Vec<_> = saved.unchecked.iter().map(|one| &one.instance).collect();
    assert_eq!(unchecked, [&there]);
    // The same again while the instance is down: nothing is closed by that.
    world.instance.answers_looks(503);
    let again = world.save(vec![rule("active=true")]).await.unwrap();
    assert_eq!(again.written.versioned.revision, saved.written.versioned.revision);
    assert_eq!((again.unchecked.len(), checked_at(&again.written.versioned.record)), (2, vec![here]));
    let (code, text) = code_and_text(&world.save(vec![rule("state=1")]).await.unwrap_err());
    assert!(code == "unchecked" && text.contains("status 503"), "{text}");
    world.instance.answers_looks(200);
    // And once the other one is connected, it vouches too.
    has_incidents(&other);
    let begun = world.begin(&world.link("it").await).await;
    let granted = other.allows(&begun.authorization_url, "abel");
    world.control.finish_consent(crate::testing::callback(&begun, Some(&granted))).await.unwrap();
    let saved = world.save(vec![rule("active=true")]).await.unwrap();
    assert_eq!((saved.unchecked, checked_at(&saved.written.versioned.record).len()), (vec![], 2));
}

/// A selector by label means what it selects now; one instance is asked once, whatever number of rules and connections.
#[tokio::test]
async fn instances_are_asked_once() {
    let world = World::with_incidents().await;
    world.connected("it", "baker").await;
    for id in ["hr", "it"] {
        let labels = Some([("env".to_owned(), "prod".to_owned())].into());
        let change = ConnectionChange { labels, expected_user: None };
        world.control.change_connection(&connection_id(id), change, None).await.unwrap();
    }
    let prod = || ConnectionSelector::Labels([("env".to_owned(), "prod".to_owned())].into());
    let rules = vec![
        record_rule(prod(), "active=true", None),
        record_rule(ConnectionSelector::All, "state=1", None),
        Rule::new(prod(), TableSet::All, MethodSet(set(&["GET"]))),
    ];
    let saved = world.save(rules).await.unwrap().written.versioned.record;
    assert_eq!(checked_at(&saved), [world.instance.origin.as_str()]);
    let looks = world.instance.looks();
    let (objects, fields): (Vec<_>, Vec<_>) = looks.iter().partition(|look| look.contains("sys_db_object"));
    assert_eq!((objects.len(), fields.len()), (2, 1), "incident, then task; then both: {looks:?}");
    assert!(fields[0].contains("nameINincident,task%5EelementINactive,state"), "{fields:?}");
    // Without a record rule nobody is asked anything.
    world.save(vec![Rule::new(prod(), TableSet::All, MethodSet(set(&["GET"])))]).await.unwrap();
    assert_eq!(world.instance.looks().len(), looks.len());
}

/// Tables that extend each other in a ring, and a line without end, are bounded.
#[tokio::test]
async fn a_line_of_tables_ends() {
    let world = World::with_incidents().await;
    world.instance.has_table("task", "incident", &["number", "active", "state"]);
    world.save(vec![record_rule(ids(&["hr"]), "active=true", None)]).await.unwrap();
    for n in 0..40 {
        world.instance.has_table(&format!("t{n}"), &format!("t{}", n + 1), &["u_x"]);
    }
    let mut rule = record_rule(ids(&["hr"]), "u_x=1", None);
    rule.tables = TableSet::Named(set(&["t0"]));
    let before = world.instance.looks().len();
    world.save(vec![rule]).await.unwrap();
    assert_eq!(world.instance.looks().len() - before, 12, "ten tables above it, and their fields");
}

fn call(holder: Holder, table: &str) -> CallSpec {
    CallSpec {
        holder,
        connection: connection_id("hr"),
        family: FamilyName::table(),
        table: Some(table.to_owned()),
        item: false,
        method: Method::Get,
        source: None,
        query: None,
    }
}

#[tokio::test]
async fn explain_says_what_the_door_would_do() {
    let world = World::with_incidents().await;
    let rule = record_rule(ids(&["hr"]), "active=true", Some(&["number", "active"]));
    let limited = PolicySpec {
        rate: Some(RateLimit { calls: 100, per_s: 60, burst: None }),
        concurrency_max: Some(4),
        ..spec_of(vec![rule])
    };
    world.control.put_policy(policy_id("own"), limited, None).await.unwrap();
    let key = world.key().await.versioned.record.id; // reads incidents anywhere, by policy p
    let holding = |ids: &[&str]| Holder::Policies(ids.iter().map(|id| policy_id(id)).collect());
    let explain = async |spec: CallSpec| world.control.explain(spec).await.unwrap();
    let says = |said: &Explanation, allowed: bool, rule: Option<(&str, usize)>, nearest: Option<&str>| {
        let held = said.policy.as_ref().map(PolicyId::as_str).zip(said.rule);
        assert_eq!((said.allowed, held, said.nearest), (allowed, rule, nearest), "{said:?}");
        assert_eq!(said.reason.is_none(), allowed, "{said:?}");
    };

    let said = explain(call(Holder::Key(key.clone()), "incident")).await;
    says(&said, true, Some(("p", 1)), None);
    assert_eq!((said.connection_known, said.query), (true, None));
    let said =
        explain(CallSpec { method: Method::Patch, ..call(Holder::Key(key.clone()), "incident") }).await;
    says(&said, false, Some(("p", 1)), Some("method"));
    says(&explain(call(Holder::Key(key.clone()), "problem")).await, false, None, Some("table"));

    let said = explain(call(holding(&["own"]), "incident")).await;
    says(&said, true, Some(("own", 1)), None);
    let query = said.query.unwrap();
    assert!(query.contains("active%3Dtrue") && query.contains("number"), "{query}");
    let limits = said.limits.unwrap();
    assert_eq!((limits.rate.unwrap().calls, limits.concurrency_max, limits.in_flight), (100, Some(4), 0));
    let wider = Some("sysparm_query=state=1".to_owned());
    let said = explain(CallSpec { query: wider, ..call(holding(&["own"]), "incident") }).await;
    says(&said, false, Some(("own", 1)), Some("query"));
    // The record rule narrows what the other policy opens as well.
    let said = explain(CallSpec { item: true, ..call(holding(&["own", "p"]), "incident") }).await;
    says(&said, false, Some(("own", 1)), Some("record_rule_key"));

    let mut elsewhere = call(holding(&["own"]), "incident");
    elsewhere.connection = connection_id("it");
    for connected in [false, true] {
        let said = explain(elsewhere.clone()).await;
        says(&said, false, None, Some("connection"));
        assert!(!said.connection_known);
        if !connected {
            world.connected("it", "baker").await;
        }
    }
}

#[tokio::test]
async fn what_cannot_be_explained_is_refused() {
    let world = World::with_incidents().await;
    let key = world.key().await.versioned.record.id;
    let code = async |spec| world.control.explain(spec).await.unwrap_err().code();
    let holder = || Holder::Key(key.clone());
    let unknown = bearerd_model::CallerKeyId::parse("nobody").unwrap();
    assert_eq!(code(call(Holder::Key(unknown), "incident")).await, "not_found");
    assert_eq!(code(call(Holder::Policies(vec![policy_id("none")]), "incident")).await, "not_found");
    assert_eq!(code(call(Holder::Policies(vec![]), "incident")).await, "invalid_request");
    assert_eq!(code(call(holder(), "In/cident")).await, "invalid_request");
    assert_eq!(code(CallSpec { table: None, ..call(holder(), "") }).await, "invalid_request");
    let family = FamilyName::parse("attachment").unwrap();
    assert_eq!(code(CallSpec { family, ..call(holder(), "incident") }).await, "invalid_request");
}

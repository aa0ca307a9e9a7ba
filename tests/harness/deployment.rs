//! An instance, a daemon, and the usual connection between them.

use http::Method;
use serde_json::{Value, json};
use servicenow_sim::{Behaviour, ClientSettings, Sim, SimSettings, SimState};

use super::{
    consent::WebClient,
    daemon::{Daemon, Setup},
    history::Watched,
    http::{Reply, Request},
    runtime::block_on,
};

/// The OAuth client that [`Deployment`] registers at its instance.
pub const CLIENT_ID: &str = "e2e-client";
/// Its secret, which nothing but the instance and the sealed record may hold.
pub const CLIENT_SECRET: &str = "canary-client-secret-8d1f6f0a";

/// A simulator in this process and a daemon beside it. Fields are dropped in this order: the daemon goes first.
pub struct Deployment {
    /// The first process, which the public address is of.
    pub daemon: Daemon,
    /// Further processes on the same store.
    pub siblings: Vec<Daemon>,
    sim: Option<Sim>,
    /// The simulator's address, also once it is down.
    pub instance: String,
    state: SimState,
}

impl Deployment {
    /// Starts both; the simulator knows the daemon's redirect URI.
    #[track_caller]
    pub fn start(setup: Setup, behaviour: Behaviour) -> Self {
        Self::start_many(setup, 1, behaviour)
    }

    /// So many processes on one store, which `setup` must name: one that processes share.
    #[track_caller]
    pub fn start_many(setup: Setup, processes: usize, behaviour: Behaviour) -> Self {
        let others: Vec<Setup> =
            (2..=processes).map(|number| setup.sibling(&format!("{}-{number}", setup.name()))).collect();
        let daemon = setup.start(); // alone at first: it makes the store's root record
        let siblings = others.into_iter().map(Setup::start).collect();
        let sim = start_instance(vec![format!("{}/oauth/callback", daemon.connect_origin())], behaviour);
        Self { daemon, siblings, instance: sim.origin(), state: sim.state().clone(), sim: Some(sim) }
    }

    /// The usual: `abel.tuter` approves at once.
    #[track_caller]
    pub fn start_default(name: &str) -> Self {
        Self::start(Setup::new(name), approving())
    }

    /// Every process, the first one first.
    pub fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        std::iter::once(&self.daemon).chain(&self.siblings)
    }

    /// Every process, for a [`Recorder`](super::history::Recorder).
    pub fn watched(&self) -> Vec<Watched> {
        self.daemons().map(Daemon::watched).collect()
    }

    /// The handle that reads and steers the simulator.
    pub fn sim(&self) -> &SimState {
        &self.state
    }

    /// The instance goes down: its port answers no more.
    pub fn stop_instance(&mut self) {
        if let Some(sim) = self.sim.take() {
            block_on(sim.stop());
        }
    }

    /// An integration for the client that the simulator knows.
    #[track_caller]
    pub fn add_integration(&self, id: &str) -> Value {
        self.add_integration_with(id, json!({}))
    }

    /// The same, with these further members.
    #[track_caller]
    pub fn add_integration_with(&self, id: &str, mut members: Value) -> Value {
        members["instance"] = json!(self.instance);
        members["client_id"] = json!(CLIENT_ID);
        members["client_secret"] = json!(CLIENT_SECRET);
        self.daemon.put(&format!("/v1/integrations/{id}"), &members)
    }

    /// An integration at `instance` under the application's own user, and a connection of the same name: it works
    /// without anybody's consent.
    #[track_caller]
    pub fn add_application(&self, id: &str, instance: &str) {
        let integration = json!({
            "instance": instance,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "profiles": {"default": {"grant_type": "client_credentials"}},
        });
        self.daemon.put(&format!("/v1/integrations/{id}"), &integration);
        self.daemon.put(&format!("/v1/connections/{id}"), &json!({"integration": id}));
    }

    /// A new connection, not consented; answers its connect link.
    #[track_caller]
    pub fn add_connection(&self, id: &str, integration: &str, expected_user: Option<&str>) -> String {
        let body = json!({"integration": integration, "expected_user": expected_user});
        let written = self.daemon.put(&format!("/v1/connections/{id}"), &body);
        written["connect_link"]["url"].as_str().unwrap_or_else(|| panic!("no link: {written}")).to_owned()
    }

    /// A policy that opens everything.
    #[track_caller]
    pub fn add_open_policy(&self, id: &str) {
        let methods = json!(["GET", "POST", "PUT", "PATCH", "DELETE"]);
        let rule = json!({"connections": "all", "tables": "all", "methods": methods});
        self.daemon.put(&format!("/v1/policies/{id}"), &json!({"rules": [rule]}));
    }

    /// Integration `hr`, connection `hr-prod` consented by `abel.tuter`, policy `open`, and a caller key, which is
    /// what this answers.
    #[track_caller]
    pub fn connect(&self) -> String {
        self.connect_under(json!({}))
    }

    /// The same, with these further members of the integration.
    #[track_caller]
    pub fn connect_under(&self, integration: Value) -> String {
        self.add_integration_with("hr", integration);
        let link = self.add_connection("hr-prod", "hr", Some("abel.tuter"));
        let page = WebClient::new().consent(&link);
        assert!(page.text().contains("Connected"), "{}", page.text());
        assert_eq!(self.connection_state("hr-prod"), "active");
        self.add_open_policy("open");
        self.daemon.new_key("open")
    }

    #[track_caller]
    pub fn connection_state(&self, id: &str) -> String {
        let connection = self.daemon.show(&format!("/v1/connections/{id}"));
        connection["state"]["name"].as_str().unwrap().to_owned()
    }

    /// A GET of two incidents with this key, ready to be sent.
    pub fn incidents(&self, key: &str) -> Request {
        self.incidents_at(&self.daemon, key)
    }

    /// The same at this process.
    pub fn incidents_at(&self, daemon: &Daemon, key: &str) -> Request {
        daemon.call(Method::GET, INCIDENTS, key)
    }

    /// A table call with this key.
    #[track_caller]
    pub fn call(&self, method: Method, path: &str, key: &str) -> Reply {
        self.daemon.call(method, path, key).send()
    }
}

/// One more instance, which knows the same client, for applications alone.
#[track_caller]
pub fn another_instance(behaviour: Behaviour) -> Sim {
    start_instance(Vec::new(), behaviour)
}

fn start_instance(redirect_uris: Vec<String>, behaviour: Behaviour) -> Sim {
    let client = ClientSettings {
        client_id: CLIENT_ID.to_owned(),
        client_secret: Some(CLIENT_SECRET.to_owned()),
        redirect_uris,
        application_user: Some("svc.integration".to_owned()),
        ..ClientSettings::default()
    };
    let settings = SimSettings { behaviour, clients: vec![client], ..SimSettings::default() };
    block_on(Sim::start(settings)).unwrap()
}

/// `abel.tuter` consents at once to whatever he is asked.
pub(crate) fn approving() -> Behaviour {
    Behaviour { auto_approve: Some("abel.tuter".to_owned()), ..Behaviour::default() }
}

pub(crate) const INCIDENTS: &str = "/api/now/table/incident?sysparm_limit=2&sysparm_fields=number,sys_id";

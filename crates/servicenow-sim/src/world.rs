//! Everything the instance is, in one place and under one lock: who exists, what is stored, which tokens live, what
//! was seen. The handlers are plain functions over it.

use std::collections::HashMap;
use std::sync::Arc;

use crate::assertion::SeenAssertions;
use crate::attachments::AttachmentStore;
use crate::behaviour::Behaviour;
use crate::clock::{SimClock, SimTime};
use crate::codes::CodeStore;
use crate::counters::Counters;
use crate::directory::Directory;
use crate::faults::FaultBook;
use crate::ledger::{ExchangeBook, Ledger};
use crate::marker::WrittenMarkers;
use crate::mint::{TokenKey, TokenMinter};
use crate::rate::RateRule;
use crate::request_log::{MalformedLog, RequestLog};
use crate::sessions::{Gate, SessionStore};
use crate::settings::{ClientSettings, SimSettings, UserSettings};
use crate::tables::Database;
use crate::tiny_urls::TinyUrls;
use crate::token_endpoint;
use crate::tokens::TokenStore;

#[derive(Debug)]
pub(crate) struct World {
    /// Own origin, as bound.
    pub(crate) origin: String,
    pub(crate) clock: SimClock,
    pub(crate) behaviour: Behaviour,
    pub(crate) clients: HashMap<String, ClientSettings>,
    pub(crate) directory: Directory,
    pub(crate) database: Database,
    pub(crate) attachments: AttachmentStore,
    pub(crate) tiny_urls: TinyUrls,
    pub(crate) codes: CodeStore,
    pub(crate) tokens: TokenStore,
    pub(crate) token_key: Arc<TokenKey>,
    pub(crate) seen_assertions: SeenAssertions,
    pub(crate) sessions: SessionStore,
    pub(crate) rate: RateRule,
    pub(crate) faults: FaultBook,
    pub(crate) counters: Counters,
    pub(crate) exchanges: ExchangeBook,
    pub(crate) written_markers: WrittenMarkers,
    pub(crate) log: RequestLog,
    pub(crate) malformed: MalformedLog,
    last_connection: u64,
    node_gate: Option<NodeGate>,
}

/// The node's semaphores, and the switches they were made for.
#[derive(Debug)]
struct NodeGate {
    concurrency: u32,
    queue: u32,
    gate: Arc<Gate>,
}

impl World {
    pub(crate) fn new(settings: SimSettings, origin: String) -> Self {
        let mut directory = Directory::default();
        let database = settings.seed.build(&settings.users);
        for user in settings.users {
            directory.put(user);
        }
        Self {
            origin,
            clock: SimClock::start(),
            behaviour: settings.behaviour,
            clients: settings.clients.into_iter().map(|client| (client.client_id.clone(), client)).collect(),
            directory,
            database,
            attachments: AttachmentStore::default(),
            tiny_urls: TinyUrls::default(),
            codes: CodeStore::default(),
            tokens: TokenStore::new(),
            token_key: Arc::new(TokenKey::generate()),
            seen_assertions: SeenAssertions::default(),
            sessions: SessionStore::default(),
            rate: RateRule::default(),
            faults: FaultBook::default(),
            counters: Counters::default(),
            exchanges: ExchangeBook::default(),
            written_markers: WrittenMarkers::default(),
            log: RequestLog::default(),
            malformed: MalformedLog::default(),
            last_connection: 0,
            node_gate: None,
        }
    }

    pub(crate) fn now(&self) -> SimTime {
        self.clock.now()
    }

    /// Counts a connection and answers its number: from 1, never reset.
    pub(crate) fn accept_connection(&mut self) -> u64 {
        self.counters.connections += 1;
        self.last_connection += 1;
        self.last_connection
    }

    pub(crate) fn ledger(&self) -> Ledger {
        let previous_ok_for = token_endpoint::previous_ok_for(&self.behaviour);
        self.exchanges.show(self.tokens.standings(previous_ok_for, self.now()))
    }

    /// The node's `API_INT` gate; made anew when its switches change.
    pub(crate) fn node_gate(&mut self) -> Option<Arc<Gate>> {
        let (concurrency, queue) = (self.behaviour.node_concurrency, self.behaviour.node_queue);
        if concurrency == 0 {
            return None;
        }
        match &self.node_gate {
            Some(node) if (node.concurrency, node.queue) == (concurrency, queue) => {
                Some(Arc::clone(&node.gate))
            }
            Some(_) | None => {
                let gate = Arc::new(Gate::new(concurrency, queue));
                self.node_gate = Some(NodeGate { concurrency, queue, gate: Arc::clone(&gate) });
                Some(gate)
            }
        }
    }

    /// Origin of every absolute link.
    pub(crate) fn public_origin(&self) -> String {
        self.behaviour.public_origin.as_ref().unwrap_or(&self.origin).trim_end_matches('/').to_owned()
    }

    pub(crate) fn minter(&self, now: SimTime) -> TokenMinter {
        let format = self.behaviour.token_format;
        TokenMinter { format, key: Arc::clone(&self.token_key), issuer: self.public_origin(), now }
    }

    /// User name of the user whose `sys_user` field has this value.
    pub(crate) fn user_with(&self, field: &str, value: &str) -> Option<String> {
        let rows = self.database.rows("sys_user");
        let mut matching =
            rows.into_iter().filter(|(_, row)| row.get(field).is_some_and(|found| found == value));
        let from_table = matching.next().and_then(|(_, row)| row.get("user_name").cloned());
        let by_name =
            || (field == "user_name" && self.directory.get(value).is_some()).then(|| value.to_owned());
        from_table.or_else(by_name)
    }

    /// Adds or replaces a user, in the directory and in `sys_user`.
    pub(crate) fn put_user(&mut self, user: UserSettings) {
        crate::seed::put_user_rows(&mut self.database, &user);
        self.directory.put(user);
    }

    pub(crate) fn put_client(&mut self, client: ClientSettings) {
        self.clients.insert(client.client_id.clone(), client);
    }

    /// Takes over what a write to `sys_user` says about signing in.
    pub(crate) fn user_row_changed(&mut self, sys_id: &str) {
        let Some((_, row)) = self.database.find("sys_user", sys_id) else {
            self.directory.remove_by_sys_id(sys_id);
            return;
        };
        let is = |name: &str| row.get(name).is_some_and(|value| value == "true");
        let (active, locked_out) = (is("active"), is("locked_out"));
        self.directory.set_standing(sys_id, active, locked_out);
    }
}

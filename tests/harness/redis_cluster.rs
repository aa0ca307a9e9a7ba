//! A Redis cluster of six nodes.

use super::{
    process::loopback,
    redis::{RedisNode, SETTLE_LIMIT},
    runtime::wait_until,
};

/// Three primaries with a replica each, on one address of their own; killed when dropped.
pub struct RedisCluster {
    nodes: Vec<RedisNode>,
    /// The nodes that [`Self::kill_primary`] has ended, oldest first.
    killed: Vec<usize>,
    /// Which slot the next one of them serves.
    turn: usize,
}

impl RedisCluster {
    /// Comes back when all slots are served and the replicas have caught up. A dead primary is replaced in 2 to 3 s.
    pub fn start() -> Self {
        let address = loopback();
        let host = address.to_string();
        let more =
            ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-announce-ip", &host];
        // Nobody else is on this address, so that these and the ports 10 000 above, where nodes talk, are free.
        let nodes: Vec<RedisNode> =
            (7001..7007).map(|port| RedisNode::server(address, port, &more)).collect();
        let told = |number: usize, words: &[&str]| {
            let node: &RedisNode = &nodes[number];
            node.ask(words).unwrap_or_else(|| panic!("redis-cli {words:?} failed"))
        };
        for (number, (from, to)) in
            [("0", "5460"), ("5461", "10922"), ("10923", "16383")].into_iter().enumerate()
        {
            told(number, &["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]);
            told(number, &["CLUSTER", "ADDSLOTSRANGE", from, to]);
        }
        for number in 1..6 {
            told(number, &["CLUSTER", "MEET", &host, "7001"]);
        }
        for number in 0..3 {
            let id = told(number, &["CLUSTER", "MYID"]);
            wait_until("the nodes have met", SETTLE_LIMIT, || {
                nodes[number + 3].ask(&["CLUSTER", "REPLICATE", id.trim()])
            });
        }
        let cluster = Self { nodes, killed: vec![], turn: 0 };
        cluster.wait_until_well();
        cluster
    }

    /// Settings of a daemon that keeps its connections here, each confirmed by a replica. A node whose only replica was
    /// promoted has none until [`Self::restart_killed`].
    pub fn settings(&self) -> Vec<(String, String)> {
        let nodes: Vec<String> = self.nodes.iter().map(RedisNode::endpoint).collect();
        [
            ("store", "redis"),
            ("redis.cluster", nodes.join(",").as_str()),
            ("redis.replicas_min", "1"),
            ("redis.connect_timeout_s", "2"),
            ("redis.response_timeout_s", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// Ends a primary without warning: in turn that of the indexes and the log, and those of the other thirds.
    pub fn kill_primary(&mut self) {
        let key = KEYS[self.turn % KEYS.len()];
        self.turn += 1;
        let primary = self.primary_of(key).expect("the slot is served");
        self.nodes[primary].kill();
        self.killed.push(primary);
    }

    /// Waits until all slots are served again.
    #[track_caller]
    pub fn wait_for_new_primary(&self) {
        wait_until("all slots are served", SETTLE_LIMIT, || {
            let is_served = |key: &&str| self.primary_of(key).is_some();
            (KEYS.iter().all(is_served) && self.alive().all(is_ok)).then_some(())
        });
    }

    /// Brings every killed node back, as a replica of the one that took its place, and waits until all have caught up.
    #[track_caller]
    pub fn restart_killed(&mut self) {
        for killed in std::mem::take(&mut self.killed) {
            self.nodes[killed].start(&[]);
        }
        self.wait_until_well();
    }

    /// Runs `redis-cli` against the primary that has the slot of `key`, and answers what it printed.
    pub fn cli(&self, key: &str, words: &[&str]) -> String {
        let primary = self.primary_of(key).expect("the slot is served");
        let answer = self.nodes[primary].ask(words);
        answer.unwrap_or_else(|| panic!("redis-cli {words:?} failed"))
    }

    fn primary_of(&self, key: &str) -> Option<usize> {
        // A node refuses the keys of others.
        let has_it = |node: &RedisNode| node.is_primary() && node.ask(&["EXISTS", key]).is_some();
        self.nodes.iter().position(has_it)
    }

    fn alive(&self) -> impl Iterator<Item = &RedisNode> {
        self.nodes.iter().filter(|node| node.is_alive())
    }

    #[track_caller]
    fn wait_until_well(&self) {
        for node in self.alive() {
            wait_until("the cluster is well", SETTLE_LIMIT, || {
                let nodes = node.ask(&["CLUSTER", "NODES"])?;
                let has_met = !nodes.contains("handshake") && nodes.lines().count() == 6;
                let replicas = nodes.lines().filter(|line| line.contains("slave")).count();
                (has_met && replicas == 3 && is_ok(node) && node.is_in_step()).then_some(())
            });
        }
    }
}

fn is_ok(node: &RedisNode) -> bool {
    let info = node.ask(&["CLUSTER", "INFO"]).unwrap_or_default();
    info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384")
}

/// One of each third; the first is in the slot of all keys but those of one connection.
const KEYS: [&str; 3] = ["{c}", "{foo}", "{b}"];

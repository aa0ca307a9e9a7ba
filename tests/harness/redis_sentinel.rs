//! A Redis primary with two replicas, watched by three sentinels.

use std::net::IpAddr;

use super::{
    process::{free_port, loopback},
    redis::{RedisNode, SETTLE_LIMIT},
    runtime::wait_until,
};

/// Six processes on one address of their own; killed when dropped.
pub struct RedisSentinel {
    address: IpAddr,
    servers: Vec<RedisNode>,
    sentinels: Vec<RedisNode>,
    /// The servers that [`Self::kill_primary`] has ended, oldest first.
    killed: Vec<usize>,
}

impl RedisSentinel {
    /// Comes back when all know each other and the replicas have caught up. A dead primary is replaced in 2 to 3 s.
    pub fn start() -> Self {
        let address = loopback();
        let primary = RedisNode::server(address, free_port(address), &[]);
        let (host, port) = (address.to_string(), primary.port().to_string());
        let replica = || RedisNode::server(address, free_port(address), &["--replicaof", &host, &port]);
        let servers = vec![replica(), replica(), primary];
        wait_until("the replicas have caught up", SETTLE_LIMIT, || {
            servers.iter().all(RedisNode::is_in_step).then_some(())
        });
        let lines = format!(
            "sentinel monitor {SERVICE} {host} {port} 2\nsentinel down-after-milliseconds {SERVICE} 1000\n\
             sentinel failover-timeout {SERVICE} 3000\nsentinel parallel-syncs {SERVICE} 2\n"
        );
        let sentinel = || RedisNode::sentinel(address, free_port(address), &lines);
        let sentinels = vec![sentinel(), sentinel(), sentinel()];
        let watched = Self { address, servers, sentinels, killed: vec![] };
        watched.wait_until_known();
        watched
    }

    /// Settings of a daemon that keeps its connections here, each confirmed by one replica.
    pub fn settings(&self) -> Vec<(String, String)> {
        let sentinels: Vec<String> = self.sentinels.iter().map(RedisNode::endpoint).collect();
        [
            ("store", "redis"),
            ("redis.sentinels", &sentinels.join(",")),
            ("redis.sentinel_service", SERVICE),
            ("redis.replicas_min", "1"),
            ("redis.connect_timeout_s", "2"),
            ("redis.response_timeout_s", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// Ends the primary without warning.
    pub fn kill_primary(&mut self) {
        let primary = self.primary().expect("there is a primary");
        self.servers[primary].kill();
        self.killed.push(primary);
    }

    /// Waits until another server has taken the place of the one killed last, and all sentinels say so.
    #[track_caller]
    pub fn wait_for_new_primary(&self) {
        wait_until("there is another primary", SETTLE_LIMIT, || {
            let primary = self.primary()?;
            (Some(&primary) != self.killed.last() && self.servers[primary].is_primary()).then_some(())
        });
    }

    /// Brings every killed server back as a replica, and waits until all have caught up.
    #[track_caller]
    pub fn restart_killed(&mut self) {
        let primary = wait_until("there is a primary", SETTLE_LIMIT, || self.primary());
        let (host, port) = (self.address.to_string(), self.servers[primary].port().to_string());
        for killed in std::mem::take(&mut self.killed) {
            self.servers[killed].start(&["--replicaof", &host, &port]);
        }
        wait_until("the replicas have caught up", SETTLE_LIMIT, || {
            self.servers.iter().all(RedisNode::is_in_step).then_some(())
        });
        self.wait_until_known();
    }

    /// Runs `redis-cli` against the primary and answers what it printed.
    pub fn cli(&self, words: &[&str]) -> String {
        let primary = self.primary().expect("there is a primary");
        let answer = self.servers[primary].ask(words);
        answer.unwrap_or_else(|| panic!("redis-cli {words:?} failed"))
    }

    /// The one that all sentinels name.
    fn primary(&self) -> Option<usize> {
        let named = |sentinel: &RedisNode| {
            let answer = sentinel.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE])?;
            let port = answer.lines().nth(1)?.trim().to_owned();
            self.servers.iter().position(|server| server.port().to_string() == port)
        };
        let first = named(self.sentinels.first()?)?;
        self.sentinels.iter().all(|sentinel| named(sentinel) == Some(first)).then_some(first)
    }

    #[track_caller]
    fn wait_until_known(&self) {
        for sentinel in &self.sentinels {
            wait_until("the sentinels know each other and the replicas", SETTLE_LIMIT, || {
                let answer = sentinel.ask(&["SENTINEL", "MASTER", SERVICE])?;
                let lines: Vec<&str> = answer.lines().collect();
                let has = |name: &str, value: &str| lines.windows(2).any(|pair| pair == [name, value]);
                let is_known = has("num-slaves", "2") && has("num-other-sentinels", "2");
                (is_known && has("flags", "master")).then_some(())
            });
        }
    }
}

const SERVICE: &str = "mymaster";

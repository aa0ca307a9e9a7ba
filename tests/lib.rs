//! The harness of the end-to-end tests: real processes on addresses of their own, a simulator in this process, a
//! plain HTTP client, a browser. Tests are plain functions that block; whatever they started ends with them, and when
//! one fails its daemon's log is kept under `target/e2e/`.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a helper of tests panics as tests do")]

mod harness;

pub use harness::browser::{Browser, Browsers, SeenRequest};
pub use harness::certificates::Certificates;
pub use harness::consent::WebClient;
pub use harness::daemon::{Cli, Daemon, Setup};
pub use harness::deployment::{CLIENT_ID, CLIENT_SECRET, Deployment, another_instance};
pub use harness::fault_proxy::{Direction, FaultProxy, Faults};
pub use harness::flood::{Flood, FloodAnswer, FloodCall, outcomes};
pub use harness::history::{
    Expectations, FailedCalls, History, HistoryReport, Recorder, Recovery, ReportRow, Restart, Sample,
    Subject, Watched,
};
pub use harness::http::{KeptConnection, Reply, Request, get, request};
pub use harness::load::{FailedCall, Load, LoadReport};
pub use harness::process::{bearerd_binary, free_port, loopback, output_folder, release_binary, repository};
pub use harness::redis::Redis;
pub use harness::redis_cluster::RedisCluster;
pub use harness::redis_sentinel::RedisSentinel;
pub use harness::runtime::{block_on, poll, wait_until};

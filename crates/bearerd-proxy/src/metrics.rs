//! Counts of the proxy door: each worker writes a shard of its own, a scrape adds them up. No id and no text of a
//! caller becomes a label.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use bearerd_policy::Method;
use http::StatusCode;
use prometheus::{
    IntCounter, IntCounterVec, IntGauge, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::{answer_head::Verdict, error::Code};

/// The figures of one worker. One thread writes; others read now and then.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    /// By method (the last row: any other), status class and who answered.
    requests: [[[Count; ORIGINS.len()]; CLASSES.len()]; METHODS],
    errors: [Count; Code::ALL.len()],
    refusals: [Count; Verdict::ALL.len()],
    /// Calls that found no place at their instance at once.
    pub(crate) queued: Count,
    /// Connections closed for what they sent for nothing.
    pub(crate) floods: Count,
    pub(crate) in_flight: Count,
    pub(crate) caller_connections: Count,
    pub(crate) upstream_opened: Count,
    pub(crate) upstream_reused: Count,
    pub(crate) replays: Count,
}

/// Who made an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Origin {
    Bearerd,
    Instance,
}

/// A number that one thread changes: no read-modify-write, no fence.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add_one(&self) {
        self.0.store(self.get().wrapping_add(1), Ordering::Relaxed);
    }

    pub(crate) fn take_one(&self) {
        self.0.store(self.get().saturating_sub(1), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Shard {
    /// A call has ended. No status: its caller left before there was an answer.
    pub(crate) fn ended(&self, method: Option<Method>, status: Option<StatusCode>, origin: Option<Origin>) {
        let of_five = |status: StatusCode| usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        let class = status.map_or(CLASSES.len() - 1, of_five);
        let origin = origin.unwrap_or(Origin::Bearerd);
        self.requests[method.map_or(METHODS - 1, Method::index)][class][origin as usize].add_one();
    }

    pub(crate) fn refused(&self, verdict: Verdict) {
        self.refusals[verdict as usize].add_one();
    }

    pub(crate) fn failed(&self, code: Code) {
        self.errors[code.index()].add_one();
    }
}

/// All shards of one door. Clones are the same; register one with the process's registry.
#[derive(Debug, Clone, Default)]
pub struct ProxyMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shards: Mutex<Vec<Arc<Shard>>>,
    /// Filled anew by each scrape, one at a time.
    shown: Mutex<Shown>,
}

#[derive(Debug)]
struct Shown {
    requests: IntCounterVec,
    errors: IntCounterVec,
    refusals: IntCounterVec,
    queued: IntCounter,
    floods: IntCounter,
    in_flight: IntGauge,
    caller_connections: IntGauge,
    upstream_opened: IntCounter,
    upstream_reused: IntCounter,
    replays: IntCounter,
}

impl ProxyMetrics {
    pub(crate) fn shard(&self) -> Arc<Shard> {
        let shard = Arc::<Shard>::default();
        self.0.shards.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&shard));
        shard
    }
}

impl Collector for ProxyMetrics {
    fn desc(&self) -> Vec<&Desc> {
        // The descriptions are those of constant metrics; they are made once and never freed.
        static DESCRIBED: std::sync::LazyLock<Shown> = std::sync::LazyLock::new(Shown::new);
        DESCRIBED.each().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let shards = self.0.shards.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let shown = self.0.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.fill(&shards);
        let families = shown.each().into_iter().flat_map(Collector::collect);
        // A family without a member cannot be encoded.
        families.filter(|family| !family.get_metric().is_empty()).collect()
    }
}

impl Default for Inner {
    fn default() -> Self {
        Self { shards: Mutex::default(), shown: Mutex::new(Shown::new()) }
    }
}

impl Shown {
    fn new() -> Self {
        let fixed = "a fixed, valid metric description";
        let counter = |name: &str, help: &str| IntCounter::new(name, help).expect(fixed);
        let gauge = |name: &str, help: &str| IntGauge::new(name, help).expect(fixed);
        let vector = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels).expect(fixed)
        };
        Self {
            requests: vector(
                "bearerd_proxy_requests_total",
                "Calls that have ended, by method, class of the status, and who made the answer; none: the caller left before",
                &["method", "status_class", "origin"],
            ),
            errors: vector(
                "bearerd_proxy_errors_total",
                "Answers that bearerd itself made, or cut off, by code",
                &["code"],
            ),
            refusals: vector(
                "bearerd_proxy_instance_refusals_total",
                "Answers of instances that refuse a call, by what they mean",
                &["reason"],
            ),
            queued: counter(
                "bearerd_proxy_calls_queued_total",
                "Calls that waited for a place at their instance",
            ),
            floods: counter(
                "bearerd_proxy_floods_total",
                "HTTP/2 connections closed for frames that move nothing forward",
            ),
            in_flight: gauge("bearerd_proxy_requests_in_flight", "Calls whose answer has not ended"),
            caller_connections: gauge("bearerd_proxy_caller_connections", "Open connections of callers"),
            upstream_opened: counter(
                "bearerd_proxy_upstream_connections_opened_total",
                "Connections opened to instances",
            ),
            upstream_reused: counter(
                "bearerd_proxy_upstream_connections_reused_total",
                "Calls sent on a connection that had carried another before",
            ),
            replays: counter("bearerd_proxy_replays_total", "Calls sent once more after a 401"),
        }
    }

    fn each(&self) -> [&dyn Collector; 10] {
        [
            &self.requests,
            &self.errors,
            &self.refusals,
            &self.queued,
            &self.floods,
            &self.in_flight,
            &self.caller_connections,
            &self.upstream_opened,
            &self.upstream_reused,
            &self.replays,
        ]
    }

    fn fill(&self, shards: &[Arc<Shard>]) {
        let sum = |count: fn(&Shard) -> &Count| shards.iter().map(|shard| count(shard).get()).sum::<u64>();
        self.requests.reset();
        for (row, method) in Method::ALL.into_iter().map(Method::name).chain(["other"]).enumerate() {
            for (class, class_name) in CLASSES.into_iter().enumerate() {
                for (origin, origin_name) in ORIGINS.into_iter().enumerate() {
                    let count: u64 =
                        shards.iter().map(|shard| shard.requests[row][class][origin].get()).sum();
                    if count > 0 {
                        self.requests.with_label_values(&[method, class_name, origin_name]).inc_by(count);
                    }
                }
            }
        }
        self.errors.reset();
        for code in Code::ALL {
            let count: u64 = shards.iter().map(|shard| shard.errors[code.index()].get()).sum();
            self.errors.with_label_values(&[code.name()]).inc_by(count);
        }
        self.refusals.reset();
        for verdict in Verdict::ALL {
            let count: u64 = shards.iter().map(|shard| shard.refusals[verdict as usize].get()).sum();
            self.refusals.with_label_values(&[verdict.name()]).inc_by(count);
        }
        let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.in_flight.set(gauge(sum(|shard| &shard.in_flight)));
        self.caller_connections.set(gauge(sum(|shard| &shard.caller_connections)));
        for (shown, count) in [
            (&self.upstream_opened, sum(|shard| &shard.upstream_opened)),
            (&self.upstream_reused, sum(|shard| &shard.upstream_reused)),
            (&self.replays, sum(|shard| &shard.replays)),
            (&self.queued, sum(|shard| &shard.queued)),
            (&self.floods, sum(|shard| &shard.floods)),
        ] {
            shown.reset();
            shown.inc_by(count);
        }
    }
}

const METHODS: usize = Method::ALL.len() + 1;
const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none"];
const ORIGINS: [&str; 2] = ["bearerd", "instance"];

#[cfg(test)]
mod tests {
    use prometheus::{Registry, TextEncoder};

    use super::*;

    #[test]
    fn a_scrape_adds_up_what_the_workers_counted() {
        let (metrics, registry) = (ProxyMetrics::default(), Registry::new());
        registry.register(Box::new(metrics.clone())).unwrap();
        let unused = TextEncoder::new().encode_to_string(&metrics.collect()).unwrap();
        assert!(unused.contains("bearerd_proxy_requests_in_flight 0"), "{unused}");
        let (one, two) = (metrics.shard(), metrics.shard());
        one.ended(Some(Method::Get), Some(StatusCode::OK), Some(Origin::Instance));
        two.ended(Some(Method::Get), Some(StatusCode::OK), Some(Origin::Instance));
        two.ended(None, Some(StatusCode::METHOD_NOT_ALLOWED), Some(Origin::Bearerd));
        two.ended(Some(Method::Post), None, None);
        two.refused(Verdict::QueueFull);
        two.failed(Code::MethodRefused);
        one.in_flight.add_one();
        two.in_flight.add_one();
        two.in_flight.take_one();
        one.upstream_reused.add_one();
        for _ in 0..2 {
            let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
            for line in [
                r#"bearerd_proxy_requests_total{method="GET",origin="instance",status_class="2xx"} 2"#,
                r#"bearerd_proxy_requests_total{method="other",origin="bearerd",status_class="4xx"} 1"#,
                r#"bearerd_proxy_requests_total{method="POST",origin="bearerd",status_class="none"} 1"#,
                r#"bearerd_proxy_instance_refusals_total{reason="queue_full"} 1"#,
                r#"bearerd_proxy_errors_total{code="method_refused"} 1"#,
                r#"bearerd_proxy_errors_total{code="draining"} 0"#,
                "bearerd_proxy_requests_in_flight 1",
                "bearerd_proxy_upstream_connections_reused_total 1",
            ] {
                assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
            }
        }
    }
}

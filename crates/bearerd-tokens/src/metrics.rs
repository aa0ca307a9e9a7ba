//! What the engine counts.

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry};

#[derive(Debug)]
pub(crate) struct Metrics {
    /// `outcome`: `new_token`, `same_token`, `grant_refused`, denied, `client_refused`, throttled, transient, uncertain;
    /// beside the call's own, `from_memory`, `store_down`, `retried_in_doubt`.
    pub(crate) refreshes: IntCounterVec,
    pub(crate) refresh_seconds: Histogram,
    /// `outcome`: committed, lost, `not_taken`, `taken_later`.
    pub(crate) commits: IntCounterVec,
    /// From the last byte of an answer that spent a refresh token until its successor is fsynced: the only time in which
    /// a crash leaves it in doubt.
    pub(crate) unsaved_seconds: Histogram,
    pub(crate) connections_in_memory: IntGauge,
    /// Clients at instances to which no token call goes out at the moment.
    pub(crate) gates_shut: IntGauge,
    /// Grants on this machine's disk that the store has not taken.
    pub(crate) spilled: IntGauge,
}

impl Metrics {
    /// # Errors
    /// A name is registered already.
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            refreshes: IntCounterVec::new(
                Opts::new("bearerd_token_refresh_total", "Token calls for refreshes, by outcome"),
                &["outcome"],
            )?,
            refresh_seconds: Histogram::with_opts(
                HistogramOpts::new("bearerd_token_refresh_duration_seconds", "Duration of token calls")
                    .buckets(vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]),
            )?,
            commits: IntCounterVec::new(
                Opts::new("bearerd_token_commit_total", "Writes of refreshed grants, by outcome"),
                &["outcome"],
            )?,
            unsaved_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "bearerd_refresh_unsaved_seconds",
                    "From a rotated refresh token's arrival until it is on a disk",
                )
                .buckets(vec![0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 1.0]),
            )?,
            connections_in_memory: IntGauge::new(
                "bearerd_connections_in_memory",
                "Connections held in memory by this process",
            )?,
            gates_shut: IntGauge::new(
                "bearerd_token_gates_shut",
                "Clients at instances to which no token call goes out: their calls failed, or were throttled",
            )?,
            spilled: IntGauge::new(
                "bearerd_spilled_grants",
                "Grants in this machine's spill log that the store has not taken",
            )?,
        };
        registry.register(Box::new(metrics.refreshes.clone()))?;
        registry.register(Box::new(metrics.refresh_seconds.clone()))?;
        registry.register(Box::new(metrics.commits.clone()))?;
        registry.register(Box::new(metrics.unsaved_seconds.clone()))?;
        registry.register(Box::new(metrics.connections_in_memory.clone()))?;
        registry.register(Box::new(metrics.gates_shut.clone()))?;
        registry.register(Box::new(metrics.spilled.clone()))?;
        Ok(metrics)
    }
}

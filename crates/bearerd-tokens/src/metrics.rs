//! What the engine counts.

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry};

#[derive(Debug)]
pub(crate) struct Metrics {
    /// `outcome`: `new_token`, `same_token`, `grant_refused`, denied, `client_refused`, throttled, transient, uncertain.
    pub(crate) refreshes: IntCounterVec,
    pub(crate) refresh_seconds: Histogram,
    /// `outcome`: committed, lost, retried.
    pub(crate) commits: IntCounterVec,
    pub(crate) connections_in_memory: IntGauge,
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
            connections_in_memory: IntGauge::new(
                "bearerd_connections_in_memory",
                "Connections held in memory by this process",
            )?,
        };
        registry.register(Box::new(metrics.refreshes.clone()))?;
        registry.register(Box::new(metrics.refresh_seconds.clone()))?;
        registry.register(Box::new(metrics.commits.clone()))?;
        registry.register(Box::new(metrics.connections_in_memory.clone()))?;
        Ok(metrics)
    }
}

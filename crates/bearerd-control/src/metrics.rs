//! What the acts and the work behind them count.

use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

#[derive(Debug)]
pub(crate) struct Metrics {
    /// `outcome`: revoked, kept (a live connection holds the token), ended (by itself), unsupported, failed (to be
    /// tried again), `given_up`.
    pub(crate) revocations: IntCounterVec,
    pub(crate) revocations_queued: IntGauge,
    /// `days`: 14, 7, 1. Of all processes, one counts each.
    pub(crate) expiry_notices: IntCounterVec,
    /// `within_days`: 14, 7, 1; each holds the next. The same in every process, looked up once an hour.
    pub(crate) expiring: IntGaugeVec,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new().expect("constant names and labels")
    }
}

impl Metrics {
    fn new() -> prometheus::Result<Self> {
        Ok(Self {
            revocations: IntCounterVec::new(
                Opts::new("bearerd_revocations_total", "Tokens taken from the revocation queue, by outcome"),
                &["outcome"],
            )?,
            revocations_queued: IntGauge::new(
                "bearerd_revocations_queued",
                "Tokens that wait to be revoked at their instances",
            )?,
            expiry_notices: IntCounterVec::new(
                Opts::new(
                    "bearerd_refresh_token_expiry_notices_total",
                    "Connections whose refresh token came within so many days of its end",
                ),
                &["days"],
            )?,
            expiring: IntGaugeVec::new(
                Opts::new(
                    "bearerd_refresh_tokens_expiring",
                    "Connections whose refresh token ends within so many days",
                ),
                &["within_days"],
            )?,
        })
    }

    /// # Errors
    /// A name is registered already.
    pub(crate) fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.revocations.clone()))?;
        registry.register(Box::new(self.revocations_queued.clone()))?;
        registry.register(Box::new(self.expiry_notices.clone()))?;
        registry.register(Box::new(self.expiring.clone()))
    }
}

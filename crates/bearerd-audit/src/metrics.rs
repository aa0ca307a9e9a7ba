//! Counts of access records. They change once a batch or a write, never once a call.

use prometheus::{
    IntCounter, IntGauge,
    core::{Collector, Desc},
    proto::MetricFamily,
};

/// Clones are the same; register one with the process's registry.
#[derive(Debug, Clone)]
pub struct AccessMetrics {
    pub(crate) written: IntCounter,
    pub(crate) dropped: IntCounter,
    pub(crate) queued: IntGauge,
    pub(crate) blocked: IntCounter,
    pub(crate) write_errors: IntCounter,
}

impl AccessMetrics {
    /// Records whose whole line the sink has taken.
    pub fn written(&self) -> u64 {
        self.written.get()
    }

    /// Records that were given and will not be written.
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// Times that calls began to be held up.
    pub fn blocked(&self) -> u64 {
        self.blocked.get()
    }

    /// Writes, openings and rollings that failed. Each was, or is being, tried again.
    pub fn write_errors(&self) -> u64 {
        self.write_errors.get()
    }

    fn each(&self) -> [&dyn Collector; 5] {
        [&self.written, &self.dropped, &self.queued, &self.blocked, &self.write_errors]
    }
}

impl Default for AccessMetrics {
    fn default() -> Self {
        let fixed = "a fixed, valid metric description";
        let counter = |name: &str, help: &str| IntCounter::new(name, help).expect(fixed);
        Self {
            written: counter("bearerd_access_records_written_total", "Access records written"),
            dropped: counter("bearerd_access_records_dropped_total", "Access records that were not written"),
            queued: IntGauge::new("bearerd_access_records_queued", "Access records that wait to be written")
                .expect(fixed),
            blocked: counter(
                "bearerd_access_blocked_total",
                "Times that new calls were held up, as access records could not be written",
            ),
            write_errors: counter(
                "bearerd_access_write_errors_total",
                "Failed attempts to open, write or roll the access records' sink",
            ),
        }
    }
}

impl Collector for AccessMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.each().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.each().into_iter().flat_map(Collector::collect).collect()
    }
}

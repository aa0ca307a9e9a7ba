//! What Linux knows of this process, as the six customary `process_*` metrics. Read by hand from `/proc`, because the
//! crates that do it bring more than they read. A figure that cannot be read is left out.

use std::fs;

use prometheus::{Counter, Gauge, Registry, core::Collector};

/// The gauges, brought up to date with each scrape.
#[derive(Debug)]
pub(crate) struct ProcessMetrics {
    cpu_seconds: Counter,
    open_fds: Gauge,
    max_fds: Gauge,
    resident_bytes: Gauge,
    virtual_bytes: Gauge,
    start_time: Gauge,
}

/// One reading of `/proc/self`.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Reading {
    cpu_seconds: Option<f64>,
    open_fds: Option<f64>,
    max_fds: Option<f64>,
    resident_bytes: Option<f64>,
    virtual_bytes: Option<f64>,
    start_time: Option<f64>,
}

impl ProcessMetrics {
    /// # Errors
    /// A name is taken in `registry`.
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        fn add<C: Collector + Clone + 'static>(
            registry: &Registry,
            metric: prometheus::Result<C>,
        ) -> prometheus::Result<C> {
            let metric = metric?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        }
        let gauge = |name: &str, help: &str| add(registry, Gauge::new(name, help));
        Ok(Self {
            cpu_seconds: add(
                registry,
                Counter::new("process_cpu_seconds_total", "User and system CPU time."),
            )?,
            open_fds: gauge("process_open_fds", "Open file descriptors.")?,
            max_fds: gauge("process_max_fds", "Limit of open file descriptors.")?,
            resident_bytes: gauge("process_resident_memory_bytes", "Memory in RAM.")?,
            virtual_bytes: gauge("process_virtual_memory_bytes", "Address space in use.")?,
            start_time: gauge("process_start_time_seconds", "When the process began, since 1970.")?,
        })
    }

    /// Reads `/proc/self` once.
    pub(crate) fn update(&self) {
        let reading = Reading::take();
        if let Some(seconds) = reading.cpu_seconds {
            self.cpu_seconds.inc_by((seconds - self.cpu_seconds.get()).max(0.0));
        }
        let gauges = [
            (&self.open_fds, reading.open_fds),
            (&self.max_fds, reading.max_fds),
            (&self.resident_bytes, reading.resident_bytes),
            (&self.virtual_bytes, reading.virtual_bytes),
            (&self.start_time, reading.start_time),
        ];
        for (gauge, value) in gauges {
            if let Some(value) = value {
                gauge.set(value);
            }
        }
    }
}

impl Reading {
    fn take() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let stat = read("/proc/self/stat");
        let fields = stat_fields(&stat);
        let field =
            |number: usize| fields.get(number - FIRST_FIELD).and_then(|text| text.parse::<f64>().ok());
        let boot = value_after(&read("/proc/stat"), "btime");
        let status = read("/proc/self/status");
        Self {
            cpu_seconds: field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS_PER_SECOND),
            open_fds: fs::read_dir("/proc/self/fd")
                .ok()
                .map(|entries| f64::from(u32::try_from(entries.count()).unwrap_or(u32::MAX))),
            max_fds: value_after(&read("/proc/self/limits"), "Max open files"),
            resident_bytes: value_after(&status, "VmRSS:").map(|kib| kib * 1024.0),
            virtual_bytes: value_after(&status, "VmSize:").map(|kib| kib * 1024.0),
            start_time: boot.zip(field(22)).map(|(boot, ticks)| boot + ticks / TICKS_PER_SECOND),
        }
    }
}

/// The fields of `proc_pid_stat(5)` from the third on; the second, a name in parentheses, may hold anything.
fn stat_fields(stat: &str) -> Vec<&str> {
    stat.rsplit_once(')').map_or_else(Vec::new, |(_, rest)| rest.split_whitespace().collect())
}

/// The first number of the line that begins with `name`.
fn value_after(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// `stat_fields` begins with this field, counted from 1.
const FIRST_FIELD: usize = 3;
/// `USER_HZ`, fixed for user space on every architecture that we build for.
const TICKS_PER_SECOND: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_plausible_figures() {
        let reading = Reading::take();
        assert!(reading.resident_bytes.unwrap() > 100_000.0, "{reading:?}");
        assert!(reading.virtual_bytes.unwrap() >= reading.resident_bytes.unwrap(), "{reading:?}");
        assert!(reading.open_fds.unwrap() >= 3.0 && reading.max_fds.unwrap() >= reading.open_fds.unwrap());
        assert!(
            reading.start_time.unwrap() > 1_700_000_000.0 && reading.cpu_seconds.unwrap() >= 0.0,
            "{reading:?}"
        );
    }

    #[test]
    fn odd_names_and_missing_lines_do_no_harm() {
        assert_eq!(stat_fields("1 (a) b (c) S 2 3"), ["S", "2", "3"]);
        assert!(stat_fields("").is_empty());
        assert_eq!(value_after("VmRSS:\t 12 kB\n", "VmRSS:"), Some(12.0));
        assert_eq!(value_after("Max open files            unlimited  x", "Max open files"), None);
    }
}

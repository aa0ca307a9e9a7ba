//! Callers that keep an even pace, whatever the answers.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval},
};

use super::{
    http::Request,
    runtime::{block_on, runtime},
};

/// Calls on their way.
pub struct Load {
    stop: Arc<AtomicBool>,
    running: JoinHandle<LoadReport>,
}

/// What became of the calls.
#[derive(Debug, Default, Clone)]
pub struct LoadReport {
    /// Answered with 200.
    pub good: usize,
    /// Answered otherwise.
    pub bad: Vec<FailedCall>,
    /// Not answered: nobody listened, or the connection ended before the answer.
    pub unanswered: Vec<FailedCall>,
    pub slowest: Duration,
}

/// One call that did not end in 200; times count from the start of the load.
#[derive(Debug, Clone)]
pub struct FailedCall {
    pub began: Duration,
    pub ended: Duration,
    pub what: String,
}

impl Load {
    /// Sends `request` so many times a second, for this long or until stopped.
    pub fn start(request: Request, calls_per_second: u32, length: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let running = runtime().spawn(run(request, calls_per_second, length, stop.clone()));
        Self { stop, running }
    }

    /// Waits for the end of its time.
    pub fn finish(self) -> LoadReport {
        block_on(self.running).unwrap()
    }

    /// Ends it now and waits for the answers that are due.
    pub fn stop(self) -> LoadReport {
        self.stop.store(true, Ordering::Relaxed);
        self.finish()
    }
}

async fn run(request: Request, calls_per_second: u32, length: Duration, stop: Arc<AtomicBool>) -> LoadReport {
    let request = Arc::new(request);
    let mut calls = JoinSet::new();
    let mut ticks = interval(Duration::from_secs(1) / calls_per_second);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst); // the promised number of calls, on a busy machine too
    let started = Instant::now();
    while started.elapsed() < length && !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let request = request.clone();
        calls.spawn(async move {
            let begun = Instant::now();
            let result = request.send_async().await;
            (begun - started, begun.elapsed(), result)
        });
    }
    let mut report = LoadReport::default();
    while let Some(call) = calls.join_next().await {
        let (began, took, result) = call.unwrap();
        report.slowest = report.slowest.max(took);
        let failed = |what: String| FailedCall { began, ended: began + took, what };
        match result {
            Ok(reply) if reply.status == 200 => report.good += 1,
            Ok(reply) => {
                let code = reply.header("bearerd-error");
                report.bad.push(failed(format!("{} {code} {}", reply.status, reply.text())));
            }
            Err(error) => report.unanswered.push(failed(error)),
        }
    }
    report
}

impl LoadReport {
    /// Both together: of loads that ran beside each other.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.good += other.good;
        self.bad.extend(other.bad);
        self.unanswered.extend(other.unanswered);
        self.slowest = self.slowest.max(other.slowest);
        self
    }

    pub fn calls(&self) -> usize {
        self.good + self.bad.len() + self.unanswered.len()
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { good, bad, unanswered, slowest } = self;
        let calls = self.calls();
        write!(
            f,
            "{calls} calls: {good} good, {} bad, {} unanswered, slowest {slowest:?}",
            bad.len(),
            unanswered.len()
        )?;
        for FailedCall { began, ended, what } in bad.iter().chain(unanswered).take(5) {
            write!(f, "\n  from {began:.2?} to {ended:.2?}: {what}")?;
        }
        Ok(())
    }
}

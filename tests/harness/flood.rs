//! Callers that never pause: each sends its next call as soon as it has the answer, on a connection that it keeps.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use super::{
    http::{KeptConnection, Reply, Request},
    runtime::{block_on, runtime},
};

/// Callers on their way. Dropping it sends them home.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    calls: Arc<Mutex<Vec<FloodCall>>>,
    running: Vec<JoinHandle<()>>,
}

/// One call of a caller that never pauses.
#[derive(Debug, Clone)]
pub struct FloodCall {
    pub began: Instant,
    pub ended: Instant,
    /// Why there is none, where there is none.
    pub answer: Result<FloodAnswer, String>,
}

/// What matters of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FloodAnswer {
    pub status: u16,
    /// `Bearerd-Error`; empty where the instance answered.
    pub code: String,
    pub request_id: String,
    pub retry_after: String,
    pub body_bytes: usize,
}

impl Flood {
    /// A caller for each of these requests, which it sends again and again.
    pub fn start(requests: impl IntoIterator<Item = Request>) -> Self {
        let (stop, calls) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<FloodCall>>>::default());
        let call = |request| runtime().spawn(call_without_pause(request, stop.clone(), calls.clone()));
        let running = requests.into_iter().map(call).collect();
        Self { stop, calls, running }
    }

    /// How many calls have ended so.
    pub fn count(&self, is_such: impl Fn(&FloodCall) -> bool) -> usize {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.iter().filter(|call| is_such(call)).count()
    }

    /// Waits for the answers that are due; all calls, in the order of their ends.
    pub fn stop(mut self) -> Vec<FloodCall> {
        self.stop.store(true, Ordering::Relaxed);
        for caller in std::mem::take(&mut self.running) {
            block_on(caller).unwrap();
        }
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

async fn call_without_pause(request: Request, stop: Arc<AtomicBool>, calls: Arc<Mutex<Vec<FloodCall>>>) {
    let mut kept: Option<KeptConnection> = None;
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let answer = request.send_on(&mut kept).await.map(|reply| FloodAnswer::of(&reply));
        let call = FloodCall { began, ended: Instant::now(), answer };
        calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }
}

impl FloodAnswer {
    fn of(reply: &Reply) -> Self {
        Self {
            status: reply.status,
            code: reply.header("bearerd-error").to_owned(),
            request_id: reply.header("x-request-id").to_owned(),
            retry_after: reply.header("retry-after").to_owned(),
            body_bytes: reply.body.len(),
        }
    }
}

impl FloodCall {
    /// Status and code, or why there is no answer: `200`, `503 overloaded`.
    pub fn what(&self) -> String {
        match &self.answer {
            Ok(FloodAnswer { status, code, .. }) if code.is_empty() => status.to_string(),
            Ok(FloodAnswer { status, code, .. }) => format!("{status} {code}"),
            Err(error) => format!("no answer: {error}"),
        }
    }

    pub fn is(&self, what: &str) -> bool {
        self.what() == what
    }

    pub fn took(&self) -> Duration {
        self.ended - self.began
    }
}

/// How often each outcome came.
pub fn outcomes<'a>(calls: impl IntoIterator<Item = &'a FloodCall>) -> BTreeMap<String, usize> {
    let mut outcomes = BTreeMap::new();
    for call in calls {
        *outcomes.entry(call.what()).or_default() += 1;
    }
    outcomes
}

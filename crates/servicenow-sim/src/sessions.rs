//! Sessions and their cookies. A request without a cookie starts a session; requests with the same `JSESSIONID` are
//! serialised, and the overflow is dropped with 202 (fact 5).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::header::{HeaderMap, HeaderValue, SET_COOKIE};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock::SimTime;
use crate::secrets;

/// Lets a few run and a few wait; the rest is turned away at once.
#[derive(Debug)]
pub(crate) struct Gate {
    running: Arc<Semaphore>,
    waiting: AtomicU32,
    waiting_max: u32,
}

/// The way through a gate, held while the request runs.
pub(crate) struct GatePass {
    _permit: OwnedSemaphorePermit,
}

impl Gate {
    pub(crate) fn new(running_max: u32, waiting_max: u32) -> Self {
        let permits = usize::try_from(running_max.max(1)).unwrap_or(1).min(Semaphore::MAX_PERMITS);
        Self { running: Arc::new(Semaphore::new(permits)), waiting: AtomicU32::new(0), waiting_max }
    }

    /// `None` if the queue is full. A waiter that is dropped leaves the queue.
    pub(crate) async fn pass(&self) -> Option<GatePass> {
        if let Ok(permit) = Arc::clone(&self.running).try_acquire_owned() {
            return Some(GatePass { _permit: permit });
        }
        let _waiting = Waiting::enter(&self.waiting, self.waiting_max)?;
        let permit = Arc::clone(&self.running).acquire_owned().await.ok()?;
        Some(GatePass { _permit: permit })
    }
}

struct Waiting<'g>(&'g AtomicU32);

impl<'g> Waiting<'g> {
    fn enter(waiting: &'g AtomicU32, max: u32) -> Option<Self> {
        let enter = |count: u32| (count < max).then_some(count + 1);
        waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, enter).ok()?;
        Some(Self(waiting))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[derive(Debug)]
struct Session {
    user_name: Option<String>,
    used_at: SimTime,
    gate: Arc<Gate>,
}

/// The live sessions, a bounded number of them.
#[derive(Debug, Default)]
pub(crate) struct SessionStore {
    sessions: HashMap<String, Session>,
    by_age: VecDeque<String>,
}

impl SessionStore {
    /// Starts a session and answers its id.
    pub(crate) fn start(&mut self, user_name: Option<String>, gate: Gate, now: SimTime) -> String {
        let id = secrets::random_hex32().to_uppercase();
        self.sessions.insert(id.clone(), Session { user_name, used_at: now, gate: Arc::new(gate) });
        self.by_age.push_back(id.clone());
        if self.by_age.len() > SESSIONS_MAX
            && let Some(oldest) = self.by_age.pop_front()
        {
            self.sessions.remove(&oldest);
        }
        id
    }

    /// The gate of a live session.
    pub(crate) fn gate(&self, id: &str, idle_max: Duration, now: SimTime) -> Option<Arc<Gate>> {
        self.live(id, idle_max, now).map(|session| Arc::clone(&session.gate))
    }

    /// Who a live session is signed in as.
    pub(crate) fn user(&self, id: &str, idle_max: Duration, now: SimTime) -> Option<&str> {
        self.live(id, idle_max, now)?.user_name.as_deref()
    }

    /// Notes a use of the session, and who used it. `false` if there is no such live session.
    pub(crate) fn used(
        &mut self,
        id: &str,
        user_name: Option<&str>,
        idle_max: Duration,
        now: SimTime,
    ) -> bool {
        if self.live(id, idle_max, now).is_none() {
            return false;
        }
        if let Some(session) = self.sessions.get_mut(id) {
            session.used_at = now;
            if let Some(user_name) = user_name {
                session.user_name = Some(user_name.to_owned());
            }
        }
        true
    }

    fn live(&self, id: &str, idle_max: Duration, now: SimTime) -> Option<&Session> {
        self.sessions.get(id).filter(|session| now.since(session.used_at) < idle_max)
    }
}

/// Adds the cookies of an answer; answers how many. Without TLS `Secure` is absent: it would hide the cookies
/// from every well-behaved client, and with them the dangers they carry.
pub(crate) fn set_cookies(headers: &mut HeaderMap, session_id: &str, secure: bool) -> usize {
    let secure = if secure { "; Secure" } else { "" };
    let node = &session_id[..session_id.len().min(8)];
    let cookies = [
        format!("JSESSIONID={session_id}; Path=/; HttpOnly; SameSite=Lax"),
        "glide_user=; Max-Age=0; Expires=Thu, 01-Jan-1970 00:00:10 GMT; Path=/; HttpOnly".to_owned(),
        "glide_user_session=; Max-Age=0; Expires=Thu, 01-Jan-1970 00:00:10 GMT; Path=/; HttpOnly".to_owned(),
        format!("glide_user_route=glide.{}; Max-Age=2147483647; Path=/; HttpOnly", session_id.to_lowercase()),
        format!("glide_session_store={session_id}; Max-Age=1800; Path=/; HttpOnly"),
        format!("BIGipServerpool_sim={node}.43588.0000; Path=/; HttpOnly"),
    ];
    let mut added = 0;
    for cookie in &cookies {
        if let Ok(value) = HeaderValue::from_str(&format!("{cookie}{secure}")) {
            headers.append(SET_COOKIE, value);
            added += 1;
        }
    }
    added
}

/// Sessions remembered; past it the oldest is forgotten.
const SESSIONS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_mins(5);

    #[tokio::test]
    async fn a_gate_lets_some_run_and_some_wait() {
        let gate = Arc::new(Gate::new(2, 1));
        let first = gate.pass().await.unwrap();
        let _second = gate.pass().await.unwrap();
        let waiter = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.pass().await.is_some() }
        });
        while gate.waiting.load(Ordering::Acquire) == 0 {
            tokio::task::yield_now().await;
        }
        assert!(gate.pass().await.is_none(), "the queue is full");
        drop(first);
        assert!(waiter.await.unwrap());
        assert_eq!(gate.waiting.load(Ordering::Acquire), 0);
    }

    #[test]
    fn sessions_live_while_used() {
        let mut sessions = SessionStore::default();
        let start = SimTime::from_secs(1_000);
        let id = sessions.start(Some("abel".to_owned()), Gate::new(2, 10), start);
        assert_eq!(sessions.user(&id, IDLE, start), Some("abel"));
        let later = start.after(Duration::from_secs(299));
        assert!(sessions.used(&id, None, IDLE, later));
        assert_eq!(sessions.user(&id, IDLE, later.after(Duration::from_secs(299))), Some("abel"));
        assert_eq!(sessions.user(&id, IDLE, later.after(IDLE)), None);
        assert_eq!(sessions.user("nonsense", IDLE, start), None);
    }

    #[test]
    fn sessions_are_bounded() {
        let mut sessions = SessionStore::default();
        let start = SimTime::from_secs(0);
        let first = sessions.start(None, Gate::new(1, 1), start);
        for _ in 0..SESSIONS_MAX {
            sessions.start(None, Gate::new(1, 1), start);
        }
        assert!(sessions.gate(&first, IDLE, start).is_none());
        assert_eq!(sessions.sessions.len(), SESSIONS_MAX);
    }

    #[test]
    fn six_cookies() {
        let mut headers = HeaderMap::new();
        assert_eq!(set_cookies(&mut headers, "ABC", true), 6);
        assert!(
            headers.get_all(SET_COOKIE).iter().all(|value| value.to_str().unwrap().ends_with("; Secure"))
        );
        assert_eq!(headers.get_all(SET_COOKIE).iter().count(), 6);
    }
}

//! Which refresh comes next: connections ordered by time. Cost follows what is due, not what is held.

use std::collections::{BTreeSet, HashMap};

use bearerd_model::{ConnectionId, UnixTime};

/// One time a connection, the latest one set.
#[derive(Debug, Default)]
pub struct Due {
    by_time: BTreeSet<(UnixTime, ConnectionId)>,
    times: HashMap<ConnectionId, UnixTime>,
}

impl Due {
    /// Sets, moves or (`None`) clears a connection's time. Whether the earliest time changed.
    pub fn set(&mut self, id: &ConnectionId, at: Option<UnixTime>) -> bool {
        let before = self.next();
        if let Some(old) = self.times.remove(id) {
            self.by_time.remove(&(old, id.clone()));
        }
        if let Some(at) = at {
            self.times.insert(id.clone(), at);
            self.by_time.insert((at, id.clone()));
        }
        self.next() != before
    }

    pub fn next(&self) -> Option<UnixTime> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes one connection whose time has come.
    pub fn pop(&mut self, now: UnixTime) -> Option<ConnectionId> {
        if self.next()? > now {
            return None;
        }
        let (_, id) = self.by_time.pop_first()?;
        self.times.remove(&id);
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connection_is_due_once_in_the_order_of_time() {
        let id = |text: &str| ConnectionId::parse(text).unwrap();
        let at = UnixTime::from_secs;
        let mut due = Due::default();
        assert!(due.set(&id("a"), Some(at(30))));
        assert!(due.set(&id("b"), Some(at(10))));
        assert!(!due.set(&id("a"), Some(at(20)))); // moved, still behind b
        assert!(!due.set(&id("c"), Some(at(40))));
        assert!(!due.set(&id("c"), None));
        assert_eq!(due.pop(at(9)), None);
        assert_eq!(due.pop(at(25)), Some(id("b")));
        assert_eq!(due.pop(at(25)), Some(id("a")));
        assert_eq!((due.pop(at(99)), due.next()), (None, None));
    }
}

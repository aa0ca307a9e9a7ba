//! Crash points: places between two steps of an act, each with a name, where a test build kills itself with a real
//! SIGKILL. What must survive a crash says so by passing one; the crash-run test hits every one of them.
//!
//! Without the feature `crash-points` nothing of this is compiled in. With it, the environment decides, once:
//!
//! | `BEARERD_CRASH_AT` | effect |
//! |---|---|
//! | not set | none |
//! | `commit.before` | the process dies the first time that it gets there |
//! | `commit.before:3` | the third time |
//!
//! ```
//! use bearerd_crash_points::{CrashPoint, crash_point};
//! crash_point(CrashPoint::CommitBefore);
//! ```

use std::fmt;

macro_rules! crash_points {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// A place to die. The name is what `bearerd crash-points` lists and `BEARERD_CRASH_AT` takes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum CrashPoint {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl CrashPoint {
            /// Every one, in the order in which an act passes them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

crash_points! {
    /// A refresh has begun; nothing is written.
    ClaimBefore = "claim.before",
    /// The intent is in the store.
    ClaimWritten = "claim.written",
    /// The token endpoint is about to be called.
    CallBefore = "call.before",
    /// The request is on the wire; there is no answer yet.
    CallSent = "call.sent",
    /// The answer's last byte is read; nothing is kept.
    CallAnswered = "call.answered",
    /// The new grant is about to be kept on this machine.
    KeepBefore = "keep.before",
    /// It is in the spill log, fsynced.
    KeepDone = "keep.done",
    /// The new grant is about to go into the store.
    CommitBefore = "commit.before",
    /// It is there.
    CommitWritten = "commit.written",
    /// It is about to be used, and waiters to be woken.
    PublishBefore = "publish.before",
    /// The claim is about to be given back.
    ReleaseBefore = "release.before",
    /// It is given back.
    ReleaseWritten = "release.written",
    /// A callback has used up its flow; the code is not exchanged.
    ConsentCodeTaken = "consent.code_taken",
    /// The code is exchanged; the grant is nowhere but in memory.
    ConsentExchanged = "consent.exchanged",
    /// The grant is in the store.
    ConsentStored = "consent.stored",
    /// Tokens obtained elsewhere are in the store, untried.
    ImportStored = "import.stored",
    /// Their refresh token is spent for the first time; the answer is nowhere but in memory.
    ImportSpent = "import.spent",
    /// A token to be revoked is in the queue.
    RevokeQueued = "revoke.queued",
    /// The revocation endpoint has answered; the queue does not know.
    RevokeCalled = "revoke.called",
}

impl CrashPoint {
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|point| point.name() == name)
    }
}

impl fmt::Display for CrashPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Passes a crash point: the process dies here if it was told to. Empty without the feature `crash-points`.
#[inline]
pub fn crash_point(point: CrashPoint) {
    #[cfg(feature = "crash-points")]
    armed::pass(point);
    #[cfg(not(feature = "crash-points"))]
    let _ = point;
}

/// The environment variable that says where to die.
pub const VARIABLE: &str = "BEARERD_CRASH_AT";

#[cfg(feature = "crash-points")]
mod armed {
    use std::{
        process,
        sync::{
            LazyLock,
            atomic::{AtomicU32, Ordering},
        },
    };

    use rustix::process::{Signal, getpid, kill_process};

    use super::{CrashPoint, VARIABLE};

    /// Where to die, and how many times the process gets there before, this one included.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Order {
        pub(super) point: CrashPoint,
        pub(super) pass: u32,
    }

    static ORDER: LazyLock<Option<Order>> = LazyLock::new(|| {
        #[expect(
            clippy::disallowed_methods,
            reason = "a switch of test builds, and no setting of the daemon"
        )]
        let text = std::env::var(VARIABLE).ok()?;
        let order = parse(&text);
        if order.is_none() {
            // A test that is told of no crash would pass for the wrong reason.
            eprintln!("{VARIABLE}: {text:?} is no crash point; bearerd crash-points lists them");
            process::exit(2);
        }
        order
    });

    static PASSED: AtomicU32 = AtomicU32::new(0);

    pub(super) fn pass(point: CrashPoint) {
        let Some(order) = *ORDER else { return };
        if order.point == point && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == order.pass {
            eprintln!("crash point {point}: this process kills itself");
            die();
        }
    }

    /// As from outside: nothing is flushed, no destructor runs, no signal handler is asked.
    fn die() -> ! {
        let killed = kill_process(getpid(), Signal::KILL);
        killed.expect("a process may send itself any signal");
        loop {
            std::thread::park(); // the signal is on its way
        }
    }

    pub(super) fn parse(text: &str) -> Option<Order> {
        let (name, pass) = text.split_once(':').unwrap_or((text, "1"));
        let pass = pass.parse().ok().filter(|pass| *pass > 0)?;
        Some(Order { point: CrashPoint::parse(name)?, pass })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_distinct_and_parse_back() {
        let names: HashSet<&str> = CrashPoint::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), CrashPoint::ALL.len());
        for &point in CrashPoint::ALL {
            assert_eq!(CrashPoint::parse(point.name()), Some(point));
            let (act, step) = point.name().split_once('.').unwrap();
            assert!(!act.is_empty() && !step.is_empty(), "{point}");
        }
        assert_eq!(CrashPoint::parse("commit"), None);
    }

    #[test]
    fn a_point_that_nobody_asked_for_is_passed() {
        for &point in CrashPoint::ALL {
            crash_point(point);
        }
    }

    #[cfg(feature = "crash-points")]
    #[test]
    fn an_order_names_a_point_and_a_pass() {
        for (text, expected) in [
            ("commit.before", Some((CrashPoint::CommitBefore, 1))),
            ("commit.before:3", Some((CrashPoint::CommitBefore, 3))),
            ("commit.before:0", None),
            ("commit.before:", None),
            ("commit.before:x", None),
            ("commit", None),
            ("", None),
        ] {
            let order = armed::parse(text).map(|order| (order.point, order.pass));
            assert_eq!(order, expected, "{text:?}");
        }
    }
}

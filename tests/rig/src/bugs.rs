//! Five mistakes that others have made, put back at the rig's boundary: the shipped code is as it is, and its
//! surroundings behave as if it were not.

use crate::{
    explorer::{Bounds, explore},
    scheduler::run_seeds,
};

/// One of the mistakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bug {
    /// The claim ends while the call that it protects may still be under way: a short lease, and a call that takes its
    /// full time whatever `not_after` says.
    LeaseShorterThanCall,
    /// A commit is written whatever is stored by now: the store does not compare.
    SwapWithoutGeneration,
    /// The refresh token is spent without a word to anybody: a claim is confirmed and not written.
    RefreshWithoutIntent,
    /// Another process's claim is waited for, but not to its end: from then on the reader does not see it.
    LeaseTimedOut,
    /// A commit that failed is reported as done.
    CommitFailureSwallowed,
}

impl Bug {
    pub const ALL: [Self; 5] = [
        Self::LeaseShorterThanCall,
        Self::SwapWithoutGeneration,
        Self::RefreshWithoutIntent,
        Self::LeaseTimedOut,
        Self::CommitFailureSwallowed,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::LeaseShorterThanCall => "lease-shorter-than-call",
            Self::SwapWithoutGeneration => "swap-without-generation",
            Self::RefreshWithoutIntent => "refresh-without-intent",
            Self::LeaseTimedOut => "lease-timed-out",
            Self::CommitFailureSwallowed => "commit-failure-swallowed",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|bug| bug.name() == name)
    }
}

/// What a mistake was found by.
#[derive(Debug, Clone)]
pub struct Caught {
    pub bug: Bug,
    /// The first seed that broke something, and what.
    pub scheduler: Option<(u64, &'static str)>,
    /// After how many states something was broken, and what.
    pub explorer: Option<(u64, &'static str)>,
}

/// Seeds and states after which a mistake counts as not found.
const SEEDS_MAX: u64 = 20_000;
const STATES_MAX: u64 = 400_000;

impl Bug {
    /// Looks for the mistake, both ways.
    pub fn catch(self) -> Caught {
        let total = run_seeds(0, SEEDS_MAX, 1, Some(self), 1);
        let scheduler = total.failed.first().map(|(seed, violation)| (*seed, violation.invariant));
        let bounds = Bounds {
            crashes: 0,
            partitions: 0,
            bug: Some(self),
            states_max: STATES_MAX,
            ..Bounds::default()
        };
        let result = explore(bounds);
        let explorer = result.violation.map(|(violation, _)| (result.states, violation.invariant));
        Caught { bug: self, scheduler, explorer }
    }
}

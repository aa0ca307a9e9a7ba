//! The rig in the size that fits every build; the larger one is in `docs/reliability.md`.

use bearerd_rig::{
    bugs::Bug,
    explorer::{Bounds, explore},
    scheduler::run_seeds,
};

/// F-01, F-03, F-05, F-06, F-07, I-1 to I-3, I-6 to I-8, I-12, I-14: ten thousand clusters.
#[test]
fn ten_thousand_seeds_break_nothing() {
    let total = run_seeds(0, 10_000, 2, None, 3);
    for (seed, violation) in &total.failed {
        println!("seed {seed}: {violation:?}; cargo run -p bearerd-rig --release -- replay {seed}");
    }
    assert!(total.failed.is_empty(), "replay seed {}", total.failed[0].0);
    // It is no proof if nothing happened.
    assert!(total.crashes > 1_000 && total.issues > 10_000, "{total:?}");
}

/// I-1 to I-3, I-6, I-7, I-12, I-14: what can happen to two processes with one failure of each kind, as far as it goes in a
/// build.
#[test]
fn every_run_within_small_bounds_breaks_nothing() {
    let begin = Bounds {
        crashes: 0,
        partitions: 0,
        losses: 0,
        passes: 1,
        states_max: STATES_MAX,
        ..Bounds::default()
    };
    for bounds in [
        Bounds { crashes: 1, ..begin },
        Bounds { partitions: 1, ..begin },
        Bounds { losses: 1, ..begin },
        Bounds { crashes: 1, partitions: 1, passes: 0, ..begin },
    ] {
        let explored = explore(bounds);
        if let Some((violation, path)) = &explored.violation {
            println!("{}", path.join("\n"));
            panic!("{violation:?} within {bounds:?}");
        }
        assert!(explored.settled > 0, "{explored:?}");
    }
}

/// Of each exploration. All of them are in `docs/reliability.md`.
const STATES_MAX: u64 = 25_000;

/// The proof rig finds what it is there to find.
#[test]
fn each_mistake_put_back_is_found_both_ways() {
    for bug in Bug::ALL {
        let caught = bug.catch();
        println!("{caught:?}");
        assert!(caught.scheduler.is_some() && caught.explorer.is_some(), "{caught:?}");
    }
}

//! Runs the rig by hand.
//!
//! ```text
//! bearerd-rig scheduler [--seeds 10000] [--from 0] [--jobs 2] [--bug NAME]
//! bearerd-rig replay SEED [--bug NAME] [--all]
//! bearerd-rig exhaustive [--crashes 1] [--partitions 1] [--losses 1] [--passes 2] [--again another] [--bug NAME]
//! bearerd-rig bugs
//! ```

use std::{io::Write, process::ExitCode, time::Instant};

use bearerd_rig::{
    bugs::Bug,
    explorer::{self, Bounds},
    scheduler::{self, Plan, Total},
    server::Again,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, default: u64| value(&arguments, name).map_or(default, |text| parse(name, text));
    let bug =
        value(&arguments, "--bug").map(|name| Bug::from_name(name).unwrap_or_else(|| fail("no such bug")));
    match arguments.first().map(String::as_str) {
        Some("scheduler") => {
            let jobs = usize::try_from(number("--jobs", 2)).unwrap_or(1);
            let begun = Instant::now();
            let total = scheduler::run_seeds(number("--from", 0), number("--seeds", 10_000), jobs, bug, 10);
            print_total(&total, begun.elapsed().as_secs_f64(), bug);
            ExitCode::from(u8::from(!total.failed.is_empty()))
        }
        Some("replay") => {
            let seed = arguments.get(1).map_or_else(|| fail("which seed?"), |text| parse("SEED", text));
            replay(seed, bug, arguments.iter().any(|argument| argument == "--all"))
        }
        Some("exhaustive") => {
            let small =
                |name: &str, default: u32| u32::try_from(number(name, default.into())).unwrap_or(default);
            let default = Bounds::default();
            let again = match value(&arguments, "--again") {
                None | Some("another") => Again::Another,
                Some("same") => Again::Same,
                Some("instead") => Again::Instead,
                Some(_) => fail("--again is same, another or instead"),
            };
            let bounds = Bounds {
                processes: small("--processes", 2) as usize,
                crashes: small("--crashes", default.crashes),
                partitions: small("--partitions", default.partitions),
                losses: small("--losses", default.losses),
                passes: small("--passes", default.passes),
                states_max: number("--states-max", u64::MAX),
                again,
                bug,
            };
            exhaustive(bounds)
        }
        Some("bugs") => {
            println!("put back                   scheduler: seed, broken      explorer: states, broken");
            let mut all = true;
            for bug in Bug::ALL {
                let caught = bug.catch();
                let shown = |found: Option<(u64, &str)>| {
                    found.map_or_else(
                        || "not found".to_owned(),
                        |(at, invariant)| format!("{at}, {invariant}"),
                    )
                };
                println!("{:26} {:28} {}", bug.name(), shown(caught.scheduler), shown(caught.explorer));
                all &= caught.scheduler.is_some() && caught.explorer.is_some();
            }
            ExitCode::from(u8::from(!all))
        }
        _ => fail("scheduler, replay, exhaustive or bugs"),
    }
}

/// One line. Whoever reads may have read enough.
fn put(line: &str) {
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(1);
    }
}

fn exhaustive(bounds: Bounds) -> ExitCode {
    let begun = Instant::now();
    let explored = explorer::explore(bounds);
    println!(
        "{} states ({}), {} steps, {} times seen to become well, {:.1} s: {bounds:?}",
        explored.states,
        if explored.complete { "all" } else { "not all" },
        explored.steps,
        explored.settled,
        begun.elapsed().as_secs_f64(),
    );
    let Some((violation, path)) = explored.violation else { return ExitCode::SUCCESS };
    for line in &path {
        put(line);
    }
    println!("{}: {}", violation.invariant, violation.evidence);
    ExitCode::FAILURE
}

fn value<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    let at = arguments.iter().position(|argument| argument == name)?;
    Some(arguments.get(at + 1).map_or_else(|| fail(&format!("{name} needs a value")), String::as_str))
}

fn parse(name: &str, text: &str) -> u64 {
    text.replace('_', "").parse().unwrap_or_else(|_| fail(&format!("{name} {text} is not a number")))
}

fn fail(why: &str) -> ! {
    eprintln!("bearerd-rig: {why}");
    std::process::exit(2);
}

fn print_total(total: &Total, secs: f64, bug: Option<Bug>) {
    println!(
        "{} seeds, {} violations, {:.1} s: {} events, {} h of virtual time, {} token calls of which {} brought tokens, {} crashes; \
         fresh after the last fault: {:.1} s at most, {} later than 30 s",
        total.seeds,
        total.failed.len(),
        secs,
        total.events,
        total.virtual_ms / 3_600_000,
        total.calls,
        total.issues,
        total.crashes,
        f64::from(u32::try_from(total.fresh_after_ms_max).unwrap_or(u32::MAX)) / 1_000.0,
        total.seeds - total.fresh_within_30_s,
    );
    let bug = bug.map_or_else(String::new, |bug| format!(" --bug {}", bug.name()));
    for (seed, violation) in &total.failed {
        println!("seed {seed}: {} at {} ms: {}", violation.invariant, violation.at, violation.evidence);
        println!("    cargo run -p bearerd-rig --release -- replay {seed}{bug}");
    }
}

/// Shows a seed's run: only what its violation needs, unless all of it is wanted.
fn replay(seed: u64, bug: Option<Bug>, all: bool) -> ExitCode {
    let mut plan = Plan::new(seed, bug);
    let outcome = scheduler::run(&plan, false);
    let Some(violation) = outcome.violations.first().cloned() else {
        println!("seed {seed}: no violation; {plan:?}");
        if all {
            for line in &scheduler::run(&plan, true).trace {
                put(line);
            }
        }
        return ExitCode::SUCCESS;
    };
    if !all {
        plan = scheduler::smallest(&plan);
    }
    let outcome = scheduler::run(&plan, true);
    let violation = outcome.violations.first().unwrap_or(&violation);
    println!("{plan:?}");
    let others: Vec<_> = (0..plan.connections)
        .filter(|other| *other != violation.connection)
        .map(|other| format!(" c{other}"))
        .collect();
    for line in outcome.trace.iter().filter(|line| all || !others.iter().any(|other| line.contains(other))) {
        put(line);
    }
    println!("{} connection {}: {}", violation.invariant, violation.connection, violation.evidence);
    ExitCode::FAILURE
}

//! How long `Spill::keep` takes on this machine's disk: one caller alone, and many at once who share fsyncs.
//!
//! `cargo run --release -p bearerd-spill --example keep-latency [FOLDER]`; the folder is made if it is missing, and should
//! be on the disk in question.

#![expect(clippy::print_stdout, reason = "it prints what it measured")]

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use bearerd_crypto::Sealed;
use bearerd_model::{ConnectionId, Epoch, GrantVersion};
use bearerd_spill::{Spill, SpillEntry};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("keep-latency"), PathBuf::from);
    let (spill, _) = Spill::open(&folder).await?;
    for callers in [1, 16, 256] {
        let began = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for caller in 0..callers {
            let spill = spill.clone();
            let id = ConnectionId::parse(&format!("c{caller}"))?;
            tasks.spawn(async move {
                let mut took = Vec::with_capacity(KEEPS);
                for epoch in 1..=KEEPS as u64 {
                    let version = GrantVersion { lineage: Epoch(1), epoch: Epoch(epoch) };
                    let sealed = Sealed::from_bytes(vec![7; RECORD_BYTES]);
                    let began = Instant::now();
                    spill.keep(SpillEntry { id: id.clone(), version, sealed }).await?;
                    took.push(began.elapsed());
                    spill.settle(&id, version);
                }
                Ok::<_, bearerd_spill::SpillError>(took)
            });
        }
        let mut took: Vec<Duration> = Vec::new();
        while let Some(part) = tasks.join_next().await {
            took.extend(part??);
        }
        let elapsed = began.elapsed();
        took.sort_unstable();
        let at = |share: usize| took[(took.len() - 1) * share / 1_000];
        let per_second = u128::from(took.len() as u64) * 1_000_000 / elapsed.as_micros().max(1);
        println!(
            "{callers:4} callers: p50 {:?}, p99 {:?}, p99.9 {:?}, {per_second} keeps/s ({} keeps of {RECORD_BYTES} bytes)",
            at(500),
            at(990),
            at(999),
            took.len(),
        );
    }
    Ok(())
}

/// About what a sealed connection has.
const RECORD_BYTES: usize = 2_048;
/// By each caller.
const KEEPS: usize = 300;

//! The demo instance on a fixed address: `cargo run -p servicenow-sim --example sim -- 127.0.0.1:8090`.

use std::io;

use servicenow_sim::{Sim, SimSettings};

#[tokio::main]
async fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8090".to_owned());
    let listen =
        address.parse().map_err(|_| io::Error::other("the argument is an address such as 127.0.0.1:8090"))?;
    let sim = Sim::start(SimSettings { listen, ..SimSettings::default() }).await?;
    println!("ServiceNow simulator at {}", sim.origin());
    tokio::signal::ctrl_c().await?;
    sim.stop().await;
    Ok(())
}

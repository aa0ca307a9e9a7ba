//! The command line.

mod client;

use std::{fmt::Write as _, future::Future, io::Write, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::{
    daemon::{Bound, Daemon},
    hardening, inherited, init, logging,
    settings::Settings,
};

/// Holds an organisation's OAuth connections to ServiceNow and lends them to internal services.
///
/// Commands that change connections and keys talk to the admin API of a running daemon.
#[derive(Debug, Parser)]
#[command(name = "bearerd", version, propagate_version = true, arg_required_else_help = true)]
#[command(
    after_help = "Start here:\n  bearerd demo                    everything at once, against a simulated ServiceNow\n  bearerd init --dir ./bearerd    a key file, an admin key and settings of your own\n  bearerd serve --config ./bearerd/bearerd.toml"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs simulator and daemon on loopback with a consented connection, and prints a curl line that works
    #[cfg(feature = "demo")]
    Demo(crate::demo::DemoArgs),
    /// Makes a key file, the first admin key and a settings file
    #[command(
        after_help = "Example:\n  bearerd init --dir /etc/bearerd\n  bearerd serve --config /etc/bearerd/bearerd.toml"
    )]
    Init(InitArgs),
    /// Runs the daemon
    #[command(
        after_help = "Every setting: config/bearerd.toml. Each can be given as BEARERD__SECTION__NAME:\n  BEARERD__PROXY__LISTEN=0.0.0.0:8080 bearerd serve"
    )]
    Serve(ServeArgs),
    /// Runs the ServiceNow simulator alone
    #[cfg(feature = "demo")]
    Sim(crate::demo::SimArgs),
    /// Prints the admin API's OpenAPI document
    #[command(after_help = "Example:\n  bearerd openapi > openapi.json")]
    Openapi,
    /// Lists the places where `BEARERD_CRASH_AT` can make this build kill itself
    #[cfg(feature = "crash-points")]
    #[command(hide = true)]
    CrashPoints,
    #[command(flatten)]
    Client(Box<client::ClientCommand>),
}

#[derive(Debug, Args)]
struct InitArgs {
    /// Folder for the files; made if it is not there
    #[arg(long, default_value = ".")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Settings file; default: ./bearerd.toml, then /etc/bearerd/bearerd.toml
    #[arg(long, env = "BEARERD_CONFIG")]
    config: Option<PathBuf>,
}

/// Parses the command line and does what it says.
pub(crate) fn run() -> ExitCode {
    let result = match Cli::parse().command {
        #[cfg(feature = "demo")]
        Command::Demo(args) => block_on(crate::demo::demo(args)),
        #[cfg(feature = "demo")]
        Command::Sim(args) => block_on(crate::demo::sim(args)),
        Command::Init(args) => init_files(&args),
        Command::Serve(args) => serve(&args),
        Command::Openapi => print_line(&bearerd_admin::openapi_json()),
        #[cfg(feature = "crash-points")]
        Command::CrashPoints => crash_points().and_then(|names| print_line(&names)),
        Command::Client(command) => return run_client(*command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bearerd: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run_client(command: client::ClientCommand) -> ExitCode {
    let done = runtime().map(|runtime| runtime.block_on(client::run(command)));
    match done {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            error.print();
            error.exit_code()
        }
        Err(error) => {
            eprintln!("bearerd: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn init_files(args: &InitArgs) -> Result<()> {
    let made = init::init(&args.dir)?;
    let mut text = String::new();
    writeln!(text, "Settings:    {}", made.settings.display())?;
    writeln!(text, "Master key:  {}", made.master_key.display())?;
    writeln!(text, "             Without it the store cannot be opened by anyone: keep a copy elsewhere.")?;
    writeln!(text, "Admin key:   {}", made.admin_key.expose())?;
    writeln!(text, "             Shown this once; the settings hold its hash.\n")?;
    writeln!(text, "Next:")?;
    writeln!(text, "  bearerd serve --config {}", made.settings.display())?;
    writeln!(text, "  export BEARERD_ADMIN_KEY=<the admin key>")?;
    write!(text, "  bearerd integration add --help")?;
    print_line(&text)
}

fn serve(args: &ServeArgs) -> Result<()> {
    let settings = Settings::read(args.config.as_deref())?;
    let inherited = inherited::take()?;
    logging::start(&settings.process)?;
    hardening::apply();
    hardening::raise_descriptor_limit();
    block_on(async {
        let bound = Bound::bind(&settings, inherited)?;
        let daemon = Daemon::start(&settings, bound).await?;
        let at = &daemon.addresses;
        tracing::info!(proxy = %at.proxy, connect = %at.connect, admin = %at.admin, "serving");
        daemon.run().await
    })
}

/// One name a line for people, a JSON array for programs.
#[cfg(feature = "crash-points")]
fn crash_points() -> Result<String> {
    use std::io::IsTerminal as _;
    let names: Vec<&str> = bearerd_crash_points::CrashPoint::ALL.iter().map(|point| point.name()).collect();
    if std::io::stdout().is_terminal() {
        return Ok(names.join("\n"));
    }
    serde_json::to_string_pretty(&names).context("names are text")
}

fn print_line(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("the output could not be written")
}

fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    runtime()?.block_on(work)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2) // control plane only: refreshes, consents, the admin API; calls run on the proxy door's own
        .enable_all()
        .build()
        .context("no runtime")
}

/// The whole chain of causes, outermost first.
fn one_line(error: &anyhow::Error) -> String {
    let chain: Vec<String> = error.chain().map(|cause| cause.to_string().replace('\n', " ")).collect();
    chain.join(": ")
}

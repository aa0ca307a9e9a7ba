//! The client commands: `integration`, `connection`, `key` and `policy` talk to the admin API of a running bearerd.
//! They hold no state and decide nothing; what they print is what the API answered.
//!
//! A command computes a [`Report`]; [`run`] prints it, as a table for people or as JSON for programs.

mod api;
mod connection;
mod error;
mod input;
mod integration;
mod key;
mod output;
mod policy;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use bearerd_model::SecretText;
use clap::{Arg, ArgMatches, Args, FromArgMatches, Subcommand, error::ErrorKind, parser::ValueSource};
use jiff::Timestamp;

use connection::ConnectionCommand;
use integration::IntegrationCommand;
use key::KeyCommand;
use policy::PolicyCommand;

pub(crate) use api::AdminApi;
pub(crate) use error::CliError;
pub(crate) use output::{OutputFormat, Report};

/// What operators do, over the admin API.
#[derive(Debug, Subcommand)]
pub(crate) enum ClientCommand {
    /// OAuth clients as registered at ServiceNow instances
    #[command(after_help = EXIT_CODES)]
    Integration(OverAdminApi<IntegrationCommand>),
    /// Grants held under an integration: one service account or one person each
    #[command(after_help = EXIT_CODES)]
    Connection(OverAdminApi<ConnectionCommand>),
    /// API keys of the internal services that call through bearerd
    #[command(after_help = EXIT_CODES)]
    Key(OverAdminApi<KeyCommand>),
    /// What a caller may do with which connections
    #[command(after_help = EXIT_CODES)]
    Policy(OverAdminApi<PolicyCommand>),
}

/// A command, and where it is sent.
#[derive(Debug, Args)]
pub(crate) struct OverAdminApi<C: Subcommand> {
    #[command(flatten)]
    options: ClientOptions,
    #[command(subcommand)]
    command: C,
}

/// Where the admin API is, and how to show what it says.
#[derive(Debug, Args)]
#[command(next_help_heading = "Admin API")]
pub(crate) struct ClientOptions {
    /// Address of the admin API: https, or http at a loopback address
    #[arg(long, global = true, env = "BEARERD_ADMIN_URL", value_name = "URL", default_value = ADMIN_URL)]
    pub(crate) admin_url: String,
    #[command(flatten)]
    pub(crate) admin_key: AdminKey,
    /// File that holds the admin key (or set `BEARERD_ADMIN_KEY`)
    #[arg(long, global = true, env = "BEARERD_ADMIN_KEY_FILE", value_name = "FILE")]
    pub(crate) admin_key_file: Option<PathBuf>,
    /// PEM file with the authorities that vouch for the admin API, instead of the system's
    #[arg(long, global = true, env = "BEARERD_ADMIN_CA_FILE", value_name = "FILE")]
    pub(crate) admin_ca_file: Option<PathBuf>,
    /// How to print [default: table on a terminal, else json]
    #[arg(long, short, global = true, value_enum, value_name = "FORMAT")]
    pub(crate) output: Option<OutputFormat>,
}

/// The admin key from `BEARERD_ADMIN_KEY`. Never from the command line, which every user of the machine can read.
#[derive(Debug, Clone, Default)]
pub(crate) struct AdminKey(pub(crate) Option<SecretText>);

/// Does what `command` says and prints the result.
///
/// # Errors
/// [`CliError`], to be printed by [`CliError::print`]; its exit codes are stable.
pub(crate) async fn run(command: ClientCommand) -> Result<(), CliError> {
    let format = output::chosen(command.options().output);
    perform(command).await?.print(format)
}

async fn perform(command: ClientCommand) -> Result<Report, CliError> {
    let now = Timestamp::now();
    let api = AdminApi::from_options(command.options())?;
    match command {
        ClientCommand::Integration(over) => integration::perform(over.command, &api, now).await,
        ClientCommand::Connection(over) => connection::perform(over.command, &api, now).await,
        ClientCommand::Key(over) => key::perform(over.command, &api, now).await,
        ClientCommand::Policy(over) => policy::perform(over.command, &api, now).await,
    }
}

impl ClientCommand {
    fn options(&self) -> &ClientOptions {
        match self {
            Self::Integration(over) => &over.options,
            Self::Connection(over) => &over.options,
            Self::Key(over) => &over.options,
            Self::Policy(over) => &over.options,
        }
    }
}

impl FromArgMatches for AdminKey {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut key = Self::default();
        key.update_from_arg_matches(matches)?;
        Ok(key)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let refuse = |why: &str| Err(clap::Error::raw(ErrorKind::InvalidValue, format!("{why}\n")));
        if matches.value_source(ADMIN_KEY_ARG) == Some(ValueSource::CommandLine) {
            return refuse(
                "the command line is no place for the admin key: every user of this machine can read it\n  fix: set \
                 BEARERD_ADMIN_KEY, or give --admin-key-file FILE",
            );
        }
        let text = matches.get_one::<String>(ADMIN_KEY_ARG).map(|text| text.trim().to_owned());
        self.0 = match text.filter(|text| !text.is_empty()).map(SecretText::parse) {
            None => None,
            Some(Ok(key)) => Some(key),
            Some(Err(fault)) => return refuse(&format!("BEARERD_ADMIN_KEY: {fault}")),
        };
        Ok(())
    }
}

impl Args for AdminKey {
    fn augment_args(command: clap::Command) -> clap::Command {
        let arg = Arg::new(ADMIN_KEY_ARG)
            .long("admin-key")
            .env("BEARERD_ADMIN_KEY")
            .hide_env_values(true)
            .hide(true)
            .global(true);
        command.arg(arg)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

const ADMIN_KEY_ARG: &str = "admin_key";
/// Where `bearerd serve` listens unless told otherwise.
const ADMIN_URL: &str = "http://127.0.0.1:8082";
const EXIT_CODES: &str = "Needs the admin key that `bearerd init` printed, in BEARERD_ADMIN_KEY or --admin-key-file.

Exit codes: 0 done, 1 failed, 2 wrong usage or input, 3 not found, 4 conflict or changed meanwhile, 5 refused (key), \
                          6 admin API unreachable";

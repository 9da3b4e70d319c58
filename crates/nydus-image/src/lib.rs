//! `nydus-image`: builds, merges, checks and inspects RAFS images. The program is [`main`]; its command line is open to
//! what is made of it, such as manual pages.
#![forbid(unsafe_code)]

mod args;
mod blobs;
mod cache_files;
mod check;
mod chunkdict;
mod compact;
mod create;
mod dictionary;
mod estargz;
mod export;
mod external;
mod inspect;
mod interrupt;
mod logging;
mod merge;
mod optimize;
mod output;
mod parent;
mod prefetch;
mod report;
mod rewrite;
mod stat;
mod targz;
mod transcode;
mod unpack;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use tracing::Level;

use crate::args::{Cli, Command, LogLevel};
use crate::interrupt::Interrupt;

/// Exit status for a bad command line, and for layers that cannot be merged with one another.
const EXIT_USAGE: u8 = 2;

/// A command line that only makes no sense as a whole.
#[derive(Debug)]
pub struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// The command line as clap sees it.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs what the words after the name of the process ask for.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let Some(command) = &cli.command else {
        println!("{}", Cli::command().render_usage());
        return ExitCode::SUCCESS;
    };
    let mut watching = None;
    let result = run(&cli, command, &mut watching);
    if result.is_err() {
        output::let_go(command.fifos());
    }
    if let Some(status) = watching.as_ref().and_then(Interrupt::exit_status) {
        return ExitCode::from(status);
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::from(exit_status(&error))
        }
    }
}

fn run(cli: &Cli, command: &Command, watching: &mut Option<Interrupt>) -> anyhow::Result<()> {
    logging::init(level(cli.log_level), cli.log_file.as_deref())?;
    let interrupt = watching.insert(Interrupt::watch()?);
    match command {
        Command::Create(args) => create::run(args, interrupt),
        Command::Merge(args) => merge::run(args, interrupt),
        Command::Check(args) => check::run(args, interrupt),
        Command::Inspect(args) => inspect::run(args, interrupt),
        Command::Transcode(args) => transcode::run(args, interrupt),
        Command::Stat(args) => stat::run(args, interrupt),
        Command::Export(args) => export::run(args, interrupt),
        Command::Unpack(args) => unpack::run(args, interrupt),
        Command::Compact(args) => compact::run(args, interrupt),
        Command::Optimize(args) => optimize::run(args, interrupt),
        Command::Chunkdict(args) => chunkdict::run(args, interrupt),
        Command::Other(words) => Err(unknown(words.first().map_or("", String::as_str))),
    }
}

/// What is wrong with a command that is none of [`Command`]'s.
fn unknown(name: &str) -> anyhow::Error {
    Usage(format!(
        "unrecognized subcommand '{name}'; try nydus-image --help"
    ))
    .into()
}

/// The error and what caused it, one cause a line.
fn report(error: &anyhow::Error) {
    eprintln!("Error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  caused by: {cause}");
    }
}

fn level(level: LogLevel) -> Level {
    match level {
        LogLevel::Trace => Level::TRACE,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Info => Level::INFO,
        LogLevel::Warn => Level::WARN,
        LogLevel::Error => Level::ERROR,
    }
}

/// Consumers tell layers that do not fit together from every other failure by the status.
fn exit_status(error: &anyhow::Error) -> u8 {
    let inconsistent = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(inconsistent @ builder::Error::Inconsistent { .. }) => Some(inconsistent),
        _ => None,
    });
    if let Some(inconsistent) = inconsistent {
        tracing::error!("message:{inconsistent}");
        return EXIT_USAGE;
    }
    if error.is::<Usage>() { EXIT_USAGE } else { 1 }
}

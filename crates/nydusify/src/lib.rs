//! `nydusify`: converts OCI images to Nydus images, checks, mounts and copies them. The program is [`main`]; its command
//! line is open to what is made of it, such as manual pages.
#![forbid(unsafe_code)]

mod args;
mod auth;
mod backend;
mod build_cache;
mod cache;
mod check;
mod chunkdict;
mod convert;
mod copy;
mod diff;
mod doctor;
mod explain;
mod index;
mod interrupt;
mod logging;
mod mount;
mod optimize;
mod page;
mod place;
mod progress;
mod run;
mod stat;
mod umount;

use std::process::ExitCode;

use crate::args::{Arguments, Command, Usage};
use crate::interrupt::Interrupted;

/// The command line as clap sees it.
pub fn command() -> clap::Command {
    <Arguments as clap::CommandFactory>::command()
}

/// Runs what the words after the name of the process ask for.
pub fn main() -> ExitCode {
    let arguments = Arguments::read(std::env::args_os());
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            exit_code(&error)
        }
    }
}

/// Says on standard error what failed, on one line, whatever the causes say.
fn report(error: &anyhow::Error) {
    eprintln!("error: {}", one_line(&format!("{error:#}")));
}

/// Text on one line, of which none speaks to the terminal: causes may repeat what registries and images say.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => line.push(' '),
            control if control.is_control() => line.extend(control.escape_debug()),
            other => line.push(other),
        }
    }
    line
}

/// 2 if the command line is at fault, or asks for what is not built yet; 128 + signal if one stopped the work.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<Interrupted>() {
        Some(interrupted) => interrupted.exit_code(),
        None => ExitCode::from(if error.is::<Usage>() { 2 } else { 1 }),
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let terminal = indicatif::MultiProgress::new();
    let log_file = arguments.log_file();
    logging::init(arguments.level(), log_file, &terminal)?;
    match &arguments.command {
        Command::Convert(options) => convert::run(options, terminal),
        Command::Copy(options) => copy::run(options, terminal),
        Command::Index(options) => index::run(options, terminal),
        Command::Optimize(options) => optimize::run(options, terminal),
        Command::Diff(options) => diff::run(options),
        Command::Explain(options) => explain::run(options),
        Command::Chunkdict(options) => chunkdict::run(options, terminal),
        Command::Auth(options) => auth::run(options),
        Command::Check(options) => check::run(options),
        Command::Mount(options) => mount::run(options, log_file),
        Command::Run(options) => run::run(options),
        Command::Inside { socket } => Ok(run::inside(socket)),
        Command::MapIds { process } => Ok(run::map_ids(*process)),
        Command::Umount(options) => umount::run(options),
        Command::Stat(options) => stat::run(options),
        Command::Cache(options) => cache::run(options),
        Command::Doctor(options) => doctor::run(options),
        Command::Guard => mount::guard(),
        Command::Keep => mount::keep_on(),
        Command::Unbuilt(words) => Err(args::unbuilt(words).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_line_and_speak_to_no_terminal() {
        let text = one_line("a\nb \u{1b}]0;x\u{7}\u{9b}2J \u{fc}'\"");
        assert_eq!(text, "a b \\u{1b}]0;x\\u{7}\\u{9b}2J \u{fc}'\"");
    }
}

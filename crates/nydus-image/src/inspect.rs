//! `inspect`: looks around in a bootstrap, for persons (commands from stdin) or programs (`--request`).

use std::io::{self, BufRead as _, Write as _};

use anyhow::Context as _;
use clap::Args;
use inspect::{Error, Next, PROMPT, Shell};
use storage::LoadedBootstrap;

use crate::check::Input;
use crate::interrupt::Interrupt;

#[derive(Debug, Args)]
pub struct Inspect {
    #[command(flatten)]
    pub input: Input,
    /// Answer one command in JSON: stats, ls, cd DIR, stat NAME, blobs, prefetch, chunk OFFSET, icheck INODE
    #[arg(short = 'R', long, value_name = "CMD")]
    pub request: Option<String>,
}

pub fn run(args: &Inspect, interrupt: &Interrupt) -> anyhow::Result<()> {
    // A bootstrap is looked at alone, but a configuration has to be one.
    args.input.blobs(&interrupt.cancel)?;
    let bootstrap = args.input.load()?;
    let path = args.input.path()?;
    let done = match &args.request {
        Some(command) => request(&bootstrap, command),
        None => interact(&bootstrap),
    };
    match done {
        Err(error) if error.is_broken_pipe() => Ok(()),
        other => other.with_context(|| format!("cannot inspect {}", path.display())),
    }
}

fn request(bootstrap: &LoadedBootstrap, command: &str) -> Result<(), Error> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    Shell::new(bootstrap)?.request(command, &mut out)?;
    Ok(out.flush()?)
}

/// Reads commands until the user leaves or the input ends.
fn interact(bootstrap: &LoadedBootstrap) -> Result<(), Error> {
    let mut shell = Shell::new(bootstrap)?;
    let mut input = io::stdin().lock();
    let mut line = Vec::new();
    loop {
        let mut out = io::BufWriter::new(io::stdout().lock());
        out.write_all(PROMPT.as_bytes())?;
        out.flush()?;
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            writeln!(out)?;
            return Ok(out.flush()?);
        }
        let next = shell.interact(&String::from_utf8_lossy(&line), &mut out)?;
        out.flush()?;
        if next == Next::Exit {
            return Ok(());
        }
    }
}

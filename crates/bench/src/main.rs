//! Benchmarks of the release binaries against what the machine allows. `cargo xtask bench` runs it.
#![forbid(unsafe_code)]

mod floor;
mod input;
mod measure;
mod report;
mod scenario;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::input::Input;
use crate::scenario::{Programs, Scenario};

/// Measures conversion, check, merge and mount, and writes docs/benchmarks.md.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one command and print what it used (the measured side of the benchmark).
    RunOne {
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Measure and write the page.
    Measure {
        /// A layout with the tag `big`, made by the tool that makes the big image.
        #[arg(long)]
        big: Option<PathBuf>,
        /// Only images whose name contains this; `merge` is the merge of many layers.
        #[arg(long, default_value = "")]
        only: String,
        /// Counted runs of each command.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Directory for results; a temporary one by default.
        #[arg(long)]
        work: Option<PathBuf>,
        /// Print the table instead of writing the page.
        #[arg(long)]
        print: bool,
    },
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::RunOne { command } => measure::run_one(&command),
        Command::Measure {
            big,
            only,
            runs,
            work,
            print,
        } => run(big, &only, runs, work, print),
    }
}

fn run(
    big: Option<PathBuf>,
    only: &str,
    runs: usize,
    work: Option<PathBuf>,
    print: bool,
) -> Result<()> {
    let here = std::env::current_exe()?;
    let bin = here.parent().context("the program lies in a directory")?;
    let programs = Programs {
        nydusify: bin.join("nydusify"),
        nydus_image: bin.join("nydus-image"),
    };
    let scratch = match &work {
        Some(path) => tempfile::tempdir_in(path)?,
        None => tempfile::tempdir()?,
    };
    let work = scratch.path();

    let small = work.join("small-layout");
    input::small_files(&small, 10_000, 1024);
    let mut images = vec![("small", Some(small), "latest")];
    images.push((
        "node",
        testkit::shared_or_skip("benchmark of node").map(|s| s.join("images")),
        "node",
    ));
    if big.is_none() {
        testkit::skip("benchmark of the big image", "give its layout with --big");
    }
    images.push(("big", big, "big"));

    let mut rows = Vec::new();
    for (name, layout, tag) in images {
        let Some(layout) = layout.filter(|_| name.contains(only)) else {
            continue;
        };
        let input = Input::open(name, &layout, tag, work)?;
        rows.extend(
            Scenario {
                programs: &programs,
                input: &input,
                work,
                runs,
                rows: Vec::new(),
            }
            .measure()?,
        );
    }
    if "merge".contains(only) {
        rows.push(scenario::merge_many(&programs, work, runs)?);
    }
    if print {
        print!("{}", report::table(&rows));
        return Ok(());
    }
    report::write(&testkit::workspace().join("docs"), &rows)
}

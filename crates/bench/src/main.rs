//! Benchmarks of the release binaries against what the machine allows. `cargo xtask bench` runs it.
#![forbid(unsafe_code)]

mod builder;
mod dict;
mod floor;
mod input;
mod link;
mod measure;
mod mounts;
mod report;
mod scenario;
mod series;
mod tools;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::input::Input;
use crate::link::{Link, Shape};
use crate::mounts::Mounts;
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
        #[command(flatten)]
        how: How,
    },
    /// Relay to a server as the far link of `mount` does, until killed; prints where it listens.
    Link {
        /// HOST:PORT of the server.
        server: String,
    },
    /// Measure mounts of one image, side by side with what the kernel has and with pulling it, and write the page.
    Mount {
        /// A layout with the tag `big`, made by the tool that makes the big image.
        #[arg(long)]
        big: PathBuf,
        #[command(flatten)]
        how: How,
    },
    /// Measure first starts of the same image over the far link while nobody has converted it, and write the page.
    Unconverted {
        /// A layout with the tag `big`, made by the tool that makes the big image.
        #[arg(long)]
        big: PathBuf,
        #[command(flatten)]
        how: How,
    },
    /// Measure dictionaries of synthetic chunks, and a conversion whose chunks are all known, and write docs/chunkdict.md.
    Dict {
        /// How many chunks, separated by commas.
        #[arg(long, value_delimiter = ',', default_values_t = [1_000_000, 10_000_000])]
        chunks: Vec<u64>,
        /// A layout with the tag `big`, made by the tool that makes the big image.
        #[arg(long)]
        big: Option<PathBuf>,
        #[command(flatten)]
        how: How,
    },
    /// Convert a series of versions of one image and write what a chunk dictionary saves into docs/chunkdict.md. Takes
    /// Python wheels from where pip takes them.
    Series {
        /// Directory for wheels and images, which are kept for the next time.
        #[arg(long)]
        work: PathBuf,
        /// Print the tables instead of writing the page.
        #[arg(long)]
        print: bool,
    },
}

/// How often to measure, and where.
#[derive(Debug, clap::Args)]
struct How {
    /// Counted runs of each command, or rounds.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Directory for results, which is made if there is none: of mounts, on ext4, xfs or btrfs; a temporary one by default.
    #[arg(long)]
    work: Option<PathBuf>,
    /// Print the tables instead of writing the page.
    #[arg(long)]
    print: bool,
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::RunOne { command } => measure::run_one(&command),
        Command::Measure { big, only, how } => run(big, &only, &how),
        Command::Link { server } => {
            let link = Link::start(&server, Shape::FAR)?;
            println!("{}", link.host());
            loop {
                std::thread::park();
            }
        }
        Command::Mount { big, how } => run_mounts(&big, &how, |mounts| {
            let table = mounts.measure(how.runs)?;
            if how.print {
                print!("{}", table.markdown());
                return Ok(());
            }
            table.write(&docs())
        }),
        Command::Unconverted { big, how } => run_mounts(&big, &how, |mounts| {
            let text = mounts.unconverted(how.runs)?.markdown();
            if how.print {
                print!("{text}");
                return Ok(());
            }
            report::put(&docs().join("benchmarks.md"), "unconverted", &text)
        }),
        Command::Dict { chunks, big, how } => {
            let scratch = scratch(how.work.as_ref())?;
            let image = match &big {
                Some(layout) => Some(Input::open("big", layout, "big", scratch.path())?),
                None => {
                    testkit::skip("conversion of known chunks", "give a layout with --big");
                    None
                }
            };
            let (work, image) = (scratch.path(), image.as_ref());
            dict::measure(&programs()?, work, &chunks, image, how.runs, how.print)
        }
        Command::Series { work, print } => series::measure(&programs()?, &work, print),
    }
}

/// The programs beside this one.
fn programs() -> Result<Programs> {
    let here = std::env::current_exe()?;
    let bin = here.parent().context("the program lies in a directory")?;
    Ok(Programs {
        nydusify: bin.join("nydusify"),
        nydus_image: bin.join("nydus-image"),
    })
}

/// A directory for results that goes away in the end.
fn scratch(work: Option<&PathBuf>) -> Result<tempfile::TempDir> {
    Ok(match work {
        Some(path) => {
            std::fs::create_dir_all(path)?;
            tempfile::tempdir_in(path)?
        }
        None => tempfile::tempdir()?,
    })
}

/// Where the pages lie.
fn docs() -> PathBuf {
    testkit::workspace().join("docs")
}

fn run_mounts(big: &Path, how: &How, measure: impl FnOnce(Mounts<'_>) -> Result<()>) -> Result<()> {
    let (programs, scratch) = (programs()?, scratch(how.work.as_ref())?);
    match Mounts::prepare(&programs, big, scratch.path())? {
        Some(mounts) => measure(mounts),
        None => Ok(()),
    }
}

fn run(big: Option<PathBuf>, only: &str, how: &How) -> Result<()> {
    let (programs, scratch) = (programs()?, scratch(how.work.as_ref())?);
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
                runs: how.runs,
                rows: Vec::new(),
            }
            .measure()?,
        );
    }
    if "merge".contains(only) {
        rows.push(builder::merge_many(&programs, work, how.runs)?);
    }
    if how.print {
        print!("{}", report::table(&rows));
        return Ok(());
    }
    report::write(&docs(), &rows)
}

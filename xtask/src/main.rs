//! Chores of the project: `cargo xtask help` lists them.
#![forbid(unsafe_code)]

mod bench;
mod consumers;
mod demo;
mod dist;
mod fixtures;
mod fuzz;
mod licences;
mod lint;
mod miri;
mod oracle;
mod packages;
mod system;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Chores of the project.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Converts an image, proves the result equal to it, mounts it lazily and reads a file
    Demo {
        /// oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:TAG]; the busybox fixture by default
        image: Option<String>,
    },
    /// Runs the tests that need no privileges
    Test {
        /// Runs the tests that mount for real instead (root, FUSE, EROFS); installs what they need
        #[arg(long)]
        privileged: bool,
        /// Fails if a test was skipped, unless only for want of the reference data in ../shared
        #[arg(long)]
        no_skips: bool,
    },
    /// Checks formatting, clippy, the fuzzer's binaries, the direction of dependencies, their licences, and that sources are
    /// ASCII
    Lint {
        /// Only these; all by default
        names: Vec<String>,
    },
    /// Runs the fuzz targets under libFuzzer, guided by coverage; fails if an input shows a bug, and names it
    Fuzz {
        /// How long each target runs
        #[arg(long, value_name = "N", default_value_t = 60)]
        seconds: u32,
        /// Only these; all by default
        targets: Vec<String>,
    },
    /// Runs tests of pure Rust under Miri, which finds undefined behaviour; says so and does nothing where there is no nightly compiler
    Miri {
        /// Only of these crates; of all by default
        crates: Vec<String>,
    },
    /// Converts images by containerd's converter (in Go) with our builder and proves the results equal to their sources
    Consumers,
    /// Opens images of every kind with the published crate `nydus-rafs` and compares what it sees with what we see
    Oracle {
        /// Only images whose names contain this
        filter: Option<String>,
    },
    /// Measures the release binaries and writes docs/benchmarks.md
    Bench {
        /// What the benchmark program takes: `mount` for mounts, `dict` for chunk dictionaries, `series` for a series of versions; `--only NAME`, `--runs N`, `--big LAYOUT`, `--print`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Builds static binaries of both programs for amd64 and arm64 and packs them: archives with manual pages and completions,
    /// a bill of materials, a container image; in `dist` below cargo's target directory
    Dist {
        /// Proves that the binaries are static, run, and make equal images; those of the other architecture run in qemu
        #[arg(long)]
        check: bool,
        /// Makes everything a second time, from a clone in another directory, and compares the bytes
        #[arg(long)]
        twice: bool,
    },
    /// Makes the fixtures in tests/fixtures anew
    Fixtures {
        /// A static busybox binary; by default that of Debian's package busybox-static, which is downloaded
        #[arg(long)]
        busybox: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().chore {
        Chore::Demo { image } => demo::run(image),
        Chore::Test {
            privileged,
            no_skips,
        } => test::run(privileged, no_skips),
        Chore::Bench { arguments } => bench::bench(&arguments),
        Chore::Fuzz { seconds, targets } => fuzz::run(seconds, &targets),
        Chore::Miri { crates } => miri::run(&crates),
        Chore::Consumers => consumers::run(),
        Chore::Dist { check, twice } => dist::run(check, twice),
        Chore::Oracle { filter } => oracle::run(filter),
        Chore::Lint { names } => lint::run(&names),
        Chore::Fixtures { busybox } => fixtures::run(busybox),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

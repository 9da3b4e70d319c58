//! `cargo xtask miri`: tests of pure Rust under Miri, which sees what of unsafe code in dependencies (there is next to none of
//! ours) is undefined, and every read of memory that was not written.
//!
//! Miri comes with nightly compilers alone, interprets, and knows no C: so only crates without any of that, and of their tests those
//! that end within seconds.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::system;

/// The compiler that Miri is part of.
const TOOLCHAIN: &str = "nightly";

/// What of a crate is run: its name, cargo's choice of tests, and what of them is left out for taking too long, or calling C.
type Choice = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

const CHOICES: [Choice; 2] = [
    ("tree", &["--lib"], &[]),
    (
        "chunkdict",
        &["--lib"],
        // Thousands of chunks each.
        &["of_too_many", "index::tests", "places::tests"],
    ),
];

/// Runs the tests, of all crates or those named. Says so and does nothing if there is no Miri and none can be had.
pub fn run(only: &[String]) -> Result<()> {
    let crates = CHOICES.map(|(name, ..)| name);
    if let Some(unknown) = only.iter().find(|name| !crates.contains(&name.as_str())) {
        bail!(
            "Miri runs no tests of {unknown}, but of {}",
            crates.join(", ")
        );
    }
    if !is_there() && !install() {
        println!("SKIPPED: there is no Miri, and rustup cannot install it: NOTHING WAS TESTED");
        return Ok(());
    }
    let mut failed = Vec::new();
    for (name, tests, skipped) in CHOICES {
        if !only.is_empty() && !only.iter().any(|wanted| wanted == name) {
            continue;
        }
        let begun = Instant::now();
        let mut miri = miri();
        miri.args(["test", "--package", name]).args(tests).arg("--");
        for test in skipped {
            miri.args(["--skip", test]);
        }
        match system::run(&mut miri) {
            Ok(()) => println!("miri {name}: ok, {} s", begun.elapsed().as_secs()),
            Err(error) => {
                println!("miri {name}: {error:#}");
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("tests failed under Miri: {}", failed.join(", "));
    }
    Ok(())
}

/// `cargo miri`, by way of rustup: the cargo that runs this knows no other compilers.
fn miri() -> Command {
    let mut command = Command::new("rustup");
    command
        .args(["run", TOOLCHAIN, "cargo", "miri"])
        .current_dir(testkit::workspace())
        .env("CARGO_TARGET_DIR", system::target_directory().join("miri"))
        // Temporary files and clocks are no matter of Miri's.
        .env("MIRIFLAGS", "-Zmiri-disable-isolation")
        .env_remove("CARGO")
        .env_remove("RUSTUP_TOOLCHAIN");
    command
}

fn is_there() -> bool {
    let version = miri().arg("--version").stderr(Stdio::null()).output();
    version.is_ok_and(|output| output.status.success())
}

fn install() -> bool {
    println!("installing Miri");
    let mut rustup = Command::new("rustup");
    rustup
        .args(["toolchain", "install", TOOLCHAIN, "--profile", "minimal"])
        .args(["--component", "miri", "--component", "rust-src"]);
    system::run(&mut rustup).is_ok() && is_there()
}

//! Other programs: cargo, and the system packages that chores need.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use testkit::oracle::{is_root, program};

/// The cargo that runs this, working in the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(testkit::workspace());
    command
}

/// Runs a command to its end with our own output.
pub fn run(command: &mut Command) -> Result<()> {
    let text = format!("{command:?}").replace('"', "");
    let status = command.status().with_context(|| text.clone())?;
    if !status.success() {
        bail!("{text}: {status}");
    }
    Ok(())
}

/// What a command says; what it complains about is shown only if it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let text = format!("{command:?}").replace('"', "");
    let output = command.output().with_context(|| text.clone())?;
    if !output.status.success() {
        bail!(
            "{text}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Sees to it that Rust's library for a target is there; why it is not, if it cannot be had.
pub fn missing_target(target: &str) -> Result<Option<String>> {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", target]);
    if Path::new(output(&mut rustc)?.trim()).is_dir() {
        return Ok(None);
    }
    if program("rustup").is_none() {
        let why = format!("no Rust library for {target}, and no rustup to get it");
        return Ok(Some(why));
    }
    println!("installing Rust's library for {target}");
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", target]);
    Ok(output(&mut rustup).err().map(|error| error.to_string()))
}

/// Where cargo puts what it builds.
pub fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| testkit::workspace().join("target"), PathBuf::from)
}

/// Gives a workspace of its own the versions of dependencies that all else is built with.
pub fn lock_versions(workspace: &str) -> Result<()> {
    let lock = |dir: &str| testkit::workspace().join(dir).join("Cargo.lock");
    std::fs::copy(lock("."), lock(workspace)).context("cannot copy Cargo.lock")?;
    Ok(())
}

/// Sees to it that each program is there, given as (program, Debian package): installs the packages of missing ones
/// when that is possible without asking (root on Debian), else says what to install.
pub fn require(programs: &[(&str, &str)]) -> Result<()> {
    let mut missing: Vec<&str> = programs
        .iter()
        .filter(|(name, _)| program(name).is_none())
        .map(|(_, package)| *package)
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let ask = format!(
        "missing: on Debian, run: apt-get install {}",
        missing.join(" ")
    );
    if !is_root() || program("apt-get").is_none() {
        bail!("{ask}");
    }
    println!("installing {}", missing.join(", "));
    if install(&missing).is_err() {
        run(Command::new("apt-get").args(["update", "-qq"])).context(ask.clone())?;
        install(&missing).context(ask)?;
    }
    Ok(())
}

fn install(packages: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args(["install", "-qq", "-y", "--no-install-recommends"])
        .args(packages);
    run(command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(std::process::Stdio::null()))
}

//! Measuring a command as its user sees it: wall time, processor time, peak memory.
//!
//! The kernel adds up the resources of *all* children a process has waited for, and of peak memory it keeps the
//! largest. So each measured command runs under a process of its own: this program, started again as
//! `bench run-one -- COMMAND`, which waits for that one child and prints what it used.

use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};

/// What one run of a command used.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Usage {
    /// Seconds from start to end.
    pub wall: f64,
    /// Core-seconds, user and system.
    pub cpu: f64,
    /// Peak resident memory in KiB.
    pub peak_kib: u64,
}

/// The child side: runs `command` and prints its [`Usage`] as one JSON line on standard output.
pub fn run_one(command: &[OsString]) -> Result<()> {
    let (program, args) = command.split_first().context("no command to run")?;
    let start = Instant::now();
    let status = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("start {}", program.display()))?;
    let wall = start.elapsed().as_secs_f64();
    if !status.success() {
        bail!("{} ended with {status}", program.display());
    }
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    let cpu = seconds(usage.user_time()) + seconds(usage.system_time());
    let peak_kib = u64::try_from(usage.max_rss()).unwrap_or_default();
    println!(
        "{}",
        serde_json::to_string(&Usage {
            wall,
            cpu,
            peak_kib
        })?
    );
    Ok(())
}

/// Runs `command` once and says what it used.
pub fn usage<S: Into<OsString> + Clone>(command: &[S]) -> Result<Usage> {
    let output = Command::new(std::env::current_exe()?)
        .args(["run-one", "--"])
        .args(command.iter().cloned().map(Into::into))
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        bail!("a measured command failed");
    }
    serde_json::from_slice(&output.stdout).context("read what a measured command used")
}

/// The median of some figures; of an even number, the lower middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values
        .get((values.len().max(1) - 1) / 2)
        .copied()
        .unwrap_or_default()
}

/// Runs, and their medians figure by figure.
#[derive(Debug, Clone, Serialize)]
pub struct Runs {
    /// Every run, in order.
    pub runs: Vec<Usage>,
    /// The medians.
    pub median: Usage,
}

impl Runs {
    /// Folds single runs into their medians.
    pub fn of(runs: Vec<Usage>) -> Self {
        let each = |get: fn(&Usage) -> f64| median(runs.iter().map(get).collect());
        let peak_kib = each(|u| u.peak_kib as f64) as u64;
        let median = Usage {
            wall: each(|u| u.wall),
            cpu: each(|u| u.cpu),
            peak_kib,
        };
        Self { runs, median }
    }
}

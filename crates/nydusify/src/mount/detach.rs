//! `--detach`: this program again, in a session of its own.
//!
//! The child's standard output is a pipe to its parent. One word on it says that the mount is ready; if the pipe
//! closes without it, the child has failed, has said why on the standard error that both share, and its exit code
//! becomes the parent's.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

const READY: &[u8] = b"ready\n";

/// Starts the child and waits until it is ready or has failed.
pub(super) fn spawn() -> Result<ExitCode> {
    let program = std::env::current_exe().context("this program's own path")?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .arg("--detached")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the process in the background")?;
    let mut said = Vec::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_end(&mut said)
            .context("waiting for the process in the background")?;
    }
    if said == READY {
        return Ok(ExitCode::SUCCESS);
    }
    let status = child
        .wait()
        .context("waiting for the process in the background")?;
    let code = status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .filter(|&code| code != 0);
    Ok(ExitCode::from(code.unwrap_or(1)))
}

/// In the child: no signal from the terminal reaches it any more.
pub(super) fn leave_terminal() -> Result<()> {
    rustix::process::setsid().context("starting a session")?;
    Ok(())
}

/// In the child: tells the parent, then lets go of its directory and its standard streams. What comes later goes to
/// `log_file`.
pub(super) fn ready(log_file: Option<&Path>) -> Result<()> {
    io::stdout()
        .write_all(READY)
        .and_then(|()| io::stdout().flush())
        .context("telling the parent")?;
    fall_silent(log_file)
}

/// In the child, and what it started: lets go of the directory and of the standard streams.
pub(super) fn fall_silent(log_file: Option<&Path>) -> Result<()> {
    let log = log(log_file)?;
    std::env::set_current_dir("/").context("/")?;
    rustix::stdio::dup2_stderr(&log).context("standard error")?;
    rustix::stdio::dup2_stdout(null()?).context("standard output")?;
    Ok(())
}

/// Where processes without a terminal report.
pub(super) fn log(log_file: Option<&Path>) -> Result<File> {
    match log_file {
        Some(path) => OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| path.display().to_string()),
        None => null(),
    }
}

fn null() -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context("/dev/null")
}

//! A mount's figures, asked for by another process.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{io, thread};

use crate::erofs::holders;
use crate::metrics::{self, Samples};
use crate::mountinfo::our_mount;
use crate::unmount::Processes;
use crate::{Error, MountEntry};

/// What is known of a mount.
#[derive(Debug, Clone)]
pub struct Stat {
    /// Where it is mounted, as an absolute path without symlinks.
    pub mountpoint: PathBuf,
    /// Its processes, as far as this one may see them.
    pub processes: Vec<Process>,
    /// Its figures.
    pub samples: Samples,
}

/// A process of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub id: u32,
    /// What it does: `server`, `keeper`, `filler` or `guardian`.
    pub role: &'static str,
    /// Bytes of memory that it has now.
    pub resident: u64,
    /// The most that it ever had.
    pub resident_peak: u64,
    /// Its threads.
    pub threads: u64,
}

/// Asks the processes that serve the mount at `mountpoint` for its figures, and waits `patience` at most for an answer.
///
/// # Errors
/// When there is no mount of ours, or nobody answers.
pub fn stat(mountpoint: &Path, patience: Duration) -> Result<Stat, Error> {
    let (absolute, entry) = our_mount(mountpoint)?;
    let place = metrics::place(&entry.device);
    let answer = place.and_then(|place| ask(&place, patience));
    let (text, peer) = answer.map_err(|source| Error::NoFigures {
        path: mountpoint.to_owned(),
        source,
    })?;
    Ok(Stat {
        processes: processes(&entry, &absolute, peer),
        mountpoint: absolute,
        samples: Samples::parse(&text),
    })
}

/// Asks again for as long as `patience` lasts where the process that answered is just being replaced by another one.
fn ask(place: &Path, patience: Duration) -> io::Result<(String, Option<u32>)> {
    let began = Instant::now();
    loop {
        match metrics::ask(place, patience) {
            Err(error) if is_passing(&error) && began.elapsed() < patience => {
                thread::sleep(Duration::from_millis(20));
            }
            answer => return answer,
        }
    }
}

/// What a process that dies leaves to those who asked it, and who ask before the next one listens.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, UnexpectedEof};
    let passing = [
        BrokenPipe,
        ConnectionRefused,
        ConnectionReset,
        UnexpectedEof,
    ];
    passing.contains(&error.kind())
}

fn processes(entry: &MountEntry, mountpoint: &Path, peer: Option<u32>) -> Vec<Process> {
    let mut all: Vec<(&'static str, u32)> = Vec::new();
    if entry.is_erofs() {
        let found = Path::new(&entry.source).parent().map(holders);
        let found = found.unwrap_or_default();
        all.extend(found.fillers.iter().map(|&id| ("filler", id)));
        all.extend(found.guardians.iter().map(|&id| ("guardian", id)));
    } else if let Some(found) = Processes::find(mountpoint) {
        all.extend([("server", found.server), ("keeper", found.keeper)]);
    }
    if let Some(peer) = peer
        && !all.iter().any(|(_, id)| *id == peer)
    {
        all.insert(0, ("server", peer));
    }
    all.into_iter()
        .filter_map(|(role, id)| process(role, id))
        .collect()
}

/// What the system knows of a process; `None` if it is gone or out of sight.
fn process(role: &'static str, id: u32) -> Option<Process> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let word = line.and_then(|line| line.split_whitespace().next());
        word.and_then(|word| word.parse::<u64>().ok())
            .unwrap_or_default()
    };
    Some(Process {
        id,
        role,
        resident: number("VmRSS:").saturating_mul(1024),
        resident_peak: number("VmHWM:").saturating_mul(1024),
        threads: number("Threads:"),
    })
}

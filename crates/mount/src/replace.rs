//! Upgrading the program under a live mount.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use crate::Error;
use crate::erofs::holders;
use crate::mountinfo::{MountEntry, our_mount};
use crate::overlay;
use crate::unmount::Processes;

/// How often it is looked whether the mount has been taken over.
const TICK: Duration = Duration::from_millis(50);
/// How long a process may take to listen to signals.
const HEARING: Duration = Duration::from_secs(2);
/// First Linux that hands out requests again, so that none is lost: major and minor number.
const RESEND: (u32, u32) = (6, 9);

/// Has this very program go on with the image that other processes serve at `mountpoint`; they go. Readers wait for
/// a moment. Returns when all processes of the mount run this program, in `patience` at most.
///
/// # Errors
/// When there is no mount of ours, the kernel is too old for it, or its processes do not go or can't be seen.
pub fn replace(mountpoint: &Path, patience: Duration) -> Result<(), Error> {
    let path = mountpoint;
    let (absolute, entry) = our_mount(path)?;
    let failed = |why: &'static str| Error::NotReplaced {
        path: path.to_owned(),
        why,
    };
    if !entry.is_erofs() && !hands_out_again() {
        return Err(failed(
            "a kernel before Linux 6.9 would lose requests that are being answered; unmount it and mount it again",
        ));
    }
    let look = || match entry.upper() {
        _ if entry.is_erofs() => kernel_processes(&entry),
        Some(upper) => stacked_processes(&overlay::lock_of(&upper)),
        None => fuse_processes(&absolute),
    };
    let before = look();
    if before.asked.is_empty() {
        return Err(failed(
            "the processes that keep it are out of sight; use the user and the namespace that mounted it",
        ));
    }
    // One that was started just now may not listen yet.
    let deadline = Instant::now() + HEARING;
    while !before.asked.iter().all(|&id| understands(id)) && Instant::now() < deadline {
        std::thread::sleep(TICK);
    }
    if !before.asked.iter().all(|&id| understands(id)) {
        return Err(failed(
            "it was mounted by a version that can't be replaced; unmount it and mount it again",
        ));
    }
    for &id in &before.asked {
        signal(id).map_err(|source| Error::System {
            what: "asking the processes of the mount to make room",
            source,
        })?;
    }
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        std::thread::sleep(TICK);
        let now = look();
        let new = |id: &u32| is_this_program(*id) && !before.gone.contains(id);
        if now.gone.len() == before.gone.len()
            && now.gone.iter().all(new)
            && now.asked.len() == before.asked.len()
            && now.asked.iter().all(|&id| is_this_program(id))
        {
            return Ok(());
        }
    }
    Err(failed(
        "its processes did not make room in time; their log says why",
    ))
}

/// The processes of a mount.
#[derive(Debug, Default)]
struct Served {
    /// Those that are asked to make room.
    asked: Vec<u32>,
    /// Those that others come in place of.
    gone: Vec<u32>,
}

fn fuse_processes(mountpoint: &Path) -> Served {
    let found = Processes::find(mountpoint).filter(|found| found.keeper != 0);
    found.map_or_else(Served::default, |found| Served {
        asked: vec![found.keeper],
        gone: vec![found.server],
    })
}

/// Those of a FUSE mount below overlayfs, which hides what tells them: the keeper signs the lock that both hold.
fn stacked_processes(lock: &Path) -> Served {
    let keeper = std::fs::read_to_string(lock).unwrap_or_default();
    let (Ok(keeper), Some(dir)) = (keeper.trim().parse(), lock.parent()) else {
        return Served::default();
    };
    let mut holders = holders(dir).fillers;
    if !holders.contains(&keeper) {
        return Served::default();
    }
    holders.retain(|&id| id != keeper);
    Served {
        asked: vec![keeper],
        gone: holders,
    }
}

fn kernel_processes(entry: &MountEntry) -> Served {
    let cache = Path::new(&entry.source).parent();
    let holders = cache.map(holders).unwrap_or_default();
    let gone = [holders.guardians.clone(), holders.fillers].concat();
    // Guardians with another number of them than two are about to change.
    match holders.guardians.len() {
        2 if gone.len() == 3 => Served {
            asked: holders.guardians,
            gone,
        },
        _ => Served::default(),
    }
}

fn signal(id: u32) -> std::io::Result<()> {
    let process = i32::try_from(id).ok().and_then(Pid::from_raw);
    let process = process.ok_or(std::io::ErrorKind::InvalidInput)?;
    match rustix::process::kill_process(process, Signal::USR2) {
        // One guardian may have gone because the other one was asked just now.
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a process handles the signal, which ends one that does not.
fn understands(id: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    handles(&status, Signal::USR2.as_raw())
}

/// Whether the text of `/proc/PID/status` says that a signal is handled.
fn handles(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

/// Whether a process runs the same program as this one.
fn is_this_program(id: u32) -> bool {
    let identity = |path: PathBuf| {
        let metadata = File::open(path).and_then(|file| file.metadata()).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let own = identity("/proc/self/exe".into());
    own.is_some() && identity(format!("/proc/{id}/exe").into()) == own
}

fn hands_out_again() -> bool {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse().ok());
    let version = next().zip(next());
    version.is_some_and(|version: (u32, u32)| version >= RESEND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_handled_if_the_mask_says_so() {
        let status = "Name:\tx\nSigIgn:\tffffffffffffffff\nSigCgt:\t0000000000000800\n";
        assert!(handles(status, 12));
        assert!(!handles(status, 10) && !handles(status, 11));
        assert!(!handles("SigCgt:\tnone\n", 12) && !handles("", 12));
    }
}

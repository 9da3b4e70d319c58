//! Taking a mount away, from within its process or from another.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags};

use crate::Error;
use crate::device::{FUSERMOUNT, last_words};
use crate::erofs::place::LOCK;
use crate::mountinfo::find_mount;
use crate::overlay;

/// Attribute of the root directory that tells who serves it, as [`processes`] puts it. It appears in no listing.
pub(crate) const PID_ATTRIBUTE: &str = "user.nydusify.server";

/// How to unmount.
#[derive(Debug, Clone)]
pub struct Unmount {
    /// Take it away even if it is in use, and wait for nobody.
    pub lazy: bool,
    /// How long to wait for the serving process to end.
    pub patience: Duration,
}

impl Default for Unmount {
    fn default() -> Self {
        Self {
            lazy: false,
            patience: Duration::from_secs(10),
        }
    }
}

/// Unmounts an image that this or another process mounted on `mountpoint`, and waits until that process is gone.
///
/// # Errors
/// When there is no mount of ours, when it is in use, or when the process stays.
pub fn unmount(mountpoint: &Path, options: &Unmount) -> Result<(), Error> {
    let path = mountpoint;
    let mountpoint = path.canonicalize().map_err(|source| Error::Unmount {
        path: path.to_owned(),
        source,
    })?;
    let found = find_mount(&mountpoint).map_err(|source| Error::System {
        what: "/proc/self/mountinfo",
        source,
    })?;
    let mut locks: Vec<File> = Vec::new();
    match found {
        Some(entry) if entry.is_ours() => {
            let upper = entry.upper().map(|upper| overlay::lock_of(&upper));
            let cache = Path::new(&entry.source)
                .parent()
                .filter(|_| entry.is_erofs());
            let all = upper.into_iter().chain(cache.map(|place| place.join(LOCK)));
            // If somebody deleted the cache, nothing can be told from it.
            locks.extend(all.filter_map(|lock| File::open(lock).ok()));
        }
        Some(entry) => {
            let found = format!(" (it is {:?} of type {})", entry.source, entry.kind);
            return Err(Error::NotOurs {
                path: path.to_owned(),
                found,
            });
        }
        None => {
            return Err(Error::NotOurs {
                path: path.to_owned(),
                found: String::new(),
            });
        }
    }
    let processes = Processes::find(&mountpoint).map_or_else(Vec::new, Processes::handles);
    detach(&mountpoint, options.lazy)?;
    if !options.lazy && !locks.is_empty() {
        let mut locks = locks.into_iter();
        return locks.try_for_each(|lock| wait_released(path, lock, options.patience));
    }
    if options.lazy {
        return Ok(());
    }
    processes
        .into_iter()
        .try_for_each(|(pid, process)| wait(path, pid, &process, options.patience))
}

/// Waits until the processes that served a mount have let its lock, or that of its upper directory, go.
fn wait_released(path: &Path, mut file: File, patience: Duration) -> Result<(), Error> {
    let start = Instant::now();
    while file.try_lock_shared().is_err() {
        if start.elapsed() >= patience {
            let mut owner = String::new();
            let _ = (&mut file).take(20).read_to_string(&mut owner);
            return Err(Error::StillServed {
                path: path.to_owned(),
                pid: owner.trim().parse().unwrap_or_default(),
            });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Unmounts; only root may do so directly.
pub(crate) fn detach(mountpoint: &Path, lazy: bool) -> Result<(), Error> {
    let flags = UnmountFlags::NOFOLLOW
        | if lazy {
            UnmountFlags::DETACH
        } else {
            UnmountFlags::empty()
        };
    match rustix::mount::unmount(mountpoint, flags) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(Error::Busy {
            path: mountpoint.to_owned(),
        }),
        Err(Errno::PERM) => fusermount(mountpoint, lazy),
        Err(errno) => Err(Error::Unmount {
            path: mountpoint.to_owned(),
            source: errno.into(),
        }),
    }
}

fn fusermount(mountpoint: &Path, lazy: bool) -> Result<(), Error> {
    let output = Command::new(FUSERMOUNT)
        .arg(if lazy { "-uz" } else { "-u" })
        .arg("--")
        .arg(mountpoint)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::NoFusermount { source })?;
    if output.status.success() {
        return Ok(());
    }
    let message = last_words(&output.stderr);
    if message.contains("busy") {
        return Err(Error::Busy {
            path: mountpoint.to_owned(),
        });
    }
    Err(Error::Fusermount {
        path: mountpoint.to_owned(),
        message,
    })
}

/// What the attribute says: the number of this process, that of the one that keeps the mount (0 if none does), and the
/// namespace in which those numbers mean something.
pub(crate) fn processes(keeper: u32) -> String {
    format!("{} {keeper} {}", std::process::id(), namespace())
}

fn namespace() -> String {
    std::fs::read_link("/proc/self/ns/pid")
        .map(|link| link.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The processes of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Processes {
    pub(crate) server: u32,
    /// 0 if there is none.
    pub(crate) keeper: u32,
}

impl Processes {
    /// Those of a FUSE mount; `None` if they are gone or out of sight.
    pub(crate) fn find(mountpoint: &Path) -> Option<Self> {
        let mut value = [0; 128];
        let len = rustix::fs::getxattr(mountpoint, PID_ATTRIBUTE, &mut value).ok()?;
        let value = std::str::from_utf8(value.get(..len)?).ok()?;
        let mut words = value.splitn(3, ' ');
        let server = words.next()?.parse().ok()?;
        let keeper = words.next()?.parse().ok()?;
        (words.next()? == namespace()).then_some(Self { server, keeper })
    }

    /// With a handle each; without this process itself, and those that are gone.
    fn handles(self) -> Vec<(u32, OwnedFd)> {
        let open = |id: u32| {
            let process = Pid::from_raw(id.try_into().ok()?)?;
            let handle = rustix::process::pidfd_open(process, PidfdFlags::empty()).ok()?;
            (id != std::process::id()).then_some((id, handle))
        };
        [self.server, self.keeper]
            .into_iter()
            .filter_map(open)
            .collect()
    }
}

fn wait(path: &Path, pid: u32, process: &OwnedFd, patience: Duration) -> Result<(), Error> {
    let timeout = Timespec {
        tv_sec: patience.as_secs() as i64,
        tv_nsec: patience.subsec_nanos().into(),
    };
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    match rustix::event::poll(&mut polled, Some(&timeout)) {
        Ok(0) => Err(Error::StillServed {
            path: path.to_owned(),
            pid,
        }),
        Ok(_) => Ok(()),
        Err(errno) => Err(Error::System {
            what: "waiting for the serving process",
            source: errno.into(),
        }),
    }
}

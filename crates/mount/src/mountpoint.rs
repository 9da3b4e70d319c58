//! The directory that an image is mounted on, from before the mount until after it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::mountinfo::find_mount;
use crate::overlay::{self, Upper};
use crate::unmount::detach;
use crate::{Error, MountEntry};

/// What the kernel reads ahead of a sequential reader, in KiB, where it lets us say so (root only).
const READ_AHEAD_KIB: &str = "1024";
/// How long to wait for others who are about to mount on the same directory.
const TURN: Duration = Duration::from_secs(5);

/// The directory mounted on. Dropping it unmounts, and removes the directory if it was made for the mount.
#[derive(Debug, Default)]
pub(crate) struct Mountpoint {
    pub(crate) place: Place,
    /// The directory for changes, if there is one.
    pub(crate) upper: Option<Upper>,
    /// Keeps others from mounting there until it is mounted.
    turn: Option<File>,
}

/// Where something is mounted, for another process to know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Place {
    /// Where users see the image, as an absolute path without symlinks.
    pub(crate) path: PathBuf,
    /// Where the image is mounted, or is to be: on `path`, or where overlayfs finds it before it is stacked.
    pub(crate) at: PathBuf,
    /// Device number of the mount on `at`; `None` before it is made and after it is gone.
    pub(crate) device: Option<String>,
    /// Whether the directory was made for the mount.
    pub(crate) made: bool,
}

impl Mountpoint {
    pub(crate) fn prepare(path: &Path, upper: Option<&Path>) -> Result<Self, Error> {
        let fail = |source| Error::MountPoint {
            path: path.to_owned(),
            source,
        };
        let made = match std::fs::create_dir(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(path).map_err(fail)?;
                true
            }
            // Whatever is there is judged below.
            Err(_) => false,
        };
        let absolute = path.canonicalize().map_err(fail)?;
        if let Ok(Some(entry)) = find_mount(&absolute)
            && overlay::is_left_behind(&entry)
        {
            detach(&absolute, true)?;
        }
        match answers(&absolute).and_then(|()| absolute.metadata()) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(fail(io::ErrorKind::NotADirectory.into())),
            Err(error) if is_dead(&absolute, &error) => detach(&absolute, true)?,
            Err(error) => return Err(fail(error)),
        }
        let turn = take_turn(&absolute);
        if find_mount(&absolute).is_ok_and(|found| found.is_some_and(|entry| entry.is_ours())) {
            return Err(Error::Taken {
                path: path.to_owned(),
            });
        }
        let mut mountpoint = Self {
            place: Place {
                at: absolute.clone(),
                path: absolute,
                device: None,
                made,
            },
            upper: None,
            turn,
        };
        if let Some(dir) = upper {
            let upper = Upper::prepare(dir)?;
            mountpoint.place.at = upper.lower();
            mountpoint.upper = Some(upper);
        }
        Ok(mountpoint)
    }

    /// That of a mount which another process made, or makes.
    pub(crate) fn handed_over(place: Place, upper: Option<Upper>) -> Self {
        Self {
            place,
            upper,
            turn: None,
        }
    }

    /// The mount point of an image that is mounted already, with the directory for changes if it has one.
    pub(crate) fn found(path: &Path, upper: Option<&Path>) -> Self {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let entry = find_mount(&path).ok().flatten();
        let upper = upper.and_then(|dir| {
            // The mount goes on without it; only whoever waits for its end does not see it.
            let upper = Upper::take_over(dir);
            upper.inspect_err(|error| tracing::warn!("{error}")).ok()
        });
        let place = Place {
            at: path.clone(),
            path,
            device: entry.filter(MountEntry::is_ours).map(|entry| entry.device),
            made: false,
        };
        Self::handed_over(place, upper)
    }

    /// Leaves it as it is, for another process to end; also what keeps others from mounting there.
    pub(crate) fn release(mut self) -> (Place, Option<Upper>, Option<File>) {
        let place = std::mem::take(&mut self.place);
        (place, self.upper.take(), self.turn.take())
    }

    /// Remembers which mount is ours, so that another one in its place is never taken away.
    pub(crate) fn attached(&mut self, path: &Path) -> Result<(), Error> {
        let found = self.find(&self.place.at)?;
        match found.filter(MountEntry::is_ours) {
            Some(entry) => {
                self.place.device = Some(entry.device);
                if self.is_stacked() {
                    self.turn = None;
                }
                Ok(())
            }
            None => Err(Error::NotOurs {
                path: path.to_owned(),
                found: " right after it was mounted".to_owned(),
            }),
        }
    }

    fn find(&self, path: &Path) -> Result<Option<MountEntry>, Error> {
        find_mount(path).map_err(|source| Error::System {
            what: "/proc/self/mountinfo",
            source,
        })
    }

    /// Whether users see at the mount point what is mounted.
    fn is_stacked(&self) -> bool {
        self.place.at == self.place.path
    }

    /// Stacks overlayfs over the mounted image, which must be served already, if there is a directory for changes. A
    /// process that died may have come to any point of it.
    pub(crate) fn stack(&mut self) -> Result<(), Error> {
        let Some(upper) = self.upper.as_ref().filter(|_| !self.is_stacked()) else {
            return Ok(());
        };
        let path = self.place.path.clone();
        let stacked = self.find(&path)?;
        if !stacked.is_some_and(|entry| upper.is_upper_of(&entry)) {
            let image = self.find(&self.place.at)?.map(|entry| entry.source);
            upper.stack(&image.unwrap_or_default(), &path)?;
        }
        upper.leave_lower()?;
        self.place.at.clone_from(&path);
        self.attached(&path)
    }

    fn is_mounted(&self) -> bool {
        let found = find_mount(&self.place.at).ok().flatten();
        self.place.device.is_some() && found.map(|entry| entry.device) == self.place.device
    }

    /// Unmounts; lazily if it is in use, and says whether it was not.
    pub(crate) fn detach(&mut self) -> Result<bool, Error> {
        if !self.is_mounted() {
            self.place.device = None;
            return Ok(true);
        }
        let idle = match detach(&self.place.at, false) {
            Err(Error::Busy { .. }) => {
                detach(&self.place.at, true)?;
                false
            }
            other => {
                other?;
                true
            }
        };
        self.place.device = None;
        Ok(idle)
    }

    /// Best effort: the handshake can't ask for more than the kernel's default, and only root may raise it later.
    pub(crate) fn raise_read_ahead(&self) {
        if let Some(device) = &self.place.device {
            let _ = std::fs::write(
                format!("/sys/class/bdi/{device}/read_ahead_kb"),
                READ_AHEAD_KIB,
            );
        }
    }
}

impl Drop for Mountpoint {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            tracing::warn!("{error}");
        }
        if self.place.made {
            // Only the directory itself, and only if it is empty.
            let _ = std::fs::remove_dir(&self.place.path);
        }
    }
}

/// Waits until nobody else is about to mount on the directory. Without this, two that do so at once take each other's
/// mount for their own. Best effort: some file systems lock no directories, and others may hold the lock for long.
fn take_turn(path: &Path) -> Option<File> {
    let directory = File::open(path).ok()?;
    let deadline = Instant::now() + TURN;
    while directory.try_lock().is_err() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(directory)
}

/// Asks the file system at `path`, so that one whose server is gone says so: its attributes the kernel may know still.
fn answers(path: &Path) -> io::Result<()> {
    rustix::fs::statfs(path)?;
    Ok(())
}

/// Whether `error` is what a mount of ours answers when the process that served it is gone.
fn is_dead(path: &Path, error: &io::Error) -> bool {
    let disconnected = rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::NOTCONN);
    disconnected && matches!(find_mount(path), Ok(Some(entry)) if entry.is_ours())
}

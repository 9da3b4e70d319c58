//! Mounting: from an image in memory to a directory that is served.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, Session, SessionACL};
use rafs_format::Bootstrap;
use storage::ChunkStore;

use crate::erofs::filler::{self, Filler};
use crate::fs::RafsFs;
use crate::fuse::Link;
use crate::mountinfo::find_mount;
use crate::overlay::{self, Upper};
use crate::prefetch::Prefetcher;
use crate::serve::Outcome;
use crate::stats::Counters;
use crate::unmount::detach;
use crate::{Error, Stats, device};

/// What the kernel reads ahead of a sequential reader, in KiB, where it lets us say so (root only).
const READ_AHEAD_KIB: &str = "1024";
/// How long to wait for others who are about to mount on the same directory.
const TURN: Duration = Duration::from_secs(5);

/// How to mount.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads that answer requests; at least one is used.
    pub threads: usize,
    /// What to fetch in the background.
    pub prefetch: Prefetch,
    /// Directory that takes changes, for a writable mount; made if absent. It needs root, if only in a user namespace.
    pub upper: Option<PathBuf>,
}

impl Options {
    /// One thread per core, at least 2 so that a slow blob does not hold up everything, and at most 4: more of them
    /// only take work from each other's caches.
    pub fn threads_for_this_machine() -> usize {
        std::thread::available_parallelism()
            .map_or(2, usize::from)
            .clamp(2, 4)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: Self::threads_for_this_machine(),
            prefetch: Prefetch::Listed,
            upper: None,
        }
    }
}

/// Which files a mount fetches in the background before anybody asks for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefetch {
    /// None.
    Nothing,
    /// Those that the image lists.
    #[default]
    Listed,
    /// Those that the image lists, then all others.
    Everything,
}

/// A mounted image. Dropping it unmounts.
pub struct Mounted {
    pub(crate) mountpoint: Mountpoint,
    pub(crate) counters: Arc<Counters>,
    pub(crate) store: Arc<ChunkStore>,
    pub(crate) prefetcher: Prefetcher,
    pub(crate) session: Option<Front>,
    /// Over which to tell guardians that this process goes; FUSE has none.
    pub(crate) leaver: Option<Arc<OwnedFd>>,
    /// To the process that keeps the mount, if one does.
    pub(crate) link: Option<Arc<Link>>,
}

/// What serves a mount.
pub(crate) enum Front {
    /// This process, through FUSE.
    Fuse(BackgroundSession),
    /// The kernel, which this process fills the cache for.
    Kernel(Filler),
}

impl Front {
    /// Waits until the mount is gone, or another process goes on with it.
    pub(crate) fn join(self) -> io::Result<Outcome> {
        match self {
            Self::Fuse(session) => session.join().map(|()| Outcome::Over),
            Self::Kernel(filler) => filler.join(),
        }
    }
}

/// Mounts the image on the directory `mountpoint`, which is made if absent, and serves it until it is unmounted, from
/// this process alone.
///
/// As root, all users see the mount, devices and setuid bits included; without root it goes through `fusermount3`
/// and is the caller's alone. A mount of ours whose process died is replaced.
///
/// # Errors
/// When the directory, the device, the kernel or the helper stand in the way; nothing stays mounted then.
pub fn mount(
    bootstrap: Arc<Bootstrap<Vec<u8>>>,
    store: Arc<ChunkStore>,
    mountpoint: &Path,
    options: &Options,
) -> Result<Mounted, Error> {
    let path = mountpoint;
    let mut mountpoint = Mountpoint::prepare(path, options.upper.as_deref())?;
    let device = device::attach(&mountpoint.at)?;
    mountpoint.attached(path)?;

    let counters = Arc::new(Counters::default());
    let nobody = Arc::default();
    let fs = RafsFs::new(
        bootstrap.clone(),
        store.clone(),
        counters.clone(),
        nobody,
        None,
    );
    let (acl, config) = settings(options);
    let session = Session::from_fd(fs, device, acl, config)
        .and_then(Session::spawn)
        .map_err(|source| Error::Session {
            path: path.to_owned(),
            source,
        })?;
    mountpoint.raise_read_ahead();
    mountpoint.stack()?;

    let prefetcher = Prefetcher::start(bootstrap, store.clone(), options.prefetch)?;
    Ok(Mounted {
        mountpoint,
        counters,
        store,
        prefetcher,
        session: Some(Front::Fuse(session)),
        leaver: None,
        link: None,
    })
}

/// Who may use the mount, and how the session works. Its threads share one descriptor: those that fuser would make for
/// each thread die with the process, and requests in flight with them.
pub(crate) fn settings(options: &Options) -> (SessionACL, Config) {
    let mut config = Config::default();
    config.n_threads = Some(options.threads.max(1));
    config.clone_fd = false;
    let acl = if device::privileged() {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    (acl, config)
}

impl Mounted {
    /// Where it is mounted, as an absolute path without symlinks.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint.path
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        self.counters.snapshot(self.store.stats())
    }

    /// Takes the mount away if it is still there; users that still hold files keep what the kernel has cached.
    /// Says whether the session is over, or true if somebody uses it still.
    ///
    /// # Errors
    /// When the kernel or `fusermount3` refuse.
    pub(crate) fn detach(&mut self) -> Result<bool, Error> {
        self.mountpoint.detach()
    }

    /// This process ends, and another one goes on with the mount.
    pub(crate) fn leave_mounted(&mut self) {
        let nowhere = Mountpoint::from(Place {
            path: PathBuf::new(),
            device: None,
            made: false,
        });
        std::mem::replace(&mut self.mountpoint, nowhere).release();
        // It has nothing to say to the keeper any more.
        self.link = None;
    }

    /// This process ends though the mount is still in use: its users get errors, and nobody takes its place.
    pub(crate) fn abandon(&mut self) {
        if let Some(socket) = self.leaver.take() {
            filler::leave(&socket);
        }
    }

    /// Stops background work and makes the cache durable.
    pub(crate) fn settle(&mut self) {
        self.prefetcher.stop();
        if let Err(error) = self.store.sync() {
            // Nothing is lost but time: what is not durable is fetched or verified again.
            tracing::warn!("{}", crate::log::chain(&error));
        }
    }
}

/// The directory mounted on. Dropping it unmounts, and removes the directory if it was made for the mount.
#[derive(Debug)]
pub(crate) struct Mountpoint {
    pub(crate) path: PathBuf,
    /// Where the image is to be mounted: on `path`, or where overlayfs finds it.
    pub(crate) at: PathBuf,
    pub(crate) upper: Option<Upper>,
    /// Device number of the mount; `None` before it is made and after it is gone.
    device: Option<String>,
    made: bool,
    /// Keeps others from mounting there until it is mounted.
    turn: Option<File>,
}

/// A [`Mountpoint`] for another process to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) device: Option<String>,
    pub(crate) made: bool,
}

impl From<Place> for Mountpoint {
    fn from(Place { path, device, made }: Place) -> Self {
        Self {
            at: path.clone(),
            path,
            upper: None,
            device,
            made,
            turn: None,
        }
    }
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
        match absolute.metadata() {
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
            at: absolute.clone(),
            path: absolute,
            upper: None,
            device: None,
            made,
            turn,
        };
        if let Some(dir) = upper {
            let upper = Upper::prepare(dir)?;
            mountpoint.at = upper.lower();
            mountpoint.upper = Some(upper);
        }
        Ok(mountpoint)
    }

    /// Leaves it as it is, for another process to end.
    pub(crate) fn release(mut self) -> Place {
        Place {
            path: std::mem::take(&mut self.path),
            device: self.device.take(),
            made: std::mem::take(&mut self.made),
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
        Self {
            at: path.clone(),
            upper,
            device: entry
                .filter(crate::MountEntry::is_ours)
                .map(|entry| entry.device),
            path,
            made: false,
            turn: None,
        }
    }

    /// Remembers which mount is ours, so that another one in its place is never taken away.
    pub(crate) fn attached(&mut self, path: &Path) -> Result<(), Error> {
        let found = self.find()?;
        match found.filter(crate::MountEntry::is_ours) {
            Some(entry) => {
                self.device = Some(entry.device);
                if self.at == self.path {
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

    fn find(&self) -> Result<Option<crate::MountEntry>, Error> {
        find_mount(&self.at).map_err(|source| Error::System {
            what: "/proc/self/mountinfo",
            source,
        })
    }

    /// Stacks overlayfs over the mounted image, which must be served already, if there is a directory for changes.
    pub(crate) fn stack(&mut self) -> Result<(), Error> {
        if let Some(upper) = &self.upper {
            let source = self.find()?.map(|entry| entry.source);
            upper.stack(&source.unwrap_or_default(), &self.path)?;
            self.at = self.path.clone();
            self.attached(&self.path.clone())?;
        }
        Ok(())
    }

    fn is_mounted(&self) -> bool {
        let found = find_mount(&self.at).ok().flatten();
        self.device.is_some() && found.map(|entry| entry.device) == self.device
    }

    /// Unmounts; lazily if it is in use, and says whether it was not.
    fn detach(&mut self) -> Result<bool, Error> {
        if !self.is_mounted() {
            self.device = None;
            return Ok(true);
        }
        let idle = match detach(&self.at, false) {
            Err(Error::Busy { .. }) => {
                detach(&self.at, true)?;
                false
            }
            other => {
                other?;
                true
            }
        };
        self.device = None;
        Ok(idle)
    }

    /// Best effort: the handshake can't ask for more than the kernel's default, and only root may raise it later.
    pub(crate) fn raise_read_ahead(&self) {
        if let Some(device) = &self.device {
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
        if self.made {
            // Only the directory itself, and only if it is empty.
            let _ = std::fs::remove_dir(&self.path);
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

/// Whether `error` is what a mount of ours answers when the process that served it is gone.
fn is_dead(path: &Path, error: &io::Error) -> bool {
    let disconnected = rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::NOTCONN);
    disconnected && matches!(find_mount(path), Ok(Some(entry)) if entry.is_ours())
}

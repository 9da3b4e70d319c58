//! Mounting: from an image in memory to a directory that is served.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rafs_format::Bootstrap;
use storage::ChunkStore;
use trace::Recorder;

use crate::erofs::filler::{self, Filler};
use crate::fuse::{self, Kit, Link};
use crate::metrics::{Exporter, Subject, Upstream};
use crate::mountpoint::Mountpoint;
use crate::prefetch::Prefetcher;
use crate::program::Program;
use crate::serve::Outcome;
use crate::stats::Counters;
use crate::{Error, Stats, events, record};

/// How to mount.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads that answer requests; at least one is used.
    pub threads: usize,
    /// What to fetch in the background.
    pub prefetch: Prefetch,
    /// Directory that takes changes, for a writable mount; made if absent. It needs root, if only in a user namespace.
    pub upper: Option<PathBuf>,
    /// What the figures of the mount call the image.
    pub image: String,
    /// What to ask about the places that the blobs come from.
    pub upstream: Option<Arc<dyn Upstream>>,
    /// Unix socket to give the figures at. Without it [`crate::stat()`] finds them all the same.
    pub metrics: Option<PathBuf>,
    /// Who records what is read. To record what is fetched as well, it has to be the store's observer, too.
    pub trace: Option<Arc<Recorder>>,
}

impl Options {
    /// Starts to give the figures of a mount.
    pub(crate) fn export(
        &self,
        mode: &'static str,
        mountpoint: &Mountpoint,
        counters: &Arc<Counters>,
        store: &Arc<ChunkStore>,
    ) -> Result<Option<Exporter>, Error> {
        let subject = Subject {
            image: self.image.clone(),
            mode,
            mountpoint: mountpoint.place.path.clone(),
            device: mountpoint.place.device.clone(),
            upstream: self.upstream.clone(),
        };
        Exporter::start(
            self.metrics.as_deref(),
            subject,
            counters.clone(),
            store.clone(),
        )
    }

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
            image: String::new(),
            upstream: None,
            metrics: None,
            trace: None,
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
    /// Gives the figures, if it could be started. It goes before the store does.
    pub(crate) metrics: Option<Exporter>,
    pub(crate) front: Front,
    /// Over which to tell guardians that this process goes; FUSE has none.
    pub(crate) leaver: Option<Arc<OwnedFd>>,
    /// To the process that keeps the mount, if one does.
    pub(crate) link: Option<Arc<Link>>,
}

/// What serves a mount.
pub(crate) enum Front {
    /// This process, through FUSE.
    Fuse(events::Receiver<io::Result<Outcome>>),
    /// The kernel, which this process fills the cache for.
    Kernel(Filler),
}

impl Front {
    /// How it ended, if it has.
    pub(crate) fn take(&mut self) -> Option<io::Result<Outcome>> {
        match self {
            Self::Fuse(ended) => ended.take(),
            Self::Kernel(filler) => filler.take(),
        }
    }

    /// Waits until the mount is gone, or another process goes on with it.
    pub(crate) fn join(&mut self) -> io::Result<Outcome> {
        loop {
            if let Some(outcome) = self.take() {
                return outcome;
            }
            events::wait([Some(self.as_fd())], None)?;
        }
    }
}

impl AsFd for Front {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Fuse(ended) => ended.as_fd(),
            Self::Kernel(filler) => filler.as_fd(),
        }
    }
}

/// Mounts the image on the directory `mountpoint`, which is made if absent, and serves it until it is unmounted, from
/// this process alone: the mount dies with it. [`crate::keep`] makes one that does not.
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
    let record = record::create(store.words(), &[]).map_err(|source| Error::System {
        what: "memory",
        source,
    })?;
    let upper = options.upper.as_deref();
    let (kit, _turn) = Kit::mount(mountpoint, upper, Program::default(), record)?;
    fuse::begin(&kit, Arc::default(), bootstrap, store, options, |_| ())
}

impl Mounted {
    /// Where it is mounted, as an absolute path without symlinks.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint.place.path
    }

    /// Has a thread answer whoever asks for figures, where nothing calls [`Mounted::serve`].
    pub fn answer_beside(&mut self) {
        if let Some(metrics) = &mut self.metrics {
            metrics.answer_beside();
        }
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
        std::mem::take(&mut self.mountpoint).release();
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

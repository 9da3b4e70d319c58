//! The kernel as front end: an EROFS mount of the bootstrap, with the cache files as its devices.
//!
//! The kernel reads files out of the cache files itself. A cache file that is not complete has a fanotify mark, so that
//! whoever reads it waits until the range is filled; see [`guardian`] for who answers and what happens when one of
//! them dies, and [`filler`] for where the data comes from. A complete blob loses its mark, and then no process is asked
//! any more.

mod bits;
mod channel;
pub(crate) mod filler;
mod guardian;
mod holders;
mod kit;
pub(crate) mod place;
mod probe;
mod table;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use rafs_format::Bootstrap;
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use storage::{ChunkStore, cache_file};
use sys::fanotify::Group;

pub use guardian::guard;
pub(crate) use holders::holders;
pub use kit::Resumed;
pub use probe::{Finding, examine};

use crate::Error;
use crate::fscontext::FsContext;
use crate::mountinfo::mounts_of;
use crate::mountpoint::Mountpoint;
use crate::prefetch::Prefetcher;
use crate::program::{PROGRAM, Program};
use crate::record;
use crate::session::{Front, Mounted, Options};
use crate::stats::Counters;
use channel::Message;
use filler::Filler;
use kit::{Kit, Role};
use place::Place;
use table::Table;

/// What a mount by the kernel needs beside what every mount does.
#[derive(Debug)]
pub struct KernelOptions {
    /// Directory of the store's cache.
    pub cache_dir: PathBuf,
    /// How to start this program again, should this process die.
    pub program: Program,
    /// What a process in place of this one is to know of the image.
    pub record: Vec<u8>,
    /// Where the processes that guard the mount report; this one's standard error if not given.
    pub log: Option<File>,
}

/// Mounts the image on the directory `mountpoint` by the kernel's EROFS, and fills the store's cache files on demand.
/// `bootstrap` is RAFS v6 and must have been checked.
///
/// # Errors
/// When the kernel can't, see [`examine`]; nothing stays mounted then.
pub fn mount_kernel(
    bootstrap: Arc<Bootstrap<Vec<u8>>>,
    store: Arc<ChunkStore>,
    mountpoint: &Path,
    options: &Options,
    kernel: KernelOptions,
) -> Result<Mounted, Error> {
    let path = mountpoint;
    let place = Place::make(&kernel.cache_dir)?;
    let source = place.image();
    let mut mountpoint = Mountpoint::prepare(path, options.upper.as_deref())?;
    let image = write_image(&source, bootstrap.data())
        .map_err(failed("write the bootstrap into the cache"))?;
    let mut cache = store.hand_over().map_err(failed("keep the cache open"))?;
    // What tells that the mount is guarded is held by all who guard it, and by this process.
    let lock = place.lock.try_clone();
    let lock = lock.map_err(failed("make a place for the mount in the cache"))?;
    cache.lock = place.lock;
    let group = Group::new().map_err(|error| {
        let what = match Errno::from_io_error(&error) {
            Some(Errno::MFILE) => {
                "have one more fanotify group: with `sysctl fs.fanotify.max_user_groups=1024` there may be more"
            }
            _ => "ask the kernel for pre-content events (root, and Linux 6.15)",
        };
        failed(what)(error)
    })?;
    for (blob, index) in cache.blobs.iter().zip(0..) {
        // Complete ones are unmarked once they are known to be on the disk.
        if !blob_is_empty(&blob.data)? && !store.is_complete(index) {
            group
                .mark(&blob.data)
                .map_err(failed("have the kernel ask before cache files are read (ext4, xfs or btrfs, and Linux 6.15)"))?;
        }
    }
    let blobs = u32::try_from(cache.blobs.len()).unwrap_or(u32::MAX);
    let system = failed("start the processes that guard the mount");
    let (guardian_end, filler_end) = channel::pair().map_err(&system)?;
    let (alive, alive_here) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|errno| system(errno.into()))?;
    let socket = filler_end.try_clone().map_err(&system)?;
    let kit = Kit {
        group,
        table: Table::create().map_err(&system)?,
        guardian_end,
        filler_end,
        image,
        alive,
        cache,
        program: kernel.program,
        record: record::create(store.words(), &kernel.record).map_err(&system)?,
        role: Role::Duty,
        mounted: false,
    };
    let stderr = kernel.log.map_or_else(Stdio::inherit, Stdio::from);
    kit.start_guardian(PROGRAM, Role::Duty, false, stderr)
        .map_err(&system)?;
    // From here on only the guardians hold the group.
    drop(kit);

    let devices = bootstrap
        .blobs()
        .iter()
        .map(|info| cache_file(&kernel.cache_dir, info.id.as_str()));
    let devices: Vec<PathBuf> = devices.collect();
    attach(&source, &devices, &mountpoint.place.at).map_err(failed(
        "mount EROFS from files (Linux 6.12, and the module erofs)",
    ))?;
    mountpoint.attached(path)?;
    mountpoint.stack()?;
    Message::Mounted.send(&socket, true).map_err(&system)?;
    let socket = ResumedSocket {
        socket,
        alive: alive_here,
        lock: Some(lock),
    };
    serve(bootstrap, store, mountpoint, options, blobs, socket)
}

/// Goes on with a mount whose process died. `bootstrap` and `store` are as they were there.
///
/// # Errors
/// When the system refuses what every process may do.
pub fn resume_kernel(
    bootstrap: Arc<Bootstrap<Vec<u8>>>,
    store: Arc<ChunkStore>,
    mountpoint: &Path,
    options: &Options,
    socket: ResumedSocket,
) -> Result<Mounted, Error> {
    let mountpoint = Mountpoint::found(mountpoint, options.upper.as_deref());
    let blobs = u32::try_from(bootstrap.blobs().len()).unwrap_or(u32::MAX);
    serve(bootstrap, store, mountpoint, options, blobs, socket)
}

/// What is left of [`Resumed`] once the store has the cache.
#[derive(Debug)]
pub struct ResumedSocket {
    socket: std::os::fd::OwnedFd,
    alive: std::os::fd::OwnedFd,
    /// The lock of the mount, if the store does not have it.
    lock: Option<File>,
}

impl Resumed {
    /// The cache, for the store, and the rest.
    pub fn split(self) -> (storage::HandedOver, ResumedSocket) {
        let Self {
            cache,
            socket,
            alive,
            ..
        } = self;
        let socket = ResumedSocket {
            socket,
            alive,
            lock: None,
        };
        (cache, socket)
    }
}

fn serve(
    bootstrap: Arc<Bootstrap<Vec<u8>>>,
    store: Arc<ChunkStore>,
    mountpoint: Mountpoint,
    options: &Options,
    blobs: u32,
    socket: ResumedSocket,
) -> Result<Mounted, Error> {
    let ResumedSocket {
        socket,
        alive,
        lock,
    } = socket;
    let counters = Arc::new(Counters::begin(store.words()));
    if let Some(trace) = &options.trace {
        trace.serving("erofs");
    }
    let filler = Filler::start(&store, blobs, &counters, &options.trace, socket, alive)?;
    let filler = filler.holding(lock);
    let prefetcher = Prefetcher::start(bootstrap, store.clone(), options.prefetch)?;
    let metrics = options.export("erofs", &mountpoint, &counters, &store)?;
    Ok(Mounted {
        metrics,
        mountpoint,
        counters,
        store,
        prefetcher,
        leaver: Some(filler.socket()),
        front: Front::Kernel(filler),
        link: None,
    })
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Kernel {
        what: what.to_owned(),
        source,
    }
}

fn blob_is_empty(data: &File) -> Result<bool, Error> {
    let metadata = data.metadata().map_err(failed("look at a cache file"))?;
    Ok(metadata.len() == 0)
}

/// The bootstrap as a file that nobody else has open.
fn write_image(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    // A descriptor for writing would keep the kernel from telling whether the file is in use.
    drop(file);
    std::fs::rename(&temporary, path)?;
    File::open(path)
}

/// Whether the file is mounted somewhere in this mount namespace.
fn is_mounted_here(image: &File) -> bool {
    use std::os::fd::AsRawFd as _;
    let link = std::fs::read_link(format!("/proc/self/fd/{}", image.as_raw_fd()));
    link.and_then(|path| mounts_of(&path))
        .is_ok_and(|mounts| !mounts.is_empty())
}

/// Has the kernel mount `image` on `mountpoint`, with a device for each slot. Not by mount(8), which would put loop
/// devices in between, and not by mount(2), whose options have a page at most.
fn attach(image: &Path, devices: &[PathBuf], mountpoint: &Path) -> io::Result<()> {
    let context = FsContext::open("erofs")?;
    context.set("source", image)?;
    for device in devices {
        context.set("device", device)?;
    }
    context.flag("ro")?;
    context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY, mountpoint)
}

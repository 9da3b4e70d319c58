//! `nydusify mount`: arguments, and the life of the serving process.

mod detach;
mod fuse;
pub mod image;
mod kernel;
mod mirrors;
mod unconverted;

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ::image::Platform;
use anyhow::{Context, Result};
use convert::BesideBlobs;
use mount::{Kept, Mounted, Options, Orphan, Prefetch, Resumed, Signals};
use storage::{Besides, ChunkStore, Observer, StoreOptions, Words};
use trace::{Begin, Recorder};

use crate::args::unsupported::{Flag, Table, Unsupported};
use crate::args::{Named, any_path, check_blob_dir, refuse, switch};
use crate::backend::MountOptions;
use crate::place::{PatienceArgs, RegistryArgs};

/// Arguments of `nydusify mount`.
#[derive(Debug, clap::Args)]
pub struct MountArgs {
    /// Image to mount: a name in a registry, oci:DIR[:TAG] or oci-archive:FILE[:TAG]. Of an image that nobody converted the
    /// layers are read once, see `nydusify index`
    #[arg(long, env = "TARGET", value_name = "IMAGE")]
    target: Option<String>,

    #[command(flatten)]
    pub lazy: LazyArgs,

    /// Directory to mount on; made if absent
    #[arg(
        long,
        env = "MOUNT_PATH",
        value_name = "DIR",
        default_value = "./image-fs"
    )]
    mount_path: PathBuf,

    /// Return as soon as the mount is ready; a process in the background serves it
    #[arg(long)]
    detach: bool,

    /// Have this program go on with the image that another version of it serves at --mount-path; readers wait for a moment
    #[arg(long, conflicts_with_all = ["bootstrap", "detach"])]
    replace: bool,

    /// Accepted and ignored: there is no temporary data
    #[arg(long, env = "WORK_DIR", value_name = "DIR", hide = true, value_parser = any_path())]
    work_dir: Option<PathBuf>,

    /// Accepted and ignored: no second program is needed
    #[arg(long, env = "NYDUSD", value_name = "FILE", hide = true, value_parser = any_path())]
    nydusd: Option<PathBuf>,

    /// This is the process in the background
    #[arg(long, hide = true)]
    detached: bool,

    /// This process takes the place of one that died
    #[arg(long, hide = true)]
    resume: bool,

    #[command(flatten)]
    unsupported: Unsupported<Unbuilt>,
}

/// What is mounted besides an image's name, and how it is served: the same for `mount` and `run`.
#[derive(Debug, clap::Args)]
pub struct LazyArgs {
    /// Do not check the certificate of the image's registry
    #[arg(long, env = "TARGET_INSECURE", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
          hide_default_value = true, hide_possible_values = true, value_name = "BOOL", value_parser = switch)]
    target_insecure: bool,

    #[command(flatten)]
    registry: RegistryArgs,

    #[command(flatten)]
    backend: MountOptions,

    /// Ask this registry, which has copies of the image's blobs, before the image's own: HOST[:PORT], or a URL without path;
    /// may be given several times, the first is asked first. What a mirror fails to give, or gives wrong, comes from the
    /// next one or the image's registry
    #[arg(long, value_name = "HOST", action = clap::ArgAction::Append)]
    mirror: Vec<String>,

    /// Ask the mirrors that this directory lists for the image's registry, in the way of containerd's certs.d:
    /// HOST_PORT_/hosts.toml, else HOST:PORT/hosts.toml, else _default/hosts.toml. A list that changes counts at once
    #[arg(long, value_name = "DIR")]
    mirrors_dir: Option<PathBuf>,

    #[command(flatten)]
    patience: PatienceArgs,

    /// Bare RAFS instead of an image: a bootstrap, or a blob that holds its bootstrap
    #[arg(long, value_name = "FILE")]
    bootstrap: Option<PathBuf>,

    /// Directory with the blobs of --bootstrap, each named by its id
    #[arg(long, value_name = "DIR", requires = "bootstrap")]
    blob_dir: Option<PathBuf>,

    /// What serves the mount: `fuse` is this process; `erofs` is the kernel, for which this process only fetches what is
    /// missing; `auto` is `erofs` where it works (see `nydusify doctor`)
    #[arg(long, value_name = "MODE", default_value = "fuse")]
    mode: Mode,

    /// Directory of the chunk cache, which any number of mounts may share [default: $XDG_CACHE_HOME/nydusify/blobs or
    /// ~/.cache/nydusify/blobs]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,

    /// Most that the cache directory may take on the disk, such as 20GiB: blobs and indexes that no mount uses are removed,
    /// those not used for longest first; if that is not enough, no more is kept (with `--mode erofs`, all is kept)
    #[arg(long, value_name = "SIZE", value_parser = crate::cache::size)]
    cache_size: Option<u64>,

    /// Of an image that nobody converted, use the index of this digest that lies beside it, instead of reading its layers
    /// once; see `nydusify index --push`
    #[arg(long, value_name = "DIGEST")]
    index_digest: Option<::image::Digest>,

    /// Of an image that nobody converted, store the index beside it, where others find it
    #[arg(long)]
    push_index: bool,

    /// Most memory that data on its way from the blobs to the cache takes, and data that can't be kept there, such as 32MiB;
    /// the program itself comes on top
    #[arg(long, value_name = "SIZE", default_value = "48MiB", value_parser = memory)]
    memory: u64,

    /// Most requests for data that wait for an answer at once; prefetching has half of them
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_requests: u16,

    /// Verify what the cache holds of the image before mounting it, and seal blobs that are complete where the file system has
    /// fs-verity
    #[arg(long)]
    verify_cache: bool,

    /// Fetch the whole image in the background, not just what the image lists
    #[arg(long, env = "PREFETCH", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
          hide_default_value = true, hide_possible_values = true, value_name = "BOOL", value_parser = switch)]
    prefetch: bool,

    /// Fetch nothing in the background
    #[arg(long)]
    no_prefetch: bool,

    /// Which image of an index to mount, as OS/ARCHITECTURE [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,

    /// Threads that answer file system requests [default: one per core, at least 2 and at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    fuse_threads: Option<u16>,

    /// Make the mount writable: changes go to this directory, made if absent, and are there again with the next mount
    /// (overlayfs; needs root, or a user namespace)
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,

    /// Give figures of the mount at this unix socket, as Prometheus reads them (GET /metrics); `nydusify stat` needs no such
    /// socket
    #[arg(long, value_name = "SOCKET")]
    metrics: Option<PathBuf>,

    /// Record in this file what is read, and what is fetched for it: `optimize --trace` has the next start fetch that first, and
    /// `explain` shows where the time went. A trace of the same image that lies there is overwritten
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// What serves a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    Auto,
    Fuse,
    Erofs,
}

/// Flags for images whose chunks cannot be verified.
#[derive(Debug, Clone, Copy)]
struct Unbuilt;

impl Table for Unbuilt {
    const FLAGS: &'static [Flag] = &[Flag::switch("allow-unverified", "").without_variable()];
}

impl LazyArgs {
    /// The bare bootstrap, if one is named.
    pub fn bootstrap(&self) -> Option<&Path> {
        self.bootstrap.as_deref()
    }

    /// Where the blobs of a bare bootstrap are.
    pub fn blob_dir(&self) -> Option<&Path> {
        self.blob_dir.as_deref()
    }

    /// How it is served.
    pub fn options(&self, named: Named<'_>, image: &image::Image) -> Options {
        let threads = self.fuse_threads.map(usize::from);
        Options {
            threads: threads.unwrap_or_else(Options::threads_for_this_machine),
            prefetch: self.prefetch(),
            upper: self.upper.clone(),
            image: match named {
                Named::Image(name) => name.to_owned(),
                Named::Bare(bootstrap) => bootstrap.display().to_string(),
            },
            upstream: Some(image.upstream.clone()),
            metrics: self.metrics.clone(),
            trace: None,
        }
    }

    /// Whether the kernel is to mount the image; it is an error if it is asked to and can't.
    fn by_kernel(&self, image: &image::Image, store: &ChunkStore, cache: &Path) -> Result<bool> {
        match self.mode {
            Mode::Fuse => Ok(false),
            Mode::Erofs => image.check_for_kernel().map(|()| true),
            Mode::Auto => Ok(store.stats().cache_conflicts == 0 && kernel_can(image, cache)),
        }
    }

    /// Directory of the chunk cache.
    fn cache_path(&self) -> Result<PathBuf> {
        match &self.cache_dir {
            Some(dir) => std::path::absolute(dir).with_context(|| dir.display().to_string()),
            None => crate::cache::of_mounts(),
        }
    }

    /// Records what is done with the image, if that is asked for.
    fn record(&self, options: &mut Options, image: &image::Image, begin: Begin) -> Result<()> {
        if let Some(path) = &self.trace {
            let bootstrap = image.bootstrap.clone();
            options.trace = match Recorder::start(path, &options.image, bootstrap, begin) {
                Ok(recorder) => Some(Arc::new(recorder)),
                // A mount that is in use goes on without.
                Err(error) if begin == Begin::GoOn => {
                    tracing::warn!("no more is recorded: {:#}", anyhow::Error::from(error));
                    None
                }
                Err(error) => return Err(error.into()),
            };
        }
        Ok(())
    }

    fn store_options(
        &self,
        cache_dir: Option<PathBuf>,
        words: Words,
        options: &Options,
    ) -> StoreOptions {
        let observer = options.trace.clone();
        let besides = cache_dir.as_ref().map(BesideBlobs::new);
        StoreOptions {
            words: Some(Arc::new(words)),
            observer: observer.map(|recorder| recorder as Arc<dyn Observer>),
            cache_dir,
            cache_limit: self.cache_size,
            besides: besides.map(|besides| Arc::new(besides) as Arc<dyn Besides>),
            memory: self.memory - self.memory / NOT_KEPT,
            recent: usize::try_from(self.memory / NOT_KEPT).unwrap_or(usize::MAX),
            requests: self.max_requests.into(),
            seal: self.verify_cache,
            ..StoreOptions::default()
        }
    }

    fn prefetch(&self) -> Prefetch {
        match (self.no_prefetch, self.prefetch) {
            (true, _) => Prefetch::Nothing,
            (false, true) => Prefetch::Everything,
            (false, false) => Prefetch::Listed,
        }
    }
}

/// Which part of the memory data that can't be kept has.
const NOT_KEPT: u64 = 3;
/// Least memory of a mount, in bytes: a chunk of usual size in all stages.
const MEMORY_MIN: u64 = 4 << 20;

/// Reads how much memory a mount may take.
fn memory(text: &str) -> Result<u64, String> {
    let size = crate::cache::size(text)?;
    match size {
        MEMORY_MIN.. => Ok(size),
        _ => Err("it must be 4MiB at least".to_owned()),
    }
}

/// How long the processes of a mount may take to make room for those of another program.
const REPLACEMENT: Duration = Duration::from_secs(30);

/// Mounts and serves; with `--detach` until the mount is ready, else until it ends. `log_file` takes what the process
/// in the background has to say.
pub fn run(args: &MountArgs, log_file: Option<&Path>) -> Result<ExitCode> {
    refuse(args.unsupported.given())?;
    if args.replace {
        mount::replace(&args.mount_path, REPLACEMENT)?;
        return Ok(ExitCode::SUCCESS);
    }
    let lazy = &args.lazy;
    let named = Named::new(args.target.as_deref(), lazy.bootstrap())?;
    check_blob_dir(lazy.blob_dir())?;
    if args.resume {
        if lazy.mode != Mode::Fuse {
            return resume(named, lazy, &args.mount_path);
        }
        let signals = Signals::listen()?;
        let mounted = fuse::serve(named, lazy, Orphan::GoesOn)?;
        if args.detached {
            detach::fall_silent(log_file)?;
        }
        return serve(mounted, signals);
    }
    if args.detach && !args.detached {
        return detach::spawn();
    }
    let signals = Signals::listen()?;
    if args.detached {
        detach::leave_terminal()?;
    }
    if lazy.mode == Mode::Fuse {
        return fuse::keep(args, None, signals, log_file);
    }
    let image = image::open(named, lazy, None)?;
    let mut options = lazy.options(named, &image);
    lazy.record(&mut options, &image, Begin::Anew)?;
    let (store, cache) = open_store(lazy, &image, true, new_words()?, &options)?;
    if !lazy.by_kernel(&image, &store, &cache)? {
        drop((store, options));
        return fuse::keep(args, Some(&image.record), signals, log_file);
    }
    let log = args.detached.then(|| detach::log(log_file)).transpose()?;
    let mounted = kernel::mount(&options, image, store, &args.mount_path, &cache, log)?;
    tracing::info!(
        "mounted on {}, cache in {}",
        mounted.mountpoint().display(),
        cache.display()
    );
    if args.detached {
        detach::ready(log_file)?;
    }
    serve(mounted, signals)
}

/// An image that is mounted for `run`.
pub enum ForRun {
    Fuse(Kept),
    Kernel(Box<Mounted>),
}

impl ForRun {
    /// Mounts it on the directory `at`. `None` if that failed, and why has been said.
    pub fn mount(
        image: image::Image,
        args: &LazyArgs,
        options: &Options,
        at: &Path,
    ) -> Result<Option<Self>> {
        if args.mode != Mode::Fuse {
            let mut options = options.clone();
            args.record(&mut options, &image, Begin::Anew)?;
            let (store, cache) = open_store(args, &image, true, new_words()?, &options)?;
            if args.by_kernel(&image, &store, &cache)? {
                let mut mounted = kernel::mount(&options, image, store, at, &cache, None)?;
                mounted.answer_beside();
                return Ok(Some(Self::Kernel(Box::new(mounted))));
            }
        }
        let kept = fuse::keep_beside(options.upper.as_deref(), &image.record, at)?;
        Ok(kept.map(Self::Fuse))
    }

    /// Waits until it is gone; nobody may use it any more.
    pub fn close(self) -> Result<()> {
        match self {
            Self::Fuse(kept) => kept.close()?,
            Self::Kernel(mounted) => {
                let stats = mounted.close()?;
                tracing::debug!("{stats}");
            }
        }
        Ok(())
    }
}

/// Serves or fills an image that another process has mounted for `run`.
pub fn resume_for_run(named: Named<'_>, args: &LazyArgs, over: &Path) -> Result<ExitCode> {
    if args.mode != Mode::Fuse {
        // The program has ended with its runner: nobody else has the mount.
        container::forget(over);
        return resume(named, args, Path::new("/"));
    }
    let signals = Signals::listen()?;
    let mounted = fuse::serve(named, args, Orphan::Ends)?;
    let ending = mounted.serve(signals, |_| ())?;
    tracing::debug!("{}", ending.stats);
    Ok(ExitCode::SUCCESS)
}

fn serve(mounted: Mounted, signals: Signals) -> Result<ExitCode> {
    let ending = mounted.serve(signals, |stats| eprintln!("nydusify mount: {stats}"))?;
    eprintln!("nydusify mount: {}", ending.stats);
    Ok(ExitCode::SUCCESS)
}

/// An image may have hundreds of blobs, and each takes a few descriptors. With fewer, its mount may fail.
fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let _ = setrlimit(Resource::Nofile, raised);
}

/// Goes on in place of a process that filled the cache of a mount by the kernel, and died.
fn resume(named: Named<'_>, args: &LazyArgs, mount_path: &Path) -> Result<ExitCode> {
    allow_many_files();
    let (resumed, record) = Resumed::from_stdin()?;
    let words = resumed.words().context("the counters of the mount")?;
    let (handed, socket) = resumed.split();
    let signals = Signals::listen()?;
    let image = image::open(named, args, Some(&record))?;
    let mut options = args.options(named, &image);
    args.record(&mut options, &image, Begin::GoOn)?;
    let of_store = args.store_options(args.cache_dir.clone(), words, &options);
    let store = ChunkStore::take_over(&image.bootstrap, image.blobs, of_store, handed)?;
    store.warm_up();
    let store = Arc::new(store);
    let mounted = mount::resume_kernel(image.bootstrap, store, mount_path, &options, socket)?;
    serve(mounted, signals)
}

/// Whether the kernel can mount the image here; says why not.
fn kernel_can(image: &image::Image, cache: &Path) -> bool {
    if let Err(error) = image.check_for_kernel() {
        tracing::info!("mounted through FUSE: {error:#}");
        return false;
    }
    let findings = mount::examine(cache);
    let missing = findings
        .iter()
        .find(|finding| finding.erofs && finding.result.is_err());
    if let Some(finding) = missing {
        tracing::info!(
            "mounted through FUSE: {} is missing (nydusify doctor)",
            finding.name
        );
    }
    missing.is_none()
}

pub use fuse::keep_on;

/// The process that guards a mount by the kernel.
pub fn guard() -> Result<ExitCode> {
    let socket = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .context("standard input")?;
    mount::guard(socket)?;
    Ok(ExitCode::SUCCESS)
}

/// Where the processes of a mount count what they do.
fn new_words() -> Result<Words> {
    Words::new().context("memory for the counters of the mount")
}

/// Opens the chunk store in the directory asked for, else in the one that all mounts share. `begins` says that the mount
/// begins, and is not gone on with; the store counts in `words`, and whoever records in `options` is told what it does.
fn open_store(
    args: &LazyArgs,
    image: &image::Image,
    begins: bool,
    words: Words,
    options: &Options,
) -> Result<(ChunkStore, PathBuf)> {
    allow_many_files();
    let dir = args.cache_path()?;
    let of_store = args.store_options(Some(dir.clone()), words, options);
    let open = || ChunkStore::open(&image.bootstrap, image.blobs.clone(), of_store.clone());
    let mut store = open()?;
    if args.verify_cache && begins {
        let wrong = store.verify_cached();
        if wrong != 0 {
            tracing::warn!("{wrong} chunks in the cache were wrong and are fetched again");
            // What is sealed takes no other chunks: opened anew, such a blob begins again.
            drop(store);
            store = open()?;
        }
    }
    if store.stats().cache_conflicts != 0 {
        tracing::warn!(
            "{}: in use for an image that has other chunks in blobs of the same id: these are read without the cache",
            dir.display()
        );
    }
    Ok((store, dir))
}

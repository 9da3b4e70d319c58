//! Where the user's caches lie, and `nydusify cache`.

mod report;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use convert::IndexStore;
use serde_json::json;
use storage::Prune;

/// The directory of this program among the user's caches; `None` if nobody says where these are.
pub fn directory() -> Option<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base =
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("nydusify"))
}

/// Where mounts keep what they have fetched, unless told otherwise.
pub fn of_mounts() -> anyhow::Result<PathBuf> {
    let base = directory().ok_or_else(|| {
        anyhow::anyhow!(
            "no cache directory: set HOME or XDG_CACHE_HOME, or name one with --cache-dir"
        )
    })?;
    Ok(base.join("blobs"))
}

/// The indexes of images that nobody converted: they lie beside their chunks.
pub fn of_indexes(cache_dir: Option<&Path>) -> anyhow::Result<IndexStore> {
    let cache = match cache_dir {
        Some(dir) => std::path::absolute(dir).with_context(|| dir.display().to_string())?,
        None => of_mounts()?,
    };
    Ok(IndexStore::beside(&cache))
}

/// Arguments of `nydusify cache`.
#[derive(Debug, clap::Args)]
pub struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Debug, clap::Subcommand)]
enum CacheCommand {
    /// List the blobs and indexes in the cache: how much of each is there, who uses it, and when it was last used
    Ls(Common),
    /// Say how much room the cache takes on the disk
    Du(Common),
    /// Remove blobs and indexes that nobody uses
    Prune(PruneArgs),
    /// Verify every chunk and index in the cache; wrong ones of blobs that nobody uses are dropped, and indexes removed
    Verify(VerifyArgs),
}

/// What all of them take.
#[derive(Debug, clap::Args)]
struct Common {
    /// Directory of the chunk cache [default: that of mounts]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,

    /// How to say it
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Arguments of `nydusify cache prune`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true))]
struct PruneArgs {
    /// Remove blobs and indexes, those not used for longest first, until the rest takes no more than this, such as 20GiB
    #[arg(long, value_name = "SIZE", value_parser = size, group = "which")]
    max_size: Option<u64>,

    /// Remove blobs and indexes that were not used for this long, such as 12h or 720h
    #[arg(long, value_name = "DURATION", value_parser = crate::place::duration, group = "which")]
    older_than: Option<Duration>,

    /// Remove all blobs and indexes that nobody uses
    #[arg(long, group = "which")]
    all: bool,

    /// Remove nothing, only say what would be
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    common: Common,
}

/// Arguments of `nydusify cache verify`.
#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// Threads that read and digest [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    #[command(flatten)]
    common: Common,
}

/// Reads a size in bytes.
pub fn size(text: &str) -> Result<u64, String> {
    let size = builder::parse_size(text).map_err(|error| error.to_string())?;
    Ok(size as u64)
}

impl Common {
    fn dir(&self) -> anyhow::Result<PathBuf> {
        match &self.cache_dir {
            Some(dir) => Ok(dir.clone()),
            None => of_mounts(),
        }
    }

    fn print(&self, json: &serde_json::Value, text: impl FnOnce() -> String) {
        match self.output {
            Output::Json => println!("{json}"),
            Output::Table => print!("{}", text()),
        }
    }
}

/// Does what the arguments say. `verify` ends with 1 if it has found a wrong chunk or index.
pub fn run(args: &CacheArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        CacheCommand::Ls(common) => ls(common),
        CacheCommand::Du(common) => du(common),
        CacheCommand::Prune(args) => prune(args),
        CacheCommand::Verify(args) => verify(args),
    }
}

fn ls(common: &Common) -> anyhow::Result<ExitCode> {
    let dir = common.dir()?;
    let (blobs, indexes) = (
        storage::cached_blobs(&dir)?,
        IndexStore::beside(&dir).list()?,
    );
    let json = blobs.iter().map(report::blob);
    let json = json.chain(indexes.iter().map(report::index)).collect();
    common.print(&serde_json::Value::Array(json), || {
        report::table(&blobs) + &report::index_table(&indexes)
    });
    Ok(ExitCode::SUCCESS)
}

fn du(common: &Common) -> anyhow::Result<ExitCode> {
    let dir = common.dir()?;
    let (blobs, store) = (storage::cached_blobs(&dir)?, IndexStore::beside(&dir));
    let (indexes, of_indexes) = (store.list()?, store.disk_usage()?);
    let disk: u64 = blobs.iter().map(|blob| blob.disk).sum();
    let cached: u64 = blobs.iter().map(|blob| blob.cached).sum();
    let used = blobs.iter().filter(|blob| blob.in_use);
    let in_use: u64 = used.clone().map(|blob| blob.disk).sum();
    let used_indexes = indexes.iter().filter(|index| index.in_use);
    let of_indexes_in_use: u64 = used_indexes.clone().map(|index| index.disk).sum();
    let json = json!({
        "blobs": blobs.len(),
        "disk_bytes": disk,
        "cached_bytes": cached,
        "blobs_in_use": used.count(),
        "disk_bytes_in_use": in_use,
        "indexes": indexes.len(),
        "index_disk_bytes": of_indexes,
        "indexes_in_use": used_indexes.count(),
        "index_disk_bytes_in_use": of_indexes_in_use,
    });
    common.print(&json, || {
        report::usage(disk, &report::count(blobs.len(), "blob"), in_use)
            + &report::usage(
                of_indexes,
                &report::indexes(indexes.len()),
                of_indexes_in_use,
            )
    });
    Ok(ExitCode::SUCCESS)
}

fn prune(args: &PruneArgs) -> anyhow::Result<ExitCode> {
    let what = Prune {
        max_size: args.max_size,
        older_than: args.older_than,
        all: args.all,
        dry_run: args.dry_run,
    };
    let pruned = convert::prune_cache(&args.common.dir()?, &what)?;
    let of_blobs: u64 = pruned.blobs.iter().map(|blob| blob.disk).sum();
    let of_indexes: u64 = pruned.indexes.iter().map(|index| index.disk).sum();
    let freed = of_blobs + of_indexes;
    let json = json!({
        "dry_run": args.dry_run,
        "removed": pruned.blobs.iter().map(report::blob).collect::<Vec<_>>(),
        "removed_indexes": pruned.indexes.iter().map(report::index).collect::<Vec<_>>(),
        "freed_bytes": freed,
        "left_bytes": pruned.left,
        "in_use_bytes": pruned.in_use,
    });
    args.common.print(&json, || {
        let removed = if args.dry_run {
            "would remove"
        } else {
            "removed"
        };
        let mut text = String::new();
        for blob in &pruned.blobs {
            text += &format!("{removed} {} ({})\n", blob.id, report::bytes(blob.disk));
        }
        for index in &pruned.indexes {
            let disk = report::bytes(index.disk);
            text += &format!("{removed} the index of {} ({disk})\n", index.image);
        }
        text + &format!(
            "{removed} {} and {}, {}; left: {}, of which {} in use\n",
            report::count(pruned.blobs.len(), "blob"),
            report::indexes(pruned.indexes.len()),
            report::bytes(freed),
            report::bytes(pruned.left),
            report::bytes(pruned.in_use)
        )
    });
    Ok(ExitCode::SUCCESS)
}

fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let common = &args.common;
    let threads = match args.threads {
        Some(threads) => NonZeroUsize::new(threads.into()),
        None => std::thread::available_parallelism().ok(),
    };
    let threads = threads.unwrap_or(NonZeroUsize::MIN);
    let dir = common.dir()?;
    let mut json = Vec::new();
    let (mut good, mut bad) = (0, 0);
    for checked in storage::check_cache(&dir, threads)? {
        let checked = checked?;
        good += checked.good;
        bad += checked.bad.len();
        json.push(report::checked(&checked));
        if common.output == Output::Table {
            print!("{}", report::findings(&checked));
        }
    }
    let store = IndexStore::beside(&dir);
    let (mut sound, mut broken) = (0, 0);
    for index in store.list()? {
        let wrong = store.verify(&index).err();
        let wrong = wrong.map(|error| format!("{:#}", anyhow::Error::from(error)));
        let removed = wrong.is_some() && store.remove(&index)?;
        json.push(report::checked_index(&index, wrong.as_deref(), removed));
        match wrong {
            None => sound += 1,
            Some(wrong) => {
                broken += 1;
                if common.output == Output::Table {
                    print!("{}", report::index_finding(&index, &wrong, removed));
                }
            }
        }
    }
    common.print(&serde_json::Value::Array(json), || {
        let right = report::count(usize::try_from(good).unwrap_or(usize::MAX), "chunk");
        let mut text = format!("{right} right, {bad} wrong\n");
        if sound + broken != 0 {
            text += &format!("{} right, {broken} wrong\n", report::indexes(sound));
        }
        text
    });
    Ok(ExitCode::from(u8::from(bad + broken != 0)))
}

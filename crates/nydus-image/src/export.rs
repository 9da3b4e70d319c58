//! `export`: an image as one disk that the kernel mounts.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use export::{DiskData, DiskSummary, Verity, write_disk};
use storage::{BlobSource, DirSource, StoreOptions, load_bootstrap};

use crate::Usage;
use crate::blobs::{self, Config};
use crate::interrupt::Interrupt;
use crate::output::{self, Output};

#[derive(Debug, Args)]
pub struct Export {
    /// Write one disk: the bootstrap, and the data of all blobs behind it
    #[arg(long, required = true)]
    block: bool,
    /// Bootstrap, or native layer blob with a bootstrap inside
    #[arg(short = 'B', long, value_name = "BOOTSTRAP", requires = "localfs_dir")]
    bootstrap: Option<PathBuf>,
    /// Directory of the blobs, each named by its id
    #[arg(
        short = 'D',
        long,
        value_name = "DIR",
        requires = "bootstrap",
        required_unless_present = "config"
    )]
    localfs_dir: Option<PathBuf>,
    /// Entry of a blob cache, which names the bootstrap and says where the blobs are
    #[arg(short = 'C', long, value_name = "FILE", conflicts_with_all = ["localfs_dir", "bootstrap"])]
    config: Option<PathBuf>,
    /// Write the disk to FILE [default: the bootstrap's name and .disk, in the directory of the blobs]
    #[arg(
        short = 'O',
        long,
        value_name = "FILE",
        required_unless_present = "localfs_dir"
    )]
    output: Option<PathBuf>,
    /// Threads that decode chunks
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=32))]
    threads: u16,
    /// Append a hash tree for dm-verity, and say on the standard output how to open it
    #[arg(long)]
    verity: bool,
}

pub fn run(args: &Export, interrupt: &Interrupt) -> anyhow::Result<()> {
    let (path, source): (PathBuf, Arc<dyn BlobSource>) =
        match (&args.bootstrap, &args.localfs_dir, &args.config) {
            (Some(path), Some(dir), _) => (path.clone(), Arc::new(DirSource(dir.clone()))),
            (.., Some(config)) => {
                let config = Config::read(config)?;
                (
                    config.bootstrap()?.to_owned(),
                    config.open(&interrupt.cancel)?,
                )
            }
            _ => return Err(Usage("there is no image to export".to_owned()).into()),
        };
    let output = place(args, &path)?;
    output::check_place(&output)?;
    let mut loaded = load_bootstrap(&path)?;
    if loaded.v5.is_some() {
        let reason = "is RAFS v5, which no kernel mounts: `nydus-image transcode --to 6` first";
        return Err(Usage(format!("{} {reason}", path.display())).into());
    }
    let invalid = || format!("{} is not valid", path.display());
    loaded.check().with_context(invalid)?;
    let image = loaded.image().with_context(invalid)?;
    let data = if image.tarfs {
        DiskData::Tars(source)
    } else {
        let options = StoreOptions {
            threads: args.threads.into(),
            ..StoreOptions::default()
        };
        DiskData::Chunks(blobs::open_chunks(&mut loaded, Some(source), "", options)?)
    };
    let out = Output::create(&output, &interrupt.unfinished)?;
    if !out.is_regular() {
        let reason =
            "is no regular file: a disk has holes, and its hash tree is not written in order";
        return Err(Usage(format!("{} {reason}", output.display())).into());
    }
    let file = out.file();
    let summary = write_disk(
        &loaded.bootstrap,
        &image,
        &data,
        file,
        args.verity,
        &interrupt.cancel,
    )
    .with_context(|| format!("cannot export {}", path.display()))?;
    out.commit(&output)?;
    tracing::info!(
        "{} blocks of {} bytes, {} bytes of data",
        summary.blocks,
        summary.block_size,
        summary.written
    );
    if let Some(verity) = &summary.verity {
        let line = verity_options(&summary, verity);
        io::stdout()
            .write_all(line.as_bytes())
            .context("cannot write to the standard output")?;
    }
    Ok(())
}

/// Where the disk is to be.
fn place(args: &Export, bootstrap: &Path) -> anyhow::Result<PathBuf> {
    if let Some(path) = &args.output {
        return Ok(path.clone());
    }
    let mut name = bootstrap
        .file_name()
        .with_context(|| format!("{} is not the name of a file", bootstrap.display()))?
        .to_owned();
    name.push(".disk");
    Ok(args
        .localfs_dir
        .as_deref()
        .unwrap_or(Path::new(""))
        .join(name))
}

/// The line that the snapshotter reads: what `veritysetup` is to be told.
fn verity_options(summary: &DiskSummary, verity: &Verity) -> String {
    format!(
        "dm-verity options: --no-superblock --format=1 -s \"\" --hash=sha256 --data-block-size={} --hash-block-size=4096 \
         --data-blocks {} --hash-offset {} {}\n",
        summary.block_size,
        summary.blocks,
        verity.offset,
        hex::encode(verity.root)
    )
}

//! `unpack`: the files of an image as a tar stream.

use std::io::{BufWriter, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use storage::{StoreOptions, load_bootstrap};

use crate::Usage;
use crate::blobs::{self, BackendArgs};
use crate::check::BootstrapArg;
use crate::interrupt::Interrupt;
use crate::output::{self, Output};

/// Headers and small files are written together.
const BUFFER: usize = 256 << 10;

#[derive(Debug, Args)]
pub struct Unpack {
    #[command(flatten)]
    bootstrap: BootstrapArg,
    /// Write the tar stream to FILE, which may be a FIFO
    #[arg(short = 'O', long, value_name = "FILE", required = true)]
    pub output: PathBuf,
    /// Read all blobs from FILE: a blob, or the chunk data of one
    #[arg(short = 'b', long, value_name = "FILE", conflicts_with_all = ["blob_dir", "backend_type"])]
    blob: Option<PathBuf>,
    /// Directory of the blobs, each named by its id
    #[arg(short = 'D', long, value_name = "DIR", conflicts_with = "backend_type")]
    blob_dir: Option<PathBuf>,
    #[command(flatten)]
    backend: BackendArgs,
}

pub fn run(args: &Unpack, interrupt: &Interrupt) -> anyhow::Result<()> {
    if args.output.as_os_str().is_empty() {
        return Err(Usage("--output needs the name of a file".to_owned()).into());
    }
    output::check_place(&args.output)?;
    let path = args.bootstrap.path()?;
    let mut loaded = load_bootstrap(path)?;
    // Of v5 the form that the chunk store has, too.
    let image = bootstrap::load_image(&loaded.bootstrap)
        .with_context(|| format!("cannot load {}", path.display()))?;
    let source = blobs::choose(
        args.blob.as_deref(),
        args.blob_dir.as_deref(),
        &args.backend,
        &interrupt.cancel,
    )?;
    if args.backend.is_proxy() {
        blobs::read_data_alone(&mut loaded);
    }
    let needed = "the image has file data: say with --blob, --blob-dir or --backend-type where its blobs are";
    let store = blobs::open_chunks(&mut loaded, source, needed, StoreOptions::default())?;
    let mut out = Output::create(&args.output, &interrupt.unfinished)?;
    let mut buffered = BufWriter::with_capacity(BUFFER, &mut out);
    let summary = export::write_tar(&image, &store, &mut buffered, &interrupt.cancel)
        .with_context(|| format!("cannot unpack {}", path.display()))?;
    buffered
        .flush()
        .with_context(|| format!("cannot write {}", args.output.display()))?;
    drop(buffered);
    for socket in &summary.sockets {
        tracing::warn!(
            "/{} is a socket, which tar cannot hold: left out",
            socket.escape_ascii()
        );
    }
    tracing::info!(
        "{} entries, {} bytes of file data",
        summary.entries,
        summary.data
    );
    out.commit(&args.output)
}

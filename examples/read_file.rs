//! Reads one file of a Nydus image without mounting it: what a program that only wants some files would do.
//!
//! ```console
//! $ cargo run -p nydusify --example read_file -- BOOTSTRAP BLOB_DIR etc/os-release
//! ```
//!
//! Only the chunks of that file are read from the blobs, and each is verified before it is used.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use storage::{BlobSource, ChunkStore, DirSource, StoreOptions, load_bootstrap};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bootstrap, blobs, path] = arguments.as_slice() else {
        bail!("usage: read_file BOOTSTRAP BLOB_DIR PATH");
    };
    let loaded = load_bootstrap(&PathBuf::from(bootstrap))?;
    let directory: Arc<dyn BlobSource> = Arc::new(DirSource(PathBuf::from(blobs)));
    let source = loaded.source(Some(directory))?;
    let bootstrap = loaded.bootstrap;
    let store = ChunkStore::open(&bootstrap, source, StoreOptions::default())?;

    let mut inode = bootstrap.inode(bootstrap.root())?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        ensure!(
            inode.is_dir(),
            "{path}: what leads to {name} is no directory"
        );
        let entry = bootstrap.lookup(&inode, name.as_bytes())?;
        inode = bootstrap.inode(
            entry
                .with_context(|| format!("{path}: there is no {name}"))?
                .nid,
        )?;
    }
    ensure!(inode.is_regular(), "{path}: no regular file");

    let chunks = bootstrap.chunks(&inode)?.collect::<Result<Vec<_>, _>>()?;
    let chunk_size = bootstrap.superblock().chunk_size;
    let mut out = std::io::stdout().lock();
    let mut offset = 0;
    while offset < inode.size {
        let length = u64::from(chunk_size).min(inode.size - offset);
        let mut bytes = vec![0; usize::try_from(length)?];
        store.read_file_range(&chunks, chunk_size, offset, &mut bytes)?;
        out.write_all(&bytes)?;
        offset += length;
    }
    eprintln!("{}", store.stats());
    Ok(())
}

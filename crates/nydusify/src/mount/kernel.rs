//! Mounts by the kernel.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use mount::{KernelOptions, Mounted, Options, Program};
use storage::ChunkStore;

use super::image::Image;

/// Mounts the image, with guardians that start this command again should this process die, and report to `log`.
pub(super) fn mount(
    options: &Options,
    image: Image,
    store: ChunkStore,
    mount_path: &Path,
    cache: &Path,
    log: Option<File>,
) -> Result<Mounted> {
    image.warn_of_missing_blobs();
    store.warm_up();
    let kernel = KernelOptions {
        cache_dir: cache.to_owned(),
        program: Program {
            arguments: again(std::env::args_os().skip(1), cache),
            directory: std::env::current_dir().context("the working directory")?,
        },
        record: image.record,
        log,
    };
    Ok(mount::mount_kernel(
        image.bootstrap,
        Arc::new(store),
        mount_path,
        options,
        kernel,
    )?)
}

/// The arguments of this command for whoever takes over: it needs the cache that was chosen here, and the last of several
/// flags counts.
fn again(arguments: impl Iterator<Item = OsString>, cache: &Path) -> Vec<OsString> {
    // What follows two dashes are no options of ours.
    let mut arguments: Vec<OsString> = arguments.take_while(|word| word != "--").collect();
    arguments.extend(["--cache-dir".into(), cache.into()]);
    arguments
}

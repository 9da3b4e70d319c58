//! Mounts by the kernel.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use mount::{KernelOptions, Mounted, Program};
use storage::ChunkStore;

use super::image::Image;
use super::{MountArgs, detach};

/// Mounts the image, with guardians that start this command again should this process die.
pub(super) fn mount(
    args: &MountArgs,
    image: Image,
    store: ChunkStore,
    cache: &Path,
    log_file: Option<&Path>,
) -> Result<Mounted> {
    // Whoever takes over needs the cache that was chosen here; the last of several flags counts.
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    arguments.extend(["--cache-dir".into(), cache.into()]);
    let log = match args.detached {
        true => Some(detach::log(log_file)?),
        false => None,
    };
    let kernel = KernelOptions {
        cache_dir: cache.to_owned(),
        program: Program {
            arguments,
            directory: std::env::current_dir().context("the working directory")?,
        },
        record: image.record,
        log,
    };
    Ok(mount::mount_kernel(
        image.bootstrap,
        Arc::new(store),
        &args.mount_path,
        &args.options(),
        kernel,
    )?)
}

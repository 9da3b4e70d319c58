//! Mounts through FUSE: a process that keeps the mount, and one that serves it.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use mount::{Program, Seat, Signals};

use super::{MountArgs, detach, image, open_store};
use crate::args::Named;

/// Mounts the image and keeps it mounted; other processes of this program serve it.
pub(super) fn keep(
    args: &MountArgs,
    signals: Signals,
    log_file: Option<&Path>,
) -> Result<ExitCode> {
    let mut arguments: Vec<_> = std::env::args_os().skip(1).collect();
    // `auto` has been decided; the last of several flags counts.
    arguments.extend(["--mode".into(), "fuse".into()]);
    let program = Program {
        arguments,
        directory: std::env::current_dir().context("the working directory")?,
    };
    let (detached, log_file) = (args.detached, log_file.map(Path::to_owned));
    let code = mount::keep(&args.mount_path, program, signals, move |at, cache| {
        tracing::info!("mounted on {}, cache in {}", at.display(), cache.display());
        if detached {
            detach::ready(log_file.as_deref()).map_err(std::io::Error::other)?;
        }
        Ok(())
    })?;
    Ok(ExitCode::from(code))
}

/// Goes on in place of a process that kept a mount.
pub fn keep_on() -> Result<ExitCode> {
    Ok(ExitCode::from(mount::keep_on()?))
}

/// Serves a mount that another process keeps.
pub(super) fn serve(
    named: Named<'_>,
    args: &MountArgs,
    log_file: Option<&Path>,
) -> Result<ExitCode> {
    let signals = Signals::listen()?;
    let lazy = &args.lazy;
    let seat = Seat::from_stdin()?;
    let known = seat.record()?;
    let image = image::open(named, lazy, known.as_deref())?;
    if known.is_none() {
        image.warn_of_missing_blobs();
    }
    let (store, cache) = open_store(lazy, &image, known.is_none())?;
    store.warm_up();
    let store = Arc::new(store);
    let options = lazy.options();
    let mounted = seat.serve(image.bootstrap, store, &cache, &image.record, &options)?;
    if args.detached {
        detach::fall_silent(log_file)?;
    }
    super::serve(mounted, signals)
}

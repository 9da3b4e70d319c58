//! Mounts through FUSE: a process that keeps the mount, and one that serves it.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use mount::{Kept, Mounted, Orphan, Program, Seat, Signals, ToKeep};
use trace::Begin;

use super::{LazyArgs, MountArgs, detach, image, open_store};
use crate::args::Named;

/// Mounts the image and keeps it mounted; other processes of this program serve it. `record` is what is known of the
/// image, if it was opened.
pub(super) fn keep(
    args: &MountArgs,
    record: Option<&[u8]>,
    signals: Signals,
    log_file: Option<&Path>,
) -> Result<ExitCode> {
    let what = ToKeep {
        mountpoint: &args.mount_path,
        upper: args.lazy.upper.as_deref(),
        program: server()?,
        record,
    };
    let (detached, log_file) = (args.detached, log_file.map(Path::to_owned));
    let code = mount::keep(what, signals, move |at, cache| {
        tracing::info!("mounted on {}, cache in {}", at.display(), cache.display());
        if detached {
            detach::ready(log_file.as_deref()).map_err(std::io::Error::other)?;
        }
        Ok(())
    })?;
    Ok(ExitCode::from(code))
}

/// Mounts the image on `at` for `run`, and keeps it mounted as long as this process runs. `None` if the process that was to
/// serve it has said why it can't.
pub(super) fn keep_beside(upper: Option<&Path>, record: &[u8], at: &Path) -> Result<Option<Kept>> {
    Ok(mount::keep_beside(ToKeep {
        mountpoint: at,
        upper,
        program: server()?,
        record: Some(record),
    })?)
}

/// This command as one that serves.
fn server() -> Result<Program> {
    // What follows two dashes are no options of ours.
    let arguments = std::env::args_os().skip(1).take_while(|word| word != "--");
    // `auto` has been decided; the last of several flags counts.
    let decided = ["--mode".into(), "fuse".into()];
    Ok(Program {
        arguments: arguments.chain(decided).collect(),
        directory: std::env::current_dir().context("the working directory")?,
    })
}

/// Goes on in place of a process that kept a mount.
pub fn keep_on() -> Result<ExitCode> {
    Ok(ExitCode::from(mount::keep_on()?))
}

/// Begins to serve a mount that another process keeps.
pub(super) fn serve(named: Named<'_>, lazy: &LazyArgs, orphan: Orphan) -> Result<Mounted> {
    let seat = Seat::from_stdin(orphan)?;
    let image = image::open(named, lazy, seat.record()?.as_deref())?;
    if seat.is_first() {
        image.warn_of_missing_blobs();
    }
    let words = seat.words().context("the counters of the mount")?;
    let mut options = lazy.options(named, &image);
    let begin = match seat.is_first() {
        true => Begin::Anew,
        false => Begin::GoOn,
    };
    lazy.record(&mut options, &image, begin)?;
    let (store, cache) = open_store(lazy, &image, seat.is_first(), words, &options)?;
    store.warm_up();
    let store = Arc::new(store);
    Ok(seat.serve(image.bootstrap, store, &cache, &image.record, &options)?)
}

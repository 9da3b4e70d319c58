//! Answering the requests of a FUSE connection.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use fuser::{Config, SessionACL};
use rafs_format::Bootstrap;
use storage::ChunkStore;

use super::flight::Flights;
use super::kit::Kit;
use super::wire;
use crate::fs::RafsFs;
use crate::mountpoint::{Mountpoint, Place};
use crate::prefetch::Prefetcher;
use crate::serve::{Outcome, spawn};
use crate::session::{Front, Mounted, Options};
use crate::stats::Counters;
use crate::{Error, device, events};

/// Serves a mount, which may have been served before: stacks overlayfs if that is still to be done, and calls `ready`.
/// `keeper` is the process id of who keeps the mount, 0 if nobody does.
pub(crate) fn begin(
    kit: &Kit,
    keeper: Arc<AtomicU32>,
    bootstrap: Arc<Bootstrap<Vec<u8>>>,
    store: Arc<ChunkStore>,
    options: &Options,
    ready: impl FnOnce(&Place),
) -> Result<Mounted, Error> {
    let failed = |source| Error::Session {
        path: kit.place.path.clone(),
        source,
    };
    let flights = || Flights::map(&kit.flights).map_err(failed);
    let counters = Arc::new(Counters::begin(store.words()));
    let fs = RafsFs::new(
        bootstrap.clone(),
        store.clone(),
        counters.clone(),
        keeper,
        flights()?,
        options.trace.clone(),
    );
    let upper = kit.upper.as_ref().map(|upper| upper.try_clone());
    let upper = upper.transpose().map_err(failed)?;
    let lost = flights()?;
    let (acl, config) = settings(options);
    let session = wire::session(fs, &kit.device, &kit.init, &lost, acl, config).map_err(failed)?;
    let (sender, ended) = events::channel().map_err(failed)?;
    // It starts those that answer, and waits for them.
    spawn("session", move || {
        sender.send(session.run().map(|()| Outcome::Over));
    })?;
    if let Some(trace) = &options.trace {
        trace.serving("fuse");
    }
    let mut mountpoint = Mountpoint::handed_over(kit.place.clone(), upper);
    mountpoint.raise_read_ahead();
    mountpoint.stack()?;
    ready(&mountpoint.place);
    let prefetcher = Prefetcher::start(bootstrap, store.clone(), options.prefetch)?;
    let metrics = options.export("fuse", &mountpoint, &counters, &store)?;
    Ok(Mounted {
        metrics,
        mountpoint,
        counters,
        store,
        prefetcher,
        front: Front::Fuse(ended),
        leaver: None,
        link: None,
    })
}

/// Who may use the mount, and how the session works. Its threads share one descriptor: those that fuser would make for
/// each thread die with the process, and requests in flight with them.
fn settings(options: &Options) -> (SessionACL, Config) {
    let mut config = Config::default();
    config.n_threads = Some(options.threads.max(1));
    config.clone_fd = false;
    let acl = if device::privileged() {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    (acl, config)
}

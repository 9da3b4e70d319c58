//! The process that has the chunk store: it completes cache files as the guardian asks.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use storage::ChunkStore;
use trace::Recorder;

use super::channel::{ALL_BLOBS, Message};
use crate::Error;
use crate::log::chain;
use crate::serve::{Outcome, spawn};
use crate::stats::{Counters, add};

/// Requests that are served at once; further ones wait in the socket.
const WORKERS: usize = 8;
/// How often it looks whether a blob has become complete.
const TICK: Duration = Duration::from_millis(500);

/// See the module.
pub(crate) struct Filler {
    socket: Arc<OwnedFd>,
    /// Closed when this process ends, however it does.
    _alive: OwnedFd,
    /// The lock of the mount, held as long as this process serves it.
    _lock: Option<File>,
    ended: Receiver<io::Result<Outcome>>,
    stop: Arc<AtomicBool>,
}

impl Filler {
    /// Starts to serve.
    pub(super) fn start(
        store: &Arc<ChunkStore>,
        blobs: u32,
        counters: &Arc<Counters>,
        trace: &Option<Arc<Recorder>>,
        socket: OwnedFd,
        alive: OwnedFd,
    ) -> Result<Self, Error> {
        let socket = Arc::new(socket);
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, ended) = mpsc::channel();
        for at in 0..WORKERS {
            let worker = Worker {
                socket: socket.clone(),
                store: store.clone(),
                counters: counters.clone(),
                trace: trace.clone(),
                blobs,
            };
            let sender = sender.clone();
            spawn(&format!("fill-{at}"), move || {
                let outcome = worker.run();
                // Only the first one counts, and nobody may listen any more.
                let _ = sender.send(outcome);
            })?;
        }
        let keeper = Keeper {
            socket: socket.clone(),
            store: store.clone(),
            incomplete: (0..blobs).collect(),
            stop: stop.clone(),
        };
        spawn("complete-blobs", move || keeper.run())?;
        Ok(Self {
            socket,
            _alive: alive,
            _lock: None,
            ended,
            stop,
        })
    }

    /// Holds the lock of the mount, if there is one, from now on.
    pub(super) fn holding(mut self, lock: Option<File>) -> Self {
        self._lock = lock;
        self
    }

    /// Waits until nobody has the image mounted any more, or another process goes on.
    pub(crate) fn join(self) -> io::Result<Outcome> {
        let ended = self.ended.recv();
        self.stop.store(true, Ordering::Relaxed);
        if matches!(ended, Ok(Ok(Outcome::Over))) {
            // The other workers wait for what won't come.
            let _ = rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Both);
        } else {
            // The socket is the next filler's, too. The other workers take requests out of it until this process is gone,
            // so nobody may believe that it is before the kernel says so.
            std::mem::forget(self._alive);
        }
        match ended.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into())) {
            // The word that it is over reached one worker, and another one saw the guardians' end before that spoke.
            Err(error) => self.ended.iter().find_map(Result::ok).ok_or(error),
            outcome => outcome,
        }
    }

    /// A descriptor over which to say [`leave`].
    pub(crate) fn socket(&self) -> Arc<OwnedFd> {
        self.socket.clone()
    }
}

/// Has the guardians refuse from now on what the cache does not hold.
pub(crate) fn leave(socket: &OwnedFd) {
    // Without guardians there is nobody to tell.
    let _ = Message::Leave.send(socket, true);
}

struct Worker {
    socket: Arc<OwnedFd>,
    store: Arc<ChunkStore>,
    counters: Arc<Counters>,
    trace: Option<Arc<Recorder>>,
    blobs: u32,
}

impl Worker {
    fn run(&self) -> io::Result<Outcome> {
        loop {
            match Message::receive(&*self.socket, true)? {
                Some(Message::Fill {
                    id,
                    blob,
                    start,
                    end,
                }) => self.fill(id, blob, start, end)?,
                Some(Message::Over) => return Ok(Outcome::Over),
                Some(Message::Retire) => return Ok(Outcome::Replaced),
                Some(_) => {}
                None => {
                    return Err(io::Error::other("all guardians of the mount are gone"));
                }
            }
        }
    }

    fn fill(&self, id: u64, blob: u32, start: u64, end: u64) -> io::Result<()> {
        let _timer = self.counters.read_times.start();
        add(&self.counters.reads, 1);
        let began = Instant::now();
        let filled = if blob == ALL_BLOBS {
            (0..self.blobs).try_fold(start..end, |run, blob| {
                self.store.fill(blob, start..end).map(|_| run)
            })
        } else {
            self.store.fill(blob, start..end)
        };
        let answer = match filled {
            Ok(good) => {
                add(&self.counters.bytes, end.saturating_sub(start));
                Message::Filled {
                    id,
                    start: good.start,
                    end: good.end,
                }
            }
            Err(error) => {
                add(&self.counters.errors, 1);
                tracing::error!(
                    "bytes {start:#x}..{end:#x} of blob index {blob}: {}",
                    chain(&error)
                );
                Message::Failed { id }
            }
        };
        answer.send(&*self.socket, true)?;
        if let Some(trace) = &self.trace {
            trace.filled(blob, start..end, began);
        }
        Ok(())
    }
}

/// Tells the guardian which blobs are complete: they need it no longer.
struct Keeper {
    socket: Arc<OwnedFd>,
    store: Arc<ChunkStore>,
    incomplete: Vec<u32>,
    stop: Arc<AtomicBool>,
}

impl Keeper {
    fn run(mut self) {
        let mut errors = self.store.stats().cache_errors;
        while !self.stop.load(Ordering::Relaxed) && !self.incomplete.is_empty() {
            let now = self.store.stats().cache_errors;
            if now != std::mem::replace(&mut errors, now)
                && Message::Distrust.send(&*self.socket, true).is_err()
            {
                return;
            }
            let (store, mut done) = (&self.store, self.incomplete.clone());
            done.retain(|&blob| store.is_complete(blob));
            if !done.is_empty() && store.sync().is_ok() {
                // What was complete before the barrier, and is still, is on the disk.
                done.retain(|&blob| store.is_complete(blob));
                self.incomplete.retain(|blob| !done.contains(blob));
                for blob in done {
                    if (Message::Complete { blob })
                        .send(&*self.socket, true)
                        .is_err()
                    {
                        return;
                    }
                }
            }
            thread::sleep(TICK);
        }
    }
}

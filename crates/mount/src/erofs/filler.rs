//! The process that has the chunk store: it completes cache files as the guardian asks.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use storage::ChunkStore;
use trace::Recorder;

use super::channel::{ALL_BLOBS, Message};
use crate::Error;
use crate::events::{self, Receiver, Sender};
use crate::log::chain;
use crate::serve::{Outcome, spawn};
use crate::stats::{Counters, add};

/// Requests that are served at once; further ones wait in the socket.
const WORKERS: usize = 8;
/// A worker that had nothing to do for so long ends, unless it is the last.
const IDLE: Duration = Duration::from_secs(1);
/// How often it looks whether a blob has become complete.
const TICK: Duration = Duration::from_millis(500);

/// See the module.
pub(crate) struct Filler {
    socket: Arc<OwnedFd>,
    /// Closed when this process ends, however it does.
    alive: Option<OwnedFd>,
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
        let (sender, ended) = events::channel().map_err(|source| Error::System {
            what: "memory",
            source,
        })?;
        let crew = Arc::new(Crew {
            socket: socket.clone(),
            store: store.clone(),
            counters: counters.clone(),
            trace: trace.clone(),
            blobs,
            ended: sender,
            hands: Mutex::default(),
        });
        crew.hire()?;
        let keeper = Keeper {
            socket: socket.clone(),
            store: store.clone(),
            incomplete: (0..blobs).collect(),
            stop: stop.clone(),
        };
        spawn("complete-blobs", move || keeper.run())?;
        Ok(Self {
            socket,
            alive: Some(alive),
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

    /// Whether nobody has the image mounted any more, or another process goes on, if either is so.
    pub(crate) fn take(&mut self) -> Option<io::Result<Outcome>> {
        let ended = self.ended.take()?;
        self.stop.store(true, Ordering::Relaxed);
        if matches!(ended, Ok(Outcome::Over)) {
            // The other workers wait for what won't come.
            let _ = rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Both);
        } else if let Some(alive) = self.alive.take() {
            // The socket is the next filler's, too. The other workers take requests out of it until this process is gone,
            // so nobody may believe that it is before the kernel says so.
            std::mem::forget(alive);
        }
        Some(match ended {
            // The word that it is over reached one worker, and another one saw the guardians' end before that spoke.
            Err(error) => std::iter::from_fn(|| self.ended.recv())
                .find_map(Result::ok)
                .ok_or(error),
            outcome => outcome,
        })
    }

    /// A descriptor over which to say [`leave`].
    pub(crate) fn socket(&self) -> Arc<OwnedFd> {
        self.socket.clone()
    }
}

impl AsFd for Filler {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

/// Has the guardians refuse from now on what the cache does not hold.
pub(crate) fn leave(socket: &OwnedFd) {
    // Without guardians there is nobody to tell.
    let _ = Message::Leave.send(socket, true);
}

/// Workers that take requests out of the socket. One of them always waits there, unless all are busy; those that found
/// nothing to do for a while end.
struct Crew {
    socket: Arc<OwnedFd>,
    store: Arc<ChunkStore>,
    counters: Arc<Counters>,
    trace: Option<Arc<Recorder>>,
    blobs: u32,
    ended: Sender<io::Result<Outcome>>,
    hands: Mutex<Hands>,
}

/// How many workers there are.
#[derive(Default)]
struct Hands {
    present: usize,
    waiting: usize,
}

impl Crew {
    /// Starts a worker, who waits.
    fn hire(self: &Arc<Self>) -> Result<(), Error> {
        let mut hands = self.hands();
        let worker = self.clone();
        spawn(&format!("fill-{}", hands.present), move || {
            match worker.work() {
                Ok(None) => {}
                // Only the first one counts.
                Ok(Some(outcome)) => worker.ended.send(Ok(outcome)),
                Err(error) => worker.ended.send(Err(error)),
            }
        })?;
        hands.present += 1;
        hands.waiting += 1;
        Ok(())
    }

    fn hands(&self) -> MutexGuard<'_, Hands> {
        self.hands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why there is nothing left to do; `None` if that is for this worker alone.
    fn work(self: &Arc<Self>) -> io::Result<Option<Outcome>> {
        loop {
            // The last one waits as long as it takes.
            let most = (self.hands().waiting > 1).then_some(IDLE);
            let [there] = events::wait([Some(self.socket.as_fd())], most)?;
            if !there {
                let mut hands = self.hands();
                if hands.waiting > 1 {
                    hands.waiting -= 1;
                    hands.present -= 1;
                    return Ok(None);
                }
                continue;
            }
            match Message::receive(&*self.socket, false) {
                // Another worker was faster.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
                Ok(Some(Message::Fill {
                    id,
                    blob,
                    start,
                    end,
                })) => {
                    self.leave_post();
                    let answered = self.fill(id, blob, start, end);
                    self.hands().waiting += 1;
                    answered?;
                }
                Ok(Some(Message::Over)) => return Ok(Some(Outcome::Over)),
                Ok(Some(Message::Retire)) => return Ok(Some(Outcome::Replaced)),
                Ok(Some(_)) => {}
                Ok(None) => {
                    return Err(io::Error::other("all guardians of the mount are gone"));
                }
            }
        }
    }

    /// A worker that waited is busy from now on; another one takes its place.
    fn leave_post(self: &Arc<Self>) {
        let mut hands = self.hands();
        hands.waiting -= 1;
        let hire = hands.waiting == 0 && hands.present < WORKERS;
        drop(hands);
        if hire {
            // Without another one, what comes waits for those that are busy.
            let _ = self.hire();
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

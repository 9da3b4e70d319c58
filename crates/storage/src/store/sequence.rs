//! Reading chunks in an order that is known beforehand.
//!
//! One thread goes ahead of the reader: it fetches what is next, as far as the window of bytes allows, and leaves the
//! decoding to the pool. The reader takes chunk after chunk and only waits where it has caught up. Fetches follow the
//! order of the chunks, so who asks in the order in which they are stored reads a blob front to back.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rafs_format::ChunkPointer;

use super::fetch::NEIGHBOURS_MAX;
use super::{Inner, Key, Purpose};
use crate::{ReadError, VerifiedChunk};

/// Chunks in order; see [`ChunkStore::sequence`](super::ChunkStore::sequence). Ends after the last one; after an error
/// it may be asked for the next.
pub struct Sequence {
    inner: Arc<Inner>,
    chunks: Arc<[ChunkPointer]>,
    next: usize,
    ahead: Arc<Ahead>,
    thread: Option<JoinHandle<()>>,
}

/// How far the thread is ahead.
struct Ahead {
    /// Most bytes between the thread and the reader.
    window: u64,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    /// Chunks that were asked for.
    asked: usize,
    /// Bytes of those that the reader has not taken.
    bytes: u64,
    stopped: bool,
}

impl Sequence {
    pub(super) fn start(inner: &Arc<Inner>, chunks: Vec<ChunkPointer>) -> Self {
        let chunks: Arc<[ChunkPointer]> = chunks.into();
        let ahead = Arc::new(Ahead {
            window: inner.options.recent as u64 / 2,
            progress: Mutex::default(),
            changed: Condvar::new(),
        });
        let run = {
            let (inner, chunks, ahead) =
                (Arc::clone(inner), Arc::clone(&chunks), Arc::clone(&ahead));
            move || ahead.run(&inner, &chunks)
        };
        let thread = thread::Builder::new().name("read-ahead".into()).spawn(run);
        let thread = thread.ok();
        if thread.is_none() {
            // The reader then fetches by itself.
            ahead.lock().asked = usize::MAX;
        }
        Self {
            inner: Arc::clone(inner),
            chunks,
            next: 0,
            ahead,
            thread,
        }
    }
}

impl Iterator for Sequence {
    type Item = Result<Arc<VerifiedChunk>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let chunk = *self.chunks.get(self.next)?;
        self.ahead.wait_for(self.next);
        self.next += 1;
        let (key, size) = match self.inner.locate(chunk) {
            Ok((key, _, known)) => (key, known.size),
            Err(error) => return Some(Err(error)),
        };
        // A use would keep what is done with, at the cost of what was fetched for later.
        let result = match self.inner.recent.peek(key) {
            Some(chunk) => Ok(chunk),
            None => self.inner.chunk(key, &[]),
        };
        self.ahead.taken(size.into());
        Some(result)
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.ahead.lock().stopped = true;
        self.ahead.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // What went wrong there the reader has met as well.
            let _ = thread.join();
        }
    }
}

impl Ahead {
    fn run(&self, inner: &Arc<Inner>, chunks: &[ChunkPointer]) {
        // However the thread ends, the reader must not wait for it.
        let _end = End(self);
        for (at, &chunk) in chunks.iter().enumerate() {
            // What cannot be had is found out by the reader.
            if let Ok((key, _, known)) = inner.locate(chunk) {
                if !self.admit(known.size.into()) {
                    return;
                }
                if inner.is_absent(key)
                    && let Some(claim) = inner.flights.claim(key)
                {
                    let want = self.window(inner, chunks.get(at + 1..).unwrap_or_default());
                    let _ = inner.bring(claim, &want, Purpose::Prefetch);
                }
            }
            self.lock().asked = at + 1;
            self.changed.notify_all();
        }
    }

    /// The chunks that one fetch may bring as well: half of what may be ahead.
    fn window(&self, inner: &Inner, chunks: &[ChunkPointer]) -> Vec<Key> {
        let mut bytes = 0;
        let located = chunks.iter().take(NEIGHBOURS_MAX);
        let located = located.filter_map(|&chunk| inner.locate(chunk).ok());
        let fitting = located.take_while(|(_, _, known)| {
            bytes += u64::from(known.size);
            bytes <= self.window / 2
        });
        fitting.map(|(key, _, _)| key).collect()
    }

    /// Waits until `size` more bytes fit between thread and reader. False if the reader is gone.
    fn admit(&self, size: u64) -> bool {
        let full = |progress: &mut Progress| {
            !progress.stopped
                && progress.bytes != 0
                && progress.bytes.saturating_add(size) > self.window
        };
        let mut progress = self
            .changed
            .wait_while(self.lock(), full)
            .unwrap_or_else(PoisonError::into_inner);
        progress.bytes = progress.bytes.saturating_add(size);
        !progress.stopped
    }

    /// Waits until chunk `at` was asked for.
    fn wait_for(&self, at: usize) {
        let pending = |progress: &mut Progress| progress.asked <= at;
        drop(
            self.changed
                .wait_while(self.lock(), pending)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    fn taken(&self, size: u64) {
        let mut progress = self.lock();
        progress.bytes = progress.bytes.saturating_sub(size);
        drop(progress);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the reader go on by itself when the thread has ended.
struct End<'a>(&'a Ahead);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.lock().asked = usize::MAX;
        self.0.changed.notify_all();
    }
}

//! The events that wait for an answer, in memory that both guardians see.
//!
//! The kernel writes each event straight into a row. So an event can't be lost between being read and being known to
//! the other guardian, whenever a guardian is killed.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use sys::SharedWords;
use sys::fanotify::{EVENT_WORDS, Event, Group};

/// Events that may wait at once. More stay in the kernel's queue.
pub(super) const ROWS: usize = 1024;
/// Words of a row: the event, its identity, its state, and the blob. An identity is never used again; its lowest bits
/// are the row.
const ROW_WORDS: usize = EVENT_WORDS + 3;
/// Words before the first row: the next identity.
const HEAD: usize = 1;
const WORDS: usize = HEAD + ROWS * ROW_WORDS;

const FREE: u64 = 0;
/// An event is about to be read into the row.
const ARMED: u64 = 1;
/// The event waits for an answer.
const WAITING: u64 = 2;
/// No blob of ours: it was not known yet when the guardian died.
const NO_BLOB: u64 = u64::MAX;

/// See the module.
#[derive(Debug)]
pub(super) struct Table(SharedWords);

/// An event that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) row: usize,
    pub(super) id: u64,
    pub(super) event: Event,
    /// Index of the blob whose cache file is read; `None` if the guardian died before it knew.
    pub(super) blob: Option<u32>,
}

impl Table {
    pub(super) fn create() -> io::Result<OwnedFd> {
        SharedWords::create("nydusify-events", WORDS)
    }

    pub(super) fn map(descriptor: &OwnedFd) -> io::Result<Self> {
        SharedWords::map(descriptor, WORDS).map(Self)
    }

    fn row(&self, row: usize) -> Option<&[AtomicU64; ROW_WORDS]> {
        let rows = self.0.words().get(HEAD..)?;
        rows.as_chunks::<ROW_WORDS>().0.get(row)
    }

    /// A row without an event.
    pub(super) fn free_row(&self) -> Option<usize> {
        let rows = self.0.words().get(HEAD..)?.as_chunks::<ROW_WORDS>().0;
        rows.iter()
            .position(|row| row[EVENT_WORDS + 1].load(Ordering::Acquire) == FREE)
    }

    /// Has the kernel write its next event into a free row; `None` if there is none. Only one process may read.
    pub(super) fn read(&self, group: &Group, row: usize) -> io::Result<Option<(Waiting, OwnedFd)>> {
        let Some((head, words)) = self.0.words().first().zip(self.row(row)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let (event_words, [id, state, blob]) = split(words);
        let count = head.load(Ordering::Acquire) + 1;
        head.store(count, Ordering::Release);
        let next = count * ROWS as u64 + row as u64;
        event_words
            .iter()
            .for_each(|word| word.store(0, Ordering::Release));
        id.store(next, Ordering::Release);
        blob.store(NO_BLOB, Ordering::Release);
        state.store(ARMED, Ordering::Release);
        match group.read_event(event_words) {
            Ok((event, file)) => {
                state.store(WAITING, Ordering::Release);
                Ok(Some((
                    Waiting {
                        row,
                        id: next,
                        event,
                        blob: None,
                    },
                    file,
                )))
            }
            Err(error) => {
                state.store(FREE, Ordering::Release);
                match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                    _ => Err(error),
                }
            }
        }
    }

    /// Notes whose cache file an event is about.
    pub(super) fn set_blob(&self, row: usize, blob: u32) {
        if let Some(row) = self.row(row) {
            row[EVENT_WORDS + 2].store(blob.into(), Ordering::Release);
        }
    }

    /// The event is answered.
    pub(super) fn free(&self, row: usize) {
        if let Some(row) = self.row(row) {
            row[EVENT_WORDS + 1].store(FREE, Ordering::Release);
        }
    }

    /// The event in a row, if it is the one with that identity.
    pub(super) fn waiting(&self, row: usize) -> Option<Waiting> {
        let (event, [id, state, blob]) = split(self.row(row)?);
        if state.load(Ordering::Acquire) != WAITING {
            return None;
        }
        Some(Waiting {
            row,
            id: id.load(Ordering::Acquire),
            event: Event::parse(event)?,
            blob: u32::try_from(blob.load(Ordering::Acquire)).ok(),
        })
    }

    /// All events that wait.
    pub(super) fn all(&self) -> impl Iterator<Item = Waiting> {
        (0..ROWS).filter_map(|row| self.waiting(row))
    }

    /// The event with that identity.
    pub(super) fn find(&self, id: u64) -> Option<Waiting> {
        let row = usize::try_from(id % ROWS as u64).ok()?;
        self.waiting(row).filter(|waiting| waiting.id == id)
    }

    /// Takes over from a guardian that died: what it was just reading waits too, if the kernel gave it anything.
    /// The numbers of the dead one's descriptors are still the names of its events.
    pub(super) fn take_over(&self) -> Vec<RawFd> {
        for row in 0..ROWS {
            let Some(words) = self.row(row) else { continue };
            let (event, [_, state, _]) = split(words);
            if state.load(Ordering::Acquire) == ARMED {
                let read = event[0].load(Ordering::Acquire) != 0;
                state.store(if read { WAITING } else { FREE }, Ordering::Release);
            }
        }
        self.all().map(|waiting| waiting.event.number).collect()
    }
}

fn split(row: &[AtomicU64; ROW_WORDS]) -> (&[AtomicU64; EVENT_WORDS], &[AtomicU64; 3]) {
    let (event, rest) = row
        .split_first_chunk::<EVENT_WORDS>()
        .expect("a row begins with an event");
    (event, rest.first_chunk().expect("three words follow"))
}

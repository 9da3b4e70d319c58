//! Sharing chunks between the layers of one image, lowest layer first.
//!
//! The table of chunks is a baton: the dedup stage of a layer waits for it, adds the layer's own chunks and passes it
//! to the next layer. A second baton follows once a layer's blob is complete and carries what only then is known:
//! the blob's id and where its chunks are stored.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use chunkdict::{ChunkKey, ChunkTable};
use progress::Cancel;
use rafs_format::{BlobInfo, ChunkRecord};

use crate::Error;

/// What a layer's chunks are compared with, besides the dictionary.
#[derive(Debug)]
pub enum Dedup {
    /// The layer itself.
    Layer,
    /// The layer and those below it. Lower layers must be built at the same time or before.
    Image(Turn),
}

/// Where a chunk of a lower layer lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// Number of the layer, 0 is the lowest.
    pub layer: u32,
    /// Index of the chunk in that layer's blob.
    pub chunk: u32,
}

/// A layer that is complete.
#[derive(Debug)]
pub(crate) struct LowerLayer {
    /// Its blob, with its final id; `None` if it stored nothing.
    pub blob: Option<BlobInfo>,
    /// The chunks of that blob, by index.
    pub chunks: Vec<ChunkRecord>,
}

type Known = ChunkTable<Place>;
type Lower = Vec<Arc<LowerLayer>>;

/// The place of one layer in the order of an image.
#[derive(Debug)]
pub struct Turn {
    layer: u32,
    known: (Receiver<Known>, Sender<Known>),
    lower: (Receiver<Lower>, Sender<Lower>),
}

impl Turn {
    /// Turns for the layers of an image, lowest first.
    pub fn for_layers(count: usize) -> Vec<Self> {
        let (first_known, mut next_known) = channel();
        let (first_lower, mut next_lower) = channel();
        first_known
            .send(Known::default())
            .expect("the receiver is in scope");
        first_lower
            .send(Lower::default())
            .expect("the receiver is in scope");
        (0..count)
            .map(|layer| {
                let (known_sender, known) = channel();
                let (lower_sender, lower) = channel();
                Self {
                    layer: layer as u32,
                    known: (std::mem::replace(&mut next_known, known), known_sender),
                    lower: (std::mem::replace(&mut next_lower, lower), lower_sender),
                }
            })
            .collect()
    }

    /// Gives the turn up for a layer that is not built: its chunks are not shared, those below it still are.
    ///
    /// # Errors
    /// [`Error::LowerLayer`] if a lower layer failed, [`Error::Cancelled`].
    pub fn skip(self, cancel: &Cancel) -> Result<(), Error> {
        let finish = self.wait(cancel)?.pass();
        finish.wait(cancel)?.pass(LowerLayer {
            blob: None,
            chunks: Vec::new(),
        });
        Ok(())
    }

    /// Waits until the chunks of all lower layers are known.
    pub(crate) fn wait(self, cancel: &Cancel) -> Result<Shared, Error> {
        let known = receive(&self.known.0, cancel)?;
        Ok(Shared {
            layer: self.layer,
            known,
            next: self.known.1,
            lower: self.lower,
        })
    }
}

/// The table of chunks while it is this layer's turn.
#[derive(Debug)]
pub(crate) struct Shared {
    layer: u32,
    known: Known,
    next: Sender<Known>,
    lower: (Receiver<Lower>, Sender<Lower>),
}

impl Shared {
    pub(crate) fn find(&self, key: &ChunkKey) -> Option<Place> {
        self.known.find(key)
    }

    pub(crate) fn insert(&mut self, key: ChunkKey, chunk: u32) {
        self.known.insert(
            key,
            Place {
                layer: self.layer,
                chunk,
            },
        );
    }

    /// Passes the table to the next layer.
    pub(crate) fn pass(self) -> Finish {
        // Nobody may be there: the top layer, or a layer above that has failed.
        self.next.send(self.known).ok();
        Finish { lower: self.lower }
    }
}

/// The rest of a turn: to learn what became of the lower layers.
#[derive(Debug)]
pub(crate) struct Finish {
    lower: (Receiver<Lower>, Sender<Lower>),
}

impl Finish {
    /// Waits until all lower layers are complete.
    pub(crate) fn wait(self, cancel: &Cancel) -> Result<Finished, Error> {
        Ok(Finished {
            lower: receive(&self.lower.0, cancel)?,
            next: self.lower.1,
        })
    }
}

/// All lower layers, complete.
#[derive(Debug)]
pub(crate) struct Finished {
    lower: Lower,
    next: Sender<Lower>,
}

impl Finished {
    /// The blob and the record of a chunk of a lower layer.
    pub(crate) fn chunk(&self, place: Place) -> Option<(&BlobInfo, ChunkRecord)> {
        let layer = self.lower.get(place.layer as usize)?;
        Some((
            layer.blob.as_ref()?,
            *layer.chunks.get(place.chunk as usize)?,
        ))
    }

    /// Tells the next layer that this one is complete too.
    pub(crate) fn pass(mut self, own: LowerLayer) {
        self.lower.push(Arc::new(own));
        self.next.send(self.lower).ok();
    }
}

fn receive<T>(baton: &Receiver<T>, cancel: &Cancel) -> Result<T, Error> {
    loop {
        cancel.check()?;
        match baton.recv_timeout(Duration::from_millis(100)) {
            Ok(received) => return Ok(received),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Error::LowerLayer),
        }
    }
}

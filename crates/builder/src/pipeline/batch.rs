//! Small chunks, gathered into batches that are compressed as one.
//!
//! A batch ends when another chunk would fill it, when a chunk follows that is stored by itself, and with the blob:
//! chunks of a batch lie in the blob one behind the other and in input order.

use super::cut::buffer_size;
use crate::budget::{Buffer, Lane};
use crate::{BuildOptions, Error};

/// Batches of no more bytes are not made when they would be encrypted. Readers take a batch for compressed if its
/// stored size differs from its size, as encryption makes it when a batch has fewer than 16 bytes, and for raw if the
/// sizes are the same, as encryption may make them when it has 18.
const ENCRYPTED_BYTES: usize = 18;

/// A batch that is complete, or chunks that make none.
pub(super) struct Batch {
    pub buffer: Buffer,
    /// Lengths of the chunks.
    pub lens: Vec<u32>,
    /// Whether the chunks are to be stored one by one.
    pub single: bool,
}

/// The batch that is being filled.
pub(super) struct Gatherer<'a> {
    options: &'a BuildOptions,
    /// A lane of its own: it waits for the batches before and never for chunks that have yet to come here.
    lane: Lane,
    open: Option<Batch>,
}

impl<'a> Gatherer<'a> {
    pub fn new(options: &'a BuildOptions, lane: Lane) -> Self {
        Self {
            options,
            lane,
            open: None,
        }
    }

    /// Whether a chunk of so many bytes begins another batch than the one that is being filled.
    pub fn is_full(&self, len: u32) -> bool {
        self.open.as_ref().is_some_and(|open| {
            open.buffer.len() + len as usize >= self.options.batch_size as usize
        })
    }

    /// Adds a chunk. A batch that it does not fit into must have been ended, and be on its way: the next one may have to
    /// wait for its memory.
    pub fn add(&mut self, chunk: &[u8]) -> Result<(), Error> {
        let open = match &mut self.open {
            Some(open) => open,
            none => {
                let size = buffer_size(self.options);
                none.insert(Batch {
                    buffer: self.lane.acquire(size, &self.options.cancel)?,
                    lens: Vec::new(),
                    single: false,
                })
            }
        };
        open.buffer.extend(chunk.len()).copy_from_slice(chunk);
        open.lens.push(chunk.len() as u32);
        Ok(())
    }

    /// Ends the batch, if there is one.
    pub fn end(&mut self) -> Option<Batch> {
        let mut batch = self.open.take()?;
        batch.single = self.options.encryption.is_some() && batch.buffer.len() <= ENCRYPTED_BYTES;
        Some(batch)
    }
}

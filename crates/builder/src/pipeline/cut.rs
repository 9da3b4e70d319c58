//! First stage: file data into chunk buffers, small chunks several to a buffer.

use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::sync::mpsc::SyncSender;

use codec::BlobCipher;
use progress::Cancel;
use rafs_format::Digester;
use tree::ChunkId;

use super::{Pending, Piece, stopped};
use crate::BuildOptions;
use crate::budget::{Buffer, Lane};

/// Smallest buffer, in bytes: several chunks share one if they are small.
const BUFFER_MIN: usize = 256 << 10;
/// Bytes at which a job goes on its way even if its buffer has room, so that huge buffers don't serialise small files.
const JOB_ENOUGH: usize = 1 << 20;

/// Size of every buffer of a layer, in bytes.
pub(super) fn buffer_size(options: &BuildOptions) -> usize {
    (options.chunk_size as usize).max(BUFFER_MIN)
}

/// Chunks whose digests are known.
pub(super) struct Hashed {
    pub buffer: Buffer,
    pub pieces: Vec<Piece>,
    /// Whether those that are new go into batches: all of them or none.
    pub batched: bool,
}

/// Cuts files into chunks and gives every chunk a provisional id: its number in input order.
pub(crate) struct Cutter<'a> {
    options: &'a BuildOptions,
    cancel: Cancel,
    lane: Lane,
    jobs: SyncSender<Pending<Hashed>>,
    open: Option<Open>,
    next: u32,
    prefetched: u32,
}

/// The job that is being filled.
struct Open {
    buffer: Buffer,
    lens: Vec<u32>,
    batched: bool,
    /// Bytes that all chunks have at most once they are stored.
    stored: usize,
}

impl<'a> Cutter<'a> {
    pub(super) fn new(
        options: &'a BuildOptions,
        lane: Lane,
        jobs: SyncSender<Pending<Hashed>>,
    ) -> Self {
        Self {
            options,
            cancel: options.cancel.clone(),
            lane,
            jobs,
            open: None,
            next: 0,
            prefetched: 0,
        }
    }

    /// Reads a file of `size` bytes. Returns the provisional ids of its chunks.
    pub(crate) fn cut(&mut self, size: u64, data: &mut dyn Read) -> io::Result<Range<u32>> {
        let first = self.next;
        let chunk_size = u64::from(self.options.chunk_size);
        let batched = self.options.is_batched(size);
        let mut left = size;
        while left > 0 {
            self.cancel.check().map_err(io::Error::other)?;
            let len = left.min(chunk_size) as u32;
            self.chunk(len, batched, data)?;
            left -= u64::from(len);
            self.next = self
                .next
                .checked_add(1)
                .ok_or_else(|| io::Error::other("more than 2^32 chunks in a layer"))?;
        }
        Ok(first..self.next)
    }

    /// Says that all files to prefetch have been cut.
    pub(crate) fn end_prefetch(&mut self) {
        self.prefetched = self.next;
    }

    /// Chunks of files to prefetch.
    pub(super) fn prefetched(&self) -> u32 {
        self.prefetched
    }

    /// Reads one chunk into the open job, or into a new one if it does not fit there.
    fn chunk(&mut self, len: u32, batched: bool, data: &mut dyn Read) -> io::Result<()> {
        let bytes = len as usize;
        let stored = match &self.options.encryption {
            Some(_) => BlobCipher::stored_size(bytes),
            None => bytes,
        };
        // All buffers have one size: then each fits wherever another one was freed.
        let size = buffer_size(self.options);
        if self
            .open
            .as_ref()
            .is_some_and(|open| open.batched != batched || size - open.stored < stored)
        {
            self.finish()?;
        }
        let open = match &mut self.open {
            Some(open) => open,
            none => {
                let buffer = self
                    .lane
                    .acquire(size, &self.cancel)
                    .map_err(io::Error::other)?;
                none.insert(Open {
                    buffer,
                    lens: Vec::new(),
                    batched,
                    stored: 0,
                })
            }
        };
        data.read_exact(open.buffer.extend(bytes))?;
        open.lens.push(len);
        open.stored += stored;
        if open.stored == size || open.buffer.len() >= JOB_ENOUGH {
            self.finish()
        } else {
            Ok(())
        }
    }

    /// Sends the open job on its way.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let digester = self.options.digester;
        let job = Pending::spawn(&self.options.pool, move || hash(digester, open));
        self.jobs.send(job).map_err(|_| stopped())
    }
}

impl layer::DataSink for Cutter<'_> {
    fn file(
        &mut self,
        file: layer::FileInfo<'_>,
        data: &mut dyn BufRead,
    ) -> io::Result<Box<[ChunkId]>> {
        Ok(self.cut(file.size, data)?.map(ChunkId).collect())
    }
}

fn hash(digester: Digester, open: Open) -> Hashed {
    let mut rest = open.buffer.as_slice();
    let pieces = open
        .lens
        .iter()
        .map(|&len| {
            let (chunk, tail) = rest.split_at(len as usize);
            rest = tail;
            Piece {
                len,
                digest: codec::digest(digester, chunk),
                crc32: codec::crc32c(chunk),
            }
        })
        .collect();
    Hashed {
        buffer: open.buffer,
        pieces,
        batched: open.batched,
    }
}

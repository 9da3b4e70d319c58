//! Work of the pool: chunks and batches into the bytes that are stored.

use std::io;
use std::sync::{Mutex, PoisonError};

use codec::{BlobCipher, Encoder};
use rafs_format::Compressor;

use super::StoredUnit;
use crate::BuildOptions;
use crate::budget::Buffer;

/// Stored bytes of new chunks, back to back.
pub(super) struct Compressed {
    pub buffer: Buffer,
    pub units: Vec<StoredUnit>,
}

/// Encoders that wait for the next job, each with memory to write to: never more than the pool has threads.
pub(super) struct Encoders {
    options: (Compressor, i32),
    cipher: Option<BlobCipher>,
    idle: Mutex<Vec<(Encoder, Vec<u8>)>>,
}

impl Encoders {
    pub fn new(options: &BuildOptions, cipher: Option<BlobCipher>) -> Self {
        Self {
            options: (options.compressor, options.level),
            cipher,
            idle: Mutex::default(),
        }
    }

    /// Replaces the chunks of a buffer, of these lengths, by the stored form of the new ones.
    pub fn chunks(&self, buffer: Buffer, lens: &[u32], new: &[bool]) -> io::Result<Compressed> {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let (encoder, mut spare) = match idle {
            Some(idle) => idle,
            None => (
                Encoder::new(self.options.0, self.options.1)?,
                vec![0; buffer.len()],
            ),
        };
        let mut sealer = Sealer {
            encoder,
            cipher: self.cipher.as_ref(),
        };
        let result = sealer.seal_all(&mut spare, buffer, lens, new);
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((sealer.encoder, spare));
        result
    }

    /// Replaces the whole content of a buffer, which is a batch of so many chunks, by its stored form.
    pub fn batch(&self, buffer: Buffer, members: u32) -> io::Result<Compressed> {
        let len = buffer.len() as u32;
        let mut compressed = self.chunks(buffer, &[len], &[true])?;
        for unit in &mut compressed.units {
            unit.members = members;
        }
        Ok(compressed)
    }
}

/// Compresses and encrypts.
pub(crate) struct Sealer<'a> {
    pub encoder: Encoder,
    pub cipher: Option<&'a BlobCipher>,
}

impl Sealer<'_> {
    /// The stored form of `bytes`, and whether it is compressed.
    pub fn seal(&mut self, bytes: &[u8]) -> io::Result<(Vec<u8>, bool)> {
        let mut out = Vec::new();
        let compressed = self.compress(bytes, &mut out, 0)?;
        let len = match compressed {
            Some(len) => len,
            None => {
                put(&mut out, 0, bytes);
                bytes.len()
            }
        };
        let len = self.encrypt(&mut out, 0, len);
        out.truncate(len);
        Ok((out, compressed.is_some()))
    }

    /// Writes to `spare`, which then changes places with the memory of the buffer.
    fn seal_all(
        &mut self,
        spare: &mut Vec<u8>,
        mut buffer: Buffer,
        lens: &[u32],
        new: &[bool],
    ) -> io::Result<Compressed> {
        let mut units = Vec::with_capacity(lens.len());
        let (mut read, mut written) = (0, 0);
        // The stored bytes so far are the first bytes of the buffer as they are.
        let mut untouched = true;
        for (&len, &new) in lens.iter().zip(new) {
            let start = read;
            read += len as usize;
            if !new {
                continue;
            }
            let chunk = &buffer.as_slice()[start..read];
            let stored = self.compress(chunk, spare, written)?;
            if untouched && (stored.is_some() || start != written || self.cipher.is_some()) {
                untouched = false;
                put(spare, 0, &buffer.as_slice()[..written]);
            }
            if stored.is_none() && !untouched {
                put(spare, written, chunk);
            }
            let size = self.encrypt(spare, written, stored.unwrap_or(chunk.len()));
            written += size;
            units.push(StoredUnit {
                size: size as u32,
                compressed: stored.is_some(),
                members: 0,
            });
        }
        if untouched {
            buffer.truncate(written);
        } else {
            buffer.exchange(spare, written);
        }
        Ok(Compressed { buffer, units })
    }

    /// As [`Encoder::compress_at`]; without what a reader that decrypts it would take for something else.
    fn compress(
        &mut self,
        chunk: &[u8],
        out: &mut Vec<u8>,
        start: usize,
    ) -> io::Result<Option<usize>> {
        let stored = self.encoder.compress_at(chunk, out, start)?;
        let clear =
            |len: &usize| self.cipher.is_none() || !BlobCipher::looks_filled(&out[start..][..*len]);
        Ok(stored.filter(clear))
    }

    fn encrypt(&self, bytes: &mut Vec<u8>, start: usize, len: usize) -> usize {
        match self.cipher {
            Some(cipher) => cipher.encrypt_at(bytes, start, len),
            None => len,
        }
    }
}

/// Overwrites the bytes from `start` on, with room added as needed.
fn put(out: &mut Vec<u8>, start: usize, bytes: &[u8]) {
    let end = start + bytes.len();
    if out.len() < end {
        out.resize(end, 0);
    }
    out[start..end].copy_from_slice(bytes);
}

//! Last stage: stored bytes into the blob.

use std::io::{self, Write};
use std::sync::mpsc::Receiver;

use sha2::{Digest as _, Sha256};

use super::compress::Compressed;
use super::{Pending, StoredUnit};
use crate::{BuildOptions, Error};

/// A blob that is written strictly front to back, with its running SHA-256.
pub(crate) struct BlobWriter<W> {
    out: W,
    sha256: Sha256,
    offset: u64,
    len: u64,
}

impl<W: Write> BlobWriter<W> {
    /// A blob that goes to `out` and begins at `offset` of the file that readers see.
    pub(crate) fn new(out: W, offset: u64) -> Self {
        Self {
            out,
            sha256: Sha256::new(),
            offset,
            len: 0,
        }
    }

    /// Appends bytes.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.write_all(bytes).map_err(Error::Write)?;
        self.sha256.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Where the next byte lies in the file that readers see.
    pub(crate) fn position(&self) -> u64 {
        self.offset + self.len
    }

    /// The running digest of what was written so far.
    pub(crate) fn sha256(&self) -> Sha256 {
        self.sha256.clone()
    }

    /// Flushes the output.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.out.flush().map_err(Error::Write)
    }
}

pub(super) fn run<W: Write>(
    jobs: &Receiver<Pending<io::Result<Compressed>>>,
    out: W,
    options: &BuildOptions,
) -> Result<(BlobWriter<W>, Vec<StoredUnit>), Error> {
    let mut blob = BlobWriter::new(out, options.blob_offset);
    let mut units = Vec::new();
    for job in jobs {
        options.cancel.check()?;
        let compressed = job
            .wait()
            .map_err(|_| Error::Panicked {
                stage: "compression",
            })?
            .map_err(Error::Compress)?;
        blob.append(compressed.buffer.as_slice())?;
        units.extend(compressed.units);
    }
    Ok((blob, units))
}

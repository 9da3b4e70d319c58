//! Images whose chunks stay where they are: in a layer's tar, as it is or gzipped, instead of a new blob.
//!
//! | Kind | Chunks lie in | Beside it |
//! |---|---|---|
//! | [`build_tarfs`] | the uncompressed tar, a device of 512-byte blocks | nothing |
//! | [`build_estargz`] | gzip members of an eStargz layer | a copy of the chunk table for the reader's cache |
//! | [`build_targz`] | a tar, plain or gzipped (zran) | a blob with the chunk table and, for gzip, where to begin inflating |
//! | [`build_targz_with`] | the same, or a tar in frames of zstd | the same |

mod estargz;
mod frames;
mod tarfs;
mod targz;

use std::io::{self, Read};

use rafs_format::BlobId;
use sha2::{Digest as _, Sha256};

use crate::Error;

pub use estargz::build_estargz;
pub use tarfs::build_tarfs;
pub use targz::{Onlooker, build_targz, build_targz_with};

/// The error for a file that has no place in the tar as a whole.
fn sparse() -> io::Error {
    let text = "it is a sparse file: its holes are not in the tar, so it cannot be read from there; use tar-rafs";
    io::Error::new(io::ErrorKind::Unsupported, text)
}

/// A source whose bytes are counted and, for its id, digested.
struct Counted<R> {
    inner: R,
    len: u64,
    sha256: Option<Sha256>,
}

impl<R: Read> Counted<R> {
    /// `id` is the one to use instead of the digest.
    fn new(inner: R, id: Option<&BlobId>) -> Self {
        Self {
            inner,
            len: 0,
            sha256: id.is_none().then(Sha256::new),
        }
    }

    /// Length in bytes and id of what was read.
    fn finish(self, id: Option<&BlobId>) -> Result<(u64, BlobId), Error> {
        let own = self
            .sha256
            .and_then(|sha256| BlobId::new(hex::encode(sha256.finalize())));
        let id = id.cloned().or(own).ok_or(Error::Stopped)?;
        Ok((self.len, id))
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(&buf[..n]);
        }
        self.len += n as u64;
        Ok(n)
    }
}

//! Reads a layer's tar: entries for the replay, file data cut into chunks and digested on the way.

use std::io::{self, Read};

use layer::tar::{self, EntryKind};
use progress::{Cancel, Cancelled};
use rafs_format::{Digest, Digester};
use tree::Xattrs;

use super::layer::{Entry, Kind, Layer, Refusal};
use super::path::clean_below_root;
use crate::model::Contents;

/// How file data is cut and digested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunking {
    /// Bytes per chunk.
    pub(crate) size: u32,
    /// Digester of the chunks.
    pub(crate) digester: Digester,
}

/// Why a layer cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The tar is malformed or cannot be read.
    #[error("the tar cannot be read")]
    Tar(#[from] layer::Error),
    /// File data cannot be read.
    #[error("the data of an entry cannot be read")]
    Data(#[from] io::Error),
    /// An entry makes no sense.
    #[error("the layer cannot be unpacked")]
    Refused(#[from] Refusal),
    /// The check was asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Unpacks the uncompressed tar `stream` on its own, and digests all files in it: which of them are visible is only
/// known at the layer's end, for a later entry may replace one or link to it.
pub(crate) fn replay(
    stream: impl Read,
    chunking: Chunking,
    options: &layer::Options,
    cancel: &Cancel,
) -> Result<Layer, LayerError> {
    let mut reader = tar::Reader::new(stream).concatenated(options.concatenated);
    let mut layer = Layer::new();
    let mut digests = Vec::new();
    let mut buffer = Vec::new();
    while let Some(entry) = reader.next()? {
        cancel.check()?;
        if options.drop_estargz && is_estargz(&entry.path) {
            continue;
        }
        let kind = match &entry.kind {
            EntryKind::Regular => {
                let first_chunk = digests.len();
                digest_chunks(
                    &mut reader.data(),
                    entry.size,
                    chunking,
                    &mut buffer,
                    &mut digests,
                    cancel,
                )?;
                Kind::Regular {
                    size: entry.size,
                    first_chunk,
                    chunks: digests.len() - first_chunk,
                }
            }
            EntryKind::HardLink(target) => Kind::HardLink(target),
            EntryKind::Symlink(target) => Kind::Symlink(target),
            EntryKind::Character => Kind::Character,
            EntryKind::Block => Kind::Block,
            EntryKind::Directory => Kind::Directory,
            EntryKind::Fifo => Kind::Fifo,
        };
        layer.apply(Entry {
            path: &entry.path,
            kind,
            permissions: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            rdev: entry.rdev,
            mtime: entry.mtime,
            mtime_nsec: if options.fraction {
                entry.mtime_nsec
            } else {
                0
            },
            xattrs: kept(entry.xattrs, options.keep_trusted),
        })?;
    }
    reader.finish()?;
    layer.tree.contents = Contents::Digests(digests);
    Ok(layer)
}

fn digest_chunks(
    data: &mut dyn Read,
    size: u64,
    chunking: Chunking,
    buffer: &mut Vec<u8>,
    digests: &mut Vec<Digest>,
    cancel: &Cancel,
) -> Result<(), LayerError> {
    let mut left = size;
    while left > 0 {
        cancel.check()?;
        let want = left.min(u64::from(chunking.size));
        buffer.clear();
        if (&mut *data).take(want).read_to_end(buffer)? as u64 != want {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        digests.push(codec::digest(chunking.digester, buffer));
        left -= want;
    }
    Ok(())
}

/// Whether it is one of the files that eStargz adds for its own use.
fn is_estargz(path: &[u8]) -> bool {
    let names = clean_below_root(path);
    matches!(
        names[..],
        [b"stargz.index.json" | b".prefetch.landmark" | b".no.prefetch.landmark"]
    )
}

/// The attributes that a container runtime would set: those of namespaces that files in a container image can have.
fn kept(xattrs: Xattrs, keep_trusted: bool) -> Xattrs {
    let keep = |name: &[u8]| {
        name.starts_with(b"user.")
            || name.starts_with(b"security.")
            || matches!(
                name,
                b"system.posix_acl_access" | b"system.posix_acl_default"
            )
            || keep_trusted
                && name.starts_with(b"trusted.")
                && !name.starts_with(b"trusted.overlay.")
    };
    xattrs.into_iter().filter(|(name, _)| keep(name)).collect()
}

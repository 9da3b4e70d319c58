//! eStargz layers, described by their table of contents (TOC) alone: the manifest says what its digest must be, so nothing
//! else of the layer is read.
//!
//! What is kept of it is the gzip member that holds the TOC. Chunks and their digests go into the bootstrap.

use std::io::{self, Cursor, Read, Write as _};
use std::sync::Arc;

use ::layer::estargz::{FOOTER_SIZE, Footer, read_toc_member};
use builder::BuildOptions;
use image::{Descriptor, Digest, Hasher};
use rafs_format::BlobId;
use storage::BlobReader;

use crate::error::LayerError;
use crate::layer::{Blob, ConvertedLayer, Places};

/// Digest of the TOC, on the layer's descriptor.
const ANNOTATION: &str = "containerd.io/snapshot/stargz/toc.digest";
/// Chunk size that those who make eStargz layers choose unless told otherwise.
pub(crate) const CHUNK_SIZE: u32 = 4 << 20;
/// Largest gzip member with a TOC, in bytes.
const MEMBER_MAX: u64 = 256 << 20;

/// Whether the manifest pins the TOC of a layer.
pub fn is_pinned(descriptor: &Descriptor) -> bool {
    descriptor.annotation(ANNOTATION).is_some()
}

/// Options by which a layer is built as one that its TOC describes.
pub(crate) fn without_helpers(options: &BuildOptions) -> BuildOptions {
    let mut options = options.clone();
    options.layer.drop_estargz = true;
    options
}

/// Describes a layer by its TOC.
///
/// # Errors
/// [`LayerError`] if it can't be: the layer may be described by a pass over it all the same.
pub(crate) fn build(
    places: &Places<'_>,
    descriptor: &Descriptor,
    options: &BuildOptions,
) -> Result<ConvertedLayer, LayerError> {
    let pinned = descriptor.annotation(ANNOTATION).unwrap_or_default();
    let pinned: Digest = pinned.parse()?;
    let layer = places
        .source
        .blob(&descriptor.digest, Some(descriptor.size))?;
    let (toc_offset, member) = read_member(&*layer, descriptor.size)?;
    let id =
        BlobId::new(descriptor.digest.hex()).ok_or_else(|| unusable("its digest is no blob id"))?;
    let mut found = Err(unusable("it has no table of contents"));
    let read = |json: &mut dyn Read| {
        let build =
            |json: &mut dyn Read| builder::build_estargz(json, id, Some(toc_offset), options);
        found = digested(json, build);
        Ok(())
    };
    read_toc_member(Cursor::new(Arc::clone(&member)), read).map_err(builder::Error::Layer)?;
    let (built, actual) = found?;
    if actual != pinned {
        let expected = pinned;
        return Err(LayerError::Toc { expected, actual });
    }
    let (digest, size) = (Digest::of(&member), member.len() as u64);
    let mut writer = places.blobs().blob_writer()?;
    writer.write_all(&member).map_err(builder::Error::Write)?;
    writer.finish(digest)?;
    Ok(ConvertedLayer {
        image: built.image,
        blob: Blob {
            digest,
            size,
            table: None,
            original: Some(descriptor.digest),
        },
        reused: None,
        record: None,
    })
}

/// What `build` makes of a TOC, and the digest of all of it. One that is of no use is not read to its end, wherever that is.
fn digested<T>(
    json: &mut dyn Read,
    build: impl FnOnce(&mut dyn Read) -> Result<T, builder::Error>,
) -> Result<(T, Digest), LayerError> {
    let mut hasher = Hasher::new();
    let mut json = Hashing {
        inner: json,
        hasher: &mut hasher,
    };
    let built = build(&mut json)?;
    io::copy(&mut json, &mut io::sink()).map_err(builder::Error::Cut)?;
    Ok((built, hasher.finish()))
}

/// Where the gzip member with the TOC begins, and the member.
fn read_member(layer: &dyn BlobReader, size: u64) -> Result<(u64, Arc<[u8]>), LayerError> {
    let len = size.min(FOOTER_SIZE as u64);
    let mut tail = vec![0; len as usize];
    let cut = |error| LayerError::Build(builder::Error::Cut(error));
    layer.read_exact_at(&mut tail, size - len).map_err(cut)?;
    let footer = Footer::parse(&tail, size).map_err(builder::Error::Layer)?;
    let len = size - footer.size as u64 - footer.toc_offset;
    if len > MEMBER_MAX {
        return Err(unusable("its table of contents is too large"));
    }
    let mut member = vec![0; len as usize];
    layer
        .read_exact_at(&mut member, footer.toc_offset)
        .map_err(cut)?;
    Ok((footer.toc_offset, member.into()))
}

fn unusable(why: &'static str) -> LayerError {
    LayerError::Build(builder::Error::Cut(io::Error::other(why)))
}

/// Reads, and digests what was read.
struct Hashing<'a> {
    inner: &'a mut dyn Read,
    hasher: &'a mut Hasher,
}

impl Read for Hashing<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        self.hasher.update(buf.get(..got).unwrap_or_default());
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_of_all_and_what_is_of_no_use_is_not_read_to_its_end() {
        let first = |json: &mut dyn Read| {
            let mut byte = [0];
            json.read_exact(&mut byte).map_err(builder::Error::Cut)?;
            Ok(byte)
        };
        let (byte, digest) = digested(&mut &b"table"[..], first).unwrap();
        assert_eq!((byte, digest), ([b't'], Digest::of(b"table")));
        let useless = |json: &mut dyn Read| {
            first(json)?;
            Err::<(), _>(builder::Error::Stopped)
        };
        assert!(digested(&mut io::repeat(b' '), useless).is_err());
    }
}

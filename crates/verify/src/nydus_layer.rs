//! Finds and reads the layer of a Nydus image that holds its bootstrap.

use std::io::{self, Read};

use image::{Descriptor, Digest, Hasher, Manifest};

/// Annotation of the bootstrap layer.
pub(crate) const BOOTSTRAP: &str = "containerd.io/snapshot/nydus-bootstrap";
/// Annotation of a blob layer.
pub(crate) const BLOB: &str = "containerd.io/snapshot/nydus-blob";
/// Annotation of a blob layer without data: the data lies in the original layer that it names.
pub(crate) const REF: &str = "containerd.io/snapshot/nydus-ref";
/// Media type of a blob layer.
pub(crate) const BLOB_MEDIA_TYPE: &str = "application/vnd.oci.image.layer.nydus.blob.v1";

const BOOTSTRAP_PATH: &[u8] = b"image/image.boot";
/// Largest bootstrap that the format allows, in bytes.
const BOOTSTRAP_SIZE_MAX: u64 = 2 << 30;
/// Largest bootstrap layer that is read, in bytes once decompressed: it may hold the chunk tables of all blobs too.
const LAYER_SIZE_MAX: u64 = 8 << 30;

/// Why a bootstrap layer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot be read")]
    Io(#[from] io::Error),
    /// It is not a tar.
    #[error("not a readable tar")]
    Tar(#[from] layer::Error),
    /// It holds no bootstrap.
    #[error("there is no image/image.boot in it")]
    NoBootstrap,
    /// The bootstrap is larger than any can be.
    #[error("its image/image.boot of {0} bytes is beyond the limit of {BOOTSTRAP_SIZE_MAX} bytes")]
    TooLarge(u64),
}

/// What a bootstrap layer holds.
pub(crate) struct BootstrapLayer {
    /// The bootstrap.
    pub(crate) bootstrap: Vec<u8>,
    /// Digest of the uncompressed layer.
    pub(crate) diff_id: Digest,
}

/// The bootstrap layer of a Nydus image: the last layer, if it is annotated so and compressed with gzip.
pub(crate) fn find(manifest: &Manifest) -> Option<&Descriptor> {
    let last = manifest.layers.last()?;
    let gzip = matches!(&*last.media_type, image::media::OCI_LAYER_GZIP | image::media::DOCKER_LAYER_GZIP);
    (gzip && last.annotation(BOOTSTRAP) == Some("true")).then_some(last)
}

/// Reads a bootstrap layer to its end.
pub(crate) fn read(stored: Box<dyn Read + Send>) -> Result<BootstrapLayer, Error> {
    let (compression, stored) = layer::detecting(stored)?;
    let stream = layer::decompress(stored, compression)?;
    let mut hashing = Hashing { inner: stream.take(LAYER_SIZE_MAX), hasher: Hasher::new() };
    let mut reader = layer::tar::Reader::new(&mut hashing);
    let mut bootstrap = None;
    while let Some(entry) = reader.next()? {
        if entry.path.strip_prefix(b"./").unwrap_or(&entry.path) != BOOTSTRAP_PATH {
            continue;
        }
        if entry.size > BOOTSTRAP_SIZE_MAX {
            return Err(Error::TooLarge(entry.size));
        }
        let mut data = Vec::new();
        reader.data().read_to_end(&mut data)?;
        bootstrap = Some(data);
    }
    reader.finish()?;
    io::copy(&mut hashing, &mut io::sink())?;
    let diff_id = hashing.hasher.finish();
    Ok(BootstrapLayer { bootstrap: bootstrap.ok_or(Error::NoBootstrap)?, diff_id })
}

struct Hashing<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        if let Some(bytes) = buf.get(..got) {
            self.hasher.update(bytes);
        }
        Ok(got)
    }
}

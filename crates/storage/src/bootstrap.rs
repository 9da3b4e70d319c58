//! Finding a bootstrap: in a file of its own, or in the tail of a native layer blob.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::bootstrap::Parsed;
use rafs_format::toc::{self, InlineBootstrap};
use rafs_format::{
    BlobFeatures, BlobId, BlobInfo, Bootstrap, CheckError, Digest, Digester, Summary, v5, version,
};
use sha2::{Digest as _, Sha256};
use tree::Image;

use crate::meta::read_piece;
use crate::{BlobReader, BlobSource, ChunkError, Error, FileBlob, NamedSource};

/// Largest bootstrap that the format allows, in bytes.
const BOOTSTRAP_MAX: u64 = 2 << 30;
/// A bootstrap of at most this size is taken however small it is stored.
const EXPANSION_FREE: u64 = 64 << 20;
/// Bytes that a small bootstrap may have more when it is stored.
const STORED_MORE: u64 = 64 << 10;
/// Greatest plausible ratio between a larger bootstrap and its stored form.
const EXPANSION_MAX: u64 = 1024;

/// A parsed bootstrap and where it came from.
#[derive(Debug)]
pub struct LoadedBootstrap {
    /// The form that readers work on, in v6 layout whatever the version is; its blob ids are complete.
    pub bootstrap: Bootstrap<Vec<u8>>,
    /// What is on disk, if that is v5; its blob ids are complete, too.
    pub v5: Option<v5::Bootstrap<Vec<u8>>>,
    /// The blob that the bootstrap was found in, if it was in one: its id in the blob table, and the file. A native
    /// layer without file data has no such blob.
    pub own_blob: Option<(BlobId, PathBuf)>,
}

impl From<Bootstrap<Vec<u8>>> for LoadedBootstrap {
    /// One that was parsed already. Ids that it leaves open stay so.
    fn from(bootstrap: Bootstrap<Vec<u8>>) -> Self {
        Self {
            bootstrap,
            v5: None,
            own_blob: None,
        }
    }
}

impl LoadedBootstrap {
    /// Takes the bytes of a bootstrap of either version. Ids that it leaves open stay so.
    ///
    /// # Errors
    /// [`Error::Format`], or [`Error::Bootstrap`] for what keeps v5 from being read as v6.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, Error> {
        Self::from_parsed(parse_bytes(bytes)?)
    }

    fn from_parsed(parsed: Parsed) -> Result<Self, Error> {
        let (bootstrap, v5) = match parsed {
            Parsed::V6(bootstrap) => (bootstrap, None),
            Parsed::V5(v5) => {
                let view = ::bootstrap::view_v5(&v5).map_err(Error::Bootstrap)?;
                (view, Some(v5))
            }
        };
        Ok(Self {
            bootstrap,
            v5,
            own_blob: None,
        })
    }

    /// Checks everything that a reader relies on, of what is on disk.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<Summary, CheckError> {
        match &self.v5 {
            Some(v5) => v5.check(codec::digest),
            None => self.bootstrap.check(),
        }
    }

    /// The blob table as it is on disk, its ids complete.
    pub fn blobs(&self) -> &[BlobInfo] {
        match &self.v5 {
            Some(v5) => v5.blobs(),
            None => self.bootstrap.blobs(),
        }
    }

    /// The image as it is on disk.
    ///
    /// # Errors
    /// [`Error::Bootstrap`] naming the path at fault.
    pub fn image(&self) -> Result<Image, Error> {
        let image = match &self.v5 {
            Some(v5) => ::bootstrap::load_v5(v5),
            None => ::bootstrap::load_image(&self.bootstrap),
        };
        image.map_err(Error::Bootstrap)
    }

    /// A source of the image's blobs: the file that the bootstrap came from for its own blob, `rest` for the others.
    ///
    /// # Errors
    /// [`Error::Io`] if that file cannot be opened.
    pub fn source(&self, rest: Option<Arc<dyn BlobSource>>) -> Result<Arc<dyn BlobSource>, Error> {
        let mut source = NamedSource::new(rest);
        if let Some((id, path)) = &self.own_blob {
            source.insert(
                id.as_str(),
                Arc::new(FileBlob::open(path).map_err(Error::io("open the blob", path))?),
            );
        }
        Ok(Arc::new(source))
    }
}

/// Loads the bootstrap at `path`: a bootstrap file, or a native layer blob with the bootstrap in its tail.
///
/// A blob whose id the bootstrap leaves open gets the file's name up to the first dot.
///
/// # Errors
/// [`Error::Io`] if the file cannot be opened, else [`Error::File`] with the path and the cause.
pub fn load_bootstrap(path: &Path) -> Result<LoadedBootstrap, Error> {
    load(path).map_err(|error| error.in_file(path))
}

/// Like [`load_bootstrap`], but as it is on disk, and ids stay open that the bootstrap leaves open.
///
/// # Errors
/// [`Error::Io`] if the file cannot be opened, else [`Error::File`] with the path and the cause.
pub fn parse_bootstrap(path: &Path) -> Result<Parsed, Error> {
    let parsed = parse(path).map_err(|error| error.in_file(path));
    parsed.map(|(bootstrap, _)| bootstrap)
}

/// The bootstrap, and whether the file is nothing else.
fn parse(path: &Path) -> Result<(Parsed, bool), Error> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let len = file.metadata().map_err(Error::io("open", path))?.len();
    let blob = FileBlob::window(Arc::new(file), 0, len);
    let bare = is_bootstrap(&blob)?;
    let data = if bare {
        read_bare(&blob)?
    } else {
        extract_bootstrap(&blob)?
    };
    Ok((parse_bytes(data)?, bare))
}

fn parse_bytes(data: Vec<u8>) -> Result<Parsed, Error> {
    Parsed::parse(data).map_err(|source| Error::Format {
        what: "the bootstrap",
        source,
    })
}

fn load(path: &Path) -> Result<LoadedBootstrap, Error> {
    let (mut parsed, bare) = parse(path)?;
    let mut own = None;
    for info in parsed.blobs_mut() {
        if info.id.is_placeholder() {
            info.id = id_from_name(path)?;
        }
        if info.features.contains(BlobFeatures::INLINED_FS_META) && own.is_none() && !bare {
            // Chunk data that lies elsewhere is not in the file; then this is the one that holds its chunk table, and
            // its name is not in the bootstrap, which is part of it.
            if info.features.contains(BlobFeatures::SEPARATE) && info.meta_digest == [0; 32] {
                (info.meta_digest, info.meta_size) = digest_of(path)?;
            }
            let id = info.table_blob().unwrap_or_else(|| info.id.clone());
            own = Some((id, path.to_owned()));
        }
    }
    Ok(LoadedBootstrap {
        own_blob: own,
        ..LoadedBootstrap::from_parsed(parsed)?
    })
}

/// SHA-256 and size of a file.
fn digest_of(path: &Path) -> Result<(Digest, u64), Error> {
    let failed = || Error::io("read", path);
    let mut file = File::open(path).map_err(failed())?;
    let (mut sha256, mut size) = (Sha256::new(), 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer).map_err(failed())? {
            0 => return Ok((sha256.finalize().into(), size)),
            n => {
                sha256.update(buffer.get(..n).unwrap_or_default());
                size += n as u64;
            }
        }
    }
}

fn id_from_name(path: &Path) -> Result<BlobId, Error> {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy())
        .unwrap_or_default();
    let name = name.split('.').next().unwrap_or_default();
    BlobId::new(name).ok_or_else(|| Error::BlobName {
        name: name.to_owned(),
    })
}

/// Reads the bootstrap out of the tail of a native layer blob, and checks its digest where one is recorded.
///
/// # Errors
/// [`Error::NoBootstrap`] if the blob holds none; [`Error::Format`], [`Error::Decode`], [`Error::Digest`] or
/// [`Error::TooLarge`] if what it holds is not sound; [`Error::Read`] if the blob cannot be read.
pub fn extract_bootstrap(blob: &dyn BlobReader) -> Result<Vec<u8>, Error> {
    const WHAT: &str = "the bootstrap";
    let len = blob.size().min(toc::TAIL_SIZE as u64);
    let tail = read_piece(blob, "the blob's tail", blob.size() - len, len)?;
    let tail = toc::parse_tail(&tail, blob.size()).map_err(|source| Error::Format {
        what: "the blob's tail",
        source,
    })?;
    let inline = tail.bootstrap.ok_or(Error::NoBootstrap)?;
    let size = checked_size(&inline)?;
    let stored = read_piece(blob, WHAT, inline.offset, inline.compressed_size)?;
    let mut data = vec![0; size];
    codec::decompress(inline.compressor, &stored, &mut data).map_err(|error| Error::Decode {
        what: WHAT,
        source: ChunkError::from(error),
    })?;
    if let Some(expected) = inline.digest {
        let actual = codec::digest(Digester::Sha256, &data);
        if actual != expected {
            return Err(Error::Digest {
                what: WHAT,
                expected: hex::encode(expected),
                actual: hex::encode(actual),
            });
        }
    }
    Ok(data)
}

fn checked_size(inline: &InlineBootstrap) -> Result<usize, Error> {
    let size = inline.uncompressed_size;
    let limit = inline
        .compressed_size
        .saturating_mul(EXPANSION_MAX)
        .clamp(EXPANSION_FREE, BOOTSTRAP_MAX);
    let too_large = |size, limit| Error::TooLarge {
        what: "the bootstrap",
        size,
        limit,
    };
    // No compressor makes much more of it than it was.
    let stored_limit = size.saturating_add(size / 64).saturating_add(STORED_MORE);
    if inline.compressed_size > stored_limit {
        return Err(too_large(inline.compressed_size, stored_limit));
    }
    let fits = usize::try_from(size).ok().filter(|_| size <= limit);
    fits.ok_or(too_large(size, limit))
}

/// Whether one of the two superblock magics is in its place.
fn is_bootstrap(blob: &dyn BlobReader) -> Result<bool, Error> {
    let len = blob.size().min(1028);
    let head = read_piece(blob, "the head of the file", 0, len)?;
    Ok(version(&head).is_ok())
}

fn read_bare(blob: &dyn BlobReader) -> Result<Vec<u8>, Error> {
    if blob.size() > BOOTSTRAP_MAX {
        return Err(Error::TooLarge {
            what: "the bootstrap",
            size: blob.size(),
            limit: BOOTSTRAP_MAX,
        });
    }
    read_piece(blob, "the bootstrap", 0, blob.size())
}

#[cfg(test)]
mod tests {
    use rafs_format::Compressor;

    use super::*;

    #[test]
    fn the_stored_size_of_a_bootstrap_is_bounded_before_it_is_read() {
        let inline = |compressed_size, uncompressed_size| InlineBootstrap {
            offset: 0,
            compressed_size,
            uncompressed_size,
            compressor: Compressor::Zstd,
            digest: None,
        };
        assert_eq!(checked_size(&inline(4200, 4096)).unwrap(), 4096);
        for (stored, size) in [(1 << 40, 4096), (1 << 10, 1 << 40), (u64::MAX, u64::MAX)] {
            let error = checked_size(&inline(stored, size)).unwrap_err();
            assert!(matches!(error, Error::TooLarge { .. }), "{error}");
        }
    }
}

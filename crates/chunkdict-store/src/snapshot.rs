//! A dictionary at one moment: which chunks lie where, and which images have them. It never changes.
//!
//! Its file, numbers little-endian:
//!
//! | Offset | Size | Field |
//! |---|---|---|
//! | 0 | 8 | `NYDICT02` |
//! | 8 | 4 | RAFS version: 5 or 6 |
//! | 12 | 4 | digester, as blob tables have it |
//! | 16 | 4 | compressor, as blob tables have it |
//! | 20 | 4 | chunk size in bytes |
//! | 24 | 8 | size of the blobs, in bytes |
//! | 32 | 8 | size of the images, in bytes |
//! | 40 | 8 | number of chunks |
//! | 48 | 8 | size of the places, in bytes |
//! | 56 | | blobs, images, entries and places ([`chunkdict::Parts`]) |
//!
//! Blobs and images are in the order of their ids, places in that of blob and row: the same images make the same file,
//! whatever the order in which they came. The file is named by the BLAKE3 of all of it, which is the snapshot's id.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;

use chunkdict::{ChunkIndex, ChunkKey, Dictionary, IndexEntry, Parts};
use rafs_format::{BlobId, BlobInfo, ChunkRecord, Compressor, Digest, Digester, Version};

use crate::coding::{self, Input, hex};
use crate::rows::Rows;
use crate::{Error, ImageId, Import, Kind};

const MAGIC: &[u8; 8] = b"NYDICT02";
const HEAD: usize = 56;
/// Bytes that are hashed at once.
const PIECE: usize = 1 << 20;

/// A dictionary at one moment. While it is held, `gc` keeps the images it is of: see [`Store::snapshot`].
///
/// [`Store::snapshot`]: crate::Store::snapshot
#[derive(Debug, Clone)]
pub struct Snapshot {
    id: Digest,
    kind: Kind,
    blobs: Vec<BlobInfo>,
    images: Vec<SnapshotImage>,
    index: Arc<ChunkIndex>,
    _lease: Option<Arc<File>>,
}

/// An image, and what it has of blobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotImage {
    /// What it is known by.
    pub id: ImageId,
    /// Blobs that it has chunks in.
    pub blobs: Vec<ImageBlob>,
}

/// What an image has of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageBlob {
    /// Position of the blob in the snapshot.
    pub blob: u32,
    /// Size of the blob's file in bytes; 0 if the image did not say.
    pub size: u64,
    pub(crate) rows: Rows,
}

impl ImageBlob {
    /// Whether the image has the chunk in that row of the blob's chunk table.
    pub fn has(&self, row: u32) -> bool {
        self.rows.contains(row)
    }

    /// Chunks of the blob that the image has.
    pub fn chunks(&self) -> u64 {
        self.rows.runs().iter().map(|run| u64::from(run.1)).sum()
    }
}

/// Where things are in a file.
struct Head {
    kind: Kind,
    blobs: usize,
    images: usize,
    chunks: usize,
    places: usize,
}

impl Head {
    fn parse(bytes: &[u8; HEAD]) -> Option<Self> {
        let mut input = Input(bytes);
        if input.array::<8>()? != *MAGIC {
            return None;
        }
        let version = match input.number()? {
            5 => Version::V5,
            6 => Version::V6,
            _ => return None,
        };
        let kind = Kind {
            version,
            digester: Digester::from_number(input.number()?)?,
            compressor: Compressor::from_number(input.number()?)?,
            chunk_size: input.number()?,
        };
        let mut size = || usize::try_from(input.size()?).ok();
        Some(Self {
            kind,
            blobs: size()?,
            images: size()?,
            chunks: size()?,
            places: size()?,
        })
    }

    /// Size of the whole file.
    fn total(&self) -> Option<u64> {
        let index = self.chunks.checked_mul(size_of::<IndexEntry>())?;
        let rest = self
            .blobs
            .checked_add(self.images)?
            .checked_add(self.places)?;
        Some(index.checked_add(rest)?.checked_add(HEAD)? as u64)
    }
}

impl Snapshot {
    pub(crate) fn new(
        kind: Kind,
        blobs: Vec<BlobInfo>,
        images: Vec<SnapshotImage>,
        index: ChunkIndex,
    ) -> Self {
        let mut snapshot = Self {
            id: [0; 32],
            kind,
            blobs,
            images,
            index: Arc::new(index),
            _lease: None,
        };
        let mut hashing = Hashing::new(io::sink());
        snapshot
            .write(&mut hashing)
            .expect("nothing fails to be written nowhere");
        snapshot.id = *hashing.hasher.finalize().as_bytes();
        snapshot
    }

    /// Hash of all of it: the same images of the same content have the same, in whatever order they came.
    pub fn id(&self) -> Digest {
        self.id
    }

    /// What its chunks have in common.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Blobs in the order of their ids.
    pub fn blobs(&self) -> &[BlobInfo] {
        &self.blobs
    }

    /// The position of a blob.
    pub fn blob(&self, id: &BlobId) -> Option<u32> {
        let found = self.blobs.binary_search_by(|blob| blob.id.cmp(id));
        found.ok().map(|at| at as u32)
    }

    /// Images in the order of their ids.
    pub fn images(&self) -> &[SnapshotImage] {
        &self.images
    }

    /// An image.
    pub fn image(&self, id: &ImageId) -> Option<&SnapshotImage> {
        let found = self.images.binary_search_by(|image| image.id.cmp(id));
        found.ok().and_then(|at| self.images.get(at))
    }

    /// Where chunks lie; their blob indexes are positions in [`Snapshot::blobs`].
    pub fn index(&self) -> &ChunkIndex {
        &self.index
    }

    /// The snapshot as a build looks chunks up in it.
    pub fn dictionary(&self) -> Dictionary {
        Dictionary::of_index(self.blobs.clone(), Arc::clone(&self.index))
    }

    /// Size of a blob's file in bytes, as the images say that have it; `None` if none says.
    pub fn blob_size(&self, blob: u32) -> Option<u64> {
        let held = self.images.iter().flat_map(|image| &image.blobs);
        let sizes = held.filter(|held| held.blob == blob).map(|held| held.size);
        sizes.max().filter(|size| *size != 0)
    }

    /// Where the last known chunk of each blob ends: the blob's file has at least so many bytes.
    pub fn extents(&self) -> Vec<u64> {
        let mut extents = vec![0; self.blobs.len()];
        for record in self.index.bare_records() {
            let end = record
                .compressed_offset
                .saturating_add(record.compressed_size.into());
            let at = record.blob_index as usize;
            if self.blobs[at].is_estargz() {
                // Sizes are upper bounds there.
                continue;
            }
            let extent = &mut extents[at];
            *extent = end.max(*extent);
        }
        extents
    }

    /// Sees to it that an image has what the snapshot says of it.
    ///
    /// # Errors
    /// [`Error::Changed`] naming the first difference.
    pub fn agrees(&self, import: &Import) -> Result<(), Error> {
        let differs = |what: String| {
            Err(Error::Changed {
                name: import.name.clone(),
                what,
            })
        };
        let Some(image) = self.image(&import.id) else {
            return differs("the image".to_owned());
        };
        if image.blobs.len() != import.blobs.len() {
            return differs("the number of blobs".to_owned());
        }
        for (held, (id, blob)) in image.blobs.iter().zip(&import.blobs) {
            let info = BlobInfo {
                index: held.blob,
                ..blob.info.clone()
            };
            if self.blobs.get(held.blob as usize) != Some(&info) {
                return differs(format!("blob {id}"));
            }
            let rows = Rows::of(blob.rows.iter().map(|record| record.index));
            if rows != held.rows {
                return differs(format!("the chunks of blob {id}"));
            }
            let keys: Vec<ChunkKey> = blob.rows.iter().map(ChunkKey::from).collect();
            let mut missing = None;
            self.index.all_places(&keys, |at, places| {
                let wanted = ChunkRecord {
                    blob_index: held.blob,
                    ..blob.rows[at]
                };
                if !places.contains(&wanted) {
                    missing.get_or_insert(wanted.index);
                }
            });
            if let Some(row) = missing {
                return differs(format!("chunk {row} of blob {id}"));
            }
        }
        Ok(())
    }

    /// Size of its file in bytes.
    pub fn file_size(&self) -> u64 {
        let mut counting = Counting(0);
        self.write(&mut counting)
            .expect("nothing fails to be counted");
        counting.0
    }

    /// What its file holds.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(&mut bytes).expect("memory takes all");
        bytes
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let (mut blobs, mut images) = (Vec::new(), Vec::new());
        for blob in &self.blobs {
            coding::put_blob(&mut blobs, blob);
        }
        for image in &self.images {
            coding::put_image(&mut images, image);
        }
        let Parts { entries, places } = self.index.parts();
        let version: u32 = match self.kind.version {
            Version::V5 => 5,
            Version::V6 => 6,
        };
        out.write_all(MAGIC)?;
        for number in [
            version,
            self.kind.digester.number(),
            self.kind.compressor.number(),
            self.kind.chunk_size,
        ] {
            out.write_all(&number.to_le_bytes())?;
        }
        for size in [blobs.len(), images.len(), entries.len(), places.len()] {
            out.write_all(&(size as u64).to_le_bytes())?;
        }
        for part in [&blobs[..], &images, entries.as_flattened(), places] {
            out.write_all(part)?;
        }
        Ok(())
    }

    /// Writes it into `dir` under its id, unless it is there: complete and on stable storage, or not at all.
    pub(crate) fn save(&self, dir: &Path) -> Result<(), Error> {
        let path = dir.join(hex(&self.id));
        let failed = || Error::io("write", &path);
        let mut file = crate::store::unfinished(dir).map_err(failed())?;
        let mut buffered = BufWriter::with_capacity(PIECE, file.as_file_mut());
        self.write(&mut buffered)
            .and_then(|()| buffered.flush())
            .map_err(failed())?;
        drop(buffered);
        file.as_file().sync_all().map_err(failed())?;
        file.persist(&path).map_err(|error| failed()(error.error))?;
        crate::store::sync_dir(dir)
    }

    /// Reads the snapshot that `file`, found at `path`, should be, and makes sure that it is. `lease`: to be held
    /// as long as the snapshot is.
    pub(crate) fn load(path: &Path, file: &Arc<File>, id: Digest) -> Result<Self, Error> {
        let damaged = |reason| Error::damaged(path, reason);
        let failed = || Error::io("read", path);
        let length = file.metadata().map_err(failed())?.len();
        let mut input = Hashing::new(BufReader::with_capacity(PIECE, &**file));
        let head = Self::head(path, &mut input)?;
        if head.total() != Some(length) {
            return Err(damaged("its size is not what it says"));
        }
        let mut read = |bytes: &mut [u8]| input.read_exact(bytes).map_err(failed());
        let (mut blobs, mut images) = (vec![0; head.blobs], vec![0; head.images]);
        read(&mut blobs)?;
        read(&mut images)?;
        let mut parts = Parts {
            entries: vec![[0; size_of::<IndexEntry>()]; head.chunks],
            places: vec![0; head.places],
        };
        read(parts.entries.as_flattened_mut())?;
        read(&mut parts.places)?;
        if input.hasher.finalize() != id {
            return Err(damaged("its hash is not its name"));
        }
        let malformed = || damaged("it is malformed");
        let blobs = coding::blobs(&blobs).ok_or_else(malformed)?;
        let images = coding::images(&images).ok_or_else(malformed)?;
        let count = blobs.len() as u32;
        let known = |held: &ImageBlob| held.blob < count;
        if !images.iter().flat_map(|image| &image.blobs).all(known) {
            return Err(malformed());
        }
        let index = ChunkIndex::from_parts(parts, count).ok_or_else(malformed)?;
        let place = |record: &ChunkRecord| (record.blob_index, record.index);
        if !index
            .bare_records()
            .is_sorted_by(|a, b| place(a) < place(b))
        {
            return Err(malformed());
        }
        Ok(Self {
            id,
            kind: head.kind,
            blobs,
            images,
            index: Arc::new(index),
            _lease: Some(Arc::clone(file)),
        })
    }

    /// The images of the snapshot at `path`, without looking at all the rest.
    pub(crate) fn load_images(path: &Path, file: &File) -> Result<Vec<SnapshotImage>, Error> {
        let failed = || Error::io("read", path);
        let length = file.metadata().map_err(failed())?.len();
        let mut input = BufReader::new(file);
        let head = Self::head(path, &mut input)?;
        if head.total() != Some(length) {
            return Err(Error::damaged(path, "its size is not what it says"));
        }
        let mut bytes = vec![0; head.blobs + head.images];
        input.read_exact(&mut bytes).map_err(failed())?;
        coding::images(&bytes[head.blobs..]).ok_or_else(|| Error::damaged(path, "it is malformed"))
    }

    fn head(path: &Path, input: &mut dyn Read) -> Result<Head, Error> {
        let mut head = [0; HEAD];
        match input.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(Error::damaged(path, "it is cut off"));
            }
            read => read.map_err(Error::io("read", path))?,
        }
        Head::parse(&head)
            .ok_or_else(|| Error::damaged(path, "it does not begin as a snapshot does"))
    }
}

/// Hashes what goes through.
struct Hashing<T> {
    inner: T,
    hasher: blake3::Hasher,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Self {
            inner,
            hasher: blake3::Hasher::new(),
        }
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // In pieces that are hashed while they are in the processor's cache.
        let most = buf.len().min(PIECE);
        let got = self.inner.read(&mut buf[..most])?;
        self.hasher.update(&buf[..got]);
        Ok(got)
    }
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let done = self.inner.write(buf)?;
        self.hasher.update(&buf[..done]);
        Ok(done)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

struct Counting(u64);

impl Write for Counting {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0 += buf.len() as u64;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use chunkdict::IndexBuilder;
    use rafs_format::ChunkFlags;

    use super::*;

    /// A snapshot of two blobs with a chunk in each of these places.
    fn snapshot(places: &[(u32, u32)]) -> Snapshot {
        let kind = Kind {
            version: Version::V6,
            digester: Digester::Blake3,
            compressor: Compressor::Zstd,
            chunk_size: 4096,
        };
        let blob = |id: &str| {
            let id = BlobId::new(id).unwrap();
            BlobInfo::new(id, 4096, Compressor::Zstd, Digester::Blake3)
        };
        let mut index = IndexBuilder::default();
        for &(blob_index, row) in places {
            let record = ChunkRecord {
                digest: [(16 * blob_index + row) as u8; 32],
                blob_index,
                flags: ChunkFlags::empty(),
                compressed_size: 10,
                uncompressed_size: 20,
                compressed_offset: 10 * u64::from(row),
                uncompressed_offset: 4096 * u64::from(row),
                file_offset: 0,
                index: row,
                crc32: 0,
            };
            index.push(&record).unwrap();
        }
        Snapshot::new(kind, vec![blob("a"), blob("b")], Vec::new(), index.finish())
    }

    #[test]
    fn a_snapshot_whose_chunks_are_in_no_order_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        for (places, sound) in [
            (&[(0, 1), (0, 2), (1, 0)][..], true),
            (&[(1, 0), (0, 1), (0, 2)], false),
            (&[(0, 2), (0, 1), (1, 0)], false),
            (&[(0, 1), (0, 1)], false),
        ] {
            let snapshot = snapshot(places);
            snapshot.save(dir.path()).unwrap();
            let path = dir.path().join(hex(&snapshot.id()));
            let file = Arc::new(File::open(&path).unwrap());
            let loaded = Snapshot::load(&path, &file, snapshot.id());
            assert_eq!(loaded.is_ok(), sound, "{places:?}");
            if let Err(error) = loaded {
                assert!(matches!(error, Error::Damaged { .. }), "{error}");
            }
        }
    }
}

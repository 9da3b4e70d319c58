//! A parsed v6 bootstrap: tables, symbolic links and chunks of files. Inodes, directories and xattrs have modules of
//! their own.

use std::borrow::Cow;
use std::ops::Deref;

use crate::raw::{self, ChunkIndexRaw, ChunkRecordRaw};
use crate::superblock::{DeviceSlot, SuperFlags, Superblock};
use crate::{
    BlobInfo, ChunkFlags, ChunkRecord, Compressor, Digester, Error, Inode, Layout, Version,
    blob_table,
};

/// Longest target of a symbolic link, in bytes.
pub const SYMLINK_MAX: u64 = 4096;

/// Number of an inode: its place in the metadata area, in units of 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nid(pub u64);

impl Nid {
    /// Bytes between two successive numbers.
    pub const SLOT_SIZE: u64 = 32;
}

impl std::fmt::Display for Nid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Where the data of one chunk of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkPointer {
    /// Position of the blob in the blob table.
    pub blob_index: u32,
    /// Row of the chunk in its blob's chunk table.
    pub index: u32,
    /// Where the chunk begins in the blob's uncompressed address space, in bytes.
    pub uncompressed_offset: u64,
}

/// A bootstrap over any bytes: a vector, a slice, a shared or mapped buffer.
///
/// The tables are validated when it is parsed, the rest when it is looked at; [`Bootstrap::check`] looks at all.
#[derive(Debug, Clone)]
pub struct Bootstrap<D> {
    data: D,
    superblock: Superblock,
    devices: Vec<DeviceSlot>,
    blobs: Vec<BlobInfo>,
    compressor: Compressor,
    digester: Digester,
    version: Version,
}

impl<D: Deref<Target = [u8]>> Bootstrap<D> {
    /// Parses superblocks, device slots and blob table.
    ///
    /// # Errors
    /// [`Error`] naming the first field that is wrong.
    pub fn parse(data: D) -> Result<Self, Error> {
        Self::parse_version(data, Version::V6)
    }

    /// Parses the v6 form that a v5 bootstrap has in memory: blobs may do without a chunk table of their own.
    ///
    /// # Errors
    /// As [`Bootstrap::parse`].
    pub fn parse_view(data: D) -> Result<Self, Error> {
        Self::parse_version(data, Version::V5)
    }

    fn parse_version(data: D, version: Version) -> Result<Self, Error> {
        let superblock = Superblock::parse(&data)?;
        let devices = DeviceSlot::parse_all(&data, superblock.extra_devices)?;
        let blobs = blob_table::parse(&data, &superblock, version)?;
        let (Some(compressor), Some(digester)) =
            (superblock.flags.compressor(), superblock.flags.digester())
        else {
            return Err(Error::field(
                "flags of the superblock",
                crate::superblock::EXT_OFFSET,
                superblock.flags.bits(),
                "one compressor, one digester",
            ));
        };
        Ok(Self {
            data,
            superblock,
            devices,
            blobs,
            compressor,
            digester,
            version,
        })
    }

    /// Version of the bootstrap on disk: v5 if this is but its form in memory, see [`Bootstrap::parse_view`].
    pub fn version(&self) -> Version {
        self.version
    }

    /// All bytes of the bootstrap.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Both superblocks.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The blob table.
    pub fn blobs(&self) -> &[BlobInfo] {
        &self.blobs
    }

    /// The blob table, to put real ids where placeholders are. The bytes stay as they are.
    pub fn blobs_mut(&mut self) -> &mut [BlobInfo] {
        &mut self.blobs
    }

    /// The device slots, one for each blob.
    pub fn devices(&self) -> &[DeviceSlot] {
        &self.devices
    }

    /// The compressor of the build; each blob names its own.
    pub fn compressor(&self) -> Compressor {
        self.compressor
    }

    /// The digester of the build.
    pub fn digester(&self) -> Digester {
        self.digester
    }

    /// The root directory.
    pub fn root(&self) -> Nid {
        self.superblock.root
    }

    /// Whether chunk records carry no digests and no lengths, because blobs are raw tar files.
    pub fn is_tarfs(&self) -> bool {
        self.superblock.flags.contains(SuperFlags::TARFS_MODE)
    }

    /// The chunk table, in stored order: by digest, then by blob.
    pub fn chunk_table(&self) -> ChunkTable<'_> {
        let table = raw::slice(
            &self.data,
            self.superblock.chunk_table_offset,
            self.superblock.chunk_table_size,
        );
        ChunkTable {
            records: table.unwrap_or_default(),
            offset: self.superblock.chunk_table_offset,
        }
    }

    /// Files and directories to fetch first, in order.
    pub fn prefetch(&self) -> Prefetch<'_> {
        let size = u64::from(self.superblock.prefetch_table_size);
        let table = raw::slice(&self.data, self.superblock.prefetch_table_offset, size);
        Prefetch(table.unwrap_or_default().as_chunks().0.iter())
    }

    /// The target of a symbolic link; borrowed unless it lies in two pieces.
    ///
    /// # Errors
    /// [`Error`] if the inode is not a symbolic link or its target is longer than 4096 bytes.
    pub fn symlink(&self, inode: &Inode) -> Result<Cow<'_, [u8]>, Error> {
        if !inode.is_symlink() {
            return Err(Error::field(
                "mode of an inode",
                inode.offset,
                format!("{:#o}", inode.mode),
                "a symbolic link",
            ));
        }
        if inode.size > SYMLINK_MAX {
            return Err(Error::field(
                "length of a symbolic link",
                inode.offset + 8,
                inode.size,
                "at most 4096",
            ));
        }
        let tail = if inode.layout == Layout::FlatInline {
            inode.size % self.superblock.block_size()
        } else {
            0
        };
        let piece = |offset, size| {
            raw::slice(&self.data, offset, size).ok_or_else(|| {
                Error::bounds(
                    "the target of a symbolic link",
                    offset,
                    size,
                    self.data.len() as u64,
                )
            })
        };
        match (inode.size - tail, tail) {
            (0, tail) => Ok(Cow::Borrowed(piece(self.tail_offset(inode), tail)?)),
            (full, 0) => Ok(Cow::Borrowed(piece(self.data_offset(inode), full)?)),
            (full, tail) => Ok(Cow::Owned(
                [
                    piece(self.data_offset(inode), full)?,
                    piece(self.tail_offset(inode), tail)?,
                ]
                .concat(),
            )),
        }
    }

    /// Where the chunks of a regular file are, in file order; chunk *i* holds the bytes from `i * chunk_size` on.
    ///
    /// # Errors
    /// [`Error`] if the inode is not a regular file; the iterator reports chunks of blobs that are not there.
    pub fn chunks(&self, inode: &Inode) -> Result<Chunks<'_>, Error> {
        if !inode.is_regular() {
            return Err(Error::field(
                "mode of an inode",
                inode.offset,
                format!("{:#o}", inode.mode),
                "a regular file",
            ));
        }
        let offset = inode.chunk_indexes_offset();
        let size = self
            .chunk_count(inode)
            .saturating_mul(ChunkIndexRaw::SIZE as u64);
        let indexes = raw::slice(&self.data, offset, size).ok_or_else(|| {
            Error::bounds(
                "the chunk indexes of an inode",
                offset,
                size,
                self.data.len() as u64,
            )
        })?;
        Ok(Chunks {
            indexes,
            offset,
            blobs: self.blobs.len() as u32,
            block_bits: self.superblock.block_bits,
        })
    }
}

/// See [`Bootstrap::prefetch`].
#[derive(Debug, Clone)]
pub struct Prefetch<'a>(std::slice::Iter<'a, [u8; 4]>);

impl Iterator for Prefetch<'_> {
    type Item = Nid;

    fn next(&mut self) -> Option<Nid> {
        self.0
            .next()
            .map(|bytes| Nid(u64::from(u32::from_le_bytes(*bytes))))
    }
}

/// See [`Bootstrap::chunks`]. Skipping with `nth` takes constant time.
#[derive(Debug, Clone)]
pub struct Chunks<'a> {
    indexes: &'a [u8],
    offset: u64,
    blobs: u32,
    block_bits: u8,
}

impl Chunks<'_> {
    fn decode(&self, raw: &ChunkIndexRaw, offset: u64) -> Result<ChunkPointer, Error> {
        let device = u32::from(raw.device);
        if device == 0 || device > self.blobs {
            return Err(Error::field(
                "device of a chunk index",
                offset + 2,
                device,
                format!("1 to {}", self.blobs),
            ));
        }
        Ok(ChunkPointer {
            blob_index: device - 1,
            index: u32::from(raw.index_low.get()) | u32::from(raw.index_high) << 16,
            uncompressed_offset: u64::from(raw.blkaddr.get()) << self.block_bits,
        })
    }
}

impl Iterator for Chunks<'_> {
    type Item = Result<ChunkPointer, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let (raw, offset) = (raw::read(self.indexes)?, self.offset);
        self.indexes = self.indexes.get(ChunkIndexRaw::SIZE..)?;
        self.offset += ChunkIndexRaw::SIZE as u64;
        Some(self.decode(raw, offset))
    }

    fn nth(&mut self, n: usize) -> Option<Self::Item> {
        let skip = n
            .saturating_mul(ChunkIndexRaw::SIZE)
            .min(self.indexes.len());
        self.indexes = self.indexes.get(skip..)?;
        self.offset += skip as u64;
        self.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.indexes.len() / ChunkIndexRaw::SIZE;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Chunks<'_> {}

/// See [`Bootstrap::chunk_table`]. Skipping with `nth` takes constant time.
#[derive(Debug, Clone)]
pub struct ChunkTable<'a> {
    records: &'a [u8],
    offset: u64,
}

impl<'a> ChunkTable<'a> {
    /// Chunk records that lie back to back, the first of them at byte `offset` of the bootstrap.
    pub(crate) fn over(records: &'a [u8], offset: u64) -> Self {
        Self { records, offset }
    }
}

impl Iterator for ChunkTable<'_> {
    type Item = Result<ChunkRecord, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let (raw, offset) = (raw::read(self.records)?, self.offset);
        self.records = self.records.get(ChunkRecordRaw::SIZE..)?;
        self.offset += ChunkRecordRaw::SIZE as u64;
        Some(chunk_record(raw, offset))
    }

    fn nth(&mut self, n: usize) -> Option<Self::Item> {
        let skip = n
            .saturating_mul(ChunkRecordRaw::SIZE)
            .min(self.records.len());
        self.records = self.records.get(skip..)?;
        self.offset += skip as u64;
        self.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.records.len() / ChunkRecordRaw::SIZE;
        (left, Some(left))
    }
}

impl ExactSizeIterator for ChunkTable<'_> {}

fn chunk_record(raw: &ChunkRecordRaw, offset: u64) -> Result<ChunkRecord, Error> {
    let flags = raw.flags.get();
    Ok(ChunkRecord {
        digest: raw.digest,
        blob_index: raw.blob_index.get(),
        flags: ChunkFlags::from_bits(flags).ok_or_else(|| {
            Error::field(
                "flags of a chunk record",
                offset + 36,
                format!("{flags:#x}"),
                "no unknown bit",
            )
        })?,
        compressed_size: raw.compressed_size.get(),
        uncompressed_size: raw.uncompressed_size.get(),
        compressed_offset: raw.compressed_offset.get(),
        uncompressed_offset: raw.uncompressed_offset.get(),
        file_offset: raw.file_offset.get(),
        index: raw.index.get(),
        crc32: raw.crc32.get(),
    })
}

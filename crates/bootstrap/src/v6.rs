//! The v6 bootstrap of an image.
//!
//! [`plan`] decides where every inode goes; this module writes the regions of the file around and into that plan:
//! superblocks and device slots, blob table, prefetch table, inodes with their data, chunk table.

mod plan;

use rafs_format::encode::{self, InodeFields};
use rafs_format::layout::{self, Regions};
use rafs_format::{
    BLOBS_MAX, BLOCK_SIZE, BlobFeatures, ChunkPointer, ChunkRecord, Cipher, DeviceSlot, DirEntry,
    Layout, Nid, SuperFlags, Superblock,
};
use tree::{ChunkId, Content, Image, Inode, InodeId, mode};

use crate::Error;
use crate::limits::{self, BOOTSTRAP_MAX};
use plan::{Plan, Step};

/// Where the superblock and, right behind it, its extension lie.
const SUPERBLOCK_OFFSET: u64 = 1024;
/// Where the device slots begin.
const DEVICES_OFFSET: u64 = 1408;

/// Encodes the bootstrap of an image in RAFS v6 layout, placed byte for byte as the deployed builder does it.
/// Extended attributes are written in bytewise order of their names.
///
/// # Errors
/// [`Error`] naming the path or table that the format cannot express.
pub fn encode_v6(image: &Image) -> Result<Vec<u8>, Error> {
    for blob in &image.blobs {
        let exempt = BlobFeatures::TARFS | BlobFeatures::CHUNKDICT_GENERATED;
        if !blob.has_chunk_table() && !blob.features.intersects(exempt) {
            return Err(Error::File {
                path: format!("blob {}", blob.id),
                what: "it holds no table of its chunks, without which no reader of v6 finds them"
                    .to_owned(),
            });
        }
    }
    write(image)
}

/// Encodes without a look at whether the result is of use to others.
pub(crate) fn write(image: &Image) -> Result<Vec<u8>, Error> {
    if image.blobs.len() > BLOBS_MAX {
        return Err(Error::TooManyBlobs(image.blobs.len()));
    }
    let plan = Plan::new(image)?;
    let prefetch = if image.blobs.is_empty() {
        &[][..]
    } else {
        &image.prefetch
    };
    let regions = Regions::new(image.blobs.len() as u64, prefetch.len() as u64);
    let chunk_table = chunk_table(image, &plan);
    let chunk_table_offset = (regions.meta + plan.end).next_multiple_of(BLOCK_SIZE);
    let len = (chunk_table_offset + chunk_table.len() as u64).next_multiple_of(BLOCK_SIZE);
    if len > BOOTSTRAP_MAX {
        return Err(Error::TooLarge {
            what: "the bootstrap",
            limit: "2 GiB",
        });
    }
    let mut file = File {
        bytes: vec![0; len as usize],
    };
    let blocks = file.devices(image)?;
    let superblock = Superblock {
        block_bits: block_bits(image),
        root: Nid(plan.offset(InodeId::ROOT) / Nid::SLOT_SIZE),
        inos: plan.names,
        blocks,
        meta_blkaddr: (regions.meta / image.block_size()) as u32,
        extra_devices: image.blobs.len() as u16,
        flags: flags(image, &plan),
        chunk_size: image.chunk_size,
        blob_table_offset: regions.blob_table,
        blob_table_size: image.blobs.len() as u32 * encode::BLOB_INFO_SIZE as u32,
        chunk_table_offset,
        chunk_table_size: chunk_table.len() as u64,
        prefetch_table_offset: if prefetch.is_empty() {
            0
        } else {
            regions.prefetch_table
        },
        prefetch_table_size: prefetch.len() as u32 * 4,
    };
    file.put(SUPERBLOCK_OFFSET, |out| {
        encode::superblock(&superblock, out)?;
        encode::ext_superblock(&superblock, out);
        Ok(())
    })
    .map_err(|source| Error::Encode {
        path: "the superblock".to_owned(),
        source,
    })?;
    file.put(regions.blob_table, |out| {
        image
            .blobs
            .iter()
            .for_each(|blob| encode::blob_info(blob, out));
        prefetch
            .iter()
            .try_for_each(|&id| encode::prefetch(plan.nid(id), out))
    })
    .map_err(|source| Error::Encode {
        path: "the prefetch table".to_owned(),
        source,
    })?;
    let mut record = Vec::new();
    for step in &plan.steps {
        file.inode(image, &plan, step, regions.meta, &mut record)
            .map_err(|source| plan.error(image, step.id, source))?;
    }
    file.copy(chunk_table_offset, &chunk_table);
    Ok(file.bytes)
}

/// log2 of the block size.
fn block_bits(image: &Image) -> u8 {
    image.block_size().ilog2() as u8
}

fn flags(image: &Image, plan: &Plan) -> SuperFlags {
    let mut flags =
        SuperFlags::of_compressor(image.compressor) | SuperFlags::of_digester(image.digester);
    flags.set(SuperFlags::EXPLICIT_UID_GID, image.explicit_owners);
    flags.set(SuperFlags::TARFS_MODE, image.tarfs);
    flags.set(
        SuperFlags::HAS_XATTR,
        plan.steps.iter().any(|step| step.xattr_size != 0),
    );
    let inlined = |features: BlobFeatures| features.contains(BlobFeatures::INLINED_CHUNK_DIGEST);
    flags.set(
        SuperFlags::INLINED_CHUNK_DIGEST,
        image.blobs.iter().all(|blob| inlined(blob.features)),
    );
    let encrypted = image.blobs.iter().any(|blob| blob.cipher != Cipher::None);
    flags
        | if encrypted {
            SuperFlags::ENCRYPTION_AES128_XTS
        } else {
            SuperFlags::ENCRYPTION_NONE
        }
}

/// The chunk table: each chunk that a file uses, once, by digest and blob. The file offset is that of the last use. In a
/// tarfs image, whose chunks have no digests, that leaves the last chunk of each blob: readers make no use of it.
fn chunk_table(image: &Image, plan: &Plan) -> Vec<u8> {
    struct Use<'a> {
        /// The first bytes of the digest, which nearly always decide.
        head: u64,
        chunk: &'a ChunkRecord,
        order: u64,
        file_offset: u64,
    }
    let mut uses: Vec<Use<'_>> = image
        .chunks
        .iter()
        .zip(&plan.last_use)
        .filter_map(|(chunk, last_use)| {
            let (order, file_offset) = (*last_use)?;
            Some(Use {
                head: chunk
                    .digest
                    .first_chunk()
                    .map_or(0, |head| u64::from_be_bytes(*head)),
                chunk,
                order,
                file_offset,
            })
        })
        .collect();
    let key = |chunk: &ChunkRecord| {
        let index = if image.tarfs { 0 } else { chunk.index };
        (chunk.digest, chunk.blob_index, index)
    };
    uses.sort_unstable_by(|a, b| {
        let rest = || key(a.chunk).cmp(&key(b.chunk)).then(b.order.cmp(&a.order));
        a.head.cmp(&b.head).then_with(rest)
    });
    uses.dedup_by(|a, b| a.head == b.head && key(a.chunk) == key(b.chunk));
    let mut table = Vec::with_capacity(uses.len() * encode::CHUNK_RECORD_SIZE as usize);
    for used in &uses {
        let record = ChunkRecord {
            file_offset: used.file_offset,
            ..*used.chunk
        };
        encode::chunk_record(&record, &mut table);
    }
    table
}

/// The bootstrap while it is filled.
struct File {
    bytes: Vec<u8>,
}

impl File {
    /// Writes bytes to their place.
    fn copy(&mut self, offset: u64, bytes: &[u8]) {
        let start = offset as usize;
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes what `encode` appends.
    fn put(
        &mut self,
        offset: u64,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<(), rafs_format::Error>,
    ) -> Result<(), rafs_format::Error> {
        let mut out = Vec::new();
        encode(&mut out)?;
        self.copy(offset, &out);
        Ok(())
    }

    /// Writes the device slots. Returns the blocks of all devices together.
    fn devices(&mut self, image: &Image) -> Result<u32, Error> {
        let too_large = Error::TooLarge {
            what: "all blobs together",
            limit: "2^44 bytes",
        };
        let block_size = image.block_size();
        let blocks =
            |blob: &rafs_format::BlobInfo| u32::try_from(blob.uncompressed_size / block_size).ok();
        let Some(blocks) = image.blobs.iter().map(blocks).collect::<Option<Vec<u32>>>() else {
            return Err(too_large);
        };
        let Some(total) = blocks
            .iter()
            .try_fold(0_u32, |sum, &blocks| sum.checked_add(blocks))
        else {
            return Err(too_large);
        };
        let failed = |source| Error::Encode {
            path: "the device table".to_owned(),
            source,
        };
        let len = self.bytes.len() as u64;
        let mapped =
            layout::map_devices(len, block_size, blocks.iter().copied()).map_err(failed)?;
        self.put(DEVICES_OFFSET, |out| {
            for ((blob, &blocks), &mapped_blkaddr) in image.blobs.iter().zip(&blocks).zip(&mapped) {
                let id = blob.id.as_str().to_owned();
                encode::device(
                    &DeviceSlot {
                        id,
                        blocks,
                        mapped_blkaddr,
                    },
                    out,
                )?;
            }
            Ok(())
        })
        .map_err(failed)?;
        Ok(total)
    }

    /// Writes an inode, its xattrs and its data. `out` is memory to use again.
    fn inode(
        &mut self,
        image: &Image,
        plan: &Plan,
        step: &Step,
        meta: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), rafs_format::Error> {
        let inode = image.tree.inode(step.id);
        let data = Data::new(image, plan, step, inode, meta)?;
        out.clear();
        let owner = |id| if image.explicit_owners { id } else { 0 };
        let fields = InodeFields {
            mode: inode.mode,
            nlink: step.nlink,
            size: data.size,
            uid: owner(inode.uid),
            gid: owner(inode.gid),
            mtime: inode.mtime,
            mtime_nsec: inode.mtime_nsec,
            ino: step.ino,
            implied: inode.implied && inode.is_directory(),
            layout: data.layout,
            u: data.word,
            xattr_size: step.xattr_size,
        };
        encode::inode(&fields, out)?;
        encode::xattrs(limits::xattrs(inode), out)?;
        if data.layout == Layout::ChunkBased {
            out.resize(out.len().next_multiple_of(8), 0);
        }
        out.extend_from_slice(&data.inline);
        self.copy(meta + step.place.offset, out);
        self.copy(meta + step.place.data_address, &data.blocks);
        Ok(())
    }
}

/// The data of an inode: what follows it directly, and what lies in blocks of its own.
struct Data {
    layout: Layout,
    size: u64,
    word: u32,
    inline: Vec<u8>,
    blocks: Vec<u8>,
}

impl Data {
    fn new(
        image: &Image,
        plan: &Plan,
        step: &Step,
        inode: &Inode,
        meta: u64,
    ) -> Result<Self, rafs_format::Error> {
        Ok(match &inode.content {
            Content::Directory(_) => Self::flat(image, directory(image, plan, step)?, step, meta),
            Content::Symlink(target) => Self::flat(image, target.to_vec(), step, meta),
            Content::Regular { size, chunks } => Self::chunks(image, *size, chunks)?,
            Content::Special => Self {
                layout: Layout::FlatPlain,
                size: 0,
                word: mode::device_number(inode.mode, inode.rdev),
                inline: Vec::new(),
                blocks: Vec::new(),
            },
        })
    }

    fn flat(image: &Image, mut bytes: Vec<u8>, step: &Step, meta: u64) -> Self {
        let (size, block_size) = (bytes.len() as u64, image.block_size());
        let full = if step.place.inline {
            size - size % block_size
        } else {
            size
        };
        let inline = bytes.split_off(full as usize);
        Self {
            layout: if step.place.inline {
                Layout::FlatInline
            } else {
                Layout::FlatPlain
            },
            size,
            word: ((meta + step.place.data_address) / block_size) as u32,
            inline,
            blocks: bytes,
        }
    }

    fn chunks(image: &Image, size: u64, chunks: &[ChunkId]) -> Result<Self, rafs_format::Error> {
        let pointers: Vec<ChunkPointer> = chunks
            .iter()
            .map(|id| {
                let ChunkRecord {
                    blob_index,
                    index,
                    uncompressed_offset,
                    ..
                } = image.chunks[id.0 as usize];
                ChunkPointer {
                    blob_index,
                    index,
                    uncompressed_offset,
                }
            })
            .collect();
        let mut inline = Vec::with_capacity(pointers.len() * 8);
        for pointer in &pointers {
            encode::chunk_index(pointer, block_bits(image), &mut inline)?;
        }
        let word = layout::chunk_format(size, image.chunk_size, image.block_size(), &pointers);
        Ok(Self {
            layout: Layout::ChunkBased,
            size,
            word,
            inline,
            blocks: Vec::new(),
        })
    }
}

fn directory(image: &Image, plan: &Plan, step: &Step) -> Result<Vec<u8>, rafs_format::Error> {
    let mut entries = vec![
        entry(image, plan, b".", step.id),
        entry(image, plan, b"..", step.parent),
    ];
    for (name, &id) in image.tree.entries(step.id).into_iter().flatten() {
        entries.push(entry(image, plan, name, id));
    }
    entries.sort_unstable_by_key(|entry| entry.name);
    let mut out = Vec::new();
    encode::directory(&entries, image.block_size(), &mut out)?;
    Ok(out)
}

fn entry<'a>(image: &Image, plan: &Plan, name: &'a [u8], id: InodeId) -> DirEntry<'a> {
    DirEntry {
        name,
        nid: plan.nid(id),
        file_type: encode::file_type(image.tree.inode(id).mode),
    }
}

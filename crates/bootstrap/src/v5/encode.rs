use rafs_format::v5::encode::{self, InodeFields};
use rafs_format::v5::{SUPERBLOCK_SIZE, Superblock};
use rafs_format::{BlobFeatures, BlobInfo, ChunkRecord, Compressor, Digest, SuperFlags, toc};
use tree::{ChunkId, Content, Image, Inode, InodeId, mode};

use crate::Error;
use crate::limits::{self, BOOTSTRAP_MAX, Numbers, path, xattrs};

/// Features that are said of a blob in v5. Others are about a chunk table, which v5 has no use for.
const FEATURES: BlobFeatures = BlobFeatures::INLINED_FS_META
    .union(BlobFeatures::EXTERNAL)
    .union(BlobFeatures::CHUNKDICT_GENERATED)
    .union(BlobFeatures::SEPARATED_WITH_PREFETCH_FILES)
    .union(BlobFeatures::HAS_TAR_HEADER)
    .union(BlobFeatures::CAP_TAR_TOC);
/// Kinds of blobs whose chunks v5 has no words for.
const FOREIGN: [(BlobFeatures, &str); 5] = [
    (BlobFeatures::TARFS, "a raw tar file"),
    (
        BlobFeatures::ZRAN,
        "a gzip layer that is entered in the middle",
    ),
    (BlobFeatures::SEPARATE, "apart from its chunk table"),
    (BlobFeatures::BATCH, "in batches"),
    (BlobFeatures::ENCRYPTED, "encrypted"),
];

/// Encodes the bootstrap of an image in RAFS v5 layout, record for record as the deployed builder does it. Extended
/// attributes are written in bytewise order of their names, and for every name of a hard-linked file.
///
/// The image may come from v6: chunks of plain blobs are found through their records alone.
///
/// # Errors
/// [`Error`] naming the path, table or blob that the format cannot express.
pub fn encode_v5(image: &Image) -> Result<Vec<u8>, Error> {
    let blobs = blobs(image)?;
    let plan = Plan::new(image)?;
    let digests = digests(image, &plan);
    let compressor = blobs
        .first()
        .map_or(image.compressor, |blob| blob.compressor);
    let mut blob_table = Vec::new();
    encode::blob_table(&blobs, &mut blob_table);
    let names = plan.numbers.names();
    let table = |count: usize| (count as u64 * 4).next_multiple_of(8);
    let inode_table_offset = SUPERBLOCK_SIZE;
    let prefetch_table_offset = inode_table_offset + table(names as usize);
    let blob_table_offset = prefetch_table_offset + table(image.prefetch.len());
    let superblock = Superblock {
        chunk_size: image.chunk_size,
        flags: flags(image, &plan, compressor),
        inodes_count: plan.inodes,
        inode_table_offset,
        inode_table_entries: names,
        prefetch_table_offset,
        prefetch_table_entries: image.prefetch.len() as u32,
        blob_table_offset,
        blob_table_size: blob_table.len() as u32,
        ext_blob_table_offset: blob_table_offset + blob_table.len() as u64,
        ext_blob_table_entries: blobs.len() as u32,
    };
    let mut out = Vec::new();
    encode::superblock(&superblock, &mut out);
    // Where inodes lie is known once they are written.
    encode::numbers((0..names).map(|_| 0), &mut out);
    let prefetch = image.prefetch.iter().map(|&id| plan.numbers.of(id));
    encode::numbers(prefetch, &mut out);
    out.extend_from_slice(&blob_table);
    blobs
        .iter()
        .for_each(|blob| encode::ext_blob(blob, &mut out));
    let offsets = inodes(image, &plan, &digests, &mut out)?;
    let mut inode_table = Vec::new();
    encode::numbers(offsets, &mut inode_table);
    let start = inode_table_offset as usize;
    out[start..start + inode_table.len()].copy_from_slice(&inode_table);
    Ok(out)
}

/// The blob table as v5 has it.
fn blobs(image: &Image) -> Result<Vec<BlobInfo>, Error> {
    let first = image.blobs.first();
    let one = |info: &BlobInfo| {
        let refuse = |what: String| Error::File {
            path: format!("blob {}", info.id),
            what,
        };
        if let Some((_, kind)) = FOREIGN.iter().find(|(bit, _)| info.features.contains(*bit)) {
            return Err(refuse(format!("its chunks are {kind}; v5 cannot say that")));
        }
        if info.digester != image.digester {
            return Err(refuse(format!(
                "its chunks have {} digests, those of the image are {}; v5 has one digester for all",
                info.digester, image.digester
            )));
        }
        if let Some(first) = first.filter(|first| first.compressor != info.compressor) {
            return Err(refuse(format!(
                "its chunks are compressed with {}, those of blob {} with {}; v5 has one compressor for all: build the layers alike, or take v6",
                info.compressor, first.id, first.compressor
            )));
        }
        let features = info.features & FEATURES;
        // Readers tell the end of the chunks from the size; in a v6 blob a chunk table may come between the two.
        let header = if features.contains(BlobFeatures::HAS_TAR_HEADER | BlobFeatures::CAP_TAR_TOC)
        {
            toc::TAR_HEADER_SIZE as u64
        } else {
            0
        };
        let compressed_size = info.data_size() + header;
        Ok(BlobInfo {
            features,
            compressed_size,
            ..info.clone()
        })
    };
    image.blobs.iter().map(one).collect()
}

fn flags(image: &Image, plan: &Plan, compressor: Compressor) -> SuperFlags {
    let mut flags = SuperFlags::of_compressor(compressor) | SuperFlags::of_digester(image.digester);
    flags.set(SuperFlags::EXPLICIT_UID_GID, image.explicit_owners);
    flags.set(SuperFlags::HAS_XATTR, plan.has_xattrs);
    flags
}

/// What is numbered how.
struct Plan {
    numbers: Numbers,
    /// The directories, each before those in it.
    directories: Vec<InodeId>,
    /// Index of the first child of each directory, by inode id.
    first_child: Vec<u32>,
    links: Vec<u32>,
    /// Inodes that have a name.
    inodes: u64,
    has_xattrs: bool,
}

impl Plan {
    fn new(image: &Image) -> Result<Self, Error> {
        let tree = &image.tree;
        let mut plan = Self {
            numbers: Numbers::new(tree),
            directories: Vec::new(),
            first_child: vec![0; tree.len()],
            links: tree.link_counts(),
            inodes: 1,
            has_xattrs: tree.inode(InodeId::ROOT).xattrs.is_some(),
        };
        let mut todo = vec![InodeId::ROOT];
        while let Some(directory) = todo.pop() {
            plan.directories.push(directory);
            plan.first_child[directory.0 as usize] = plan.numbers.names() + 1;
            let descent = todo.len();
            for (name, &id) in tree.entries(directory).into_iter().flatten() {
                let new = plan.numbers.of(id) == 0;
                plan.numbers.enter(image, name, id)?;
                let inode = tree.inode(id);
                if new {
                    plan.inodes += 1;
                    plan.has_xattrs |= inode.xattrs.is_some();
                    check(image, id, inode)?;
                }
                if inode.is_directory() {
                    todo.push(id);
                }
            }
            todo[descent..].reverse();
        }
        Ok(plan)
    }
}

fn check(image: &Image, id: InodeId, inode: &Inode) -> Result<(), Error> {
    match &inode.content {
        Content::Symlink(target) => limits::check_target(image, id, target),
        Content::Regular { size, chunks } => limits::check_chunks(image, id, *size, chunks),
        _ => Ok(()),
    }
}

/// The digest of every inode that has a name, by id.
fn digests(image: &Image, plan: &Plan) -> Vec<Digest> {
    let mut digests = vec![[0; 32]; image.tree.len()];
    let mut content: Vec<u8> = Vec::new();
    for &directory in plan.directories.iter().rev() {
        let entries = || image.tree.entries(directory).into_iter().flatten();
        for (_, &id) in entries() {
            content.clear();
            match &image.tree.inode(id).content {
                // Done before: it comes later among the directories.
                Content::Directory(_) => continue,
                Content::Regular { chunks, .. } => content.extend(
                    chunks
                        .iter()
                        .flat_map(|chunk| image.chunks[chunk.0 as usize].digest),
                ),
                Content::Symlink(target) => content.extend_from_slice(target),
                Content::Special => {}
            }
            digests[id.0 as usize] = codec::digest(image.digester, &content);
        }
        content.clear();
        content.extend(entries().flat_map(|(_, &id)| digests[id.0 as usize]));
        digests[directory.0 as usize] = codec::digest(image.digester, &content);
    }
    digests
}

/// Appends all inodes: a directory, then for each child in name order the child and all below it. Returns the entries
/// of the inode table.
fn inodes(
    image: &Image,
    plan: &Plan,
    digests: &[Digest],
    out: &mut Vec<u8>,
) -> Result<Vec<u32>, Error> {
    let mut offsets = vec![0; plan.numbers.names() as usize];
    let mut name = |index: u32, name: &[u8], id: InodeId, parent: u32| {
        offsets[index as usize - 1] = (out.len() as u64 / 8) as u32;
        put(image, plan, (name, id, parent), digests[id.0 as usize], out).map_err(|source| {
            Error::Encode {
                path: path(&image.tree, id),
                source,
            }
        })?;
        if out.len() as u64 > BOOTSTRAP_MAX {
            return Err(Error::TooLarge {
                what: "the bootstrap",
                limit: "2 GiB",
            });
        }
        Ok(())
    };
    let children = |id: InodeId| {
        let first = plan.first_child[id.0 as usize];
        let entries = image.tree.entries(id).into_iter().flatten();
        (plan.numbers.of(id), entries.zip(first..))
    };
    name(1, b"/", InodeId::ROOT, 0)?;
    let mut stack = vec![children(InodeId::ROOT)];
    while let Some((parent, entries)) = stack.last_mut() {
        let Some(((text, &id), index)) = entries.next() else {
            stack.pop();
            continue;
        };
        name(index, text, id, *parent)?;
        if image.tree.inode(id).is_directory() {
            stack.push(children(id));
        }
    }
    Ok(offsets)
}

/// Appends the inode of one name.
fn put(
    image: &Image,
    plan: &Plan,
    (name, id, parent): (&[u8], InodeId, u32),
    digest: Digest,
    out: &mut Vec<u8>,
) -> Result<(), rafs_format::Error> {
    let inode = image.tree.inode(id);
    let at = id.0 as usize;
    let owner = |id| if image.explicit_owners { id } else { 0 };
    let mut fields = InodeFields {
        digest,
        parent,
        ino: plan.numbers.of(id),
        uid: owner(inode.uid),
        gid: owner(inode.gid),
        mode: inode.mode,
        size: 0,
        nlink: plan.links[at],
        child_index: 0,
        child_count: 0,
        rdev: mode::device_number(inode.mode, inode.rdev),
        mtime: inode.mtime,
        mtime_nsec: inode.mtime_nsec,
        implied: inode.implied && inode.is_directory(),
        name,
        target: b"",
    };
    let mut chunks: &[ChunkId] = &[];
    match &inode.content {
        Content::Directory(entries) => {
            fields.size = encode::directory_size(entries.keys().map(|name| name.len()));
            fields.child_index = plan.first_child[at];
            fields.child_count = entries.len() as u32;
        }
        Content::Regular { size, chunks: all } => {
            fields.size = *size;
            fields.child_count = all.len() as u32;
            chunks = all;
        }
        Content::Symlink(target) => {
            fields.size = target.len() as u64;
            fields.target = target;
        }
        Content::Special => {}
    }
    let offsets = (0_u64..).map(|number| number * u64::from(image.chunk_size));
    let records = chunks
        .iter()
        .zip(offsets)
        .map(|(chunk, file_offset)| ChunkRecord {
            file_offset,
            ..image.chunks[chunk.0 as usize]
        });
    encode::inode(&fields, xattrs(inode), records, out)
}

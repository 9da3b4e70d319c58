//! A bootstrap as our libraries read it.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use bootstrap::Parsed;
use rafs_format::{BlobFeatures, BlobInfo, ChunkFlags};
use tree::{Content, Image, Inode, InodeId, Tree, mode};

use crate::listing::{Attributes, Chunk, Listing};

/// Parses, checks and loads a bootstrap. `name` is that of its file: the id of a blob that holds its own bootstrap.
pub fn load(bytes: Vec<u8>, name: &str) -> Result<Image> {
    let parsed = Parsed::parse(bytes)?;
    parsed
        .check()
        .map_err(|e| anyhow::anyhow!("our own check: {e}"))?;
    let mut image = parsed.load()?;
    for blob in &mut image.blobs {
        // A layer that stays as it is has an id of its own.
        let features = blob.features & (BlobFeatures::INLINED_FS_META | BlobFeatures::SEPARATE);
        if features == BlobFeatures::INLINED_FS_META {
            blob.id = rafs_format::BlobId::new(name).context("name of the bootstrap")?;
        }
    }
    Ok(image)
}

/// All that it says.
pub fn list(image: &Image) -> Listing {
    let mut names: HashMap<InodeId, u32> = HashMap::new();
    for visit in image.tree.walk() {
        *names.entry(visit.id).or_default() += 1;
    }
    let mut listing = Listing {
        blobs: image.blobs.iter().map(blob).collect(),
        ..Listing::default()
    };
    let mut walk = image.tree.walk();
    while let Some(visit) = walk.next() {
        let inode = image.tree.inode(visit.id);
        let nlink = match image.tree.entries(visit.id) {
            Some(entries) => 2 + subdirectories(&image.tree, entries),
            None => names[&visit.id],
        };
        let line = attributes(image, inode, nlink).line();
        listing.paths.insert(walk.path(&visit), line);
    }
    listing
}

fn subdirectories(tree: &Tree, entries: &BTreeMap<Box<[u8]>, InodeId>) -> u32 {
    entries
        .values()
        .filter(|id| tree.inode(**id).is_directory())
        .count() as u32
}

fn blob(blob: &BlobInfo) -> String {
    format!(
        "{} features {:#x} {}/{} chunks {}*{:#x} {:?} {:?} {:?} meta {:?} {}+{} of {} toc {} blob.meta {}",
        blob.id,
        blob.features.bits(),
        blob.compressed_size,
        blob.uncompressed_size,
        blob.chunk_count,
        blob.chunk_size,
        blob.compressor,
        blob.digester,
        blob.cipher,
        blob.meta_compressor,
        blob.meta_offset,
        blob.meta_compressed_size,
        blob.meta_uncompressed_size,
        blob.toc_size,
        blob.meta_size,
    )
    .to_lowercase()
}

fn attributes(image: &Image, inode: &Inode, nlink: u32) -> Attributes {
    let mut attributes = Attributes {
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        rdev: mode::device_number(inode.mode, inode.rdev),
        mtime: (inode.mtime as u64, inode.mtime_nsec),
        nlink,
        size: 0,
        target: Vec::new(),
        xattrs: BTreeMap::new(),
        chunks: Vec::new(),
    };
    for (name, value) in inode.xattrs.iter().flat_map(|xattrs| xattrs.iter()) {
        attributes.xattrs.insert(name.to_vec(), value.to_vec());
    }
    match &inode.content {
        Content::Regular { size, chunks } => {
            attributes.size = *size;
            attributes.chunks = chunks.iter().map(|id| chunk(image, *id)).collect();
        }
        Content::Symlink(target) => {
            attributes.size = target.len() as u64;
            attributes.target = target.to_vec();
        }
        Content::Directory(_) | Content::Special => {}
    }
    attributes
}

fn chunk(image: &Image, id: tree::ChunkId) -> Chunk {
    let c = &image.chunks[id.0 as usize];
    Chunk {
        blob: c.blob_index,
        index: c.index,
        compressed: (c.compressed_offset, c.compressed_size),
        uncompressed: (c.uncompressed_offset, c.uncompressed_size),
        digest: c.digest,
        is_compressed: c.flags.contains(ChunkFlags::COMPRESSED),
        is_batch: c.flags.contains(ChunkFlags::BATCH),
        is_encrypted: c.flags.contains(ChunkFlags::ENCRYPTED),
    }
}

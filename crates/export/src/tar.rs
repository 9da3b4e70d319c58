//! A tree as a PAX tar stream.
//!
//! The order is one that can be extracted in one pass, and in which each blob is read front to back:
//!
//! 1. directories, parents first;
//! 2. files with data, in the order in which their first chunks are stored;
//! 3. all else, in canonical order.
//!
//! Further names of an inode follow its first as hard links. A directory that exists only because an entry below it does
//! has no entry, like in the layer that it came from: whoever extracts the stream over a lower layer must keep what that
//! says of the directory. Whiteout files of a layer are entries like any other. Sockets, which tar does not know, are
//! left out.

mod header;

use std::io::Write;

use progress::Cancel;
use rafs_format::ChunkPointer;
use storage::{ChunkStore, Sequence};
use tree::{ChunkId, Content, Image, Inode, InodeId, mode};

use crate::Error;
use header::{BLOCK, Kind, Member};

/// What came of [`write_tar`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TarSummary {
    /// Entries in the stream.
    pub entries: u64,
    /// Bytes of file data.
    pub data: u64,
    /// Paths of sockets, which were left out.
    pub sockets: Vec<Vec<u8>>,
}

/// Writes the files of `image` to `out` as a tar stream, their data from `store`, which must be of the same image.
///
/// # Errors
/// [`Error`]; `out` then holds a part of a stream without an end.
pub fn write_tar(
    image: &Image,
    store: &ChunkStore,
    out: &mut dyn Write,
    cancel: &Cancel,
) -> Result<TarSummary, Error> {
    let plan = Plan::new(image)?;
    let mut writer = Writer {
        image,
        out,
        cancel,
        chunks: store.sequence(plan.chunks(image)?),
        summary: TarSummary::default(),
    };
    for names in &plan.order {
        writer.inode(names)?;
    }
    writer.out.write_all(&[0; 2 * BLOCK])?;
    writer.out.flush()?;
    Ok(TarSummary {
        sockets: plan.sockets,
        ..writer.summary
    })
}

/// An inode with all its names: paths without a leading slash, the root's empty.
struct Names {
    id: InodeId,
    paths: Vec<Vec<u8>>,
}

/// Which inodes are written, in order.
struct Plan {
    order: Vec<Names>,
    sockets: Vec<Vec<u8>>,
}

impl Plan {
    fn new(image: &Image) -> Result<Self, Error> {
        let tree = &image.tree;
        let mut position: Vec<Option<usize>> = vec![None; tree.len()];
        let mut plan = Self {
            order: Vec::new(),
            sockets: Vec::new(),
        };
        let mut walk = tree.walk();
        while let Some(visit) = walk.next() {
            let inode = tree.inode(visit.id);
            let path = walk.path(&visit).split_off(1);
            if inode.mode & mode::TYPE_MASK == mode::SOCKET {
                plan.sockets.push(path);
            } else if let Some(at) = position[visit.id.0 as usize] {
                plan.order[at].paths.push(path);
            } else if !says_nothing(inode, visit.depth == 0) {
                position[visit.id.0 as usize] = Some(plan.order.len());
                plan.order.push(Names {
                    id: visit.id,
                    paths: vec![path],
                });
            }
        }
        let place = |names: &Names| match &tree.inode(names.id).content {
            Content::Directory(_) => (0, None),
            Content::Regular { chunks, .. } if !chunks.is_empty() => (1, stored_at(image, chunks)),
            _ => (2, None),
        };
        // The sort is stable: what has no place keeps the canonical order.
        plan.order.sort_by_cached_key(place);
        Ok(plan)
    }

    /// The chunks of all files in order, checked against the files' sizes.
    fn chunks(&self, image: &Image) -> Result<Vec<ChunkPointer>, Error> {
        let mut pointers = Vec::new();
        for names in &self.order {
            let Content::Regular { size, chunks } = &image.tree.inode(names.id).content else {
                continue;
            };
            let damaged = |what| Error::Damaged {
                path: names.paths[0].clone(),
                what,
            };
            let mut sum = 0;
            for &id in chunks {
                let record = image
                    .chunks
                    .get(id.0 as usize)
                    .ok_or_else(|| damaged(format!("the image has no chunk {}", id.0)))?;
                sum += u64::from(record.uncompressed_size);
                pointers.push(ChunkPointer {
                    blob_index: record.blob_index,
                    index: record.index,
                    uncompressed_offset: record.uncompressed_offset,
                });
            }
            if sum != *size {
                return Err(damaged(format!(
                    "the file has {size} bytes, but its chunks have {sum}"
                )));
            }
        }
        Ok(pointers)
    }
}

/// Whether a directory is as any extractor makes it without being told: an implied one, or a root that nothing
/// describes.
fn says_nothing(inode: &Inode, is_root: bool) -> bool {
    let unset = inode.mode == mode::DIRECTORY | 0o755
        && (inode.uid, inode.gid, inode.mtime, inode.mtime_nsec) == (0, 0, 0, 0)
        && inode.xattrs.is_none();
    inode.is_directory() && (inode.implied || is_root && unset)
}

/// Where the first chunk of a file is stored.
fn stored_at(image: &Image, chunks: &[ChunkId]) -> Option<(u32, u32)> {
    let record = image.chunks.get(chunks.first()?.0 as usize)?;
    Some((record.blob_index, record.index))
}

struct Writer<'a> {
    image: &'a Image,
    out: &'a mut dyn Write,
    cancel: &'a Cancel,
    chunks: Sequence,
    summary: TarSummary,
}

impl Writer<'_> {
    /// Writes an inode under its first name, and its other names as links to that.
    fn inode(&mut self, names: &Names) -> Result<(), Error> {
        self.cancel.check()?;
        let inode = self.image.tree.inode(names.id);
        let (first, others) = match names.paths.split_first() {
            Some(split) => split,
            None => return Ok(()),
        };
        let kind = match &inode.content {
            Content::Directory(_) => Kind::Directory,
            Content::Regular { size, .. } => Kind::Regular(*size),
            Content::Symlink(target) => Kind::Symlink(target),
            Content::Special => match inode.mode & mode::TYPE_MASK {
                mode::CHARACTER => Kind::Character,
                mode::BLOCK => Kind::Block,
                _ => Kind::Fifo,
            },
        };
        self.member(&Member {
            path: first,
            kind,
            inode,
        })?;
        if let Content::Regular { size, chunks } = &inode.content {
            self.data(first, *size, chunks.len())?;
        }
        for path in others {
            self.member(&Member {
                path,
                kind: Kind::HardLink(first),
                inode,
            })?;
        }
        Ok(())
    }

    fn member(&mut self, member: &Member<'_>) -> Result<(), Error> {
        self.out.write_all(&member.encode())?;
        self.summary.entries += 1;
        Ok(())
    }

    /// Writes the next `count` chunks and fills the last block.
    fn data(&mut self, path: &[u8], size: u64, count: usize) -> Result<(), Error> {
        for _ in 0..count {
            self.cancel.check()?;
            let chunk = match self.chunks.next() {
                Some(chunk) => chunk.map_err(|source| Error::Read {
                    path: path.to_vec(),
                    source,
                })?,
                None => {
                    return Err(Error::Damaged {
                        path: path.to_vec(),
                        what: "a chunk is missing".to_owned(),
                    });
                }
            };
            self.out.write_all(&chunk)?;
        }
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        self.out.write_all(&[0; BLOCK][..padding as usize])?;
        self.summary.data += size;
        Ok(())
    }
}

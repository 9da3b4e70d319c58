//! From the TOC to a tree whose files are lists of chunks in the blob.

use std::io::{self, BufRead, Read};

use tree::{ChunkId, Tree};

use super::toc::{Chunk, EntryKind, TocEntry, read_toc};
use crate::apply::{DataSink, FileInfo, Options, TreeBuilder};
use crate::error::{Error, show};
use crate::tar;

/// Least bytes from one gzip member to the next: a header of 10, an empty block of 2, a trailer of 8.
const MEMBER_MIN: u64 = 20;

/// What a TOC says of a layer.
#[derive(Debug)]
pub struct Contents {
    /// The files, made by the rules of [`read_tree`](crate::read_tree).
    pub tree: Tree,
    /// The chunks that files of the tree refer to, in TOC order. Files that a later entry replaced had chunks, too.
    pub chunks: Vec<StoredChunk>,
}

/// A chunk that lies at the beginning of a gzip member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredChunk {
    /// Where it lies in its file, in bytes.
    pub file_offset: u64,
    /// Its size in bytes, at least 1.
    pub size: u32,
    /// Where its gzip member begins in the blob, in bytes.
    pub member: u64,
    /// Where the next member that the TOC knows begins; `None` for the last. The chunk's own member ends there.
    pub next_member: Option<u64>,
    /// SHA-256 of its bytes.
    pub digest: [u8; 32],
}

/// Reads the JSON of a TOC. Files are in chunks of `chunk_size` bytes, the last of each may be shorter.
///
/// # Errors
/// [`Error`]: a TOC that makes no sense, entries that cannot be put into a tree, and files that cannot be read chunk by
/// chunk: cut otherwise, without digests, or several in one gzip member.
pub fn read_contents(
    json: impl Read,
    chunk_size: u32,
    options: &Options,
) -> Result<Contents, Error> {
    let options = Options {
        drop_estargz: true,
        ..options.clone()
    };
    let mut reading = Reading {
        chunk_size,
        builder: TreeBuilder::new(&options),
        pending: None,
        known: Known::default(),
        members: Vec::new(),
    };
    read_toc(json, |number, entry| reading.entry(number, entry))?;
    reading.finish()
}

struct Reading<'a> {
    chunk_size: u32,
    builder: TreeBuilder<'a>,
    /// A file of which more chunks may follow.
    pending: Option<Pending>,
    known: Known,
    /// Where members begin, those of files that were left out included, in TOC order.
    members: Vec<u64>,
}

struct Pending {
    number: u64,
    entry: TocEntry,
    chunks: Vec<StoredChunk>,
    /// Bytes of the file that its chunks make up.
    covered: u64,
}

impl Reading<'_> {
    fn entry(&mut self, number: u64, entry: TocEntry) -> Result<(), Error> {
        if entry.kind != EntryKind::Chunk {
            self.flush()?;
        }
        let path = show(entry.name.as_bytes());
        self.take(number, entry).map_err(|reason| Error::TocEntry {
            number,
            path,
            reason,
        })
    }

    fn take(&mut self, number: u64, entry: TocEntry) -> Result<(), String> {
        let chunk = entry.chunk;
        if entry.kind == EntryKind::Chunk {
            let file = self.pending.as_ref().map(|file| &file.entry);
            let follows = |file: &TocEntry| {
                file.kind == EntryKind::Regular
                    && (entry.name.is_empty() || file.name == entry.name)
            };
            if !file.is_some_and(follows) {
                return Err("it is a chunk of a file that is not right before it".to_owned());
            }
        } else {
            self.pending = Some(Pending {
                number,
                entry,
                chunks: Vec::new(),
                covered: 0,
            });
        }
        match (chunk, &mut self.pending) {
            (Some(chunk), Some(file)) => {
                self.members.push(chunk.member);
                file.add(&chunk, self.chunk_size)
            }
            _ => Ok(()),
        }
    }

    /// Puts the last entry into the tree.
    fn flush(&mut self) -> Result<(), Error> {
        let Some(Pending {
            number,
            entry,
            chunks,
            covered,
        }) = self.pending.take()
        else {
            return Ok(());
        };
        let path = show(entry.name.as_bytes());
        let refused = |reason| Error::TocEntry {
            number,
            path: path.clone(),
            reason,
        };
        if covered != entry.size {
            return Err(refused(format!(
                "its chunks have {covered} bytes, the file has {}",
                entry.size
            )));
        }
        self.known.next = chunks;
        self.builder
            .apply(tar_entry(entry), None, &mut io::empty(), &mut self.known)
            .map_err(|error| match error {
                Error::Entry { reason, .. } => refused(reason),
                error => error,
            })
    }

    fn finish(mut self) -> Result<Contents, Error> {
        self.flush()?;
        self.members.sort_unstable();
        if let Some([a, b]) = self
            .members
            .array_windows()
            .find(|[a, b]| b - a < MEMBER_MIN)
        {
            return Err(Error::Members { a: *a, b: *b });
        }
        let mut chunks = self.known.chunks;
        for chunk in &mut chunks {
            let next = self.members.partition_point(|&start| start <= chunk.member);
            chunk.next_member = self.members.get(next).copied();
        }
        Ok(Contents {
            tree: self.builder.finish(),
            chunks,
        })
    }
}

impl Pending {
    fn add(&mut self, chunk: &Chunk, chunk_size: u32) -> Result<(), String> {
        if chunk.inner_offset != 0 {
            return Err(
                "it shares a gzip member with other files (innerOffset), which no RAFS image can express: build the layer without a least chunk size, or convert its files"
                    .to_owned(),
            );
        }
        if chunk.file_offset != self.covered {
            return Err(format!(
                "its chunk is for byte {} of the file, those before it end at byte {}",
                chunk.file_offset, self.covered
            ));
        }
        // No underflow: what is covered is checked against the size each time.
        let rest = self.entry.size - self.covered;
        let size = if chunk.size == 0 { rest } else { chunk.size };
        if size == 0 || size > rest {
            return Err(format!(
                "its chunk has {size} bytes where the file has {rest} more"
            ));
        }
        if size > u64::from(chunk_size) || (size < rest && size != u64::from(chunk_size)) {
            return Err(format!(
                "its chunk has {size:#x} bytes, but the chunk size is {chunk_size:#x}: they must be the same"
            ));
        }
        let digest = chunk.digest.ok_or(
            "there is no digest of its chunk: the layer is an old stargz one, convert its files",
        )?;
        self.chunks.push(StoredChunk {
            file_offset: chunk.file_offset,
            // Not above the chunk size.
            size: size as u32,
            member: chunk.member,
            next_member: None,
            digest,
        });
        self.covered += size;
        Ok(())
    }
}

/// The chunks that files of the tree have.
#[derive(Default)]
struct Known {
    chunks: Vec<StoredChunk>,
    /// Those of the file that is being put into the tree.
    next: Vec<StoredChunk>,
}

impl DataSink for Known {
    fn file(&mut self, _: FileInfo<'_>, _: &mut dyn BufRead) -> io::Result<Box<[ChunkId]>> {
        let first = self.chunks.len() as u64;
        self.chunks.append(&mut self.next);
        let last = u32::try_from(self.chunks.len())
            .map_err(|_| io::Error::other("the layer has more than 2^32 chunks"))?;
        Ok((first as u32..last).map(ChunkId).collect())
    }
}

fn tar_entry(entry: TocEntry) -> tar::Entry {
    let bytes = String::into_bytes;
    tar::Entry {
        path: bytes(entry.name),
        kind: match entry.kind {
            EntryKind::Directory => tar::EntryKind::Directory,
            EntryKind::Regular | EntryKind::Chunk => tar::EntryKind::Regular,
            EntryKind::Symlink(target) => tar::EntryKind::Symlink(bytes(target)),
            EntryKind::HardLink(target) => tar::EntryKind::HardLink(bytes(target)),
            EntryKind::Character => tar::EntryKind::Character,
            EntryKind::Block => tar::EntryKind::Block,
            EntryKind::Fifo => tar::EntryKind::Fifo,
        },
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        size: entry.size,
        mtime: entry.mtime,
        mtime_nsec: entry.mtime_nsec,
        rdev: entry.rdev,
        xattrs: entry.xattrs,
        offset: 0,
    }
}

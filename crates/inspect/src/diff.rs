//! What two images share and what not.

use std::collections::{BTreeMap, HashMap, HashSet};

use rafs_format::Digest;
use serde::Serialize;
use tree::{ChunkId, Content, Image, Inode};

/// What two images, A and B, share and what not. Sizes are in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// Whether chunks can be compared: both images cut files at the same places and name chunks by the same digest. If
    /// not, none of them is shared, and files of the same size count as changed.
    pub comparable: bool,
    /// Names in the trees: files, directories, links, devices.
    pub names: Shared,
    /// Regular files by name and content, and their bytes.
    pub files: Shared,
    /// Bytes of file data, each chunk once.
    pub bytes: Shared,
    /// Chunks, each once, wherever they are in the trees.
    pub chunks: Shared,
    /// Bytes of these as they are stored. Of those that both have, as B stores them: what is in B alone is what a machine
    /// that has A fetches for B.
    pub stored: Shared,
    /// Blobs by id.
    pub blobs: Shared,
    /// What differs, by path.
    pub changes: Vec<Change>,
}

/// How much is in both images, and in one of them alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Shared {
    /// In both.
    pub both: u64,
    /// In A alone.
    pub a: u64,
    /// In B alone.
    pub b: u64,
}

/// A path that is not the same in both images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Where; bytes that are no UTF-8 are replaced.
    pub path: String,
    /// What.
    pub kind: Kind,
    /// Bytes of the file in A, if it is one there.
    pub a: Option<u64>,
    /// Bytes of the file in B, if it is one there.
    pub b: Option<u64>,
    /// How many of B's bytes lie in chunks that A does not have at all.
    pub new: u64,
}

/// How a path differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Only B has it.
    Added,
    /// Only A has it.
    Removed,
    /// Its type, its content or where it leads.
    Content,
    /// Owner, mode, times or extended attributes alone.
    Attributes,
}

/// An image with what it takes to compare it.
struct Side<'a> {
    image: &'a Image,
    /// By path.
    names: BTreeMap<Vec<u8>, &'a Inode>,
    /// Chunks that files have, by digest: their bytes of file data, and as they are stored.
    chunks: HashMap<Digest, (u64, u64)>,
}

impl<'a> Side<'a> {
    fn new(image: &'a Image) -> Self {
        let mut side = Self {
            image,
            names: BTreeMap::new(),
            chunks: HashMap::new(),
        };
        let stored = image.stored_sizes();
        let mut walk = image.tree.walk();
        while let Some(visit) = walk.next() {
            let inode = image.tree.inode(visit.id);
            side.names.insert(walk.path(&visit), inode);
            if let Content::Regular { chunks, .. } = &inode.content {
                for chunk in chunks {
                    let at = chunk.0 as usize;
                    if let (Some(chunk), Some(&stored)) = (image.chunks.get(at), stored.get(at)) {
                        let sizes = (chunk.uncompressed_size.into(), stored.into());
                        side.chunks.insert(chunk.digest, sizes);
                    }
                }
            }
        }
        side
    }

    fn digests(&self, chunks: &[ChunkId]) -> Vec<(Digest, u64)> {
        let chunks = chunks.iter();
        let records = chunks.filter_map(|chunk| self.image.chunks.get(chunk.0 as usize));
        records
            .map(|record| (record.digest, record.uncompressed_size.into()))
            .collect()
    }
}

impl Diff {
    /// Compares two images.
    pub fn of(a: &Image, b: &Image) -> Self {
        let comparable =
            (a.digester, a.chunk_size) == (b.digester, b.chunk_size) && !a.tarfs && !b.tarfs;
        let (a, b) = (Side::new(a), Side::new(b));
        let mut diff = Self {
            comparable,
            ..Self::default()
        };
        diff.compare_chunks(&a, &b);
        let ids = |side: &Side<'_>| -> HashSet<String> {
            side.image
                .blobs
                .iter()
                .map(|blob| blob.id.to_string())
                .collect()
        };
        let (blobs_a, blobs_b) = (ids(&a), ids(&b));
        diff.blobs.both = blobs_a.intersection(&blobs_b).count() as u64;
        diff.blobs.a = blobs_a.difference(&blobs_b).count() as u64;
        diff.blobs.b = blobs_b.difference(&blobs_a).count() as u64;
        let only_a = a.names.keys().filter(|path| !b.names.contains_key(*path));
        let paths: Vec<&Vec<u8>> = b.names.keys().chain(only_a).collect();
        for path in paths {
            diff.compare(&a, &b, path);
        }
        diff.changes.sort_by(|a, b| a.path.cmp(&b.path));
        diff
    }

    fn compare_chunks(&mut self, a: &Side<'_>, b: &Side<'_>) {
        let mut count = |which: fn(&mut Shared) -> &mut u64, (size, stored): (u64, u64)| {
            *which(&mut self.chunks) += 1;
            let bytes = which(&mut self.bytes);
            *bytes = bytes.saturating_add(size);
            let bytes = which(&mut self.stored);
            *bytes = bytes.saturating_add(stored);
        };
        for (digest, sizes) in &b.chunks {
            let both = self.comparable && a.chunks.contains_key(digest);
            count(if both { |s| &mut s.both } else { |s| &mut s.b }, *sizes);
        }
        for (digest, sizes) in &a.chunks {
            if !self.comparable || !b.chunks.contains_key(digest) {
                count(|shared| &mut shared.a, *sizes);
            }
        }
    }

    /// Compares what is at a path.
    fn compare(&mut self, a: &Side<'_>, b: &Side<'_>, path: &[u8]) {
        let (in_a, in_b) = (a.names.get(path).copied(), b.names.get(path).copied());
        let kind = match (in_a, in_b) {
            (Some(in_a), Some(in_b)) => {
                self.names.both += 1;
                self.difference((a, in_a), (b, in_b))
            }
            (Some(_), None) => {
                self.names.a += 1;
                Some(Kind::Removed)
            }
            (None, _) => {
                self.names.b += 1;
                Some(Kind::Added)
            }
        };
        let size = |inode: Option<&Inode>| match inode?.content {
            Content::Regular { size, .. } => Some(size),
            _ => None,
        };
        let (size_a, size_b) = (size(in_a), size(in_b));
        let same = !matches!(kind, Some(Kind::Added | Kind::Removed | Kind::Content));
        self.files.both += u64::from(same && size_b.is_some());
        self.files.a += u64::from(!same && size_a.is_some());
        self.files.b += u64::from(!same && size_b.is_some());
        let Some(kind) = kind else { return };
        let new = match in_b.map(|inode| &inode.content) {
            Some(Content::Regular { chunks, .. }) => {
                let chunks = b.digests(chunks);
                let new = |(digest, _): &&(Digest, u64)| {
                    !self.comparable || !a.chunks.contains_key(digest)
                };
                chunks.iter().filter(new).map(|(_, size)| size).sum()
            }
            _ => 0,
        };
        self.changes.push(Change {
            path: String::from_utf8_lossy(path).into_owned(),
            kind,
            a: size_a,
            b: size_b,
            new,
        });
    }

    fn difference(
        &self,
        (a, in_a): (&Side<'_>, &Inode),
        (b, in_b): (&Side<'_>, &Inode),
    ) -> Option<Kind> {
        const TYPE: u32 = 0o170_000;
        let same_content = match (&in_a.content, &in_b.content) {
            (Content::Directory(_), Content::Directory(_)) => true,
            (
                Content::Regular { size, chunks },
                Content::Regular {
                    size: size_b,
                    chunks: chunks_b,
                },
            ) => {
                let empty = *size == 0 && *size_b == 0;
                let same = || self.comparable && a.digests(chunks) == b.digests(chunks_b);
                size == size_b && (empty || same())
            }
            (Content::Symlink(a), Content::Symlink(b)) => a == b,
            (Content::Special, Content::Special) => {
                (in_a.mode & TYPE, in_a.rdev) == (in_b.mode & TYPE, in_b.rdev)
            }
            _ => false,
        };
        if !same_content {
            return Some(Kind::Content);
        }
        let attributes = |inode: &Inode| {
            let time = (inode.mtime, inode.mtime_nsec);
            (inode.mode, inode.uid, inode.gid, time)
        };
        let same = attributes(in_a) == attributes(in_b) && in_a.xattrs == in_b.xattrs;
        (!same).then_some(Kind::Attributes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use rafs_format::{ChunkRecord, Compressor, Digester, Version};
    use tree::{InodeId, Tree};

    use super::*;

    /// An image of files in its root, each with chunks that are named by a byte.
    fn image(files: &[(&str, u32, &[u8])]) -> Image {
        let mut image = Image {
            version: Version::V6,
            tree: Tree::new(),
            blobs: Vec::new(),
            chunks: Vec::new(),
            chunk_size: 0x1000,
            prefetch: Vec::new(),
            compressor: Compressor::None,
            digester: Digester::Blake3,
            explicit_owners: true,
            tarfs: false,
        };
        for (name, mode, chunks) in files {
            let mut ids = Vec::new();
            for digest in *chunks {
                let mut record = ChunkRecord::in_tar((0, u32::from(*digest)), 0, 0, 0x1000);
                (record.digest, record.compressed_size) = ([*digest; 32], 100);
                ids.push(ChunkId(image.chunks.len() as u32));
                image.chunks.push(record);
            }
            let inode = image.tree.add(Inode {
                mode: 0o100_000 | mode,
                content: Content::Regular {
                    size: 0x1000 * chunks.len() as u64,
                    chunks: ids.into(),
                },
                implied: false,
                ..Inode::implied_directory()
            });
            let root = image.tree.entries_mut(InodeId::ROOT).unwrap();
            root.insert(name.as_bytes().into(), inode);
        }
        image
    }

    #[test]
    fn what_is_shared_and_what_not() {
        let a = image(&[
            ("same", 0o644, &[1, 2]),
            ("grown", 0o644, &[3]),
            ("mode", 0o644, &[4]),
            ("gone", 0o644, &[5, 1]),
        ]);
        let b = image(&[
            ("same", 0o644, &[1, 2]),
            ("grown", 0o644, &[3, 6]),
            ("mode", 0o755, &[4]),
            ("come", 0o644, &[7, 5]),
        ]);
        let diff = Diff::of(&a, &b);
        assert!(diff.comparable);
        let shared = |both, a, b| Shared { both, a, b };
        // The root is a name as well.
        assert_eq!(diff.names, shared(4, 1, 1));
        assert_eq!(diff.files, shared(2, 2, 2));
        assert_eq!(diff.chunks, shared(5, 0, 2));
        assert_eq!(diff.bytes, shared(0x5000, 0, 0x2000));
        assert_eq!(diff.stored, shared(500, 0, 200));
        let changes: Vec<_> = diff
            .changes
            .iter()
            .map(|c| (&*c.path, c.kind, c.new))
            .collect();
        assert_eq!(
            changes,
            [
                ("/come", Kind::Added, 0x1000),
                ("/gone", Kind::Removed, 0),
                ("/grown", Kind::Content, 0x1000),
                ("/mode", Kind::Attributes, 0),
            ]
        );
        let none = Diff::of(&b, &b);
        assert_eq!((none.changes.len(), none.files), (0, shared(4, 0, 0)));
    }

    #[test]
    fn chunks_of_other_sizes_have_nothing_in_common() {
        let a = image(&[("same", 0o644, &[1])]);
        let mut b = a.clone();
        b.chunk_size = 0x2000;
        let diff = Diff::of(&a, &b);
        assert!(!diff.comparable);
        assert_eq!(
            diff.chunks,
            Shared {
                both: 0,
                a: 1,
                b: 1
            }
        );
        assert_eq!(diff.changes[0].kind, Kind::Content);
    }
}

//! Laying one layer over another: the whiteout rules of OCI images, or those of overlayfs.
//!
//! Markers act on what lies below only, wherever they stand: an opaque directory keeps the children that its own
//! layer gives it. The ways of the other rules mean nothing: a `.wh.` name to overlayfs, a device 0/0 to OCI.

use std::collections::{BTreeMap, HashMap};
use std::mem;

use rafs_format::BlobInfo;

use crate::marker::Marker;
use crate::{ChunkId, Content, Error, Image, Inode, InodeId, Tree, mode};

/// How a layer says that files of the layers below are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Whiteouts {
    /// By names: `.wh.NAME`, and `.wh..wh..opq` in an opaque directory.
    #[default]
    Oci,
    /// As overlayfs does it: a character device 0/0 of that name, and an attribute of an opaque directory.
    Overlayfs,
    /// Not at all: every entry is a file.
    None,
}

impl Whiteouts {
    /// The attribute of a directory that is opaque to overlayfs, and its value.
    const OPAQUE: (&'static [u8], &'static [u8]) = (b"trusted.overlay.opaque", b"y");

    /// Whether an entry stands for the absence of a file and is none itself.
    pub fn covers(self, name: &[u8], mode: u32, rdev: u32) -> bool {
        match self {
            Self::Oci => Marker::is_marker(name),
            Self::Overlayfs => mode & mode::TYPE_MASK == mode::CHARACTER && rdev == 0,
            Self::None => false,
        }
    }

    fn covers_inode(self, name: &[u8], inode: &Inode) -> bool {
        self.covers(name, inode.mode, inode.rdev)
    }

    /// The lower entry that an entry hides.
    fn hides<'a>(self, name: &'a [u8], inode: &Inode) -> Option<&'a [u8]> {
        match self {
            Self::Oci => match Marker::parse(name) {
                Marker::Whiteout(hidden) => Some(hidden),
                _ => None,
            },
            Self::Overlayfs | Self::None => self.covers_inode(name, inode).then_some(name),
        }
    }

    /// Whether a directory hides all lower entries.
    fn is_opaque(self, inode: &Inode) -> bool {
        let (name, value) = Self::OPAQUE;
        match (self, &inode.content) {
            (Self::Oci, Content::Directory(entries)) => entries.contains_key(crate::marker::OPAQUE),
            (Self::Overlayfs, Content::Directory(_)) => {
                let xattrs = inode.xattrs.as_deref();
                xattrs
                    .and_then(|xattrs| xattrs.get(name))
                    .map(|own| &own[..])
                    == Some(value)
            }
            _ => false,
        }
    }

    /// Takes the attribute away that makes a directory opaque.
    fn clear_opaque(self, inode: &mut Inode) {
        if self == Self::Overlayfs && self.is_opaque(inode) {
            if let Some(xattrs) = &mut inode.xattrs {
                xattrs.remove(Self::OPAQUE.0);
            }
            inode.xattrs.take_if(|xattrs| xattrs.is_empty());
        }
    }
}

/// Where the inodes of an upper tree went.
struct Moved {
    /// Added to each id.
    base: u32,
    /// Directories that were joined with a lower one, by their new id.
    joined: HashMap<InodeId, InodeId>,
}

impl Moved {
    fn to(&self, id: InodeId) -> InodeId {
        let id = InodeId(id.0 + self.base);
        self.joined.get(&id).copied().unwrap_or(id)
    }
}

/// Lays `upper` over `lower`, by the rules of OCI layers.
///
/// * A directory over a directory joins the children; metadata is the upper one's, unless that is only implied.
/// * Anything else of the upper layer replaces the lower entry of its name and all below it.
/// * Whiteouts remove lower entries; no marker of the upper layer remains. Those of a lowest layer go with
///   [`Tree::strip_whiteouts`].
/// * Blobs of the upper image follow those of the lower one; a blob that both know by id is shared.
///
/// Nothing is dropped: call [`Image::compact`] after the last layer.
///
/// # Errors
/// Images of different versions or chunk sizes, the same blob id with different facts, chunks of unknown blobs, or more than
/// 2^32 inodes or chunks.
pub fn overlay(lower: &mut Image, upper: Image) -> Result<(), Error> {
    overlay_with(lower, upper, Whiteouts::Oci)
}

/// [`overlay`] with whiteouts of any kind.
///
/// # Errors
/// As [`overlay`].
pub fn overlay_with(lower: &mut Image, upper: Image, whiteouts: Whiteouts) -> Result<(), Error> {
    if lower.version != upper.version {
        return Err(Error::Version {
            lower: lower.version,
            upper: upper.version,
        });
    }
    if lower.chunk_size != upper.chunk_size {
        return Err(Error::ChunkSize {
            lower: lower.chunk_size,
            upper: upper.chunk_size,
        });
    }
    let base = u32::try_from(lower.chunks.len()).map_err(|_| Error::TooManyChunks)?;
    if u32::try_from(lower.chunks.len() + upper.chunks.len()).is_err() {
        return Err(Error::TooManyChunks);
    }
    let blobs = join_blobs(&mut lower.blobs, upper.blobs)?;
    lower.chunks.reserve(upper.chunks.len());
    for mut chunk in upper.chunks {
        let index = blobs
            .get(chunk.blob_index as usize)
            .ok_or(Error::UnknownBlob {
                index: chunk.blob_index,
            })?;
        chunk.blob_index = *index;
        lower.chunks.push(chunk);
    }
    let moved = lower.tree.graft(upper.tree, base, whiteouts)?;
    lower
        .prefetch
        .extend(upper.prefetch.into_iter().map(|id| moved.to(id)));
    lower.compressor = upper.compressor;
    lower.digester = upper.digester;
    lower.explicit_owners = upper.explicit_owners;
    Ok(())
}

/// Appends the blobs that are new; gives the index of each upper blob in the joined table.
fn join_blobs(lower: &mut Vec<BlobInfo>, upper: Vec<BlobInfo>) -> Result<Vec<u32>, Error> {
    let mut indexes = Vec::with_capacity(upper.len());
    for mut blob in upper {
        let known = lower
            .iter()
            .find(|known| known.id == blob.id && !blob.id.is_placeholder());
        if let Some(known) = known {
            if facts(known) != facts(&blob) {
                return Err(Error::BlobConflict {
                    id: blob.id.to_string(),
                });
            }
            indexes.push(known.index);
        } else {
            blob.index = u32::try_from(lower.len()).map_err(|_| Error::TooManyChunks)?;
            indexes.push(blob.index);
            lower.push(blob);
        }
    }
    Ok(indexes)
}

/// What two entries of one blob must agree on for its chunks to be read alike.
fn facts(blob: &BlobInfo) -> impl PartialEq {
    (
        blob.chunk_size,
        blob.compressor,
        blob.digester,
        blob.cipher_key(),
        blob.meta_offset,
        blob.meta_compressed_size,
    )
}

impl Tree {
    /// Lays `upper` over this tree, as [`overlay()`] does for images; chunk ids are kept as they are.
    ///
    /// # Errors
    /// More than 2^32 inodes.
    pub fn overlay(&mut self, upper: Self) -> Result<(), Error> {
        self.overlay_with(upper, Whiteouts::Oci)
    }

    /// The same with whiteouts of any kind.
    ///
    /// # Errors
    /// More than 2^32 inodes.
    pub fn overlay_with(&mut self, upper: Self, whiteouts: Whiteouts) -> Result<(), Error> {
        self.graft(upper, 0, whiteouts).map(drop)
    }

    /// Removes every whiteout marker: a lowest layer has nothing below for them to act on.
    pub fn strip_whiteouts(&mut self) {
        self.strip_below(InodeId::ROOT, Whiteouts::Oci);
    }

    fn strip_below(&mut self, id: InodeId, whiteouts: Whiteouts) {
        let mut todo = vec![id];
        while let Some(id) = todo.pop() {
            let Some(entries) = self.entries_mut(id) else {
                continue;
            };
            let mut entries = mem::take(entries);
            entries.retain(|name, id| !whiteouts.covers_inode(name, self.inode(*id)));
            todo.extend(entries.values().copied());
            let inode = self.inode_mut(id);
            whiteouts.clear_opaque(inode);
            inode.content = Content::Directory(entries);
        }
    }

    fn graft(
        &mut self,
        upper: Self,
        chunk_base: u32,
        whiteouts: Whiteouts,
    ) -> Result<Moved, Error> {
        let base = u32::try_from(self.inodes.len()).map_err(|_| Error::TooManyInodes)?;
        if u32::try_from(self.inodes.len() + upper.inodes.len()).is_err() {
            return Err(Error::TooManyInodes);
        }
        self.inodes.reserve(upper.inodes.len());
        for mut inode in upper.inodes {
            match &mut inode.content {
                Content::Directory(entries) => entries.values_mut().for_each(|id| id.0 += base),
                Content::Regular { chunks, .. } => {
                    chunks.iter_mut().for_each(|ChunkId(id)| *id += chunk_base)
                }
                Content::Symlink(_) | Content::Special => {}
            }
            self.inodes.push(inode);
        }
        let mut moved = Moved {
            base,
            joined: HashMap::new(),
        };
        let mut todo = vec![(InodeId::ROOT, InodeId(base))];
        while let Some((lower, upper)) = todo.pop() {
            moved.joined.insert(upper, lower);
            if whiteouts.is_opaque(self.inode(upper))
                && let Some(entries) = self.entries_mut(lower)
            {
                entries.clear();
            }
            whiteouts.clear_opaque(self.inode_mut(upper));
            let entries = self.take_directory(lower, upper);
            self.join(lower, entries, whiteouts, &mut todo);
        }
        Ok(moved)
    }

    /// Moves metadata (unless implied) and gives the children of `upper`, which stays behind empty.
    fn take_directory(&mut self, lower: InodeId, upper: InodeId) -> BTreeMap<Box<[u8]>, InodeId> {
        let from = self.inode_mut(upper);
        let mut header = from.clone_header();
        let Content::Directory(entries) = &mut from.content else {
            return BTreeMap::new();
        };
        let entries = mem::take(entries);
        if !header.implied {
            header.xattrs = from.xattrs.take();
            let to = self.inode_mut(lower);
            header.content = mem::replace(&mut to.content, Content::Special);
            *to = header;
        }
        entries
    }

    /// Puts the children of an upper directory into a lower one; pairs of directories are left to the caller.
    fn join(
        &mut self,
        lower: InodeId,
        upper: BTreeMap<Box<[u8]>, InodeId>,
        whiteouts: Whiteouts,
        todo: &mut Vec<(InodeId, InodeId)>,
    ) {
        let Content::Directory(entries) = &mut self.inode_mut(lower).content else {
            return;
        };
        let mut entries = mem::take(entries);
        for (name, &id) in &upper {
            if let Some(hidden) = whiteouts.hides(name, self.inode(id)) {
                entries.remove(hidden);
            }
        }
        for (name, id) in upper {
            if whiteouts.covers_inode(&name, self.inode(id)) {
                continue;
            }
            if !self.inode(id).is_directory() {
                entries.insert(name, id);
                continue;
            }
            match entries.get(&name) {
                Some(&below) if self.inode(below).is_directory() => todo.push((below, id)),
                _ => {
                    self.strip_below(id, whiteouts);
                    entries.insert(name, id);
                }
            }
        }
        self.inode_mut(lower).content = Content::Directory(entries);
    }
}

//! Building a layer's file tree: what containerd would have unpacked, markers kept.

use std::collections::BTreeMap;
use std::io::{self, BufRead};

use tree::marker::{self, Marker};
use tree::{ChunkId, Content, Inode, InodeId, Tree, Xattrs, mode};

use crate::error::{Error, show};
use crate::path::{self, Location};
use crate::tar::{Entry, EntryKind, Reader};

mod attribute;

/// Longest target of a symbolic link that Linux takes, in bytes.
const TARGET_MAX: usize = 4095;
/// Inodes that a layer may have unless asked otherwise.
const INODES_MAX: u32 = 1 << 24;
/// Files that eStargz adds to the root of a layer for its own use.
const ESTARGZ: [&[u8]; 3] = [
    b"stargz.index.json",
    b".prefetch.landmark",
    b".no.prefetch.landmark",
];

/// How to read a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Keep `trusted.*` attributes (never overlayfs's own, `trusted.overlay.*`). containerd drops them all.
    pub keep_trusted: bool,
    /// Keep fractions of a second of modification times.
    pub fraction: bool,
    /// Leave out the index and landmarks that eStargz puts into the root.
    pub drop_estargz: bool,
    /// Skip the zero blocks that end an archive, for another may follow. containerd ignores what follows them.
    pub concatenated: bool,
    /// Most inodes a layer may have. By default 2^24: no bootstrap of 2 GiB, the largest there is, holds more.
    pub max_inodes: u32,
    /// Most bytes that its files may have together, holes included, those that later entries replace, too. No limit by default.
    pub max_content: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keep_trusted: true,
            fraction: true,
            drop_estargz: false,
            concatenated: false,
            max_inodes: INODES_MAX,
            max_content: u64::MAX,
        }
    }
}

/// A regular file that is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileInfo<'a> {
    /// Path, a slash before each name.
    pub path: &'a [u8],
    /// Length in bytes, holes included.
    pub size: u64,
    /// Where its bytes begin in the tar stream; `None` for a sparse file, of which the holes are not there.
    pub offset: Option<u64>,
}

/// Gives the data of a file, by the names of its path and its size, to the sink.
type TakeData<'a> = dyn FnMut(&[&[u8]], u64) -> Result<Content, Error> + 'a;

/// Receives file data while the tree is built.
pub trait DataSink {
    /// Takes the data of a file: exactly its size, holes as zeros, though not all of it need be read. Gives the file's
    /// chunks. Not called for empty files. A file that a later entry replaces has been given all the same.
    ///
    /// # Errors
    /// Those of `data`, and whatever keeps the data from being taken.
    fn file(&mut self, file: FileInfo<'_>, data: &mut dyn BufRead) -> io::Result<Box<[ChunkId]>>;
}

/// Reads an uncompressed layer to the end of the stream and gives its tree.
///
/// Entries are applied as containerd does it: paths are cleaned and kept inside the root, links of the same layer on
/// the way are followed, a later entry replaces an earlier one of its name, a directory over a directory keeps the
/// children, parents without entries of their own are made (and marked as implied). Whiteouts do nothing here: they
/// stay as empty files under their own names (`.wh.*`) for the merge.
///
/// # Errors
/// A stream that is not a well-formed tar, an entry that cannot be put into the tree, or a failing sink.
pub fn read_tree(
    stream: impl BufRead,
    sink: &mut dyn DataSink,
    options: &Options,
) -> Result<Tree, Error> {
    let mut reader = Reader::buffered(stream).concatenated(options.concatenated);
    let mut builder = TreeBuilder::new(options);
    while let Some(entry) = reader.next()? {
        let offset = (!reader.is_sparse()).then_some(entry.offset);
        builder.apply(entry, offset, &mut reader.data(), sink)?;
    }
    reader.finish()?;
    Ok(builder.finish())
}

/// Builds a tree of entries that come one by one, by the rules of [`read_tree`].
pub struct TreeBuilder<'a> {
    tree: Tree,
    options: &'a Options,
    /// Bytes of all files so far.
    content: u64,
    dropped: attribute::Dropped,
}

/// Why an entry cannot be applied, before its name is added.
enum Refusal {
    Reason(String),
    Error(Error),
}

impl<T: Into<String>> From<T> for Refusal {
    fn from(reason: T) -> Self {
        Self::Reason(reason.into())
    }
}

impl<'a> TreeBuilder<'a> {
    /// Begins with an empty tree.
    pub fn new(options: &'a Options) -> Self {
        Self {
            tree: Tree::new(),
            options,
            content: 0,
            dropped: attribute::Dropped::default(),
        }
    }

    /// Puts an entry into the tree. If it is a file that is not empty, `data` and `stored_at` (see
    /// [`FileInfo::offset`]) go to the sink.
    ///
    /// # Errors
    /// An entry that cannot be put into the tree, or a failing sink.
    pub fn apply(
        &mut self,
        entry: Entry,
        stored_at: Option<u64>,
        data: &mut dyn BufRead,
        sink: &mut dyn DataSink,
    ) -> Result<(), Error> {
        if entry.kind == EntryKind::Regular {
            self.content = self.content.saturating_add(entry.size);
            if self.content > self.options.max_content {
                return Err(Error::TooMuchContent {
                    path: show(&entry.path),
                    limit: self.options.max_content,
                });
            }
        }
        // Kept for messages; the entry itself is taken apart.
        let (path, offset) = (entry.path.clone(), entry.offset);
        let mut take = |names: &[&[u8]], size| take_data(names, size, stored_at, data, sink);
        self.place(entry, &path, &mut take)
            .map_err(|refusal| match refusal {
                Refusal::Reason(reason) => Error::Entry {
                    path: show(&path),
                    offset,
                    reason,
                },
                Refusal::Error(error) => error,
            })
    }

    /// The tree of all entries.
    pub fn finish(self) -> Tree {
        self.dropped.report();
        self.tree
    }

    /// Applies the rules about paths and markers. `take` gives the data of a file to the sink.
    fn place(
        &mut self,
        mut entry: Entry,
        path: &[u8],
        take: &mut TakeData<'_>,
    ) -> Result<(), Refusal> {
        let names = path::clean(path);
        if !self.options.fraction {
            entry.mtime_nsec = 0;
        }
        let Some((&name, way)) = names.split_last() else {
            return self.place_root(entry);
        };
        let marker = Marker::parse(name);
        if marker == Marker::Meta || way.iter().any(|name| name.starts_with(marker::META_PREFIX)) {
            tracing::debug!(path = %show(path), "bookkeeping of a storage driver is skipped");
            return Ok(());
        }
        if self.options.drop_estargz && way.is_empty() && ESTARGZ.contains(&name) {
            return Ok(());
        }
        check_name(name)?;
        if marker == Marker::Invalid {
            return Err("it is a whiteout that names no file".into());
        }
        let parent = self.make_directory(way)?;
        if marker != Marker::None {
            entry.xattrs.clear();
            entry.rdev = 0;
            return self.replace(parent, name, &mut entry, mode::REGULAR, empty_file());
        }
        entry.xattrs = attribute::filter(
            entry.xattrs,
            self.options.keep_trusted,
            path,
            &mut self.dropped,
        )?;
        match std::mem::replace(&mut entry.kind, EntryKind::Regular) {
            EntryKind::Regular => {
                let file = take(&names, entry.size).map_err(Refusal::Error)?;
                self.replace(parent, name, &mut entry, mode::REGULAR, file)
            }
            EntryKind::Directory => self.directory(parent, name, entry),
            EntryKind::HardLink(target) => self.hard_link(parent, name, entry, &target),
            EntryKind::Symlink(target) => self.symlink(parent, name, entry, target),
            EntryKind::Character => {
                self.replace(parent, name, &mut entry, mode::CHARACTER, Content::Special)
            }
            EntryKind::Block => {
                self.replace(parent, name, &mut entry, mode::BLOCK, Content::Special)
            }
            EntryKind::Fifo => self.replace(parent, name, &mut entry, mode::FIFO, Content::Special),
        }
    }

    /// An entry for the root itself gives it metadata; one of another type is ignored, as in containerd.
    fn place_root(&mut self, mut entry: Entry) -> Result<(), Refusal> {
        if entry.kind != EntryKind::Directory {
            tracing::warn!(path = %show(&entry.path), "an entry for the root that is not a directory is ignored");
            return Ok(());
        }
        entry.xattrs = attribute::filter(
            entry.xattrs,
            self.options.keep_trusted,
            b"/",
            &mut self.dropped,
        )?;
        apply_metadata(self.tree.inode_mut(InodeId::ROOT), entry);
        Ok(())
    }

    fn directory(&mut self, parent: InodeId, name: &[u8], mut entry: Entry) -> Result<(), Refusal> {
        match self.child(parent, name) {
            Some(id) if self.tree.inode(id).is_directory() => {
                apply_metadata(self.tree.inode_mut(id), entry);
                Ok(())
            }
            _ => self.replace(
                parent,
                name,
                &mut entry,
                mode::DIRECTORY,
                Content::Directory(BTreeMap::new()),
            ),
        }
    }

    fn symlink(
        &mut self,
        parent: InodeId,
        name: &[u8],
        mut entry: Entry,
        target: Vec<u8>,
    ) -> Result<(), Refusal> {
        if target.is_empty() || target.len() > TARGET_MAX || target.contains(&0) {
            return Err(
                format!("{} cannot be the target of a symbolic link", show(&target)).into(),
            );
        }
        // Linux keeps no permissions of links.
        entry.mode = 0o777;
        self.replace(
            parent,
            name,
            &mut entry,
            mode::SYMLINK,
            Content::Symlink(target.into()),
        )
    }

    /// Another name for an inode, which takes the metadata of this entry.
    fn hard_link(
        &mut self,
        parent: InodeId,
        name: &[u8],
        entry: Entry,
        target: &[u8],
    ) -> Result<(), Refusal> {
        let missing = || {
            Refusal::from(format!(
                "no earlier entry of the layer is its link target {}",
                show(target)
            ))
        };
        let id = self.link_target(target)?.ok_or_else(missing)?;
        if self.tree.inode(id).is_directory() {
            return Err(format!("its link target {} is a directory", show(target)).into());
        }
        if self.child(parent, name) != Some(id) {
            // The old entry goes first, and with it the target if that lies below.
            self.entries(parent)?.remove(name);
            let id = self.link_target(target)?.ok_or_else(missing)?;
            self.entries(parent)?.insert(name.into(), id);
        }
        apply_metadata(self.tree.inode_mut(id), entry);
        Ok(())
    }

    /// The inode that a hard link names; the last name is not followed.
    fn link_target(&self, target: &[u8]) -> Result<Option<InodeId>, Refusal> {
        let mut names = target
            .split(|&b| b == b'/')
            .filter(|name| !matches!(*name, b"" | b"."));
        let Some(name) = names.next_back().filter(|name| *name != b"..") else {
            // Some directory, whichever.
            return Ok(Some(InodeId::ROOT));
        };
        let Location { directory, missing } =
            path::locate(&self.tree, names).map_err(|error| error.to_string())?;
        Ok(if missing.is_empty() && !Marker::is_marker(name) {
            self.child(directory, name)
        } else {
            None
        })
    }

    /// The directory that a path of clean names leads to, made if need be.
    fn make_directory(&mut self, names: &[&[u8]]) -> Result<InodeId, Refusal> {
        let located =
            path::locate(&self.tree, names.iter().copied()).map_err(|error| error.to_string())?;
        let Location {
            mut directory,
            missing,
        } = located;
        for name in missing {
            check_name(&name)?;
            if name.starts_with(marker::PREFIX) {
                return Err("it lies below a whiteout".into());
            }
            let id = self.add(Inode::implied_directory())?;
            self.entries(directory)?.insert(name, id);
            directory = id;
        }
        Ok(directory)
    }

    /// Makes a new inode of an entry, in place of whatever has the name.
    fn replace(
        &mut self,
        parent: InodeId,
        name: &[u8],
        entry: &mut Entry,
        kind: u32,
        content: Content,
    ) -> Result<(), Refusal> {
        let id = self.add(inode(entry, kind, content))?;
        self.entries(parent)?.insert(name.into(), id);
        Ok(())
    }

    fn add(&mut self, inode: Inode) -> Result<InodeId, Refusal> {
        if self.tree.len() >= self.options.max_inodes as usize {
            return Err(Refusal::Error(Error::TooManyInodes {
                limit: self.options.max_inodes,
            }));
        }
        Ok(self.tree.add(inode))
    }

    fn child(&self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        self.tree.entries(parent)?.get(name).copied()
    }

    fn entries(&mut self, id: InodeId) -> Result<&mut BTreeMap<Box<[u8]>, InodeId>, Refusal> {
        self.tree
            .entries_mut(id)
            .ok_or_else(|| "its parent is not a directory".into())
    }
}

fn check_name(name: &[u8]) -> Result<(), Refusal> {
    const MAX: usize = 255;
    if name.len() > MAX {
        return Err(format!(
            "a file name of {} bytes is above the limit of {MAX}",
            name.len()
        )
        .into());
    }
    if name.contains(&0) {
        return Err("a file name cannot hold a NUL".into());
    }
    Ok(())
}

fn empty_file() -> Content {
    Content::Regular {
        size: 0,
        chunks: Box::default(),
    }
}

/// Gives the data of a regular file to the sink.
fn take_data(
    names: &[&[u8]],
    size: u64,
    offset: Option<u64>,
    data: &mut dyn BufRead,
    sink: &mut dyn DataSink,
) -> Result<Content, Error> {
    if size == 0 {
        return Ok(empty_file());
    }
    let path = path::display(names);
    let file = FileInfo {
        path: &path,
        size,
        offset,
    };
    match sink.file(file, data) {
        Ok(chunks) => Ok(Content::Regular { size, chunks }),
        Err(source) => Err(Error::Data {
            path: show(&path),
            source,
        }),
    }
}

/// A new inode with the metadata of an entry, of which the attributes are taken.
fn inode(entry: &mut Entry, kind: u32, content: Content) -> Inode {
    let xattrs = std::mem::take(&mut entry.xattrs);
    Inode {
        mode: kind | entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        rdev: entry.rdev,
        mtime: entry.mtime,
        mtime_nsec: entry.mtime_nsec,
        implied: false,
        xattrs: (!xattrs.is_empty()).then(|| Box::new(xattrs)),
        content,
    }
}

/// Gives an inode that exists the metadata of a later entry. Attributes that the entry does not name stay; a
/// symbolic link has no permission bits of its own.
fn apply_metadata(inode: &mut Inode, entry: Entry) {
    if !matches!(inode.content, Content::Symlink(_)) {
        inode.mode = (inode.mode & mode::TYPE_MASK) | entry.mode;
    }
    inode.uid = entry.uid;
    inode.gid = entry.gid;
    inode.mtime = entry.mtime;
    inode.mtime_nsec = entry.mtime_nsec;
    inode.implied = false;
    if !entry.xattrs.is_empty() {
        let xattrs: &mut Xattrs = inode.xattrs.get_or_insert_default();
        xattrs.extend(entry.xattrs);
    }
}

//! A directory of this machine as the source.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;
use tree::{ChunkId, Content, Inode, InodeId, Tree, Whiteouts, Xattrs};
use walkdir::{DirEntry, WalkDir};

use crate::attributes::Attributes;
use crate::build::{BuiltLayer, build};
use crate::pipeline::Cutter;
use crate::{BuildOptions, Dedup, Error};

/// Builds a layer from a directory. Files that a prefetch pattern names, or that lie below one it names, come first in
/// the blob, by pattern; the others follow in canonical order. The root's modification time is left out.
///
/// # Errors
/// [`Error`]; `out` then holds a useless part of a blob.
pub fn build_directory(
    root: &Path,
    whiteouts: Whiteouts,
    out: impl Write + Send,
    options: &BuildOptions,
    dedup: Dedup,
) -> Result<BuiltLayer, Error> {
    // Over a parent whiteouts have something to hide: they go into the tree.
    let whiteouts = match options.parent {
        Some(_) => Whiteouts::None,
        None => whiteouts,
    };
    build(out, options, dedup, |cutter| {
        let part = match &options.external {
            Some(attributes) => Part::Internal(attributes),
            None => Part::Whole,
        };
        let mut scan = Scan::run(root, whiteouts, part, options)?;
        scan.read(cutter, options)?;
        Ok(scan.tree)
    })
}

/// The files of one part of a directory, without their data, and the names of those that are regular, in canonical order.
pub(crate) fn scan(
    root: &Path,
    whiteouts: Whiteouts,
    part: Part<'_>,
    options: &BuildOptions,
) -> Result<(Tree, Vec<Name>), Error> {
    let scan = Scan::run(root, whiteouts, part, options)?;
    Ok((scan.tree, scan.files))
}

/// Which files of a directory belong to an image.
#[derive(Clone, Copy)]
pub(crate) enum Part<'a> {
    /// All.
    Whole,
    /// All but the external ones, and but directories that have nothing else below them.
    Internal(&'a Attributes),
    /// The external ones and the directories on the way.
    External(&'a Attributes),
}

impl Part<'_> {
    fn leaves_out(self, path: &[u8], directory: bool) -> bool {
        match self {
            Self::Whole => false,
            Self::Internal(attributes) => !directory && attributes.get(path).is_some(),
            Self::External(attributes) if directory => !attributes.leads_to(path),
            Self::External(attributes) => attributes.get(path).is_none(),
        }
    }
}

/// A name of a regular file.
pub(crate) struct Name {
    /// From the root on, with a leading slash.
    pub path: Vec<u8>,
    pub id: InodeId,
    source: PathBuf,
}

struct Scan<'a> {
    root: PathBuf,
    whiteouts: Whiteouts,
    part: Part<'a>,
    tree: Tree,
    /// Inodes with several names, by device and inode number.
    links: HashMap<(u64, u64), InodeId>,
    /// Names of regular files in canonical order.
    files: Vec<Name>,
}

impl<'a> Scan<'a> {
    /// Enters every file without its data.
    fn run(
        root: &Path,
        whiteouts: Whiteouts,
        part: Part<'a>,
        options: &BuildOptions,
    ) -> Result<Self, Error> {
        let failed = |source| Error::Source {
            path: root.to_owned(),
            source,
        };
        // The root itself may be a link; nothing below it is followed.
        let root = fs::canonicalize(root).map_err(failed)?;
        if !root.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        let mut scan = Self {
            root,
            whiteouts,
            part,
            tree: Tree::new(),
            links: HashMap::new(),
            files: Vec::new(),
        };
        scan.walk(options)?;
        if let Part::Internal(attributes) = part {
            scan.drop_ways(InodeId::ROOT, b"", attributes);
        }
        Ok(scan)
    }

    fn walk(&mut self, options: &BuildOptions) -> Result<(), Error> {
        // Everything but directories first: that is the canonical order of a walk that descends at once.
        let walk = WalkDir::new(&self.root).sort_by(canonical);
        let mut parents: Vec<InodeId> = Vec::new();
        let mut entries = walk.into_iter();
        while let Some(entry) = entries.next() {
            options.cancel.check()?;
            let entry = entry.map_err(|error| self.walk_error(error))?;
            let metadata = entry.metadata().map_err(|error| self.walk_error(error))?;
            let name = entry.file_name().as_bytes();
            let covers = || {
                let rdev = device_number(metadata.rdev());
                self.whiteouts.covers(name, metadata.mode(), rdev)
            };
            let elsewhere = || {
                let path = self.path(entry.path());
                self.part.leaves_out(&path, metadata.is_dir())
            };
            if entry.depth() > 0 && (covers() || elsewhere()) {
                if metadata.is_dir() {
                    entries.skip_current_dir();
                }
                continue;
            }
            let id = self.enter(&entry, &metadata)?;
            parents.truncate(entry.depth());
            if let Some(entries) = parents
                .last()
                .and_then(|&parent| self.tree.entries_mut(parent))
            {
                entries.insert(name.into(), id);
            }
            if metadata.is_dir() {
                parents.push(id);
            }
        }
        Ok(())
    }

    /// Removes directories that only lead to external files.
    fn drop_ways(&mut self, id: InodeId, path: &[u8], attributes: &Attributes) {
        let entries: Vec<_> = match self.tree.entries(id) {
            Some(entries) => entries.clone().into_iter().collect(),
            None => return,
        };
        for (name, child) in entries {
            let path = [path, b"/", &name].concat();
            if !self.tree.inode(child).is_directory() || !attributes.leads_to(&path) {
                continue;
            }
            // As deep as the source, whose depth the system bounds.
            self.drop_ways(child, &path, attributes);
            let empty = self.tree.entries(child).is_some_and(BTreeMap::is_empty);
            if let (true, Some(entries)) = (empty, self.tree.entries_mut(id)) {
                entries.remove(&name);
            }
        }
    }

    /// The path in the image: from the root on, with a leading slash.
    fn path(&self, source: &Path) -> Vec<u8> {
        let below = source.strip_prefix(&self.root).unwrap_or(source);
        [b"/", below.as_os_str().as_bytes()].concat()
    }

    /// Adds the inode behind an entry, unless another name of it has been met.
    fn enter(&mut self, entry: &DirEntry, metadata: &Metadata) -> Result<InodeId, Error> {
        let link =
            (metadata.nlink() > 1 && !metadata.is_dir()).then(|| (metadata.dev(), metadata.ino()));
        let known = link.and_then(|link| self.links.get(&link).copied());
        let id = match known {
            Some(id) => id,
            None => {
                let inode = inode(entry.path(), metadata)?;
                if entry.depth() == 0 {
                    *self.tree.inode_mut(InodeId::ROOT) = Inode {
                        mtime: 0,
                        mtime_nsec: 0,
                        ..inode
                    };
                    InodeId::ROOT
                } else {
                    self.tree.add(inode)
                }
            }
        };
        if let (Some(link), None) = (link, known) {
            self.links.insert(link, id);
        }
        if metadata.is_file() {
            let path = self.path(entry.path());
            self.files.push(Name {
                path,
                id,
                source: entry.path().to_owned(),
            });
        }
        Ok(id)
    }

    /// Reads the data of all files, those that are to be prefetched first.
    fn read(&mut self, cutter: &mut Cutter, options: &BuildOptions) -> Result<(), Error> {
        let rank = |name: &Name| {
            let mut patterns = options.prefetch.iter();
            let rank = patterns.position(|pattern| matches(pattern, &name.path));
            rank.unwrap_or(usize::MAX)
        };
        let mut order: Vec<(usize, &Name)> =
            self.files.iter().map(|name| (rank(name), name)).collect();
        order.sort_by_key(|(rank, _)| *rank);
        let mut prefetching = false;
        let mut done = vec![false; self.tree.len()];
        for (rank, name) in order {
            if rank != usize::MAX {
                prefetching = true;
            } else if std::mem::take(&mut prefetching) {
                cutter.end_prefetch();
            }
            if std::mem::replace(&mut done[name.id.0 as usize], true) {
                continue;
            }
            if let Content::Regular { size, chunks } = &mut self.tree.inode_mut(name.id).content {
                *chunks =
                    read_file(&name.source, *size, cutter).map_err(|source| Error::Source {
                        path: name.source.clone(),
                        source,
                    })?;
            }
        }
        if prefetching {
            cutter.end_prefetch();
        }
        Ok(())
    }

    fn walk_error(&self, error: walkdir::Error) -> Error {
        let path = error.path().unwrap_or(&self.root).to_owned();
        let source = error
            .into_io_error()
            .unwrap_or_else(|| io::Error::other("a loop of symbolic links"));
        Error::Source { path, source }
    }
}

fn canonical(a: &DirEntry, b: &DirEntry) -> Ordering {
    let key = |entry: &DirEntry| entry.file_type().is_dir();
    key(a)
        .cmp(&key(b))
        .then_with(|| a.file_name().cmp(b.file_name()))
}

/// Whether a path is the one of the pattern or lies below it.
fn matches(pattern: &[u8], path: &[u8]) -> bool {
    let pattern = pattern.strip_suffix(b"/").unwrap_or(pattern);
    path.strip_prefix(pattern)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

fn read_file(path: &Path, size: u64, cutter: &mut Cutter) -> io::Result<Box<[ChunkId]>> {
    if size == 0 {
        return Ok(Box::default());
    }
    let mut file: File = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)?;
    Ok(cutter.cut(size, &mut file)?.map(ChunkId).collect())
}

fn inode(path: &Path, metadata: &Metadata) -> Result<Inode, Error> {
    let failed = |source| Error::Source {
        path: path.to_owned(),
        source,
    };
    let kind = metadata.file_type();
    let content = if kind.is_dir() {
        Content::Directory(BTreeMap::new())
    } else if kind.is_file() {
        Content::Regular {
            size: metadata.len(),
            chunks: Box::default(),
        }
    } else if kind.is_symlink() {
        let target = fs::read_link(path).map_err(failed)?;
        Content::Symlink(target.as_os_str().as_bytes().into())
    } else {
        Content::Special
    };
    let device = kind.is_char_device() || kind.is_block_device();
    let xattrs = xattrs(path).map_err(|error| failed(error.into()))?;
    Ok(Inode {
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: if device {
            device_number(metadata.rdev())
        } else {
            0
        },
        mtime: metadata.mtime(),
        mtime_nsec: metadata.mtime_nsec() as u32,
        implied: false,
        xattrs: (!xattrs.is_empty()).then(|| Box::new(xattrs)),
        content,
    })
}

/// A device number in Linux's 32-bit encoding.
fn device_number(rdev: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// The extended attributes of a file, symbolic links included. A file system without any has none.
fn xattrs(path: &Path) -> Result<Xattrs, Errno> {
    let names = match grow(|buffer| rustix::fs::llistxattr(path, buffer)) {
        Err(Errno::NOTSUP) => return Ok(Xattrs::new()),
        names => names?,
    };
    let mut xattrs = Xattrs::new();
    for name in names
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
    {
        match grow(|buffer| rustix::fs::lgetxattr(path, name, buffer)) {
            // Gone in the meantime.
            Err(Errno::NODATA) => {}
            value => {
                xattrs.insert(name.into(), value?.into());
            }
        }
    }
    Ok(xattrs)
}

/// Reads something whose size is not known, with a buffer that grows until it fits.
fn grow(mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 1024];
    loop {
        match read(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
            Err(error) => return Err(error),
        }
    }
}

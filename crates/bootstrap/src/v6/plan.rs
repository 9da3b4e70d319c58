//! Where every inode goes, and what it is numbered.

use rafs_format::Nid;
use rafs_format::encode as raw;
use rafs_format::layout::{Allocator, Placement};
use tree::{Content, Image, InodeId};

use crate::Error;
use crate::limits::{self, Numbers, path, xattrs};

/// An inode in its place. Addresses count from the start of the metadata area.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub id: InodeId,
    /// The directory that `..` leads to; of a directory only.
    pub parent: InodeId,
    pub place: Placement,
    pub xattr_size: u32,
    pub ino: u32,
    pub nlink: u32,
}

/// The plan of a whole bootstrap.
pub(super) struct Plan {
    /// Every inode, in the order in which they are placed.
    pub steps: Vec<Step>,
    /// Names in the tree, the root included.
    pub names: u64,
    /// For each chunk of the image the last of its uses, if any: its place in the order of uses, and its offset in
    /// the file.
    pub last_use: Vec<Option<(u64, u64)>>,
    /// End of the metadata area.
    pub end: u64,
    /// Where each inode goes, by id.
    offsets: Vec<u64>,
}

impl Plan {
    pub(super) fn new(image: &Image) -> Result<Self, Error> {
        let mut planner = Planner {
            image,
            links: image.tree.link_counts(),
            numbers: Numbers::new(&image.tree),
            allocator: Allocator::with_block_size(image.block_size()),
            uses: 0,
            plan: Self {
                steps: Vec::new(),
                names: 0,
                last_use: vec![None; image.chunks.len()],
                end: 0,
                offsets: vec![0; image.tree.len()],
            },
        };
        planner.run()?;
        planner.plan.end = planner.allocator.end();
        planner.plan.names = planner.numbers.names().into();
        Ok(planner.plan)
    }

    /// Where an inode goes; 0 for one that no name leads to.
    pub(super) fn offset(&self, id: InodeId) -> u64 {
        self.offsets[id.0 as usize]
    }

    pub(super) fn nid(&self, id: InodeId) -> Nid {
        Nid(self.offset(id) / Nid::SLOT_SIZE)
    }

    /// An error about an inode, with its path.
    pub(super) fn error(&self, image: &Image, id: InodeId, source: rafs_format::Error) -> Error {
        Error::Encode {
            path: path(&image.tree, id),
            source,
        }
    }
}

struct Planner<'a> {
    image: &'a Image,
    links: Vec<u32>,
    numbers: Numbers,
    allocator: Allocator,
    uses: u64,
    plan: Plan,
}

impl Planner<'_> {
    /// A directory is placed when the descent reaches it, everything else when its parent's entries are gone through.
    fn run(&mut self) -> Result<(), Error> {
        let mut todo = vec![(InodeId::ROOT, InodeId::ROOT)];
        let image = self.image;
        while let Some((directory, parent)) = todo.pop() {
            self.place(directory, parent)?;
            let descent = todo.len();
            for (name, &id) in image.tree.entries(directory).into_iter().flatten() {
                self.numbers.enter(image, name, id)?;
                if image.tree.inode(id).is_directory() {
                    todo.push((id, directory));
                    continue;
                }
                if self.plan.offset(id) == 0 {
                    self.place(id, directory)?;
                }
                self.use_chunks(id);
            }
            todo[descent..].reverse();
        }
        Ok(())
    }

    fn place(&mut self, id: InodeId, parent: InodeId) -> Result<(), Error> {
        let inode = self.image.tree.inode(id);
        let xattr_size = raw::xattr_size(xattrs(inode))
            .map_err(|source| self.plan.error(self.image, id, source))?;
        let head = raw::INODE_SIZE + u64::from(xattr_size);
        let at = |offset| Placement {
            offset,
            data_address: offset,
            inline: false,
        };
        let place = match &inode.content {
            Content::Directory(entries) => {
                let mut names: Vec<&[u8]> = entries
                    .keys()
                    .map(|name| &name[..])
                    .chain([&b"."[..], b".."])
                    .collect();
                names.sort_unstable();
                let lengths = names.iter().map(|name| name.len());
                let size = raw::directory_size(lengths, self.image.block_size());
                self.allocator.data(head, size)
            }
            Content::Symlink(target) => {
                limits::check_target(self.image, id, target)?;
                self.allocator.symlink(head, target.len() as u64)
            }
            Content::Regular { size, chunks } => {
                limits::check_chunks(self.image, id, *size, chunks)?;
                at(self.allocator.regular(head, chunks.len() as u64))
            }
            Content::Special => at(self.allocator.special(head)),
        };
        self.plan.offsets[id.0 as usize] = place.offset;
        let (ino, nlink) = (self.numbers.of(id), self.links[id.0 as usize]);
        self.plan.steps.push(Step {
            id,
            parent,
            place,
            xattr_size,
            ino,
            nlink,
        });
        Ok(())
    }

    fn use_chunks(&mut self, id: InodeId) {
        if let Content::Regular { chunks, .. } = &self.image.tree.inode(id).content {
            let offsets = (0..).map(|i: u64| i * u64::from(self.image.chunk_size));
            for (chunk, offset) in chunks.iter().zip(offsets) {
                self.plan.last_use[chunk.0 as usize] = Some((self.uses, offset));
                self.uses += 1;
            }
        }
    }
}

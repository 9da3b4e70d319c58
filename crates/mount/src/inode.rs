//! Inode numbers and attributes: RAFS to FUSE.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, INodeNo};
use rafs_format::{FileType, Inode, Nid};

/// Stand-ins for the two numbers that FUSE gives a meaning of its own: nid 0 and nid 1 are shown as these.
/// No bootstrap reaches so far: a nid counts slots of 32 bytes.
const NID_0: u64 = 1 << 62;
const NID_1: u64 = NID_0 + 1;

/// Translates between nids and FUSE inode numbers, which are the same but for the root: FUSE wants it to be 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbers {
    root: Nid,
}

impl Numbers {
    /// For an image whose root is `root`.
    pub(crate) fn new(root: Nid) -> Self {
        Self { root }
    }

    /// The inode number that stands for `nid`.
    pub(crate) fn ino(self, nid: Nid) -> INodeNo {
        INodeNo(match nid {
            root if root == self.root => INodeNo::ROOT.0,
            Nid(0) => NID_0,
            Nid(1) => NID_1,
            Nid(other) => other,
        })
    }

    /// The nid behind an inode number; any number the kernel sends is answered, the bootstrap judges the nid.
    pub(crate) fn nid(self, ino: INodeNo) -> Nid {
        match ino {
            INodeNo::ROOT => self.root,
            INodeNo(NID_0) => Nid(0),
            INodeNo(NID_1) => Nid(1),
            INodeNo(other) => Nid(other),
        }
    }
}

/// The FUSE attributes of `inode`.
pub(crate) fn attributes(ino: INodeNo, inode: &Inode) -> FileAttr {
    let mtime = time(inode.mtime, inode.mtime_nsec);
    FileAttr {
        ino,
        size: inode.size,
        blocks: inode.size.div_ceil(512),
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: kind(inode.file_type),
        perm: (inode.mode & 0o7777) as u16,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        blksize: 4096,
        flags: 0,
    }
}

/// A file type as FUSE names it. A known inode always has one; what a directory entry leaves open is a regular file.
pub(crate) fn kind(file_type: FileType) -> fuser::FileType {
    match file_type {
        FileType::Regular | FileType::Unknown => fuser::FileType::RegularFile,
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Character => fuser::FileType::CharDevice,
        FileType::Block => fuser::FileType::BlockDevice,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
    }
}

/// A time stamp of seconds since 1970 (negative: before) and nanoseconds after that second.
fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let whole = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    whole
        .and_then(|time| time.checked_add(Duration::from_nanos(nanoseconds.into())))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn inode_numbers_are_nids_but_for_the_root() {
        for root in [0, 1, 2, 36, 1 << 20] {
            let numbers = Numbers::new(Nid(root));
            assert_eq!(numbers.ino(Nid(root)), INodeNo::ROOT);
            let mut seen = std::collections::HashSet::new();
            for nid in [0, 1, 2, 3, 36, 37, 1 << 20, (1 << 59) - 1].map(Nid) {
                let ino = numbers.ino(nid);
                assert_eq!(numbers.nid(ino), nid);
                assert_ne!(ino.0, 0, "0 means \"no such name\"");
                assert!(seen.insert(ino), "{ino} stands for two inodes");
            }
        }
    }

    #[test]
    fn times_before_1970_count_nanoseconds_forward() {
        assert_eq!(time(1, 5), UNIX_EPOCH + Duration::new(1, 5));
        assert_eq!(
            time(-2, 800_000_000),
            UNIX_EPOCH - Duration::new(1, 200_000_000)
        );
        assert_eq!(
            time(i64::MAX, 0),
            UNIX_EPOCH + Duration::from_secs(i64::MAX as u64)
        );
        assert_eq!(time(i64::MIN, 0), UNIX_EPOCH - Duration::from_secs(1 << 63));
    }
}

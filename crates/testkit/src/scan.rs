//! Reads a directory tree relative to descriptors, so that paths longer than `PATH_MAX` are no obstacle.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use sha2::Digest;

/// One file as found on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// `st_mode`: type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// `st_size`; 0 for directories.
    pub size: u64,
    /// Device number of a device, as (major, minor).
    pub device: (u32, u32),
    /// Seconds of the modification time.
    pub mtime: i64,
    /// Nanoseconds of the modification time.
    pub mtime_nsec: u32,
    /// Number of names.
    pub nlink: u64,
    /// Device and number of the inode.
    pub inode: (u64, u64),
    /// Target of a symbolic link.
    pub link: Option<Vec<u8>>,
    /// Digest of a regular file's content, in hex; the error's text if it cannot be read.
    pub sha256: Option<Result<String, String>>,
    /// Every extended attribute by full name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Every file below `root` by its path relative to it; the root itself is the empty path.
///
/// # Errors
/// Whatever keeps a directory from being listed. Files that cannot be read are noted in [`Found::sha256`].
pub fn scan(root: &Path) -> io::Result<BTreeMap<Vec<u8>, Found>> {
    let mut out = BTreeMap::new();
    let fd = rustix::fs::openat(CWD, root, DIRECTORY, Mode::empty())?;
    let stat = rustix::fs::fstat(&fd)?;
    out.insert(Vec::new(), found(&stat, xattrs(&proc_path(&fd, b"."))?));
    directory(&fd, &mut Vec::new(), &mut out)?;
    Ok(out)
}

/// The names in a directory, sorted.
///
/// # Panics
/// When it cannot be listed.
pub fn names(dir: &Path) -> Vec<String> {
    let entries =
        std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let name = |entry: io::Result<std::fs::DirEntry>| {
        let name = entry.expect("read a directory").file_name();
        name.into_string().expect("a name that is text")
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

fn directory(
    fd: &OwnedFd,
    path: &mut Vec<u8>,
    out: &mut BTreeMap<Vec<u8>, Found>,
) -> io::Result<()> {
    let mut subdirectories = Vec::new();
    for entry in Dir::read_from(fd)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let stat = rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mut file = found(&stat, xattrs(&proc_path(fd, name))?);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                file.link = Some(rustix::fs::readlinkat(fd, name, Vec::new())?.into_bytes())
            }
            FileType::RegularFile => {
                file.sha256 = Some(content(fd, name).map_err(|error| error.to_string()))
            }
            FileType::Directory => {
                file.size = 0;
                subdirectories.push(name.to_vec());
            }
            _ => {}
        }
        let mut full = path.clone();
        push(&mut full, name);
        out.insert(full, file);
    }
    for name in subdirectories {
        let child = rustix::fs::openat(fd, name.as_slice(), DIRECTORY, Mode::empty())?;
        let length = path.len();
        push(path, &name);
        directory(&child, path, out)?;
        path.truncate(length);
    }
    Ok(())
}

fn push(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

fn found(stat: &rustix::fs::Stat, xattrs: BTreeMap<Vec<u8>, Vec<u8>>) -> Found {
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    Found {
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: if is_directory {
            0
        } else {
            u64::try_from(stat.st_size).unwrap_or(u64::MAX)
        },
        device: (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        ),
        mtime: stat.st_mtime,
        mtime_nsec: u32::try_from(stat.st_mtime_nsec).unwrap_or(u32::MAX),
        #[allow(
            clippy::useless_conversion,
            reason = "the type of st_nlink differs between architectures"
        )]
        nlink: u64::from(stat.st_nlink),
        inode: (stat.st_dev, stat.st_ino),
        link: None,
        sha256: None,
        xattrs,
    }
}

/// Path of a name below a directory that we hold open: short, however deep the directory lies.
fn proc_path(fd: &OwnedFd, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", fd.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

fn content(fd: &OwnedFd, name: &[u8]) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(rustix::fs::openat(fd, name, flags, Mode::empty())?);
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 17];
    loop {
        let read = io::Read::read(&mut file, &mut buffer)?;
        if read == 0 {
            return Ok(hex::encode(hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

/// The extended attributes of a file, by full name.
pub(crate) fn own_xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    xattrs(path.as_os_str().as_bytes())
}

fn xattrs(path: &[u8]) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let path = std::ffi::OsStr::from_bytes(path);
    let mut names = Vec::with_capacity(1 << 16);
    match rustix::fs::llistxattr(path, rustix::buffer::spare_capacity(&mut names)) {
        Ok(_) => {}
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.into()),
    }
    let mut out = BTreeMap::new();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = Vec::with_capacity(1 << 16);
        rustix::fs::lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value))?;
        out.insert(name.to_vec(), value);
    }
    Ok(out)
}

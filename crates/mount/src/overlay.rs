//! A writable root: overlayfs over the image.
//!
//! Everything lies in one directory: `upper` has the changes, `work` is overlayfs's own, `lock` says who has it mounted.
//! The image is mounted on `lower` and, once overlayfs has it, taken away from there: it lives as long as the one mount
//! that users see, whoever takes that away.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, UnmountFlags};

use crate::Error;
use crate::fscontext::FsContext;
use crate::mountinfo::{MountEntry, mounts};
use crate::unmount::detach;

/// How long the process that goes on in place of a dead one waits for the dead one's lock.
const TAKE_OVER: Duration = Duration::from_secs(2);

/// The directory of a writable root, which only this process has mounted.
#[derive(Debug)]
pub(crate) struct Upper {
    dir: PathBuf,
    lock: File,
}

impl Upper {
    /// Makes the directory ready; it is made if absent. What a killed process has left mounted of it is taken away.
    pub(crate) fn prepare(dir: &Path) -> Result<Self, Error> {
        if !crate::device::privileged() {
            return Err(Error::UpperPrivilege {
                path: dir.to_owned(),
            });
        }
        let fail = failed(dir, "make the directory");
        std::fs::create_dir_all(dir).map_err(&fail)?;
        let dir = dir.canonicalize().map_err(&fail)?;
        let lock = lock(&dir, Duration::ZERO)?;
        for name in ["lower", "work"] {
            make(&dir.join(name)).map_err(&fail)?;
        }
        let own = Self { dir, lock };
        own.take_away_left_behind()?;
        Ok(own)
    }

    /// Goes on in place of a process that died.
    pub(crate) fn take_over(dir: &Path) -> Result<Self, Error> {
        let dir = dir
            .canonicalize()
            .map_err(failed(dir, "find the directory"))?;
        Ok(Self {
            lock: lock(&dir, TAKE_OVER)?,
            dir,
        })
    }

    /// The directory `dir`, with its lock, of a process that goes on.
    pub(crate) fn handed_over(dir: PathBuf, lock: OwnedFd) -> Self {
        let lock = lock.into();
        Self { dir, lock }
    }

    /// The same for another process: the lock is free once nobody has it any more.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            dir: self.dir.clone(),
            lock: self.lock.try_clone()?,
        })
    }

    /// Tells people that this process is the one to talk to. The lock is what counts.
    pub(crate) fn sign(&self) -> io::Result<()> {
        sign(&self.lock)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn lock(&self) -> &File {
        &self.lock
    }

    /// Where the image is to be mounted first.
    pub(crate) fn lower(&self) -> PathBuf {
        self.dir.join("lower")
    }

    fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    fn take_away_left_behind(&self) -> Result<(), Error> {
        let lower = self.lower();
        let table = mounts().map_err(failed(&self.dir, "read the mount table"))?;
        let ours = table.iter().rev().filter(|entry| entry.is_ours());
        for entry in ours {
            if self.is_upper_of(entry) || entry.mountpoint == lower {
                tracing::warn!(
                    "{}: the process that served this mount is gone: taken away",
                    entry.mountpoint.display()
                );
                detach(&entry.mountpoint, true)?;
            }
        }
        Ok(())
    }

    /// Stacks overlayfs over the image, which is mounted on [`Upper::lower`] from `source`, and mounts it on `mountpoint`.
    pub(crate) fn stack(&self, source: &str, mountpoint: &Path) -> Result<(), Error> {
        let stack = || -> io::Result<()> {
            self.make_upper()?;
            let context = FsContext::open("overlay")?;
            context.set("source", Path::new(source))?;
            context.set("lowerdir", &escaped(&self.lower()))?;
            context.set("upperdir", &self.upper())?;
            context.set("workdir", &self.dir.join("work"))?;
            // The image is another file system each time it is mounted: nothing may refer to the one before.
            context.set("index", Path::new("off"))?;
            if in_user_namespace() {
                context.flag("userxattr")?;
            }
            context.mount(MountAttrFlags::empty(), mountpoint)
        };
        stack().map_err(failed(&self.dir, "mount overlayfs with it"))
    }

    /// Whether a mount is the overlay with this directory.
    pub(crate) fn is_upper_of(&self, entry: &MountEntry) -> bool {
        entry.is_ours() && entry.upper().as_deref() == Some(&*self.upper())
    }

    /// Takes the image away from where overlayfs found it: overlayfs keeps what it has.
    pub(crate) fn leave_lower(&self) -> Result<(), Error> {
        match rustix::mount::unmount(self.lower(), UnmountFlags::DETACH) {
            // A process that died had done it.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(failed(&self.dir, "unmount the image below it")(
                errno.into(),
            )),
        }
    }

    /// The root shows the mode and the owner of `upper`: at first they are the image's.
    fn make_upper(&self) -> io::Result<()> {
        if !make(&self.upper())? {
            return Ok(());
        }
        let root = self.lower().metadata()?;
        let (owner, group) = (Uid::from_raw(root.uid()), Gid::from_raw(root.gid()));
        rustix::fs::chown(self.upper(), Some(owner), Some(group))?;
        rustix::fs::chmod(self.upper(), Mode::from_raw_mode(root.mode()))?;
        Ok(())
    }
}

/// The file whose lock the process holds that serves the overlay with this upper directory.
pub(crate) fn lock_of(upper: &Path) -> PathBuf {
    upper.with_file_name("lock")
}

/// Whether a mount is an overlay of ours that nobody serves any more.
pub(crate) fn is_left_behind(entry: &MountEntry) -> bool {
    let upper = entry.upper().filter(|_| entry.is_ours());
    let lock = upper.map(|upper| File::open(lock_of(&upper)));
    matches!(lock, Some(Ok(lock)) if lock.try_lock_shared().is_ok())
}

fn lock(dir: &Path, patience: Duration) -> Result<File, Error> {
    let path = dir.join("lock");
    let fail = failed(dir, "lock the directory");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.open(&path).map_err(&fail)?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(std::fs::TryLockError::WouldBlock) if start.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                let mut owner = String::new();
                let _ = (&file).take(20).read_to_string(&mut owner);
                return Err(Error::UpperBusy {
                    path: dir.to_owned(),
                    pid: owner.trim().parse().unwrap_or_default(),
                });
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(fail(error)),
        }
    }
    sign(&file).map_err(fail)?;
    Ok(file)
}

/// For whoever finds it locked. All numbers have the same length, so that one is there at any moment.
fn sign(file: &File) -> io::Result<()> {
    file.write_all_at(format!("{:<10}\n", std::process::id()).as_bytes(), 0)
}

/// Makes a directory if it is absent; whether it was.
fn make(path: &Path) -> io::Result<bool> {
    match std::fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// A path as `lowerdir` takes it, which separates layers by colons.
fn escaped(path: &Path) -> PathBuf {
    let mut escaped = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte == b':' || byte == b'\\' {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    PathBuf::from(OsString::from_vec(escaped))
}

/// Whether this process is root in a user namespace only: there overlayfs keeps its marks in attributes that users may
/// set.
fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn failed(dir: &Path, what: &'static str) -> impl Fn(io::Error) -> Error {
    let path = dir.to_owned();
    move |source| Error::Upper {
        path: path.clone(),
        what,
        source,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn colons_and_backslashes_of_a_path_are_no_separators() {
        assert_eq!(escaped(Path::new("/a:b\\c")), Path::new("/a\\:b\\\\c"));
        assert_eq!(escaped(Path::new("/a b,c")), Path::new("/a b,c"));
    }

    #[test]
    fn a_directory_is_for_one_process_and_for_the_next_once_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path(), Duration::ZERO).unwrap();
        let refused = lock(dir.path(), Duration::ZERO).unwrap_err().to_string();
        let own = std::process::id().to_string();
        assert!(refused.contains(&own), "{refused}");
        drop(first);
        lock(dir.path(), Duration::ZERO).unwrap();
    }
}

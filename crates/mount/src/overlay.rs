//! A writable root: overlayfs over the image.
//!
//! Everything lies in one directory: `upper` has the changes, `work` is overlayfs's own, `lock` says who has it mounted.
//! The image is mounted on `lower` and, once overlayfs has it, taken away from there: it lives as long as the one mount
//! that users see, whoever takes that away.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Gid, Mode, Uid};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags};

use crate::Error;
use crate::erofs::said;
use crate::mountinfo::{MountEntry, mounts};
use crate::unmount::detach;

/// Longest value that the kernel takes for an option of a mount, in bytes.
const VALUE_MAX: usize = 255;
/// How long the process that goes on in place of a dead one waits for the dead one's lock.
const TAKE_OVER: Duration = Duration::from_secs(2);

/// The directory of a writable root, which only this process has mounted.
#[derive(Debug)]
pub(crate) struct Upper {
    dir: PathBuf,
    _lock: File,
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
        let own = Self { dir, _lock: lock };
        own.take_away_left_behind()?;
        Ok(own)
    }

    /// Goes on in place of a process that died.
    pub(crate) fn take_over(dir: &Path) -> Result<Self, Error> {
        let dir = dir
            .canonicalize()
            .map_err(failed(dir, "find the directory"))?;
        Ok(Self {
            _lock: lock(&dir, TAKE_OVER)?,
            dir,
        })
    }

    /// Where the image is to be mounted first.
    pub(crate) fn lower(&self) -> PathBuf {
        self.dir.join("lower")
    }

    fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    fn take_away_left_behind(&self) -> Result<(), Error> {
        let (upper, lower) = (self.upper(), self.lower());
        let table = mounts().map_err(failed(&self.dir, "read the mount table"))?;
        let ours = table.iter().rev().filter(|entry| entry.is_ours());
        for entry in ours {
            if entry.upper().as_deref() == Some(&*upper) || entry.mountpoint == lower {
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
            let overlay = self.overlay(source)?;
            rustix::mount::unmount(self.lower(), UnmountFlags::DETACH)?;
            rustix::mount::move_mount(
                &overlay,
                "",
                rustix::fs::CWD,
                mountpoint,
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
            )?;
            Ok(())
        };
        stack().map_err(failed(&self.dir, "mount overlayfs with it"))
    }

    fn overlay(&self, source: &str) -> io::Result<rustix::fd::OwnedFd> {
        self.make_upper()?;
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let context = context.as_fd();
        let set = |key: &str, value: &Path| {
            if value.as_os_str().len() > VALUE_MAX {
                return Err(rustix::io::Errno::NAMETOOLONG);
            }
            rustix::mount::fsconfig_set_string(context, key, value)
        };
        let mount = || {
            set("source", Path::new(source))?;
            set("lowerdir", &escaped(&self.lower()))?;
            set("upperdir", &self.upper())?;
            set("workdir", &self.dir.join("work"))?;
            // The image is another file system each time it is mounted: nothing may refer to the one before.
            set("index", Path::new("off"))?;
            if in_user_namespace() {
                rustix::mount::fsconfig_set_flag(context, "userxattr")?;
            }
            rustix::mount::fsconfig_create(context)
        };
        mount().map_err(|errno: rustix::io::Errno| said(context, errno))?;
        let mount = rustix::mount::fsmount(
            context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )?;
        Ok(mount)
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
    let mut file = options.open(&path).map_err(&fail)?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(std::fs::TryLockError::WouldBlock) if start.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                let mut owner = String::new();
                let _ = (&mut file).take(20).read_to_string(&mut owner);
                return Err(Error::UpperBusy {
                    path: dir.to_owned(),
                    pid: owner.trim().parse().unwrap_or_default(),
                });
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(fail(error)),
        }
    }
    let mut note = || {
        file.rewind()?;
        file.set_len(0)?;
        file.write_all(format!("{}\n", std::process::id()).as_bytes())
    };
    // For whoever finds it locked; the lock is what counts.
    note().map_err(fail)?;
    Ok(file)
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

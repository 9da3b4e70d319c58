//! What a mount by the kernel has of its own in a cache directory that many share: `mounts/<number>` with the file that
//! the kernel mounts, and a lock that all who guard the mount hold.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::mountinfo::{IMAGE_FILE, mounts_of};
use crate::unmount::detach;

/// Directory of the places in a cache directory.
const MOUNTS: &str = "mounts";
/// Name of the lock in a place.
pub(crate) const LOCK: &str = "lock";

/// See the module.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
    /// Locked, and passed on to all who guard the mount.
    pub(super) lock: File,
}

impl Place {
    /// A new one in `cache`, after those were cleared that nobody guards any more.
    pub(super) fn make(cache: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Kernel {
            what: "make a place for the mount in the cache".to_owned(),
            source,
        };
        let mounts = cache.join(MOUNTS);
        fs::create_dir_all(&mounts).map_err(failed)?;
        // A place is never seen before its lock is.
        let all = File::open(&mounts).map_err(failed)?;
        all.lock().map_err(failed)?;
        for entry in fs::read_dir(&mounts).map_err(failed)?.flatten() {
            clear(&entry.path())?;
        }
        let taken = |number: &u32| mounts.join(number.to_string()).exists();
        let number = (1..u32::MAX).find(|number| !taken(number));
        let dir = mounts.join(number.unwrap_or(u32::MAX).to_string());
        let make = || {
            fs::create_dir(&dir)?;
            let mut lock = File::create_new(dir.join(LOCK))?;
            lock.lock()?;
            // For people, and for the message that a mount is still served.
            writeln!(lock, "{}", std::process::id())?;
            Ok(lock)
        };
        let lock = make().map_err(failed)?;
        Ok(Self { dir, lock })
    }

    /// The file that the kernel mounts.
    pub(super) fn image(&self) -> PathBuf {
        self.dir.join(IMAGE_FILE)
    }
}

/// Removes the place of a mount that is over; what the kernel still has open of it stays until it lets go. If this
/// fails, the next mount clears it.
pub(super) fn remove(lock: &File) {
    let link = fs::read_link(format!("/proc/self/fd/{}", lock.as_raw_fd()));
    let dir = link.ok().and_then(|path| Some(path.parent()?.to_owned()));
    if let Some(dir) = dir.filter(|dir| dir.join(IMAGE_FILE).is_file()) {
        let _ = fs::remove_dir_all(dir);
    }
}

/// Clears a place if all who guarded its mount are dead: the mount may show zeros in place of data.
fn clear(dir: &Path) -> Result<(), Error> {
    match File::open(dir.join(LOCK)) {
        Ok(lock) if lock.try_lock().is_err() => return Ok(()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // Not ours, or no place.
        Err(_) => return Ok(()),
    }
    let mounts = mounts_of(&dir.join(IMAGE_FILE)).map_err(|source| Error::System {
        what: "/proc/self/mountinfo",
        source,
    })?;
    for entry in mounts.iter().rev() {
        tracing::warn!(
            "{}: the processes that guarded this mount are gone: taken away",
            entry.mountpoint.display()
        );
        detach(&entry.mountpoint, true)?;
    }
    // What is left is no reason not to mount.
    let _ = fs::remove_dir_all(dir);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn every_mount_has_a_place_and_dead_ones_are_cleared() {
        let cache = tempfile::tempdir().unwrap();
        let one = Place::make(cache.path()).unwrap();
        let two = Place::make(cache.path()).unwrap();
        assert_ne!(one.dir, two.dir);
        fs::write(one.image(), b"image").unwrap();
        let gone = one.dir.clone();
        drop(one);
        let three = Place::make(cache.path()).unwrap();
        assert_eq!(three.dir, gone);
        assert!(!three.image().exists());
        assert!(two.dir.exists());
    }
}

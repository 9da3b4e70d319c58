use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;

/// Kinds of locks on a range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeLock {
    /// Several may have it.
    Shared,
    /// One has it, and nobody has a shared one.
    Exclusive,
}

/// Locks a range of a file, in place of what lock of ours is there, if no other holder is in the way; says whether it
/// did. It never waits.
///
/// The lock belongs to the open file description: duplicates of the descriptor share it, in whichever process they are,
/// and it goes when the last of them is closed. Threads that use one descriptor don't keep each other out.
///
/// # Errors
/// When the file system has no locks, or the file is not open for reading (shared) or writing (exclusive).
pub fn lock_range(file: &File, range: Range<u64>, kind: RangeLock) -> io::Result<bool> {
    let mut request = request(&range, Some(kind));
    match call(file, libc::F_OFD_SETLK, &mut request) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Gives up what locks of ours are in a range.
///
/// # Errors
/// When the file system has no locks.
pub fn unlock_range(file: &File, range: Range<u64>) -> io::Result<()> {
    call(file, libc::F_OFD_SETLK, &mut request(&range, None))
}

/// A lock of another holder in the range; the first one if there are several.
///
/// # Errors
/// When the file system has no locks.
pub fn range_lock_of_others(file: &File, range: Range<u64>) -> io::Result<Option<RangeLock>> {
    let mut request = request(&range, Some(RangeLock::Exclusive));
    call(file, libc::F_OFD_GETLK, &mut request)?;
    Ok(match i32::from(request.l_type) {
        libc::F_RDLCK => Some(RangeLock::Shared),
        libc::F_WRLCK => Some(RangeLock::Exclusive),
        _ => None,
    })
}

fn request(range: &Range<u64>, kind: Option<RangeLock>) -> libc::flock {
    let offset = |at: u64| libc::off_t::try_from(at).unwrap_or(libc::off_t::MAX);
    libc::flock {
        l_type: match kind {
            Some(RangeLock::Shared) => libc::F_RDLCK as libc::c_short,
            Some(RangeLock::Exclusive) => libc::F_WRLCK as libc::c_short,
            None => libc::F_UNLCK as libc::c_short,
        },
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: offset(range.start),
        // No length would be up to the end of the file, wherever that is.
        l_len: offset(range.end.saturating_sub(range.start).max(1)),
        l_pid: 0,
    }
}

fn call(file: &File, command: libc::c_int, request: &mut libc::flock) -> io::Result<()> {
    // SAFETY: these commands read and write one `flock`, which lives as long as the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, request) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn each_description_has_locks_of_its_own() {
        use RangeLock::{Exclusive, Shared};
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            options.open(dir.path().join("file")).unwrap()
        };
        let (one, two) = (open(), open());
        assert!(lock_range(&one, 64..128, Exclusive).unwrap());
        assert!(lock_range(&one.try_clone().unwrap(), 64..128, Exclusive).unwrap());
        assert!(!lock_range(&two, 100..101, Exclusive).unwrap());
        assert!(lock_range(&two, 128..192, Exclusive).unwrap());
        assert_eq!(
            range_lock_of_others(&two, 64..128).unwrap(),
            Some(Exclusive)
        );
        assert!(lock_range(&one, 64..128, Shared).unwrap());
        assert_eq!(range_lock_of_others(&two, 64..128).unwrap(), Some(Shared));
        assert!(!lock_range(&two, 64..128, Exclusive).unwrap());
        unlock_range(&one, 64..100).unwrap();
        assert_eq!(range_lock_of_others(&two, 64..100).unwrap(), None);
        drop(one);
        assert!(lock_range(&two, 64..128, Exclusive).unwrap());
    }
}

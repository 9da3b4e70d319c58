use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// Whether anybody but this descriptor (and its duplicates) has the file open: another process, or the kernel itself,
/// such as a file system mounted from it.
///
/// It asks for a write lease, which the kernel grants to a sole user only, and gives it back. The caller must own the
/// file or have `CAP_LEASE`.
///
/// # Errors
/// When the file system has no leases, or the file is not the caller's.
pub fn is_open_elsewhere(file: &File) -> io::Result<bool> {
    let set = |kind: libc::c_int| {
        // SAFETY: this command takes an integer and touches no memory of ours.
        let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    match set(libc::F_WRLCK) {
        Ok(()) => set(libc::F_UNLCK).map(|()| false),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_second_open_is_seen_and_a_duplicate_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"x").unwrap();
        let file = File::open(&path).unwrap();
        let duplicate = file.try_clone().unwrap();
        assert!(!is_open_elsewhere(&file).unwrap());
        let other = File::open(&path).unwrap();
        assert!(is_open_elsewhere(&file).unwrap());
        assert!(is_open_elsewhere(&duplicate).unwrap());
        drop(other);
        assert!(!is_open_elsewhere(&file).unwrap());
    }
}

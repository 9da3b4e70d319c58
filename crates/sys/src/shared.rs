use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::fs::{MemfdFlags, SealFlags};

/// Words of memory that several processes share through a descriptor. Zero at first.
///
/// All access is atomic, so that nothing another process does to them is undefined here.
#[derive(Debug)]
pub struct SharedWords {
    start: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: it is memory, mapped until the value is dropped, and all access to it is through atomics.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// A descriptor for `len` words, to be mapped by each process. Its size can't change any more.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn create(name: &str, len: usize) -> io::Result<OwnedFd> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let descriptor = rustix::fs::memfd_create(name, flags)?;
        rustix::fs::ftruncate(&descriptor, size_of_words(len)? as u64)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&descriptor, seals)?;
        Ok(descriptor)
    }

    /// As [`SharedWords::create`]; the file may grow, and what lies behind the words is none of them.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn create_growing(name: &str, len: usize) -> io::Result<OwnedFd> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let descriptor = rustix::fs::memfd_create(name, flags)?;
        rustix::fs::ftruncate(&descriptor, size_of_words(len)? as u64)?;
        rustix::fs::fcntl_add_seals(&descriptor, SealFlags::SHRINK)?;
        Ok(descriptor)
    }

    /// Maps the words at the beginning of a descriptor that [`SharedWords::create`] or [`SharedWords::create_growing`]
    /// made.
    ///
    /// # Errors
    /// When the descriptor has another size, or could shrink under us; when the system refuses.
    pub fn map(descriptor: &OwnedFd, len: usize) -> io::Result<Self> {
        let size = size_of_words(len)?;
        let file = File::from(descriptor.try_clone()?);
        let seals = rustix::fs::fcntl_get_seals(&file)?;
        let found = file.metadata()?.len();
        let fits = match seals.contains(SealFlags::GROW) {
            true => found == size as u64,
            false => found >= size as u64,
        };
        if !fits || !seals.contains(SealFlags::SHRINK) || size == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice takes nothing away from anybody.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// All words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, has `len` words, lives as long as `self`, and can't shrink.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `map`, and no reference into it outlives `self`.
        unsafe {
            libc::munmap(
                self.start.as_ptr().cast(),
                self.len * size_of::<AtomicU64>(),
            )
        };
    }
}

fn size_of_words(len: usize) -> io::Result<usize> {
    len.checked_mul(size_of::<AtomicU64>())
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn two_mappings_are_one_memory() {
        let descriptor = SharedWords::create("test", 1024).unwrap();
        let one = SharedWords::map(&descriptor, 1024).unwrap();
        let two = SharedWords::map(&descriptor, 1024).unwrap();
        drop(descriptor);
        one.words()[1023].store(7, Ordering::Release);
        assert_eq!(two.words()[1023].load(Ordering::Acquire), 7);
        assert_eq!(two.words()[0].load(Ordering::Acquire), 0);
    }

    #[test]
    fn other_files_are_refused() {
        let descriptor = SharedWords::create("test", 1024).unwrap();
        assert!(SharedWords::map(&descriptor, 1023).is_err());
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        assert!(SharedWords::map(&file.into(), 1024).is_err());
    }
}

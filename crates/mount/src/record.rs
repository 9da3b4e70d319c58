//! What the first process of a mount noted of its image, in memory that is passed on to those after it.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use rustix::fs::MemfdFlags;

/// Memory with these bytes.
pub(crate) fn create(record: &[u8]) -> io::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create("nydusify-image", MemfdFlags::CLOEXEC)?;
    File::from(memory.try_clone()?).write_all(record)?;
    Ok(memory)
}

/// The bytes in it.
pub(crate) fn read(memory: &OwnedFd) -> io::Result<Vec<u8>> {
    let file = File::from(memory.try_clone()?);
    let len = usize::try_from(file.metadata()?.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_record_is_read_as_often_as_needed() {
        let memory = create(b"bytes").unwrap();
        assert_eq!(read(&memory).unwrap(), b"bytes");
        assert_eq!(read(&memory.try_clone().unwrap()).unwrap(), b"bytes");
    }
}

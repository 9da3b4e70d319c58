use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// `FS_IOC_ENABLE_VERITY`: `_IOW('f', 133, struct fsverity_enable_arg)`.
const ENABLE_VERITY: u64 = 0x4080_6685;
/// `FS_VERITY_HASH_ALG_SHA256`.
const SHA256: u32 = 1;

/// `struct fsverity_enable_arg` of `linux/fsverity.h`: 128 bytes.
#[repr(C)]
struct EnableArgument {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved: u32,
    signature: u64,
    more_reserved: [u64; 11],
}

/// Turns on fs-verity for a file that is open for reading only: its content can never be changed again, only removed,
/// and what the disk gives is verified as it is read: reading what is not as it was fails with `EIO`. A file that is
/// sealed stays sealed, and counts as done.
///
/// # Errors
/// `EOPNOTSUPP` or `ENOTTY` where the file system has no fs-verity, `ETXTBSY` while anybody has the file open for
/// writing.
pub fn seal(file: &File) -> io::Result<()> {
    let argument = EnableArgument {
        version: 1,
        hash_algorithm: SHA256,
        block_size: 4096,
        salt_size: 0,
        salt: 0,
        signature_size: 0,
        reserved: 0,
        signature: 0,
        more_reserved: [0; 11],
    };
    // SAFETY: the call reads the argument, which has the layout that the kernel expects and names no other memory.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), ENABLE_VERITY as _, &raw const argument) };
    match done {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs;

    use super::*;

    #[test]
    fn the_argument_is_as_long_as_the_kernel_expects() {
        // The size is part of the number of the call.
        assert_eq!(size_of::<EnableArgument>(), 128);
        assert_eq!(ENABLE_VERITY >> 16 & 0x3fff, 128);
    }

    /// Most machines that run this have no fs-verity; then nothing must happen to the file.
    #[test]
    fn a_sealed_file_is_read_only_and_others_are_as_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, vec![7; 10_000]).unwrap();
        let writer = File::options().write(true).open(&path).unwrap();
        let file = File::open(&path).unwrap();
        seal(&file).unwrap_err();
        drop(writer);
        match seal(&file) {
            Ok(()) => {
                seal(&file).unwrap();
                let error = File::options().write(true).open(&path).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EPERM));
            }
            Err(error) => {
                eprintln!("no fs-verity here: {error}");
                fs::write(&path, vec![7; 10_000]).unwrap();
            }
        }
        assert_eq!(fs::read(&path).unwrap(), vec![7; 10_000]);
        fs::remove_file(&path).unwrap();
    }
}

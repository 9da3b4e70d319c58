use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Makes the descriptor `target` lead to what `source` leads to; what it led to before is closed. Whoever owns `target`
/// goes on with it unchanged, and a program that is started does not get it.
///
/// # Errors
/// When the system refuses.
pub fn substitute(target: BorrowedFd<'_>, source: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are open as long as they are borrowed, and `target` stays so, for this replaces it at
    // once.
    let done = unsafe { libc::dup3(source.as_raw_fd(), target.as_raw_fd(), libc::O_CLOEXEC) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::io::{Read as _, Seek as _, Write as _};
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn the_owner_goes_on_with_the_other_file() {
        let mut one = tempfile::tempfile().unwrap();
        let mut other = tempfile::tempfile().unwrap();
        substitute(one.as_fd(), other.as_fd()).unwrap();
        one.write_all(b"text").unwrap();
        drop(one);
        let mut text = String::new();
        other.rewind().unwrap();
        other.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
    }
}

//! The few messages of the FUSE protocol that are ours to speak, so that a session of fuser goes on with a connection
//! that another process began.
//!
//! Sources: `include/uapi/linux/fuse.h` of Linux 6.9.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use fuser::{Config, Filesystem, Session, SessionACL};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::flight::Flights;
use crate::channel;

/// The kernel refuses reads into less (`FUSE_MIN_READ_BUFFER`).
const READ_BUFFER: usize = 8192;
/// More than any answer to INIT has.
const ANSWER_MAX: usize = 4096;
/// `FUSE_INIT`.
const INIT: u32 = 26;
/// `FUSE_NOTIFY_RESEND`: what was handed out and not answered is handed out again. Since Linux 6.9.
const NOTIFY_RESEND: i32 = 7;

/// Takes the kernel's first request of a new connection, for [`session`].
pub(super) fn read_init(device: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; READ_BUFFER];
    let read = rustix::io::retry_on_intr(|| rustix::io::read(device, &mut buffer[..]))?;
    buffer.truncate(read);
    // struct fuse_in_header: length, then operation.
    let operation = buffer.get(4..8).and_then(|bytes| bytes.try_into().ok());
    match operation.map(u32::from_ne_bytes) {
        Some(INIT) => Ok(buffer),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the connection does not begin with INIT",
        )),
    }
}

/// A session on `device`, whose first request, `init`, was taken before: by this process, or by one that died. The
/// requests that a dead one had taken are handed out again; kernels that can't do that have them refused, see [`Flights`].
///
/// fuser begins every session with a handshake. It holds it with us; then the device takes our place. The answer goes to
/// the kernel, which takes it if it has none yet.
pub(super) fn session<F: Filesystem>(
    fs: F,
    device: &OwnedFd,
    init: &[u8],
    lost: &Flights,
    acl: SessionACL,
    config: Config,
) -> io::Result<Session<F>> {
    let (ours, theirs) = channel::pair()?;
    rustix::net::send(&ours, init, SendFlags::NOSIGNAL)?;
    let session = Session::from_fd(fs, theirs, acl, config)?;
    let mut answer = [0; ANSWER_MAX];
    let (len, _) = rustix::net::recv(&ours, &mut answer[..], RecvFlags::DONTWAIT)?;
    match rustix::io::write(device, &answer[..len]) {
        // A server before this one has answered.
        Ok(_) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    sys::substitute(session.as_fd(), device.as_fd())?;
    resend(device, lost)?;
    Ok(session)
}

/// Has the kernel hand out again what a dead process had taken, or refuses it where the kernel can't.
fn resend(device: &OwnedFd, lost: &Flights) -> io::Result<()> {
    // Without the number of a request, what stands for an error is the kind of a notification.
    match rustix::io::write(device, &header(NOTIFY_RESEND, 0)) {
        Ok(_) => Ok(()),
        Err(Errno::INVAL) => {
            for number in lost.take() {
                // Most of these are no requests, or answered.
                let _ = rustix::io::write(device, &header(-Errno::IO.raw_os_error(), number));
            }
            Ok(())
        }
        // Unmounted meanwhile: the session will find that out.
        Err(Errno::NODEV | Errno::NOENT | Errno::NOTCONN) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// `struct fuse_out_header`: length, error, unique.
fn header(error: i32, unique: u64) -> [u8; 16] {
    let mut message = [0; 16];
    message[..4].copy_from_slice(&16_u32.to_ne_bytes());
    message[4..8].copy_from_slice(&error.to_ne_bytes());
    message[8..].copy_from_slice(&unique.to_ne_bytes());
    message
}

/// Whether the connection has ended: unmounted and used by nobody, or aborted.
pub(super) fn is_over(device: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(device, PollFlags::empty())];
    let none = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut polled, Some(&none)).is_ok()
        && polled[0].revents().contains(PollFlags::ERR)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn only_init_begins_a_connection() {
        let (here, there) = channel::pair().unwrap();
        let mut request = vec![0_u8; 104];
        request[4..8].copy_from_slice(&INIT.to_ne_bytes());
        rustix::net::send(&here, &request, SendFlags::empty()).unwrap();
        assert_eq!(read_init(&there).unwrap(), request);
        request[4] = 15;
        rustix::net::send(&here, &request, SendFlags::empty()).unwrap();
        assert!(read_init(&there).is_err());
        drop(here);
        assert!(read_init(&there).is_err());
    }
}

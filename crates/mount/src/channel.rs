//! Sockets between the processes of a mount: whole messages, with descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// Descriptors in one message; the kernel takes 253.
const DESCRIPTORS_MAX: usize = 200;
/// Longest text of a hand-over in bytes: a command line.
const TEXT_MAX: usize = 100 << 10;
/// Most descriptors of a hand-over.
const ALL_MAX: usize = 1 << 16;

/// Two connected sockets.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let pair = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok(pair)
}

/// The socket that this process got as its standard input, which is empty from now on.
pub(crate) fn take_stdin() -> io::Result<OwnedFd> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(socket)
}

/// Sends a text and any number of descriptors.
pub(crate) fn send_all(
    socket: impl AsFd,
    text: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    if text.len() > TEXT_MAX {
        return Err(io::Error::new(
            io::ErrorKind::ArgumentListTooLong,
            "the command line is too long",
        ));
    }
    let count = u32::try_from(descriptors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut head = count.to_le_bytes().to_vec();
    head.extend_from_slice(text);
    rustix::net::send(&socket, &head, SendFlags::NOSIGNAL)?;
    for part in descriptors.chunks(DESCRIPTORS_MAX) {
        let mut space =
            vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(part));
        rustix::net::sendmsg(
            &socket,
            &[IoSlice::new(b"d")],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
    }
    Ok(())
}

/// Receives what [`send_all`] sent.
pub(crate) fn receive_all(socket: impl AsFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let broken = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "the other process sent something else",
        )
    };
    let mut head = vec![0; TEXT_MAX + 4];
    let (read, _) = rustix::io::retry_on_intr(|| {
        rustix::net::recv(&socket, &mut head[..], RecvFlags::empty())
    })?;
    head.truncate(read);
    let (count, text) = head.split_first_chunk::<4>().ok_or_else(broken)?;
    let count = u32::from_le_bytes(*count) as usize;
    let text = text.to_vec();
    if count > ALL_MAX {
        return Err(broken());
    }
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        let mut byte = [0];
        let mut space =
            vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        rustix::net::recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let before = all.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                all.extend(descriptors);
            }
        }
        if all.len() == before {
            return Err(broken());
        }
    }
    Ok((text, all))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn hundreds_of_descriptors_arrive() {
        let (here, there) = pair().unwrap();
        let files: Vec<_> = (0..450).map(|_| here.as_fd()).collect();
        send_all(&here, b"text", &files).unwrap();
        let (text, received) = receive_all(&there).unwrap();
        assert_eq!((text.as_slice(), received.len()), (&b"text"[..], 450));
        drop(here);
        drop(received);
        assert!(receive_all(&there).is_err());
    }
}

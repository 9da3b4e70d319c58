//! Messages between the processes of a mount, over sockets that keep their borders.

use std::io;
use std::os::fd::AsFd;

use rustix::net::{RecvFlags, SendFlags};

pub(super) use crate::channel::{pair, receive_all, send_all};

/// What a guardian and a filler say to one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    /// To the filler: complete these bytes of a blob's cache file, or of all if it is [`ALL_BLOBS`].
    Fill {
        id: u64,
        blob: u32,
        start: u64,
        end: u64,
    },
    /// To the filler: nobody has the image mounted any more.
    Over,
    /// The bytes `start..end` of the blob asked for with `id` are good.
    Filled { id: u64, start: u64, end: u64 },
    /// What was asked for with `id` can't be had.
    Failed { id: u64 },
    /// The blob is complete, and on the disk.
    Complete { blob: u32 },
    /// Nothing of what was good before is to be trusted without asking again.
    Distrust,
    /// The image is mounted.
    Mounted,
    /// The filler leaves, and there is to be no other.
    Leave,
    /// To whoever started it: the guardian is ready.
    Ready,
    /// To the filler: another program takes its place.
    Retire,
}

/// Stands for every blob, where it is not known which one is read.
pub(super) const ALL_BLOBS: u32 = u32::MAX;

/// Size of a message.
const SIZE: usize = 32;

impl Message {
    fn encode(self) -> [u8; SIZE] {
        let words = match self {
            Self::Fill {
                id,
                blob,
                start,
                end,
            } => [1 | u64::from(blob) << 32, id, start, end],
            Self::Over => [2, 0, 0, 0],
            Self::Filled { id, start, end } => [3, id, start, end],
            Self::Failed { id } => [4, id, 0, 0],
            Self::Complete { blob } => [5 | u64::from(blob) << 32, 0, 0, 0],
            Self::Distrust => [6, 0, 0, 0],
            Self::Mounted => [7, 0, 0, 0],
            Self::Leave => [8, 0, 0, 0],
            Self::Ready => [9, 0, 0, 0],
            Self::Retire => [10, 0, 0, 0],
        };
        let mut bytes = [0; SIZE];
        for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        bytes
    }

    fn decode(bytes: &[u8; SIZE]) -> Option<Self> {
        let mut words = [0; SIZE / 8];
        for (word, from) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*from);
        }
        let [head, id, start, end] = words;
        let blob = (head >> 32) as u32;
        Some(match head & 0xffff_ffff {
            1 => Self::Fill {
                id,
                blob,
                start,
                end,
            },
            2 => Self::Over,
            3 => Self::Filled { id, start, end },
            4 => Self::Failed { id },
            5 => Self::Complete { blob },
            6 => Self::Distrust,
            7 => Self::Mounted,
            8 => Self::Leave,
            9 => Self::Ready,
            10 => Self::Retire,
            _ => return None,
        })
    }

    /// Sends it; `WouldBlock` if `wait` is not given and the other side has too many.
    pub(super) fn send(self, socket: impl AsFd, wait: bool) -> io::Result<()> {
        let flags = if wait {
            SendFlags::NOSIGNAL
        } else {
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT
        };
        rustix::io::retry_on_intr(|| rustix::net::send(&socket, &self.encode(), flags))?;
        Ok(())
    }

    /// The next message; `None` when the other side is closed. `WouldBlock` if `wait` is not given and there is none.
    pub(super) fn receive(socket: impl AsFd, wait: bool) -> io::Result<Option<Self>> {
        let mut bytes = [0; SIZE];
        let flags = if wait {
            RecvFlags::empty()
        } else {
            RecvFlags::DONTWAIT
        };
        let (read, _) =
            rustix::io::retry_on_intr(|| rustix::net::recv(&socket, &mut bytes[..], flags))?;
        match read {
            0 => Ok(None),
            SIZE => Self::decode(&bytes)
                .map(Some)
                .ok_or_else(|| io::ErrorKind::InvalidData.into()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn every_message_arrives() {
        let (here, there) = pair().unwrap();
        let all = [
            Message::Fill {
                id: 1 << 40,
                blob: u32::MAX,
                start: 3,
                end: u64::MAX,
            },
            Message::Over,
            Message::Filled {
                id: 2,
                start: 4,
                end: 5,
            },
            Message::Failed { id: 6 },
            Message::Complete { blob: 7 },
            Message::Distrust,
            Message::Mounted,
            Message::Leave,
            Message::Ready,
            Message::Retire,
        ];
        for message in all {
            message.send(&here, true).unwrap();
            assert_eq!(Message::receive(&there, true).unwrap(), Some(message));
        }
        let error = Message::receive(&there, false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        rustix::net::send(&here, &[0; SIZE], SendFlags::empty()).unwrap();
        assert!(Message::receive(&there, true).is_err());
        drop(here);
        assert_eq!(Message::receive(&there, true).unwrap(), None);
    }
}

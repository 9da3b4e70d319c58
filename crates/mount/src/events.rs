//! Waiting for many things in one thread: mounts may be many, and threads cost memory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;

/// Waits until any of `descriptors` can be read or is closed on the other side, or until `most` is over; which of them.
/// None may be one that is there no more.
pub(crate) fn wait<const N: usize>(
    descriptors: [Option<BorrowedFd<'_>>; N],
    most: Option<Duration>,
) -> io::Result<[bool; N]> {
    let timeout = most.map(|most| Timespec {
        tv_sec: most.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: most.subsec_nanos().into(),
    });
    let there = descriptors.iter().flatten();
    let mut polled: Vec<_> = there.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    match rustix::event::poll(&mut polled, timeout.as_ref()) {
        Ok(_) => {}
        // A signal, which may have left something to read.
        Err(Errno::INTR) => return Ok([false; N]),
        Err(errno) => return Err(errno.into()),
    }
    let mut answers = polled.iter().map(|fd| !fd.revents().is_empty());
    Ok(descriptors.map(|fd| fd.is_some() && answers.next().unwrap_or(false)))
}

/// Tells the thread that waits of something.
#[derive(Debug)]
pub(crate) struct Sender<T> {
    channel: mpsc::Sender<T>,
    bell: Arc<OwnedFd>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            channel: self.channel.clone(),
            bell: self.bell.clone(),
        }
    }
}

impl<T> Sender<T> {
    /// Nobody may listen any more.
    pub(crate) fn send(&self, what: T) {
        if self.channel.send(what).is_ok() {
            // A full counter has woken the other side already.
            let _ = rustix::io::write(&*self.bell, &1_u64.to_ne_bytes());
        }
    }
}

/// What threads have told.
#[derive(Debug)]
pub(crate) struct Receiver<T> {
    channel: mpsc::Receiver<T>,
    bell: Arc<OwnedFd>,
}

/// A channel whose receiver can be waited for beside other things.
pub(crate) fn channel<T>() -> io::Result<(Sender<T>, Receiver<T>)> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let bell = Arc::new(rustix::event::eventfd(0, flags)?);
    let (sender, channel) = mpsc::channel();
    let sender = Sender {
        channel: sender,
        bell: bell.clone(),
    };
    Ok((sender, Receiver { channel, bell }))
}

impl<T> Receiver<T> {
    /// What was told first, if anything was.
    pub(crate) fn take(&self) -> Option<T> {
        let next = self.channel.try_recv().ok();
        if next.is_none() {
            // Something may come between the two: the bell is silenced before the last look.
            let _ = rustix::io::read(&*self.bell, &mut [0; 8][..]);
            return self.channel.try_recv().ok();
        }
        next
    }

    /// Waits for the next; `None` if nobody is left to tell anything.
    pub(crate) fn recv(&self) -> Option<T> {
        self.channel.recv().ok()
    }
}

impl<T> AsFd for Receiver<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn whatever_happens_is_noticed_once() {
        let (sender, receiver) = channel().unwrap();
        let (here, there) = crate::channel::pair().unwrap();
        let none = Some(Duration::ZERO);
        let look = |most| wait([Some(receiver.as_fd()), None, Some(there.as_fd())], most).unwrap();
        assert_eq!(look(none), [false; 3]);
        sender.send(1);
        sender.send(2);
        assert_eq!(look(None), [true, false, false]);
        assert_eq!(
            (receiver.take(), receiver.take(), receiver.take()),
            (Some(1), Some(2), None)
        );
        assert_eq!(look(none), [false; 3]);
        drop(here);
        assert_eq!(look(None), [false, false, true]);
        drop(sender);
        assert_eq!(receiver.recv(), None);
    }
}

//! Pre-content events: the kernel stops whoever reads a marked file until it is told that the data is there.
//!
//! Sources: `include/uapi/linux/fanotify.h` of Linux 6.15, fanotify(7).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// `FAN_PRE_ACCESS`, which the C library does not name yet.
const PRE_ACCESS: u64 = 0x0010_0000;
/// `FAN_Q_OVERFLOW`.
const OVERFLOW: u64 = 0x4000;
/// `FAN_EVENT_INFO_TYPE_RANGE`: a record that says which bytes are wanted.
const INFO_RANGE: u8 = 6;
/// `FAN_ALLOW` and `FAN_DENY`; an errno stands in the top byte (`FAN_DENY_ERRNO`).
const ALLOW: u32 = 1;
const DENY: u32 = 2;

/// Words of one event with its range record: `fanotify_event_metadata` and `fanotify_event_info_range`, 24 bytes each.
pub const EVENT_WORDS: usize = 6;

/// A fanotify group that is asked before marked files are read. When its last descriptor is closed, the kernel lets
/// everybody read whatever is there.
#[derive(Debug)]
pub struct Group(OwnedFd);

/// One event as the kernel wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Number of the event's descriptor in the process that read it: the name by which it is answered.
    pub number: RawFd,
    /// Which bytes are wanted; `None` from kernels before 6.15, which do not say.
    pub range: Option<Range<u64>>,
}

/// How to answer an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The data is there.
    Allow,
    /// The data can't be had: the reader gets EIO.
    IoError,
}

impl Group {
    /// A new group. It never blocks, and its queue has no limit but the number of readers, each of whom waits for one
    /// answer.
    ///
    /// # Errors
    /// Without `CAP_SYS_ADMIN`, or when the kernel has no such events.
    pub fn new() -> io::Result<Self> {
        let flags = libc::FAN_CLASS_PRE_CONTENT
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_UNLIMITED_QUEUE
            | libc::FAN_UNLIMITED_MARKS;
        let file_flags = libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC;
        // SAFETY: it takes two integers.
        let number = unsafe { libc::fanotify_init(flags, file_flags as libc::c_uint) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(number) }))
    }

    /// From now on, reads through descriptors opened after this wait for an answer.
    ///
    /// # Errors
    /// When the kernel (before 6.14) or the file system has no pre-content events.
    pub fn mark(&self, file: &File) -> io::Result<()> {
        self.change(libc::FAN_MARK_ADD, file)
    }

    /// Nobody who reads `file` waits any more.
    ///
    /// # Errors
    /// When it was not marked.
    pub fn unmark(&self, file: &File) -> io::Result<()> {
        self.change(libc::FAN_MARK_REMOVE, file)
    }

    fn change(&self, how: libc::c_uint, file: &File) -> io::Result<()> {
        // SAFETY: no path is given, so the call takes integers alone.
        let done = unsafe {
            libc::fanotify_mark(
                self.0.as_raw_fd(),
                how,
                PRE_ACCESS,
                file.as_raw_fd(),
                std::ptr::null(),
            )
        };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Has the kernel write one waiting event into `words`, which are zero until then, where a process that shares them finds it whatever becomes
    /// of this one. The event and its descriptor, which must stay open until the event is answered.
    ///
    /// # Errors
    /// `WouldBlock` if none waits; `InvalidData` if it is none that was asked for, such as the word that events were
    /// lost.
    pub fn read_event(&self, words: &[AtomicU64; EVENT_WORDS]) -> io::Result<(Event, OwnedFd)> {
        words
            .iter()
            .for_each(|word| word.store(0, Ordering::Release));
        // SAFETY: the words are ours to change through a shared reference, and the length is theirs.
        let read = unsafe {
            libc::read(
                self.0.as_raw_fd(),
                words.as_ptr().cast_mut().cast(),
                size_of_val(words),
            )
        };
        if read < 0 {
            return Err(io::Error::last_os_error());
        }
        let event = Event::parse(words).ok_or(io::ErrorKind::InvalidData)?;
        // SAFETY: the kernel has just put this descriptor into our table, and no one else knows of it.
        let file = unsafe { OwnedFd::from_raw_fd(event.number) };
        Ok((event, file))
    }

    /// Answers the event of that number.
    ///
    /// # Errors
    /// `NotFound` if no such event waits for an answer.
    pub fn answer(&self, number: RawFd, answer: Answer) -> io::Result<()> {
        let response = match answer {
            Answer::Allow => ALLOW,
            Answer::IoError => DENY | (libc::EIO as u32) << 24,
        };
        let mut message = [0; 8];
        message[..4].copy_from_slice(&number.to_ne_bytes());
        message[4..].copy_from_slice(&response.to_ne_bytes());
        rustix::io::write(&self.0, &message)?;
        Ok(())
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Group {
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

impl Event {
    /// The event in `words`; `None` if there is none, or none of ours.
    pub fn parse(words: &[AtomicU64; EVENT_WORDS]) -> Option<Self> {
        let [head, mask, descriptor, info, offset, count] =
            words.each_ref().map(|word| word.load(Ordering::Acquire));
        let [a, b, c, d, ..] = head.to_ne_bytes();
        let len = u32::from_ne_bytes([a, b, c, d]) as usize;
        let [a, b, c, d, ..] = descriptor.to_ne_bytes();
        let number = RawFd::from_ne_bytes([a, b, c, d]);
        if len == 0 || mask & PRE_ACCESS == 0 || mask & OVERFLOW != 0 || number < 0 {
            return None;
        }
        let ranged = len >= EVENT_WORDS * 8 && info.to_ne_bytes()[0] == INFO_RANGE;
        let range = ranged.then(|| offset..offset.saturating_add(count));
        Some(Self { number, range })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::FileExt as _;
    use std::time::{Duration, Instant};

    use super::*;

    fn next(group: &Group, words: &[AtomicU64; EVENT_WORDS]) -> (Event, OwnedFd) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match group.read_event(words) {
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                other => return other.unwrap(),
            }
        }
    }

    /// Whether the kernel has such events for files here; says so if not.
    fn marked(file: &File) -> Option<Group> {
        let group = Group::new().and_then(|group| group.mark(file).map(|()| group));
        group
            .inspect_err(|error| eprintln!("SKIPPED: no pre-content events here: {error}"))
            .ok()
    }

    #[test]
    fn privileged_a_reader_waits_for_what_the_owner_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let before = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        before.set_len(1 << 20).unwrap();
        let Some(group) = marked(&before) else { return };
        let words = Default::default();
        let read = |offset| {
            let path = path.clone();
            std::thread::spawn(move || {
                let mut byte = [0; 4];
                File::open(path)
                    .unwrap()
                    .read_exact_at(&mut byte, offset)
                    .map(|()| byte)
            })
        };
        let reader = read(8192);
        let (event, file) = next(&group, &words);
        let range = event.range.clone().unwrap();
        assert!(range.contains(&8192), "{range:?}");
        assert_eq!(Event::parse(&words), Some(event.clone()));
        before.write_all_at(b"data", 8192).unwrap();
        group.answer(event.number, Answer::Allow).unwrap();
        drop(file);
        assert_eq!(&reader.join().unwrap().unwrap(), b"data");

        let reader = read(0);
        let (event, file) = next(&group, &words);
        group.answer(event.number, Answer::IoError).unwrap();
        drop(file);
        let error = reader.join().unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        let error = group.answer(event.number, Answer::Allow).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);

        group.unmark(&before).unwrap();
        assert_eq!(&read(8192).join().unwrap().unwrap(), b"data");
    }

    #[test]
    fn words_without_an_event_are_none() {
        let words: [AtomicU64; EVENT_WORDS] = Default::default();
        assert_eq!(Event::parse(&words), None);
        words[0].store(24, Ordering::Relaxed);
        words[1].store(OVERFLOW, Ordering::Relaxed);
        words[2].store(u64::from(u32::MAX), Ordering::Relaxed);
        assert_eq!(Event::parse(&words), None);
    }
}

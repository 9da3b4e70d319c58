use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Size of `fanotify_event_metadata`, and where its descriptor is.
const EVENT_SIZE: usize = 24;
const DESCRIPTOR_AT: usize = 16;

/// How long the group stays for the next file. To close one takes the kernel some 10 ms, and of all groups of a user there
/// are but `fs.fanotify.max_user_groups`, 128 usually.
const IDLE: Duration = Duration::from_millis(500);

/// The group that is told of files being opened, while there is one.
static GROUP: Mutex<Option<Quiet>> = Mutex::new(None);

/// A group, and when it was last of use.
struct Quiet {
    group: OwnedFd,
    used: Instant,
}

/// Another descriptor of the same file, for reading and writing, that no fanotify group is ever told about: reads and
/// writes through it don't wait for whoever has marked the file, be it before or after this.
///
/// The kernel gives such a descriptor along with every event that it reports, lest the group be told of its own doings.
/// So this has an event reported: that the file was opened.
///
/// # Errors
/// Without `CAP_SYS_ADMIN`, or when the kernel has no fanotify.
pub fn open_quietly(file: &File) -> io::Result<File> {
    let mut state = lock();
    let quiet = match &mut *state {
        Some(quiet) => quiet,
        none => {
            let group = new_group()?;
            thread::Builder::new()
                .name("quiet".to_owned())
                .spawn(close_when_idle)?;
            none.insert(Quiet {
                group,
                used: Instant::now(),
            })
        }
    };
    let group = &quiet.group;
    change(group, libc::FAN_MARK_ADD, file)?;
    let opened = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let found = opened.and_then(|_| next_of(group, file));
    change(group, libc::FAN_MARK_REMOVE, file)?;
    // Others may have opened it meanwhile.
    while next(group).is_ok() {}
    quiet.used = Instant::now();
    found
}

fn lock() -> MutexGuard<'static, Option<Quiet>> {
    GROUP.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closes the group once nobody has used it for a while.
fn close_when_idle() {
    let mut left = IDLE;
    loop {
        thread::sleep(left);
        let mut state = lock();
        let used = state.as_ref().map(|quiet| quiet.used.elapsed());
        left = IDLE.saturating_sub(used.unwrap_or(IDLE));
        if left.is_zero() {
            let quiet = state.take();
            drop(state);
            return drop(quiet);
        }
    }
}

fn new_group() -> io::Result<OwnedFd> {
    let flags = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
    let file_flags = libc::O_RDWR | libc::O_LARGEFILE | libc::O_CLOEXEC;
    // SAFETY: it takes two integers.
    owned(unsafe { libc::fanotify_init(flags, file_flags as libc::c_uint) })
}

fn change(group: &OwnedFd, how: libc::c_uint, file: &File) -> io::Result<()> {
    // SAFETY: no path is given, so the call takes integers alone.
    let done = unsafe {
        libc::fanotify_mark(
            group.as_raw_fd(),
            how,
            libc::FAN_OPEN,
            file.as_raw_fd(),
            ptr::null(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The descriptor of the next event about `file`.
fn next_of(group: &OwnedFd, file: &File) -> io::Result<File> {
    let identity = |file: &File| file.metadata().map(|file| (file.dev(), file.ino()));
    let wanted = identity(file)?;
    loop {
        let found = next(group)?;
        if identity(&found)? == wanted {
            return Ok(found);
        }
    }
}

/// The descriptor of the next event.
fn next(group: &OwnedFd) -> io::Result<File> {
    let mut event = [0; EVENT_SIZE];
    let read = rustix::io::read(group, &mut event)?;
    let mut number = [0; 4];
    number.copy_from_slice(&event[DESCRIPTOR_AT..DESCRIPTOR_AT + 4]);
    if read != EVENT_SIZE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    owned(RawFd::from_ne_bytes(number)).map(File::from)
}

/// A descriptor that the kernel has just made for us, or its refusal.
fn owned(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just put it into our table, and no one else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::FileExt as _;
    use std::sync::mpsc;

    use super::*;
    use crate::fanotify::Group;

    #[test]
    fn privileged_nobody_is_asked_about_a_quiet_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let open = |path: &std::path::Path| File::options().read(true).write(true).open(path);
        File::create_new(&path).unwrap().set_len(1 << 20).unwrap();
        let before = open(&path).unwrap();
        let marked = Group::new().and_then(|group| group.mark(&before).map(|()| group));
        let group = match marked {
            Ok(group) => group,
            Err(error) => return eprintln!("SKIPPED: no pre-content events here: {error}"),
        };
        let quiet = open_quietly(&before).unwrap();
        let (sender, done) = mpsc::channel();
        let work = sender.clone();
        thread::spawn(move || {
            quiet.write_all_at(b"data", 8192).unwrap();
            let mut byte = [0; 4];
            quiet.read_exact_at(&mut byte, 8192).unwrap();
            work.send(byte).unwrap();
        });
        let byte = done.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(&byte, b"data");

        // An ordinary one is asked about, so the test could have failed.
        let loud = open(&path).unwrap();
        thread::spawn(move || {
            loud.write_all_at(b"more", 8192).unwrap();
            sender.send(*b"more").unwrap();
        });
        assert!(done.recv_timeout(Duration::from_millis(100)).is_err());
        drop(group);
        assert_eq!(
            &done.recv_timeout(Duration::from_secs(20)).unwrap(),
            b"more"
        );

        // There are few groups, so this one is given back, and comes again when it is needed.
        let start = Instant::now();
        while lock().is_some() {
            assert!(start.elapsed() < Duration::from_secs(20), "it stays");
            thread::sleep(Duration::from_millis(10));
        }
        open_quietly(&before).unwrap();
    }
}

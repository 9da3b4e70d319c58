//! Attaching `/dev/fuse` to a directory: by `mount(2)` where that is allowed, else through `fusermount3`.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::FdFlags;
use rustix::mount::MountFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::Error;
use crate::mountinfo::NAME;

/// The setuid helper of the fuse3 package.
pub(crate) const FUSERMOUNT: &str = "fusermount3";

/// Whether this process is root: then all users see the mount, with devices and setuid bits as in the image.
pub(crate) fn privileged() -> bool {
    rustix::process::geteuid().is_root()
}

/// Mounts a new FUSE connection on the directory `mountpoint`; the kernel's first request waits in the descriptor.
pub(crate) fn attach(mountpoint: &Path) -> Result<OwnedFd, Error> {
    let denied =
        |error: &io::Error| !privileged() && error.kind() == io::ErrorKind::PermissionDenied;
    let device = match open() {
        Ok(device) => device,
        Err(error) if denied(&error) => return fusermount(mountpoint),
        Err(source) => return Err(Error::Device { source }),
    };
    match mount(&device, mountpoint) {
        Ok(()) => Ok(device),
        Err(error) if denied(&error) => fusermount(mountpoint),
        Err(source) => Err(Error::Refused {
            path: mountpoint.to_owned(),
            source,
        }),
    }
}

fn open() -> io::Result<OwnedFd> {
    Ok(OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")?
        .into())
}

fn mount(device: &OwnedFd, mountpoint: &Path) -> io::Result<()> {
    let root = privileged();
    let mut flags = MountFlags::RDONLY;
    if !root {
        flags |= MountFlags::NODEV | MountFlags::NOSUID;
    }
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions{}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
        if root { ",allow_other" } else { "" },
    );
    let options = CString::new(options)?;
    rustix::mount::mount(
        NAME,
        mountpoint,
        format!("fuse.{NAME}"),
        flags,
        options.as_c_str(),
    )?;
    Ok(())
}

/// Has the setuid helper open the device and mount it; it hands the descriptor back over a socket.
fn fusermount(mountpoint: &Path) -> Result<OwnedFd, Error> {
    let system = |source| Error::System {
        what: "socket for fusermount3",
        source,
    };
    let (theirs, ours) = UnixStream::pair().map_err(system)?;
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).map_err(|errno| system(errno.into()))?;
    let child = Command::new(FUSERMOUNT)
        .args([
            "-o",
            &format!("ro,nosuid,nodev,default_permissions,fsname={NAME},subtype={NAME}"),
            "--",
        ])
        .arg(mountpoint)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::NoFusermount { source })?;
    drop(theirs);
    let device = receive(&ours);
    let output = child
        .wait_with_output()
        .map_err(|source| Error::NoFusermount { source })?;
    match device {
        Ok(Some(device)) if output.status.success() => Ok(device),
        _ => Err(Error::Fusermount {
            path: mountpoint.to_owned(),
            message: last_words(&output.stderr),
        }),
    }
}

/// The descriptor in the one message of the helper; `None` if it closed the socket without one.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(
        socket.as_fd(),
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        flags,
    )?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

/// What a helper wrote to stderr, on one line, or that it wrote nothing.
pub(crate) fn last_words(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let line = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ");
    if line.is_empty() {
        "it gave no reason".to_owned()
    } else {
        line
    }
}

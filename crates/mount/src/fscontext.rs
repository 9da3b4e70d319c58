//! A file system that is configured and then mounted, by the system calls that mount(8) uses today.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

/// Longest value that the kernel takes for an option, in bytes.
const VALUE_MAX: usize = 255;

/// See the module.
pub(crate) struct FsContext(OwnedFd);

impl FsContext {
    /// A new one for file systems of this type.
    pub(crate) fn open(kind: &str) -> io::Result<Self> {
        let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        Ok(Self(context))
    }

    /// Sets an option.
    pub(crate) fn set(&self, key: &str, value: &Path) -> io::Result<()> {
        if value.as_os_str().len() > VALUE_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        let set = rustix::mount::fsconfig_set_string(self.0.as_fd(), key, value);
        set.map_err(|errno| said(self.0.as_fd(), errno))
    }

    /// Sets an option without a value.
    pub(crate) fn flag(&self, key: &str) -> io::Result<()> {
        let set = rustix::mount::fsconfig_set_flag(self.0.as_fd(), key);
        set.map_err(|errno| said(self.0.as_fd(), errno))
    }

    /// Mounts it on a directory.
    pub(crate) fn mount(self, attributes: MountAttrFlags, on: &Path) -> io::Result<()> {
        let context = self.0.as_fd();
        rustix::mount::fsconfig_create(context).map_err(|errno| said(context, errno))?;
        let mount = rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&mount, "", rustix::fs::CWD, on, flags)?;
        Ok(())
    }
}

/// What the kernel has to say beside the error's number.
fn said(context: BorrowedFd<'_>, errno: Errno) -> io::Error {
    let mut text = Vec::new();
    let mut line = [0; 512];
    while let Ok(read) = rustix::io::read(context, &mut line)
        && read > 0
    {
        let part = String::from_utf8_lossy(&line[..read]).trim().to_owned();
        text.push(part);
    }
    let source = io::Error::from(errno);
    if text.is_empty() {
        source
    } else {
        io::Error::new(source.kind(), format!("{source}: {}", text.join("; ")))
    }
}

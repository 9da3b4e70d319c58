//! What can go wrong with a mount, and the one place where a fault becomes an errno.

use std::io;
use std::path::PathBuf;

use fuser::Errno;

/// Why an image cannot be mounted, or a mount cannot be served or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The directory to mount on is absent and cannot be made, or is no directory.
    #[error("{path}: cannot be mounted on; name an existing directory or one that can be created")]
    MountPoint {
        /// The directory asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `/dev/fuse` cannot be used.
    #[error(
        "/dev/fuse: cannot be opened; FUSE must be available here (try `modprobe fuse`, or pass the device into the container)"
    )]
    Device {
        /// What the system said.
        source: io::Error,
    },
    /// The kernel refused the mount.
    #[error("{path}: the kernel refused the FUSE mount")]
    Refused {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `fusermount3` is not installed.
    #[error("fusermount3: cannot be run; mounting without root needs it (package fuse3)")]
    NoFusermount {
        /// What the system said.
        source: io::Error,
    },
    /// `fusermount3` ran and failed.
    #[error("{path}: fusermount3 failed: {message}")]
    Fusermount {
        /// The mount point.
        path: PathBuf,
        /// Its last words.
        message: String,
    },
    /// The FUSE session could not begin or broke.
    #[error("{path}: the FUSE session failed")]
    Session {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something of ours is mounted there.
    #[error("{path}: an image is mounted there already; `nydusify umount {path}` takes it away")]
    Taken {
        /// The directory asked for.
        path: PathBuf,
    },
    /// The process that was to serve the mount died before anything was mounted.
    #[error("{path}: not mounted, the process that was to serve it was killed")]
    ServerDied {
        /// The mount point.
        path: PathBuf,
    },
    /// Processes that serve the mount die one after the other.
    #[error(
        "{path}: {deaths} processes that served it died one soon after the other; the mount has been given up, reads end with errors"
    )]
    GivenUp {
        /// The mount point.
        path: PathBuf,
        /// How many.
        deaths: u32,
    },
    /// The kernel cannot mount the image itself, or could not be told when data is missing.
    #[error("the kernel can't serve this mount: {what}; `--mode fuse` does without it")]
    Kernel {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The directory is no mount of ours.
    #[error("{path}: not a mount of a RAFS image{found}")]
    NotOurs {
        /// The directory asked for.
        path: PathBuf,
        /// What is mounted there instead, as ` (it is ...)`; empty if nothing is.
        found: String,
    },
    /// The mount is in use.
    #[error("{path}: in use; end the programs that use it, or detach it with --lazy")]
    Busy {
        /// The mount point.
        path: PathBuf,
    },
    /// The mount could not be taken away.
    #[error("{path}: cannot be unmounted")]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The program under a mount could not be replaced; the mount goes on.
    #[error("{path}: not replaced: {why}")]
    NotReplaced {
        /// The mount point.
        path: PathBuf,
        /// What was in the way, and what to do.
        why: &'static str,
    },
    /// The writable root can't be made.
    #[error(
        "{path}: cannot {what}; the directory must be on a file system that overlayfs can write to"
    )]
    Upper {
        /// The directory for changes.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has the writable root mounted.
    #[error(
        "{path}: in use as the upper directory of another mount, by process {pid}; name another directory"
    )]
    UpperBusy {
        /// The directory for changes.
        path: PathBuf,
        /// The process.
        pid: u32,
    },
    /// Stacking overlayfs takes a privilege.
    #[error(
        "{path}: an upper directory needs root, or a user namespace (`unshare --user --map-root-user --mount`); `nydusify run` makes one itself"
    )]
    UpperPrivilege {
        /// The directory for changes.
        path: PathBuf,
    },
    /// The serving process did not end.
    #[error("{path}: unmounted, but process {pid} that served it still runs")]
    StillServed {
        /// The mount point.
        path: PathBuf,
        /// The process.
        pid: u32,
    },
    /// The figures of a mount cannot be given.
    #[error("--metrics {path}: cannot listen there; name another place, or none")]
    Metrics {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The processes of a mount do not say what they do.
    #[error("{path}: nobody gives the figures of this mount; ask as the user who mounted it")]
    NoFigures {
        /// Mount point.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something that every Linux has is missing: threads, signals, `/proc`.
    #[error("{what}: failed")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Why one FUSE request fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// No entry of that name.
    #[error("no such entry")]
    NoEntry,
    /// No entry could have that name.
    #[error("name too long")]
    NameTooLong,
    /// A directory operation on something else.
    #[error("not a directory")]
    NotDirectory,
    /// A read of a directory.
    #[error("a directory")]
    IsDirectory,
    /// A read or readlink of a file that has no such content.
    #[error("wrong type of file")]
    WrongType,
    /// No attribute of that name.
    #[error("no such attribute")]
    NoAttribute,
    /// The buffer for an attribute is too small.
    #[error("buffer too small")]
    TooSmall,
    /// The bootstrap is damaged at this place.
    #[error(transparent)]
    Bootstrap(#[from] rafs_format::Error),
    /// File data could not be read, or is not what the image promises.
    #[error(transparent)]
    Data(#[from] storage::ReadError),
}

impl Fault {
    /// The answer for the caller of the system call.
    pub(crate) fn errno(&self) -> Errno {
        match self {
            Self::NoEntry => Errno::ENOENT,
            Self::NameTooLong => Errno::ENAMETOOLONG,
            Self::NotDirectory => Errno::ENOTDIR,
            Self::IsDirectory => Errno::EISDIR,
            Self::WrongType => Errno::EINVAL,
            Self::NoAttribute => Errno::ENODATA,
            Self::TooSmall => Errno::ERANGE,
            Self::Bootstrap(_) | Self::Data(_) => Errno::EIO,
        }
    }

    /// Whether the image or its storage is at fault rather than the caller.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, Self::Bootstrap(_) | Self::Data(_))
    }
}

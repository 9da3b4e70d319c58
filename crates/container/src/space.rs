//! The namespaces that the runner itself is in.

use std::io;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::Error;
use crate::ids::Mapper;

/// A mount namespace, within a user namespace where this process is not root, with a directory in memory.
#[derive(Debug)]
pub struct Space {
    pub(crate) directory: PathBuf,
}

/// In a process that another one started out of its [`Space`] over the directory `over`, and that outlives it: lets go of what
/// is mounted there.
pub fn forget(over: &Path) {
    // It may have been let go before.
    let _ = rustix::mount::unmount(over, UnmountFlags::DETACH);
}

impl Space {
    /// Puts this process, which must not have threads yet, into namespaces of its own, and hides the directory `over` behind
    /// an empty one in memory, for this process and its children alone. It is left by ending the process.
    ///
    /// # Errors
    /// [`Error::UserNamespace`] where only root may do so; [`Error::System`] if the kernel refuses for other reasons.
    pub fn enter(over: &Path) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            let mapper = Mapper::start();
            unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| Error::UserNamespace {
                source: errno.into(),
            })?;
            mapper.map().map_err(Error::system("map the user's id"))?;
        }
        unshare(CloneFlags::CLONE_NEWNS).map_err(Error::system(
            "make a mount namespace (root, or a user namespace)",
        ))?;
        // What is unmounted elsewhere goes here as well; nothing gets out.
        rustix::mount::mount_change(
            "/",
            MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
        )
        .map_err(Error::system("keep mounts to this process"))?;
        rustix::mount::mount(
            "nydusify",
            over,
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=0700",
        )
        .map_err(Error::system(format!(
            "mount a tmpfs on {}",
            over.display()
        )))?;
        Ok(Self {
            directory: over.to_owned(),
        })
    }

    /// The directory in memory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Lets go of all that is mounted in the directory: who else has it keeps it.
    pub(crate) fn let_go(&self) -> io::Result<()> {
        Ok(rustix::mount::unmount(
            &self.directory,
            UnmountFlags::DETACH,
        )?)
    }
}

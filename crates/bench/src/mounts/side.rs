//! The ways to serve an image.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::tools::run;

/// A lazy mount's front end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `--mode fuse`.
    Fuse,
    /// `--mode erofs`.
    Erofs,
}

impl Mode {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Fuse, Self::Erofs];

    /// The option's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fuse => "fuse",
            Self::Erofs => "erofs",
        }
    }
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A directory of the disk's file system.
    Native,
    /// An image made by mkfs.erofs, mounted by the kernel from its file.
    Plain,
    /// A mount of the converted image.
    Lazy(Mode),
}

impl Side {
    /// All of them, in the order of the columns.
    pub const ALL: [Self; 4] = [
        Self::Native,
        Self::Plain,
        Self::Lazy(Mode::Fuse),
        Self::Lazy(Mode::Erofs),
    ];

    /// The column's title.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Plain => "mkfs.erofs",
            Self::Lazy(mode) => mode.name(),
        }
    }
}

/// A tree to work on.
pub struct Served {
    root: PathBuf,
    by: By,
}

enum By {
    Directory,
    Kernel,
    Nydusify(PathBuf),
}

impl Served {
    /// A directory as it is.
    pub fn tree(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            by: By::Directory,
        }
    }

    /// An EROFS image in a file.
    pub fn image(image: &Path, root: &Path) -> Result<Self> {
        std::fs::create_dir_all(root)?;
        // Without a loop device in between, as our own mounts are.
        mount(image, root, "erofs", MountFlags::RDONLY, None)
            .with_context(|| format!("mount {}", image.display()))?;
        Ok(Self {
            root: root.to_owned(),
            by: By::Kernel,
        })
    }

    /// A lazy mount, with these options more.
    pub fn lazily(
        nydusify: &Path,
        mode: Mode,
        image: &str,
        root: &Path,
        cache: &Path,
        more: &[&OsStr],
    ) -> Result<Self> {
        run(Command::new(nydusify)
            .args(["mount", "--plain-http", "--detach", "--mode", mode.name()])
            .args(["--target", image])
            .args(["--mount-path".as_ref(), root.as_os_str()])
            .args(["--cache-dir".as_ref(), cache.as_os_str()])
            .args(more))?;
        Ok(Self {
            root: root.to_owned(),
            by: By::Nydusify(nydusify.to_owned()),
        })
    }

    /// Where the tree is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The peak resident memory of all processes that serve the mount, in KiB.
    pub fn peak_memory(&self) -> Result<u64> {
        let (mut total, root) = (0, self.root.as_os_str().as_encoded_bytes());
        for entry in std::fs::read_dir("/proc")? {
            let process = entry?.path();
            let Ok(line) = std::fs::read(process.join("cmdline")) else {
                continue;
            };
            if !line.windows(root.len()).any(|part| part == root) {
                continue;
            }
            let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let peak = peak.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            total += peak.unwrap_or_default();
        }
        Ok(total)
    }

    /// Takes a mount away.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.by, By::Directory) {
            By::Directory => Ok(()),
            By::Kernel => unmount(&self.root, UnmountFlags::empty())
                .with_context(|| format!("unmount {}", self.root.display())),
            By::Nydusify(nydusify) => run(Command::new(nydusify).arg("umount").arg(&self.root)),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
        }
    }
}

//! Judges from outside: `fsck.erofs`, the kernel's own EROFS, GNU tar and overlayfs.

mod stack;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

pub use stack::{Stack, no_overlay};

/// Where a program lies on `$PATH`.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Whether the effective user is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Why FUSE file systems cannot be mounted here; `None` if they can.
pub fn no_fuse() -> Option<&'static str> {
    if !Path::new("/dev/fuse").exists() {
        Some("no /dev/fuse")
    } else if !is_root() && program("fusermount3").is_none() {
        Some("neither root nor fusermount3 (apt-get install fuse3)")
    } else {
        None
    }
}

/// Why EROFS images cannot be mounted by the kernel here; `None` if they can.
pub fn no_erofs() -> Option<&'static str> {
    if !is_root() {
        return Some("not root");
    }
    let known = || {
        let text = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        text.lines()
            .any(|line| line.split_whitespace().last() == Some("erofs"))
    };
    if !known() {
        // Where it is a module, it may just not be loaded.
        let _ = Command::new("modprobe").args(["--quiet", "erofs"]).status();
    }
    (!known()).then_some("a kernel without EROFS")
}

/// Why `fsck.erofs` cannot be run; `None` if it can.
pub fn no_fsck() -> Option<&'static str> {
    program("fsck.erofs")
        .is_none()
        .then_some("no fsck.erofs (apt-get install erofs-utils)")
}

/// Runs `fsck.erofs` over a bootstrap and its devices, in slot order.
///
/// # Errors
/// What it printed, if it found fault or could not be run.
pub fn fsck(bootstrap: &Path, devices: &[PathBuf]) -> Result<(), String> {
    let program = program("fsck.erofs").ok_or("no fsck.erofs")?;
    let devices = devices
        .iter()
        .map(|path| format!("--device={}", path.display()));
    let output = Command::new(program)
        .args(devices)
        .arg(bootstrap)
        .output()
        .map_err(|error| error.to_string())?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if output.status.success() && !text.contains("<E>") {
        Ok(())
    } else {
        Err(text)
    }
}

/// Sparse files of `blocks` x 4096 bytes in `dir`: devices enough for a look at the metadata.
///
/// # Errors
/// When they cannot be made.
pub fn sparse_devices(dir: &Path, blocks: &[u64]) -> io::Result<Vec<PathBuf>> {
    let make = |(index, blocks): (usize, &u64)| {
        let path = dir.join(format!("device{index}"));
        File::create(&path)?.set_len(blocks * 4096)?;
        Ok(path)
    };
    blocks.iter().enumerate().map(make).collect()
}

/// A mount that ends with this value.
#[derive(Debug)]
pub struct KernelMount {
    at: PathBuf,
}

impl KernelMount {
    /// Where the tree is.
    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.at, UnmountFlags::DETACH) {
            eprintln!("{}: cannot unmount: {error}", self.at.display());
        }
    }
}

/// A file as a read-only block device, until this value goes.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches a file.
    ///
    /// # Errors
    /// What `losetup` says.
    pub fn attach(file: &Path) -> Result<Self, String> {
        let output = Command::new("losetup")
            .args(["--find", "--show", "--read-only"])
            .arg(file)
            .output()
            .map_err(|error| format!("losetup: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let path = String::from_utf8_lossy(&output.stdout);
        Ok(Self {
            path: path.trim().into(),
        })
    }

    /// The device.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let status = Command::new("losetup").arg("-d").arg(&self.path).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("{}: cannot detach", self.path.display());
        }
    }
}

/// Mounts a bootstrap file read-only at `at` through the kernel's EROFS, one device file per blob in slot order.
/// Not through the mount program: that puts loop devices in between.
///
/// # Errors
/// What the kernel says, with its log of the mount where it keeps one.
pub fn kernel_mount(bootstrap: &Path, devices: &[PathBuf], at: &Path) -> io::Result<KernelMount> {
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", bootstrap)?;
    // Else a read-only block device is refused.
    fsconfig_set_flag(&context, "ro")?;
    for device in devices {
        fsconfig_set_string(&context, "device", device)?;
    }
    attach(&context, at)
}

/// Makes the file system of a configured context and mounts it read-only at `at`.
fn attach(context: &OwnedFd, at: &Path) -> io::Result<KernelMount> {
    let mounted = fsconfig_create(context).and_then(|()| {
        let mount = fsmount(
            context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_RDONLY,
        )?;
        move_mount(
            &mount,
            "",
            rustix::fs::CWD,
            at,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
    });
    match mounted {
        Ok(()) => Ok(KernelMount {
            at: at.to_path_buf(),
        }),
        Err(error) => Err(io::Error::other(format!("{error}: {}", mount_log(context)))),
    }
}

/// What the kernel has to say about a file system context, one message per read.
fn mount_log(context: &OwnedFd) -> String {
    let mut out = String::new();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
        out.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    out
}

/// The extra devices that an EROFS superblock lists, in slot order: (tag, blocks of 4096 bytes).
///
/// # Panics
/// When `bootstrap` is too short for what it says.
pub fn device_slots(bootstrap: &[u8]) -> Vec<(String, u64)> {
    let number = |at: usize, width: usize| {
        bootstrap[at..at + width]
            .iter()
            .rev()
            .fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
    };
    let small = |at: usize| usize::try_from(number(at, 2)).expect("two bytes");
    let (count, first) = (small(1024 + 86), small(1024 + 88));
    let slot = |index: usize| {
        let at = (first + index) * 128;
        let tag = String::from_utf8_lossy(&bootstrap[at..at + 64])
            .trim_end_matches('\0')
            .to_owned();
        (tag, number(at + 64, 4))
    };
    (0..count).map(slot).collect()
}

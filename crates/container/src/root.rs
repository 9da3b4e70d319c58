//! Makes a directory the root, and mounts what a program expects there.
//!
//! Nothing is mounted by a path of the image before the image is the root: its symbolic links could lead anywhere. What
//! comes from the host is taken before, as mounts that are nowhere yet.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use crate::Error;
use crate::files;

/// Devices that every program may use.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Links in `/dev`.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];
/// What of `/proc` belongs to the whole machine: not to be written, and not to be read.
const READ_ONLY: [&str; 5] = [
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/proc/irq",
    "/proc/bus",
    "/proc/fs",
];
const HIDDEN: [&str; 4] = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/sched_debug",
];
/// Flags of file systems that hold no programs.
const DATA: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);
const TYPE_OF_TERMINALS: &str = "newinstance,ptmxmode=0666,mode=0620";

/// Mounts of the host that are nowhere yet, by the path that they are for.
struct Taken {
    /// Over files.
    files: Vec<(PathBuf, OwnedFd)>,
    /// `/proc` of this PID namespace. In a user namespace it may only be mounted where another one is seen.
    proc: OwnedFd,
    /// `/sys`, where it can't be mounted anew: that takes root of the network's namespace.
    sys: Option<OwnedFd>,
}

/// Makes `root`, where a file system is mounted, the root of this process, which has a mount namespace of its own.
/// `given` has the files that come with it.
pub(crate) fn enter(root: &Path, given: &Path) -> Result<(), Error> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(Error::system("keep mounts to the program"))?;
    let taken = take(given).map_err(Error::system("take what the host gives"))?;
    pivot(root).map_err(Error::system(format!("make {} the root", root.display())))?;
    directory("/proc")
        .and_then(|()| place_on_directory(&taken.proc, "/proc"))
        .map_err(Error::system("mount /proc"))?;
    mount_dev().map_err(Error::system("mount /dev"))?;
    mount_sys(taken.sys).map_err(Error::system("mount /sys"))?;
    for (path, mount) in taken.files {
        place(&mount, &path).map_err(Error::system(format!("mount {}", path.display())))?;
    }
    hide().map_err(Error::system("hide parts of /proc"))?;
    make_tmp().map_err(Error::system("make /tmp"))
}

fn take(given: &Path) -> io::Result<Taken> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let devices = DEVICES.iter().map(|name| Path::new("/dev").join(name));
    // A machine may have less of them.
    let devices = devices.filter(|path| path.exists());
    let wanted = devices.map(|path| (path.clone(), path)).chain(
        files::NAMES
            .iter()
            .map(|name| (given.join(name), Path::new("/etc").join(name))),
    );
    let files = wanted.map(|(from, to)| Ok((to, rustix::mount::open_tree(CWD, &from, clone)?)));
    let proc = new_proc()
        .map_err(|error| io::Error::new(error.kind(), format!("a new /proc: {error}")))?;
    let sys = match in_user_namespace() {
        true => rustix::mount::open_tree(CWD, "/sys", clone | OpenTreeFlags::AT_RECURSIVE).ok(),
        false => None,
    };
    Ok(Taken {
        files: files.collect::<io::Result<_>>()?,
        proc,
        sys,
    })
}

fn new_proc() -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let data = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(rustix::mount::fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        data,
    )?)
}

fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn pivot(root: &Path) -> io::Result<()> {
    std::env::set_current_dir(root)?;
    // The old root comes to lie over the new one, and goes.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")
}

/// A directory there, whatever the image has in its place.
fn directory(path: &str) -> io::Result<()> {
    if Path::new(path).is_dir() {
        return Ok(());
    }
    if fs::symlink_metadata(path).is_ok() {
        fs::remove_file(path)?;
    }
    fs::create_dir_all(path)
}

fn mount(kind: &str, path: &str, flags: MountFlags, options: &str) -> io::Result<()> {
    directory(path)?;
    let options = std::ffi::CString::new(options)?;
    Ok(rustix::mount::mount(kind, path, kind, flags, &*options)?)
}

fn mount_dev() -> io::Result<()> {
    mount("tmpfs", "/dev", MountFlags::NOSUID, "mode=0755,size=64m")?;
    for (name, target) in LINKS {
        symlink(target, Path::new("/dev").join(name))?;
    }
    let no_programs = MountFlags::NOSUID | MountFlags::NOEXEC;
    // The group of terminals is a matter of the distribution, and there may be no other group than root's.
    mount("devpts", "/dev/pts", no_programs, TYPE_OF_TERMINALS)?;
    mount("tmpfs", "/dev/shm", DATA, "mode=1777")?;
    // Not every kernel has message queues.
    let _ = mount("mqueue", "/dev/mqueue", DATA, "");
    Ok(())
}

fn mount_sys(taken: Option<OwnedFd>) -> io::Result<()> {
    let Some(sys) = taken else {
        return mount("sysfs", "/sys", DATA | MountFlags::RDONLY, "");
    };
    directory("/sys")?;
    place_on_directory(&sys, "/sys")?;
    // Files in there belong to users that do not exist in here, so nothing can be written in any case.
    let _ = rustix::mount::mount_remount("/sys", MountFlags::BIND | MountFlags::RDONLY | DATA, "");
    Ok(())
}

/// Mounts over a file, which is made if the image has none. A link in its place is no longer one: it may lead to a
/// place that only a running system has.
fn place(mount: &OwnedFd, path: &Path) -> io::Result<()> {
    let is_file = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
    if !is_file {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => drop(fs::File::create(path)?),
        }
    }
    place_on_directory(mount, path)
}

fn place_on_directory(mount: &OwnedFd, path: impl AsRef<Path>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(
        mount,
        "",
        CWD,
        path.as_ref(),
        flags,
    )?)
}

/// Keeps root from settings and memory of the whole machine. In a user namespace the kernel does so.
fn hide() -> io::Result<()> {
    if in_user_namespace() {
        return Ok(());
    }
    for path in READ_ONLY
        .into_iter()
        .filter(|path| Path::new(path).exists())
    {
        rustix::mount::mount_bind(path, path)?;
        rustix::mount::mount_remount(path, MountFlags::BIND | MountFlags::RDONLY | DATA, "")?;
    }
    for path in HIDDEN.into_iter().filter(|path| Path::new(path).exists()) {
        rustix::mount::mount_bind("/dev/null", path)?;
    }
    Ok(())
}

fn make_tmp() -> io::Result<()> {
    if Path::new("/tmp").is_dir() {
        return Ok(());
    }
    directory("/tmp")?;
    fs::set_permissions("/tmp", fs::Permissions::from_mode(0o1777))
}

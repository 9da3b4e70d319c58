//! Layers unpacked by GNU tar and stacked by overlayfs.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use rustix::fs::{FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};
use rustix::mount::{FsOpenFlags, fsconfig_set_string, fsopen};

use super::{KernelMount, attach, is_root, program};

/// Why layers cannot be unpacked and stacked here; `None` if they can.
pub fn no_overlay() -> Option<&'static str> {
    if !is_root() {
        return Some("not root");
    }
    if program("tar").is_none() {
        return Some("no tar");
    }
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    (!filesystems.contains("\toverlay\n")).then_some("no overlayfs")
}

/// Layers unpacked by GNU tar and stacked by overlayfs; ends with this value.
#[derive(Debug)]
pub struct Stack {
    // First, so that it is gone before the directories below it.
    mount: KernelMount,
    _scratch: tempfile::TempDir,
}

impl Stack {
    /// Unpacks `layers` (tars, compressed or not, lowest first) and mounts the stack. Needs root.
    ///
    /// # Errors
    /// What failed.
    pub fn new(layers: &[PathBuf]) -> io::Result<Self> {
        let scratch = scratch()?;
        // Overlayfs wants at least two lower directories.
        let nothing = scratch.path().join("nothing");
        fs::create_dir(&nothing)?;
        let mut lower = vec![nothing];
        for (index, layer) in layers.iter().enumerate() {
            let root = scratch.path().join(format!("layer{index}"));
            fs::create_dir(&root)?;
            unpack(layer, &root)?;
            describe_implied(&root, Path::new(""), &described(layer)?, &lower)?;
            whiteouts(&root)?;
            lower.push(root);
        }
        let root = scratch.path().join("stack");
        fs::create_dir(&root)?;
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let names: Vec<_> = lower
            .iter()
            .rev()
            .map(|path| path.display().to_string())
            .collect();
        fsconfig_set_string(&context, "lowerdir", names.join(":"))?;
        let mount = attach(&context, &root)
            .map_err(|error| io::Error::other(format!("overlay: {error}")))?;
        Ok(Self {
            mount,
            _scratch: scratch,
        })
    }

    /// The root of the stack.
    pub fn path(&self) -> &Path {
        self.mount.path()
    }
}

/// A directory for the layers. It must not lie on an overlay itself, as it does in many containers.
fn scratch() -> io::Result<tempfile::TempDir> {
    const OVERLAYFS: i64 = 0x794c_7630;
    let usual = std::env::temp_dir();
    if rustix::fs::statfs(&usual)?.f_type == OVERLAYFS {
        tempfile::tempdir_in("/dev/shm")
    } else {
        tempfile::tempdir_in(usual)
    }
}

/// Runs GNU tar on a layer; what it prints.
fn tar(options: &[&str], layer: &Path) -> io::Result<Vec<u8>> {
    let output = Command::new("tar")
        .args(options)
        .arg("-f")
        .arg(layer)
        .output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{}: {text}", layer.display())))
}

fn unpack(layer: &Path, root: &Path) -> io::Result<()> {
    let root = format!("--directory={}", root.display());
    let options = [
        "-xp",
        "--numeric-owner",
        "--same-owner",
        "--xattrs",
        "--xattrs-include=*",
        "--acls",
        "--delay-directory-restore",
        &root,
    ];
    tar(&options, layer).map(drop)
}

/// The directories that have entries of their own in a layer.
fn described(layer: &Path) -> io::Result<BTreeSet<Vec<u8>>> {
    let options = ["-tv", "--numeric-owner", "--quoting-style=literal"];
    let listing = tar(&options, layer)?;
    let lines = listing.split(|byte| *byte == b'\n');
    let directories = lines.filter(|line| line.starts_with(b"d"));
    // Mode, owner, size, date and time precede the name.
    let name = |line: &[u8]| {
        let mut rest = line;
        for _ in 0..5 {
            let blank = rest.iter().position(|byte| *byte == b' ')?;
            rest = rest[blank..].trim_ascii_start();
        }
        let names = rest.split(|byte| *byte == b'/');
        let names: Vec<&[u8]> = names.filter(|name| !matches!(*name, b"" | b".")).collect();
        Some(names.join(&b'/'))
    };
    Ok(directories.filter_map(name).collect())
}

/// Makes directories below `root`/`path` without an entry of their own what the nearest lower layer has there, else
/// mode 0755 and of no time: container engines do that while they unpack.
fn describe_implied(
    root: &Path,
    path: &Path,
    described: &BTreeSet<Vec<u8>>,
    lower: &[PathBuf],
) -> io::Result<()> {
    let here = root.join(path);
    for entry in fs::read_dir(&here)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let path = path.join(entry.file_name());
            describe_implied(root, &path, described, lower)?;
        }
    }
    if described.contains(path.as_os_str().as_bytes()) {
        return Ok(());
    }
    let below = lower.iter().rev().find_map(|lower| {
        let below = lower.join(path);
        Some((below.symlink_metadata().ok()?, below))
    });
    let Some((known, below)) = below.filter(|(known, _)| known.is_dir()) else {
        fs::set_permissions(&here, Permissions::from_mode(0o755))?;
        return File::open(&here)?.set_modified(UNIX_EPOCH);
    };
    for (name, value) in &crate::scan::own_xattrs(&below)? {
        if !name.starts_with(b"trusted.") {
            lsetxattr(&here, name.as_slice(), value, XattrFlags::empty())?;
        }
    }
    std::os::unix::fs::chown(&here, Some(known.uid()), Some(known.gid()))?;
    fs::set_permissions(&here, known.permissions())?;
    File::open(&here)?.set_modified(known.modified()?)
}

/// Turns the whiteouts of an unpacked layer into those of overlayfs, keeping the times of their directories.
fn whiteouts(directory: &Path) -> io::Result<()> {
    let times = fs::metadata(directory)?.modified()?;
    // Listed before anything changes.
    let entries: Vec<_> = fs::read_dir(directory)?.collect::<Result<_, _>>()?;
    for entry in entries {
        if entry.file_type()?.is_dir() {
            whiteouts(&entry.path())?;
            continue;
        }
        let name = entry.file_name();
        let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") else {
            continue;
        };
        fs::remove_file(entry.path())?;
        let hidden_path = directory.join(OsStr::from_bytes(hidden));
        if hidden == b".wh..opq" {
            opaque(directory)?;
        } else if let Ok(found) = fs::symlink_metadata(&hidden_path) {
            // The layer has something of its own there; a file replaces what is below anyway.
            if found.is_dir() {
                opaque(&hidden_path)?;
            }
        } else {
            let (kind, mode) = (FileType::CharacterDevice, Mode::empty());
            mknodat(rustix::fs::CWD, &hidden_path, kind, mode, makedev(0, 0))?;
        }
    }
    File::open(directory)?.set_modified(times)
}

fn opaque(directory: &Path) -> io::Result<()> {
    let flags = XattrFlags::empty();
    Ok(lsetxattr(directory, "trusted.overlay.opaque", b"y", flags)?)
}

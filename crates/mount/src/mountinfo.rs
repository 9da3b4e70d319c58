//! What is mounted where: `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::Error;

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Device number of the file system, as `major:minor`: differs for every FUSE mount.
    pub device: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Type, with the FUSE subtype behind a dot.
    pub kind: String,
    /// What was named as the source.
    pub source: String,
    /// The file system's own options, as the table has them: separated by commas, with odd characters in octal.
    pub options: String,
}

/// Type of the mounts that make an image writable.
const OVERLAY: &str = "overlay";
/// Source and subtype of every mount that this crate makes.
pub(crate) const NAME: &str = "rafs";
/// Name of the file, in the cache directory, of which the kernel mounts.
pub(crate) const IMAGE_FILE: &str = "mounted.boot";

impl MountEntry {
    /// Whether this crate (in whichever process) made the mount.
    pub fn is_ours(&self) -> bool {
        let fuse = ["fuse", "fuse.rafs", OVERLAY].contains(&&*self.kind);
        (fuse && self.source == NAME) || self.is_erofs()
    }

    /// Whether it is a mount by the kernel, of a bootstrap that this crate wrote, or stands on one.
    pub(crate) fn is_erofs(&self) -> bool {
        let name = Path::new(&self.source).file_name();
        ["erofs", OVERLAY].contains(&&*self.kind) && name.is_some_and(|name| name == IMAGE_FILE)
    }

    /// The upper directory of an overlay.
    pub(crate) fn upper(&self) -> Option<PathBuf> {
        let mut options = self.options.split(',').filter(|_| self.kind == OVERLAY);
        let value = options.find_map(|option| option.strip_prefix("upperdir="))?;
        let value = unescape(value.as_bytes());
        Some(PathBuf::from(OsString::from_vec(value)))
    }
}

/// The topmost mount at exactly `mountpoint` (an absolute path without symlinks); `None` if it is no mount point.
pub fn find_mount(mountpoint: &Path) -> io::Result<Option<MountEntry>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(topmost(&table, mountpoint))
}

/// The mount of ours at `path`, and `path` as an absolute one without symlinks.
///
/// # Errors
/// If the path leads nowhere, or what is mounted there is not ours.
pub(crate) fn our_mount(path: &Path) -> Result<(PathBuf, MountEntry), Error> {
    let absolute = path.canonicalize().map_err(|source| Error::MountPoint {
        path: path.to_owned(),
        source,
    })?;
    let entry = find_mount(&absolute).map_err(|source| Error::System {
        what: "/proc/self/mountinfo",
        source,
    })?;
    let Some(entry) = entry.filter(MountEntry::is_ours) else {
        return Err(Error::NotOurs {
            path: path.to_owned(),
            found: String::new(),
        });
    };
    Ok((absolute, entry))
}

/// Every mount, the topmost last.
pub(crate) fn mounts() -> io::Result<Vec<MountEntry>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let entries = table.split(|&b| b == b'\n').filter_map(parse_line);
    Ok(entries.collect())
}

/// Every mount whose source is the file `source`, the topmost last.
pub(crate) fn mounts_of(source: &Path) -> io::Result<Vec<MountEntry>> {
    let mut entries = mounts()?;
    entries.retain(|entry| Path::new(&entry.source) == source);
    Ok(entries)
}

fn topmost(table: &[u8], mountpoint: &Path) -> Option<MountEntry> {
    table
        .split(|&b| b == b'\n')
        .filter_map(parse_line)
        .rfind(|entry| entry.mountpoint == mountpoint)
}

/// `id parent major:minor root mountpoint options [optional ...] - type source options`
pub(crate) fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&b| b == b' ');
    let device = text(fields.nth(2)?);
    let mountpoint = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    fields.by_ref().find(|field| field == b"-")?;
    let kind = text(fields.next()?);
    let source = text(fields.next()?);
    let options = fields.next().unwrap_or_default();
    Some(MountEntry {
        device,
        mountpoint,
        kind,
        source,
        options: String::from_utf8_lossy(options).into_owned(),
    })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// Blanks, tabs, line ends and backslashes are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        match octal(byte, tail) {
            Some((value, after)) => {
                plain.push(value);
                rest = after;
            }
            None => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    plain
}

fn octal(byte: u8, tail: &[u8]) -> Option<(u8, &[u8])> {
    let (digits, after) = tail.split_at_checked(3)?;
    let value = std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| u8::from_str_radix(digits, 8).ok())?;
    (byte == b'\\').then_some((value, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
        40 22 0:35 / /mnt/a\\040b ro,relatime shared:9 master:2 - fuse.rafs rafs ro,user_id=0\n\
        41 22 0:36 / /mnt/c rw - tmpfs none rw\n\
        42 41 0:37 / /mnt/c ro - fuse.other rafs ro\n";

    #[test]
    fn names_are_unescaped_and_optional_fields_skipped() {
        let entry = topmost(TABLE, Path::new("/mnt/a b")).unwrap();
        assert_eq!(
            (
                entry.device.as_str(),
                entry.kind.as_str(),
                entry.source.as_str()
            ),
            ("0:35", "fuse.rafs", "rafs")
        );
        assert!(entry.is_ours());
    }

    #[test]
    fn the_last_of_stacked_mounts_counts() {
        let entry = topmost(TABLE, Path::new("/mnt/c")).unwrap();
        assert_eq!(entry.device, "0:37");
        assert!(!entry.is_ours());
        assert_eq!(topmost(TABLE, Path::new("/mnt")), None);
    }

    #[test]
    fn an_overlay_tells_its_upper_directory() {
        let line = b"43 22 0:38 / /mnt/d rw - overlay rafs rw,lowerdir=/u/a\\040b/lower,upperdir=/u/a\\040b/upper,workdir=/w";
        let entry = topmost(line, Path::new("/mnt/d")).unwrap();
        assert!(entry.is_ours() && !entry.is_erofs());
        assert_eq!(entry.upper().unwrap(), Path::new("/u/a b/upper"));
        let line = b"43 22 0:38 / /mnt/d rw - overlay /c/mounted.boot rw,upperdir=/u/upper";
        assert!(topmost(line, Path::new("/mnt/d")).unwrap().is_erofs());
        let line = b"43 22 0:38 / /mnt/d rw - overlay overlay rw,upperdir=/u/upper";
        assert!(!topmost(line, Path::new("/mnt/d")).unwrap().is_ours());
    }

    #[test]
    fn odd_lines_are_no_entries() {
        for line in [
            &b""[..],
            b"1 2",
            b"1 2 3 4 5 6 - ",
            b"1 2 0:1 / /x rw fuse rafs",
        ] {
            assert_eq!(topmost(line, Path::new("/x")), None, "{line:?}");
        }
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\777"), b"\\777");
    }
}

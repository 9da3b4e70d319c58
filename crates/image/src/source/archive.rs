//! Random access to the members of a tar file.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::metered::{HEADERS_MAX, Metered};
use crate::{DOCUMENT_SIZE_MAX, Error};

/// Most members an archive may have.
const MEMBERS_MAX: usize = 1 << 18;
/// Most bytes that their names and the targets of links may have.
const NAMES_MAX: usize = 64 << 20;
/// Most links to follow from one name.
const LINKS_MAX: u32 = 16;

/// The members of a tar file, found in one pass. Member names are relative, without `.` and `..`.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    file: Arc<File>,
    members: HashMap<String, Member>,
}

#[derive(Debug, Clone)]
enum Member {
    Data { offset: u64, len: u64 },
    Link(String),
}

impl Archive {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let metadata = std::fs::metadata(path).map_err(Error::io("open", path))?;
        let invalid = |reason: &str| Error::Archive {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        if metadata.is_dir() {
            return Err(invalid(
                "it is a directory; use oci:DIR for an image layout",
            ));
        }
        if !metadata.is_file() {
            return Err(invalid(
                "it is no regular file; archives are read at random",
            ));
        }
        let file = Arc::new(File::open(path).map_err(Error::io("open", path))?);
        if let Some(name) = compression(&file) {
            return Err(invalid(&format!(
                "it is compressed with {name}; decompress it first"
            )));
        }
        Self::new(path, file, metadata.len())
    }

    /// The archive in a file that stands in for the one at `path`.
    pub(crate) fn of(path: &Path, file: File) -> Result<Self, Error> {
        let size = file.metadata().map_err(Error::io("read", path))?.len();
        Self::new(path, Arc::new(file), size)
    }

    fn new(path: &Path, file: Arc<File>, size: u64) -> Result<Self, Error> {
        let members = scan(path, &file, size)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            members,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.locate(name).is_some()
    }

    /// File, offset and length of a member, links followed.
    pub(crate) fn locate(&self, name: &str) -> Option<(Arc<File>, u64, u64)> {
        let mut name = normalise("", name)?;
        for _ in 0..LINKS_MAX {
            match self.members.get(&name)? {
                Member::Data { offset, len } => {
                    return Some((Arc::clone(&self.file), *offset, *len));
                }
                Member::Link(target) => name.clone_from(target),
            }
        }
        None
    }

    /// The whole content of a small member.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let missing = || self.error(format!("it has no member {name:?}"));
        let (file, offset, len) = self.locate(name).ok_or_else(missing)?;
        if len > DOCUMENT_SIZE_MAX {
            let what = format!("{name} in {}", self.path.display());
            return Err(Error::TooLarge {
                what,
                size: len,
                limit: DOCUMENT_SIZE_MAX,
            });
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        file.read_exact_at(&mut bytes, offset)
            .map_err(Error::io("read", &self.path))?;
        Ok(bytes)
    }

    pub(crate) fn error(&self, reason: impl Into<String>) -> Error {
        Error::Archive {
            path: self.path.clone(),
            reason: reason.into(),
        }
    }
}

/// The name of the compression a file begins with.
fn compression(file: &File) -> Option<&'static str> {
    let mut magic = [0; 6];
    file.read_exact_at(&mut magic, 0).ok()?;
    match magic {
        [0x1f, 0x8b, ..] => Some("gzip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("zstd"),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Some("xz"),
        [b'B', b'Z', b'h', ..] => Some("bzip2"),
        _ => None,
    }
}

fn scan(path: &Path, file: &Arc<File>, size: u64) -> Result<HashMap<String, Member>, Error> {
    let invalid = |reason: String| Error::Archive {
        path: path.to_owned(),
        reason,
    };
    let unreadable =
        |error: std::io::Error| invalid(format!("it is no readable tar file: {error}"));
    let mut reader = file.try_clone().map_err(Error::io("open", path))?;
    std::io::Seek::rewind(&mut reader).map_err(Error::io("read", path))?;
    let reader = BufReader::with_capacity(1 << 16, reader);
    // Data is passed over by seeking: what is read is headers.
    let allowance = Cell::new(HEADERS_MAX);
    let mut archive = tar::Archive::new(Metered::new(reader, &allowance));
    let (mut members, mut names) = (HashMap::new(), 0);
    for entry in archive.entries_with_seek().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        allowance.set(HEADERS_MAX);
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some(name) = normalise("", &name) else {
            continue;
        };
        let kind = entry.header().entry_type();
        let member = if kind.is_file() || kind == tar::EntryType::Continuous {
            let (offset, len) = (entry.raw_file_position(), entry.size());
            if offset.checked_add(len).is_none_or(|end| end > size) {
                return Err(invalid(format!(
                    "it is truncated: member {name:?} goes beyond its end"
                )));
            }
            Some(Member::Data { offset, len })
        } else if kind.is_symlink() || kind.is_hard_link() {
            let target =
                String::from_utf8_lossy(&entry.link_name_bytes().unwrap_or_default()).into_owned();
            let base = if kind.is_symlink() {
                name.rsplit_once('/').map_or("", |(dir, _)| dir)
            } else {
                ""
            };
            normalise(base, &target).map(Member::Link)
        } else {
            None
        };
        // Drains what the size does not count, so that the next header is where the reader looks for it.
        if kind.is_gnu_sparse() {
            allowance.set(u64::MAX);
            std::io::copy(&mut entry.by_ref(), &mut std::io::sink()).map_err(unreadable)?;
            allowance.set(HEADERS_MAX);
        }
        names += name.len();
        if let Some(Member::Link(target)) = &member {
            names += target.len();
        }
        match member {
            Some(member) => members.insert(name, member),
            None => members.remove(&name),
        };
        if members.len() > MEMBERS_MAX {
            return Err(invalid(format!("it has more than {MEMBERS_MAX} members")));
        }
        if names > NAMES_MAX {
            return Err(invalid(format!(
                "its members have names of more than {NAMES_MAX} bytes"
            )));
        }
    }
    Ok(members)
}

/// `name`, relative to `base`, without empty, `.` and `..` parts; `None` if it leads out of the archive or nowhere.
fn normalise(base: &str, name: &str) -> Option<String> {
    let mut parts: Vec<&str> = if name.starts_with('/') {
        Vec::new()
    } else {
        base.split('/').collect()
    };
    parts.retain(|part| !part.is_empty());
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tar whose first header claims an extended header or name of 64 GiB, in a sparse file that has them.
    #[test]
    fn endless_names_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hostile.tar");
        for kind in [tar::EntryType::GNULongName, tar::EntryType::XHeader] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(1 << 36);
            header.set_cksum();
            std::fs::write(&path, header.as_bytes()).unwrap();
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(1 << 37).unwrap();
            let error = Archive::open(&path).unwrap_err().to_string();
            assert!(error.contains("headers"), "{error}");
        }
    }

    #[test]
    fn names_stay_inside_the_archive() {
        assert_eq!(normalise("", "./a//b/").as_deref(), Some("a/b"));
        assert_eq!(
            normalise("x/y", "../z/layer.tar").as_deref(),
            Some("x/z/layer.tar")
        );
        assert_eq!(normalise("x", "/a").as_deref(), Some("a"));
        assert_eq!(normalise("x", "../../a"), None);
        assert_eq!(normalise("", "."), None);
    }
}

//! The TOC's JSON, read entry by entry: however long it is, one entry is in memory at a time.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufReader, Read};
use std::marker::PhantomData;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use tree::Xattrs;

use super::time;
use crate::error::{Error, show};
use crate::tar::{NAME_MAX, device_number};

/// Name of the TOC in its tar, and in the root of the layer.
pub const TOC_NAME: &str = "stargz.index.json";

/// Largest TOC, in bytes. Those of the largest images have some tens of MiB.
const TOC_MAX: u64 = 1 << 30;
/// Largest entry, in bytes: attributes can make one large.
const ENTRY_MAX: u64 = 16 << 20;
/// The one version there is.
const VERSION: u64 = 1;
/// JSON is taken from the source that many bytes at a time.
const BUFFER: usize = 64 << 10;

/// An entry of the TOC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TocEntry {
    /// Path as the tar has it, not cleaned. For a chunk that of its file.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with set-id and sticky bits, no type.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length of a regular file in bytes; 0 for all else.
    pub size: u64,
    /// Seconds of the modification time, rounded down; 0 if there is none.
    pub mtime: i64,
    /// Nanoseconds of the modification time, below 10^9.
    pub mtime_nsec: u32,
    /// Device number of a character or block device in Linux's 32-bit encoding, 0 for all else.
    pub rdev: u32,
    /// Extended attributes by full name, of any namespace.
    pub xattrs: Xattrs,
    /// Where the data of a chunk, or of a file's first chunk, is; `None` for all else and for empty files.
    pub chunk: Option<Chunk>,
}

/// Type of an entry, with link targets as the TOC has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// Directory.
    Directory,
    /// Regular file.
    Regular,
    /// One more chunk of the regular file before it.
    Chunk,
    /// Symbolic link.
    Symlink(String),
    /// Another name of an earlier entry.
    HardLink(String),
    /// Character device.
    Character,
    /// Block device.
    Block,
    /// FIFO.
    Fifo,
}

/// What the TOC says of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Where it lies in the file, in bytes.
    pub file_offset: u64,
    /// Its size in bytes; 0 if it reaches to the end of the file.
    pub size: u64,
    /// Where its gzip member begins in the blob, in bytes.
    pub member: u64,
    /// Where it begins in the inflated member, in bytes.
    pub inner_offset: u64,
    /// SHA-256 of its bytes; old stargz has none.
    pub digest: Option<[u8; 32]>,
}

/// Reads a TOC and gives its entries to `each`, in order.
///
/// # Errors
/// [`Error::Toc`] if it is not the JSON of a TOC, or larger than 1 GiB; [`Error::TocEntry`] for an entry that makes no
/// sense; what `each` says.
pub fn read_toc(
    json: impl Read,
    mut each: impl FnMut(u64, TocEntry) -> Result<(), Error>,
) -> Result<(), Error> {
    let budget = Budget {
        left: Cell::new(TOC_MAX),
        entry: Cell::new(ENTRY_MAX),
    };
    let reader = Limited {
        inner: BufReader::with_capacity(BUFFER, json),
        budget: &budget,
    };
    let mut failure = None;
    let mut number = 0;
    let mut entry = |raw: RawEntry| {
        budget.entry.set(ENTRY_MAX);
        let name = raw.name.clone();
        let read = TocEntry::try_from(raw).map_err(|reason| Error::TocEntry {
            number,
            path: show(name.as_bytes()),
            reason,
        });
        let done = read.and_then(|entry| each(number, entry));
        number += 1;
        done.map_err(|error| failure = Some(error)).is_ok()
    };
    let mut json = serde_json::Deserializer::from_reader(reader);
    let read = Top(&mut entry)
        .deserialize(&mut json)
        .and_then(|()| json.end());
    match (failure, read) {
        (Some(error), _) => Err(error),
        (None, read) => read.map_err(|source| Error::Toc { source }),
    }
}

/// Bytes that may still be read.
struct Budget {
    left: Cell<u64>,
    entry: Cell<u64>,
}

struct Limited<'a, R> {
    inner: R,
    budget: &'a Budget,
}

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        for (left, what, max) in [
            (&self.budget.left, "it", TOC_MAX),
            (&self.budget.entry, "one of its entries", ENTRY_MAX),
        ] {
            let rest = left.get().checked_sub(n as u64).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    format!("{what} has more than {max} bytes"),
                )
            })?;
            left.set(rest);
        }
        Ok(n)
    }
}

/// The object around all.
struct Top<'a, F>(&'a mut F);

impl<'de, F: FnMut(RawEntry) -> bool> DeserializeSeed<'de> for Top<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(RawEntry) -> bool> Visitor<'de> for Top<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the table of contents of an eStargz layer")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut version, mut entries) = (false, false);
        while let Some(key) = map.next_key::<String>()? {
            match &*key {
                "version" => {
                    let found: u64 = map.next_value()?;
                    if found != VERSION {
                        return Err(A::Error::custom(format!(
                            "its version is {found} instead of 1"
                        )));
                    }
                    version = true;
                }
                "entries" if entries => return Err(A::Error::duplicate_field("entries")),
                "entries" => {
                    map.next_value_seed(Entries(&mut *self.0))?;
                    entries = true;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        match (version, entries) {
            (true, true) => Ok(()),
            (false, _) => Err(A::Error::missing_field("version")),
            (true, false) => Err(A::Error::missing_field("entries")),
        }
    }
}

struct Entries<'a, F>(&'a mut F);

impl<'de, F: FnMut(RawEntry) -> bool> DeserializeSeed<'de> for Entries<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(RawEntry) -> bool> Visitor<'de> for Entries<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element_seed(PhantomData::<RawEntry>)? {
            if !(self.0)(item) {
                return Err(A::Error::custom("an entry is refused"));
            }
        }
        Ok(())
    }
}

/// An entry as JSON has it. What it has beyond that is about names of users, which no image keeps.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEntry {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    size: u64,
    #[serde(default, rename = "modtime")]
    modified: String,
    #[serde(default)]
    link_name: String,
    #[serde(default)]
    mode: u64,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(default)]
    dev_major: i64,
    #[serde(default)]
    dev_minor: i64,
    #[serde(default)]
    xattrs: BTreeMap<String, String>,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    chunk_offset: u64,
    #[serde(default)]
    chunk_size: u64,
    #[serde(default)]
    chunk_digest: String,
    #[serde(default)]
    inner_offset: u64,
}

impl TryFrom<RawEntry> for TocEntry {
    type Error = String;

    fn try_from(raw: RawEntry) -> Result<Self, String> {
        if raw.name.len() > NAME_MAX || raw.link_name.len() > NAME_MAX {
            return Err(format!(
                "the path or its link target has more than {NAME_MAX} bytes"
            ));
        }
        let kind = match &*raw.kind {
            "dir" => EntryKind::Directory,
            "reg" => EntryKind::Regular,
            "chunk" => EntryKind::Chunk,
            "symlink" => EntryKind::Symlink(raw.link_name.clone()),
            "hardlink" => EntryKind::HardLink(raw.link_name.clone()),
            "char" => EntryKind::Character,
            "block" => EntryKind::Block,
            "fifo" => EntryKind::Fifo,
            other => {
                return Err(format!(
                    "entries of type {} are not supported",
                    show(other.as_bytes())
                ));
            }
        };
        let (mtime, mtime_nsec) = match &*raw.modified {
            "" => (0, 0),
            text => {
                time::parse(text).ok_or_else(|| format!("{} is no time", show(text.as_bytes())))?
            }
        };
        let chunk = match kind {
            EntryKind::Chunk => Some(raw.chunk(None)?),
            // Of a file that is one chunk, the digest of the file will do.
            EntryKind::Regular if raw.size > 0 => Some(raw.chunk(Some(&raw.digest))?),
            _ => None,
        };
        let rdev = match kind {
            EntryKind::Character | EntryKind::Block => device_number(raw.dev_major, raw.dev_minor)?,
            _ => 0,
        };
        Ok(Self {
            mode: (raw.mode & 0o7777) as u32,
            uid: raw.uid,
            gid: raw.gid,
            size: if kind == EntryKind::Regular {
                raw.size
            } else {
                0
            },
            mtime,
            mtime_nsec,
            rdev,
            xattrs: xattrs(raw.xattrs)?,
            chunk,
            kind,
            name: raw.name,
        })
    }
}

impl RawEntry {
    /// `whole` is the digest of the file.
    fn chunk(&self, whole: Option<&str>) -> Result<Chunk, String> {
        let single =
            self.chunk_offset == 0 && (self.chunk_size == 0 || self.chunk_size == self.size);
        let digest = match (&*self.chunk_digest, whole) {
            ("", Some(whole)) if single => whole,
            (digest, _) => digest,
        };
        Ok(Chunk {
            file_offset: self.chunk_offset,
            size: self.chunk_size,
            member: self.offset,
            inner_offset: self.inner_offset,
            digest: parse_digest(digest)?,
        })
    }
}

fn parse_digest(text: &str) -> Result<Option<[u8; 32]>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut digest = [0; 32];
    text.strip_prefix("sha256:")
        .and_then(|digits| hex::decode_to_slice(digits, &mut digest).ok())
        .ok_or_else(|| {
            format!(
                "{} is no digest: \"sha256:\" and 64 hexadecimal digits were expected",
                show(text.as_bytes())
            )
        })?;
    Ok(Some(digest))
}

fn xattrs(raw: BTreeMap<String, String>) -> Result<Xattrs, String> {
    raw.into_iter()
        .map(|(name, value)| {
            let value = STANDARD.decode(value).map_err(|error| {
                format!(
                    "the value of its extended attribute {} is not in Base64: {error}",
                    show(name.as_bytes())
                )
            })?;
            Ok((name.into_bytes().into(), value.into()))
        })
        .collect()
}

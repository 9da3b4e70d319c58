//! PAX extended headers.

use std::borrow::Cow;

use tree::Xattrs;

use super::sparse::{MapVersion, Segment};
use crate::error::show;

/// What an extended header says about the entry that follows. A missing field, or one with an empty value, leaves
/// the header block's own in force.
#[derive(Debug, Default)]
pub(super) struct Extension {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<i64>,
    pub gid: Option<i64>,
    /// Seconds, rounded down, and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Xattrs,
    /// Attributes in libarchive's encoding: they count where there is none in the usual one.
    libarchive: Xattrs,
    pub sparse: Sparse,
}

/// The `GNU.sparse.*` records.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    major: Option<u64>,
    minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    size: Option<u64>,
    real_size: Option<u64>,
    blocks: Option<u64>,
    /// Offsets and lengths by turns, from `GNU.sparse.map` or repeated records.
    map: Option<Vec<u64>>,
    pairs: Vec<u64>,
}

impl Sparse {
    /// Length of the file with its holes.
    pub(super) fn logical_size(&self) -> Option<u64> {
        self.size.or(self.real_size)
    }

    /// Where the map is; `None` if the file is not sparse.
    pub(super) fn version(&self) -> Result<Option<MapVersion>, String> {
        let map = if self.pairs.is_empty() {
            self.map.as_deref()
        } else {
            Some(&self.pairs[..])
        };
        match (self.major, self.minor, map) {
            (Some(1), Some(0), _) => Ok(Some(MapVersion::InData)),
            (Some(0), Some(0 | 1), map) => self.segments(map.unwrap_or_default()).map(Some),
            (None, None, Some(map)) => self.segments(map).map(Some),
            (None, None, None) => Ok(None),
            (major, minor, _) => Err(format!(
                "GNU sparse format {}.{} is not known",
                major.map_or("?".to_owned(), |v| v.to_string()),
                minor.map_or("?".to_owned(), |v| v.to_string())
            )),
        }
    }

    fn segments(&self, map: &[u64]) -> Result<MapVersion, String> {
        if !map.len().is_multiple_of(2)
            || self
                .blocks
                .is_some_and(|blocks| blocks != map.len() as u64 / 2)
        {
            return Err("the sparse map does not have the announced number of segments".to_owned());
        }
        let segments = map
            .chunks_exact(2)
            .map(|pair| Segment {
                offset: pair[0],
                length: pair[1],
            })
            .collect();
        Ok(MapVersion::Given(segments))
    }
}

impl Extension {
    /// Parses the records of one extended header. Of records with the same key the last one counts.
    pub(super) fn parse(mut data: &[u8]) -> Result<Self, String> {
        let mut extension = Self::default();
        while !data.is_empty() {
            let (key, value, rest) = record(data).ok_or_else(|| {
                format!(
                    "malformed PAX record {}: want \"LENGTH KEY=VALUE\\n\"",
                    show(&data[..data.len().min(40)])
                )
            })?;
            extension.set(key, value).map_err(|reason| {
                format!(
                    "PAX record {} has the value {}: {reason}",
                    show(key),
                    show(value)
                )
            })?;
            data = rest;
        }
        for (name, value) in std::mem::take(&mut extension.libarchive) {
            extension.xattrs.entry(name).or_insert(value);
        }
        Ok(extension)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.insert(name.into(), value.into());
            return Ok(());
        }
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let value = base64(value).ok_or("not base64")?;
            self.libarchive
                .insert(percent_decode(name).into(), value.into());
            return Ok(());
        }
        match key {
            b"path" => self.path = name(value)?,
            b"linkpath" => self.link = name(value)?,
            b"size" => self.size = unsigned(value)?,
            b"uid" => self.uid = signed(value)?,
            b"gid" => self.gid = signed(value)?,
            b"mtime" => {
                self.mtime = if value.is_empty() {
                    None
                } else {
                    Some(time(value).ok_or("not a time")?)
                }
            }
            b"GNU.sparse.major" => self.sparse.major = unsigned(value)?,
            b"GNU.sparse.minor" => self.sparse.minor = unsigned(value)?,
            b"GNU.sparse.name" => self.sparse.name = name(value)?,
            b"GNU.sparse.size" => self.sparse.size = unsigned(value)?,
            b"GNU.sparse.realsize" => self.sparse.real_size = unsigned(value)?,
            b"GNU.sparse.numblocks" => self.sparse.blocks = unsigned(value)?,
            b"GNU.sparse.map" => self.sparse.map = map(value)?,
            b"GNU.sparse.offset" => self.sparse_pair(value, 0)?,
            b"GNU.sparse.numbytes" => self.sparse_pair(value, 1)?,
            // Times, names of owners, comments: nothing of a file tree.
            _ => {}
        }
        Ok(())
    }

    /// The oldest format repeats two records by turns.
    fn sparse_pair(&mut self, value: &[u8], turn: usize) -> Result<(), String> {
        if self.sparse.pairs.len() % 2 != turn {
            return Err("offsets and lengths must take turns".to_owned());
        }
        self.sparse
            .pairs
            .push(unsigned(value)?.ok_or("not a number")?);
        Ok(())
    }
}

/// Splits off the first record: key, value and what follows.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|&b| b == b' ')?;
    let length = usize::try_from(decimal(&data[..space])?).ok()?;
    let (record, rest) = data.split_at_checked(length)?;
    let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|&b| b == b'=')?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    (!key.is_empty() && !key.contains(&0)).then_some((key, value, rest))
}

/// A number of decimal digits and nothing else.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn name(value: &[u8]) -> Result<Option<Vec<u8>>, String> {
    if value.contains(&0) {
        return Err("a name cannot hold a NUL".to_owned());
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn unsigned(value: &[u8]) -> Result<Option<u64>, String> {
    if value.is_empty() {
        return Ok(None);
    }
    decimal(value)
        .filter(|&v| v <= i64::MAX as u64)
        .map(Some)
        .ok_or("not a number".to_owned())
}

fn signed(value: &[u8]) -> Result<Option<i64>, String> {
    let Some(magnitude) = value.strip_prefix(b"-") else {
        return Ok(unsigned(value)?.map(|v| v as i64));
    };
    decimal(magnitude)
        .and_then(|v| i64::try_from(v).ok())
        .map(|v| Some(-v))
        .ok_or("not a number".to_owned())
}

fn map(value: &[u8]) -> Result<Option<Vec<u64>>, String> {
    if value.is_empty() {
        return Ok(None);
    }
    let numbers = value
        .split(|&b| b == b',')
        .map(decimal)
        .collect::<Option<Vec<_>>>();
    numbers.map(Some).ok_or("not a list of numbers".to_owned())
}

/// Seconds with an optional fraction, of which nine digits count; rounded down, so -0.5 is (-1, 500000000).
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, value) = value
        .strip_prefix(b"-")
        .map_or((false, value), |rest| (true, rest));
    let mut parts = value.splitn(2, |&b| b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds = (0..9).fold(0u32, |n, i| {
        n * 10 + fraction.get(i).map_or(0, |&b| u32::from(b - b'0'))
    });
    match (negative, nanoseconds) {
        (false, n) => Some((seconds, n)),
        (true, 0) => Some((-seconds, 0)),
        (true, n) => Some((-seconds - 1, 1_000_000_000 - n)),
    }
}

fn percent_decode(name: &[u8]) -> Vec<u8> {
    let hex = |b: &u8| char::from(*b).to_digit(16);
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if hex(high).is_some() && hex(low).is_some() => {
                out.push((hex(high).unwrap_or(0) * 16 + hex(low).unwrap_or(0)) as u8);
                rest = after;
            }
            _ => out.push(first),
        }
    }
    out
}

/// Standard alphabet; padding may be left out, as libarchive does.
fn base64(text: &[u8]) -> Option<Cow<'static, [u8]>> {
    let text = text
        .strip_suffix(b"==")
        .or_else(|| text.strip_suffix(b"="))
        .unwrap_or(text);
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0u32, 0);
    for &b in text {
        let digit = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(digit)) & 0xff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    (text.len() % 4 != 1).then_some(Cow::Owned(out))
}

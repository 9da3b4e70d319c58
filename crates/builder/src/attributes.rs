//! `.nydusattributes`: which files of a directory have their data elsewhere, in the syntax of gitattributes.
//!
//! A line is a path and its attributes: `/weights/a.bin type=external blob_index=0 ...`. The path is taken as it is, not as a
//! pattern, from the root of the directory on. Only lines with `type=external` say anything; of several lines for one path
//! the last counts.

use std::collections::BTreeMap;
use std::ops::Bound;

use rafs_format::BlobId;

use crate::parse_size;

/// Where the data of a file lies: in a blob, as it is, in one piece. What a line leaves out is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExternalFile {
    /// Number of the line, the first is 1.
    pub line: usize,
    /// Size of the file in bytes, if the file in the directory is an empty one in its place.
    pub file_size: Option<u64>,
    /// Position of the blob in the external image's blob table.
    pub blob_index: Option<u32>,
    /// Id of the blob: its SHA-256.
    pub blob_id: Option<BlobId>,
    /// Size of the blob in bytes.
    pub blob_size: Option<u64>,
    /// Size in bytes of the pieces that have a CRC.
    pub chunk_size: Option<u64>,
    /// Where the data begins in the blob, in bytes.
    pub offset: Option<u64>,
    /// CRC-32C of each piece; empty if there are none.
    pub crcs: Vec<u32>,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct AttributesError {
    /// Number of the line, the first is 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// The external files of a directory, by path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Paths begin with a slash and have no empty or `.` components.
    files: BTreeMap<Vec<u8>, ExternalFile>,
}

impl Attributes {
    /// Reads the text of a file of attributes.
    ///
    /// # Errors
    /// The first line that is none.
    pub fn parse(text: &[u8]) -> Result<Self, AttributesError> {
        let mut files = BTreeMap::new();
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        for (line, number) in text.split(|&byte| byte == b'\n').zip(1..) {
            let parsed = parse_line(line.trim_ascii(), number);
            let parsed = parsed.map_err(|what| AttributesError { line: number, what })?;
            match parsed {
                Some((path, Some(file))) => {
                    files.insert(path, file);
                }
                Some((path, None)) => {
                    files.remove(&path);
                }
                None => {}
            }
        }
        Ok(Self { files })
    }

    /// What is said of a path, if it is external.
    pub fn get(&self, path: &[u8]) -> Option<&ExternalFile> {
        self.files.get(path)
    }

    /// Whether a path is external, or a directory on the way to one that is.
    pub fn leads_to(&self, path: &[u8]) -> bool {
        let below = [path, b"/"].concat();
        let start = Bound::Included(&below[..]);
        let mut next = self.files.range::<[u8], _>((start, Bound::Unbounded));
        self.files.contains_key(path) || next.next().is_some_and(|(at, _)| at.starts_with(&below))
    }

    /// The external paths with what is said of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &ExternalFile)> {
        self.files.iter().map(|(path, file)| (&path[..], file))
    }
}

/// The path of a line and its attributes if it is external; `None` for a line that says nothing.
#[expect(
    clippy::type_complexity,
    reason = "two layers of nothing: no path, or a path of no interest"
)]
fn parse_line(
    line: &[u8],
    number: usize,
) -> Result<Option<(Vec<u8>, Option<ExternalFile>)>, String> {
    if line.is_empty() || line.starts_with(b"#") || line.starts_with(b"[attr]") {
        return Ok(None);
    }
    if line.starts_with(b"!") {
        return Err("a path with ! in front: negative patterns mean nothing here".to_owned());
    }
    let (path, rest) = match line.strip_prefix(b"\"") {
        Some(quoted) => unquote(quoted)?,
        None => {
            let end = line.iter().position(u8::is_ascii_whitespace);
            let (path, rest) = line.split_at(end.unwrap_or(line.len()));
            let escaped = path.starts_with(b"\\#") || path.starts_with(b"\\!");
            (path[usize::from(escaped)..].to_vec(), rest)
        }
    };
    let path = absolute(&path)?;
    let mut external = false;
    let mut file = ExternalFile {
        line: number,
        ..ExternalFile::default()
    };
    for attribute in rest
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
    {
        let (name, value) = name_and_value(attribute)?;
        if name == "type" {
            external = value == Some("external");
        } else if let Some(value) = value {
            set(&mut file, name, value)?;
        }
    }
    Ok(Some((path, external.then_some(file))))
}

/// A path in quotes, without them and its escapes, and what follows.
fn unquote(quoted: &[u8]) -> Result<(Vec<u8>, &[u8]), String> {
    let mut path = Vec::new();
    let mut bytes = quoted.iter().copied().enumerate();
    let mut next = || bytes.next().ok_or("a path whose quote does not end");
    loop {
        let byte = match next()? {
            (at, b'"') => return Ok((path, &quoted[at + 1..])),
            (_, b'\\') => match next()?.1 {
                b'a' => 7,
                b'b' => 8,
                b't' => b'\t',
                b'n' => b'\n',
                b'v' => 11,
                b'f' => 12,
                b'r' => b'\r',
                high @ b'0'..=b'3' => {
                    let mut value = high - b'0';
                    for _ in 0..2 {
                        let digit = next()?.1.wrapping_sub(b'0');
                        if digit > 7 {
                            return Err("a path with an escape that is no octal number".to_owned());
                        }
                        value = value << 3 | digit;
                    }
                    value
                }
                plain @ (b'"' | b'\\') => plain,
                _ => return Err("a path with an unknown escape".to_owned()),
            },
            (_, byte) => byte,
        };
        path.push(byte);
    }
}

/// A path from the root on, without components that mean nothing.
fn absolute(path: &[u8]) -> Result<Vec<u8>, String> {
    let mut absolute = Vec::with_capacity(path.len() + 1);
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err("a path with ..: name the file from the root on".to_owned()),
            _ => {
                absolute.push(b'/');
                absolute.extend_from_slice(name);
            }
        }
    }
    Ok(absolute)
}

/// An attribute: a word alone, `-word`, `!word` or `word=value`.
fn name_and_value(attribute: &[u8]) -> Result<(&str, Option<&str>), String> {
    let text = std::str::from_utf8(attribute).map_err(|_| "an attribute that is not UTF-8")?;
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text.strip_prefix(['-', '!']).unwrap_or(text), None),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.starts_with('-') || !name.chars().all(plain) {
        return Err(format!("{name:?} cannot be the name of an attribute"));
    }
    Ok((name, value))
}

fn set(file: &mut ExternalFile, name: &str, value: &str) -> Result<(), String> {
    let wrong = |expected: &str| format!("{name}={value:?}: expected {expected}");
    let number = || value.parse().map_err(|_| wrong("a decimal number"));
    match name {
        "file_size" => file.file_size = Some(number()?),
        "compressed_size" => file.blob_size = Some(number()?),
        "chunk_0_compressed_offset" => file.offset = Some(number()?),
        "blob_index" => {
            let index = value.parse();
            file.blob_index = Some(index.map_err(|_| wrong("a decimal number"))?);
        }
        "blob_id" => {
            let digest = value.len() == 64 && value.bytes().all(|byte| byte.is_ascii_hexdigit());
            let id = BlobId::new(value).filter(|_| digest);
            file.blob_id = Some(id.ok_or_else(|| wrong("a SHA-256 in hexadecimal"))?);
        }
        "chunk_size" => {
            let size = size(value).ok_or_else(|| wrong("a size such as 4MiB"))?;
            file.chunk_size = Some(size);
        }
        "crcs" => {
            let crc = |text: &str| {
                let text = text.trim();
                let digits = text.strip_prefix("0x").unwrap_or(text);
                u32::from_str_radix(digits, 16).map_err(|_| wrong("numbers such as 0x1a2b,0x3c4d"))
            };
            let texts = value.split(',').filter(|_| !value.is_empty());
            file.crcs = texts.map(crc).collect::<Result<_, _>>()?;
        }
        _ => {}
    }
    Ok(())
}

/// A size with a suffix; consumers write `1.0MiB`, too.
fn size(text: &str) -> Option<u64> {
    let whole = match text.split_once('.') {
        Some((whole, rest)) => {
            let suffix = rest.trim_start_matches('0');
            let digits = suffix.starts_with(|c: char| c.is_ascii_digit());
            (rest.len() > suffix.len() && !digits).then(|| format!("{whole}{suffix}"))?
        }
        None => text.to_owned(),
    };
    parse_size(&whole).ok().map(|size| size as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Attributes {
        Attributes::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_line_of_a_converter_is_understood() {
        let id = "8f".repeat(32);
        let text = format!(
            "/w/a.bin type=external file_size=9000 blob_index=1 blob_id={id} chunk_size=1.0MiB \
             chunk_0_compressed_offset=512 compressed_size=20480 crcs=0xAA,0xbb\n\
             w/./b  type=external crcs=\r\n\t# a comment\n[attr]macro type=external\n/c type=internal"
        );
        let all = parse(&text);
        let expected = ExternalFile {
            line: 1,
            file_size: Some(9000),
            blob_index: Some(1),
            blob_id: BlobId::new(id),
            blob_size: Some(20_480),
            chunk_size: Some(1 << 20),
            offset: Some(512),
            crcs: vec![0xaa, 0xbb],
        };
        assert_eq!(all.get(b"/w/a.bin"), Some(&expected));
        let bare = ExternalFile {
            line: 2,
            ..ExternalFile::default()
        };
        assert_eq!(all.get(b"/w/b"), Some(&bare));
        assert_eq!(all.iter().count(), 2);
        for (path, leads) in [
            ("/w", true),
            ("/w/b", true),
            ("", true),
            ("/w/a", false),
            ("/c", false),
            ("/v", false),
        ] {
            assert_eq!(all.leads_to(path.as_bytes()), leads, "{path}");
        }
    }

    #[test]
    fn paths_may_be_quoted_and_the_last_line_counts() {
        let all = parse(
            "\"/a b\\\"\\303\\251\\t\" type=external\n\\#x type=external\ny type=external\ny -type\n",
        );
        let paths: Vec<&[u8]> = all.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["/#x".as_bytes(), "/a b\"\u{e9}\t".as_bytes()]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, word) in [
            (
                "/a type=external\n!/b type=external",
                "line 2: a path with !",
            ),
            ("../a type=external", "line 1: a path with .."),
            ("\"/a type=external", "quote"),
            ("\"/a\\x\" type=external", "escape"),
            ("\"/a\\09\" type=external", "octal"),
            ("/a ty*pe=external", "ty*pe"),
            ("/a -=x", "name of an attribute"),
            ("/a type=external file_size=-1", "file_size"),
            ("/a type=external blob_index=99999999999", "blob_index"),
            ("/a type=external blob_id=abc", "blob_id"),
            ("/a type=external chunk_size=1.5MiB", "chunk_size"),
            ("/a type=external chunk_size=1.MiB", "chunk_size"),
            ("/a type=external crcs=0x1,,", "crcs"),
        ] {
            let error = Attributes::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            Attributes::parse(&text).ok();
            Attributes::parse(&[b"\"".as_slice(), &text].concat()).ok();
        }
    }
}

//! What stands in a trace: JSON, an object a line.
//!
//! The first line is the [`Header`], each further one an [`Event`]. Times are in microseconds since the mount began, `at` is
//! when something began and `took` how long it lasted; lines come in the order in which things ended. A process that
//! was killed leaves at most its last line unfinished, without the line's end: such a line counts for nothing.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::Error;

/// The version of the format.
pub(crate) const VERSION: u64 = 1;
/// Most bytes of a trace: after that a recorder writes no more.
pub const FILE_MAX: u64 = 256 << 20;
/// Most bytes of a line: a path has at most 4 KiB, and its characters at most six bytes each in JSON; chunks may be many.
const LINE_MAX: u64 = 1 << 20;

/// The first line: what was mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the format: 1.
    #[serde(rename = "trace")]
    pub version: u64,
    /// How the image was called.
    pub image: String,
    /// SHA-256 of its bootstrap in v6 layout, in hex.
    pub bootstrap: String,
    /// When the mount began, in microseconds since 1970.
    pub started: u64,
    /// Ids of the blobs, in the order of the image's blob table.
    pub blobs: Vec<String>,
}

/// A chunk: the position of its blob in the image's blob table, and its row in the blob's chunk table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChunkId(pub u32, pub u32);

/// What a request to a blob was made for; see [`storage::Purpose`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// A read waited for it.
    Read,
    /// It was made ahead of reads.
    Prefetch,
    /// The same, for what the image puts first.
    First,
}

impl From<storage::Purpose> for Purpose {
    fn from(purpose: storage::Purpose) -> Self {
        match purpose {
            storage::Purpose::Read => Self::Read,
            storage::Purpose::Prefetch => Self::Prefetch,
            storage::Purpose::First => Self::First,
        }
    }
}

/// A line after the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// A process began to serve the mount: the first one, or one in place of another.
    Serving {
        /// When.
        at: u64,
        /// `fuse` or `erofs`.
        mode: String,
        /// Its id.
        process: u32,
    },
    /// The kernel asked for bytes of a file.
    Read {
        /// When.
        at: u64,
        /// Until the answer.
        took: u64,
        /// Path of the file; one of them, if it has more.
        file: String,
        /// Where the bytes begin in the file.
        offset: u64,
        /// How many.
        size: u64,
        /// The chunks that have them.
        chunks: Vec<ChunkId>,
    },
    /// A blob was asked for stored bytes.
    Fetch {
        /// When the request was decided on.
        at: u64,
        /// How long it then had to wait for memory.
        waited: u64,
        /// How long the answer took.
        took: u64,
        /// Names the request, among those of one process.
        number: u64,
        /// What it was made for.
        purpose: Purpose,
        /// Position of the blob in the blob table.
        blob: u32,
        /// First byte of the blob.
        offset: u64,
        /// How many bytes.
        size: u64,
        /// Whether there was no answer.
        #[serde(default, skip_serializing_if = "is_false")]
        failed: bool,
    },
    /// A chunk of what came was decoded and verified.
    Chunk {
        /// When.
        at: u64,
        /// How long that took.
        took: u64,
        /// Number of the request that brought it.
        fetch: u64,
        /// Which it is.
        chunk: ChunkId,
        /// Bytes of file data.
        size: u64,
        /// Bytes as they are stored; 0 for one of a batch.
        stored: u64,
        /// Path of a file that it is of; empty if no file of the image has it.
        file: String,
        /// Where it begins in that file.
        offset: u64,
    },
    /// Events were left out because they came faster than they could be written.
    Dropped {
        /// When that was noticed.
        at: u64,
        /// How many so far.
        count: u64,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Event {
    /// When it began, in microseconds since the mount did.
    pub fn at(&self) -> u64 {
        match self {
            Self::Serving { at, .. }
            | Self::Read { at, .. }
            | Self::Fetch { at, .. }
            | Self::Chunk { at, .. }
            | Self::Dropped { at, .. } => *at,
        }
    }
}

/// What names an image in a trace: the SHA-256 of its bootstrap in v6 layout, in hex.
pub fn bootstrap_digest(bootstrap: &[u8]) -> String {
    hex::encode(Sha256::digest(bootstrap))
}

/// A trace that was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// What was mounted.
    pub header: Header,
    /// What happened.
    pub events: Vec<Event>,
}

impl Trace {
    /// Reads the trace in a file.
    ///
    /// # Errors
    /// [`Error`]: it cannot be read, is no trace, or is damaged.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io(path, "open it"))?;
        Self::read(path, BufReader::new(file))
    }

    /// Reads a trace; `path` is how errors name it.
    ///
    /// # Errors
    /// As [`Trace::load`].
    pub fn read(path: &Path, mut from: impl BufRead) -> Result<Self, Error> {
        let Some(header) = read_header(path, &mut from)? else {
            return Err(Error::NoTrace(path.to_owned()));
        };
        let mut events = Vec::new();
        let mut total = 0;
        for number in 2.. {
            let Some(line) = next_line(path, number, &mut from)? else {
                break;
            };
            total += line.len() as u64;
            if total > FILE_MAX {
                return Err(Error::TooLarge(path.to_owned()));
            }
            let event = serde_json::from_slice(&line).map_err(|error| Error::Line {
                path: path.to_owned(),
                line: number,
                // It may repeat what stands there.
                why: error.to_string().replace(char::is_control, "?"),
            })?;
            events.push(event);
        }
        Ok(Self { header, events })
    }

    /// Refuses the trace `path` if it is not one of the image with this bootstrap.
    ///
    /// # Errors
    /// [`Error::OtherImage`].
    pub fn require(&self, path: &Path, bootstrap: &str) -> Result<(), Error> {
        self.header.require(path, bootstrap)
    }

    /// The reads, in the order in which they began: path, first byte and number of bytes, and their chunks.
    pub fn reads(&self) -> Vec<(&str, u64, u64, &[ChunkId])> {
        let read = |event| match event {
            &Event::Read {
                at,
                ref file,
                offset,
                size,
                ref chunks,
                ..
            } => Some((at, (&**file, offset, size, &**chunks))),
            _ => None,
        };
        let mut reads: Vec<_> = self.events.iter().filter_map(read).collect();
        reads.sort_by_key(|(at, _)| *at);
        reads.into_iter().map(|(_, read)| read).collect()
    }
}

impl Header {
    pub(crate) fn require(&self, path: &Path, bootstrap: &str) -> Result<(), Error> {
        if self.bootstrap == bootstrap {
            return Ok(());
        }
        Err(Error::OtherImage {
            path: path.to_owned(),
            image: self.image.clone(),
            bootstrap: self.bootstrap.clone(),
        })
    }
}

/// The first line; `None` if there is not one whole line yet.
pub(crate) fn read_header(path: &Path, from: &mut impl BufRead) -> Result<Option<Header>, Error> {
    let no_trace = || Error::NoTrace(path.to_owned());
    // What is no trace may have no lines at all.
    let line = match next_line(path, 1, from) {
        Ok(Some(line)) => line,
        Ok(None) => return Ok(None),
        Err(Error::Line { .. }) => return Err(no_trace()),
        Err(error) => return Err(error),
    };
    #[derive(Deserialize)]
    struct Version {
        trace: u64,
    }
    let Version { trace } = serde_json::from_slice(&line).map_err(|_| no_trace())?;
    if trace != VERSION {
        return Err(Error::Version {
            path: path.to_owned(),
            version: trace,
        });
    }
    let header = serde_json::from_slice(&line).map_err(|_| no_trace())?;
    Ok(Some(header))
}

/// The next whole line without its end; `None` if there is none.
fn next_line(
    path: &Path,
    number: usize,
    from: &mut impl BufRead,
) -> Result<Option<Vec<u8>>, Error> {
    let mut line = Vec::new();
    let read = from.by_ref().take(LINE_MAX).read_until(b'\n', &mut line);
    read.map_err(Error::io(path, "read it"))?;
    match line.pop() {
        Some(b'\n') => Ok(Some(line)),
        Some(_) if line.len() as u64 + 1 >= LINE_MAX => Err(Error::Line {
            path: path.to_owned(),
            line: number,
            why: "it is longer than any that is written".to_owned(),
        }),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn sample() -> Trace {
        let file = "/usr/lib/\u{fc}ber \"x\"\n".to_owned();
        Trace {
            header: Header {
                version: 1,
                image: "oci:dir:tag".to_owned(),
                bootstrap: "ab".repeat(32),
                started: 1_700_000_000_000_000,
                blobs: vec!["cd".repeat(32)],
            },
            events: vec![
                Event::Serving {
                    at: 1,
                    mode: "fuse".to_owned(),
                    process: 7,
                },
                Event::Fetch {
                    at: 2,
                    waited: 3,
                    took: 4,
                    number: 0,
                    purpose: Purpose::First,
                    blob: 0,
                    offset: 5,
                    size: 6,
                    failed: false,
                },
                Event::Chunk {
                    at: 7,
                    took: 8,
                    fetch: 0,
                    chunk: ChunkId(0, 9),
                    size: 10,
                    stored: 6,
                    file: file.clone(),
                    offset: 0,
                },
                Event::Read {
                    at: 2,
                    took: 14,
                    file,
                    offset: 0,
                    size: 10,
                    chunks: vec![ChunkId(0, 9)],
                },
                Event::Dropped { at: 20, count: 3 },
            ],
        }
    }

    fn written(trace: &Trace) -> Vec<u8> {
        let mut text = serde_json::to_vec(&trace.header).unwrap();
        for event in &trace.events {
            text.push(b'\n');
            text.extend(serde_json::to_vec(event).unwrap());
        }
        text.push(b'\n');
        text
    }

    fn read(text: &[u8]) -> Result<Trace, Error> {
        Trace::read(Path::new("t"), text)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let trace = sample();
        let text = written(&trace);
        assert_eq!(read(&text).unwrap(), trace);
        assert!(text.starts_with(br#"{"trace":1,"image":"oci:dir:tag","bootstrap":"abab"#));
        let second = text.split(|&byte| byte == b'\n').nth(2).unwrap();
        let expected = r#"{"event":"fetch","at":2,"waited":3,"took":4,"number":0,"purpose":"first","blob":0,"offset":5,"size":6}"#;
        assert_eq!(std::str::from_utf8(second).unwrap(), expected);
    }

    #[test]
    fn a_last_line_that_was_cut_counts_for_nothing() {
        let trace = sample();
        let text = written(&trace);
        for cut in 0..text.len() {
            let lines = text[..cut].iter().filter(|&&byte| byte == b'\n').count();
            match read(&text[..cut]) {
                Err(Error::NoTrace(_)) if lines == 0 => {}
                Ok(read) => assert_eq!(read.events, trace.events[..lines - 1]),
                Err(error) => panic!("cut at {cut}: {error}"),
            }
        }
    }

    #[test]
    fn hostile_lines_are_refused_by_number() {
        let good = written(&sample());
        let with = |line: &[u8]| [&good, line, b"\n"].concat();
        for bad in [
            &b""[..],
            b"[]",
            b"{}",
            b"{\"event\":\"read\"}",
            b"{\"event\":\"other\",\"at\":1}",
            b"{\"event\":\"dropped\",\"at\":-1,\"count\":1}",
            b"{\"event\":\"dropped\",\"at\":18446744073709551616,\"count\":1}",
            b"\xff\xfe",
            b"{\"event\":\"dropped\",\"at\":1,\"count\":1} x",
        ] {
            let error = read(&with(bad)).unwrap_err();
            assert!(matches!(error, Error::Line { line: 7, .. }), "{error}");
        }
        let spoken = br#"{"event":"\u001b]0;x\u0007","at":1}"#;
        let error = read(&with(spoken)).unwrap_err().to_string();
        assert!(!error.contains(char::is_control), "{error:?}");
        let long = vec![b' '; 2 << 20];
        assert!(matches!(
            read(&with(&long)).unwrap_err(),
            Error::Line { line: 7, .. }
        ));
        for none in [&b"\n"[..], b"hello\nworld\n", b"{\"a\":1}\n", &long] {
            assert!(matches!(read(none), Err(Error::NoTrace(_))));
        }
        let next = br#"{"trace":2,"more":{}}"#;
        let error = read(&[next, &b"\n"[..]].concat()).unwrap_err();
        assert!(error.to_string().contains("version 2"), "{error}");
    }
}

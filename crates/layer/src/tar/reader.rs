//! Headers, extended headers and data in turn.

use std::io::{self, BufRead, BufReader, Read};

use super::header::{self, BLOCK, Block, field};
use super::map::Refused;
use super::sparse::{Map, Run};
use super::{Entry, EntryKind, pax};
use crate::error::{Error, show};

/// Bytes taken at a time from a stream without a buffer of its own; larger reads of file data pass through.
const BUFFER: usize = 256 << 10;
/// Zero blocks that end an archive.
const END_MARK: u32 = 2;
/// What holes are lent out from.
const ZEROS: [u8; 4 << 10] = [0; 4 << 10];
/// Longest PAX extended header, in bytes.
const PAX_MAX: u64 = 1 << 20;
/// Longest path or link target, in bytes.
pub(crate) const NAME_MAX: usize = 64 << 10;

/// What precedes an entry's own header.
#[derive(Default)]
struct Pending {
    extension: Option<pax::Extension>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.extension.is_none() && self.long_path.is_none() && self.long_link.is_none()
    }
}

/// Reads the entries of an archive in turn.
pub struct Reader<R> {
    input: R,
    /// Bytes taken from `input`.
    offset: u64,
    /// Path of the current entry, for messages.
    path: Vec<u8>,
    /// Stored bytes of the current entry that were not read, without padding.
    pub(super) remaining: u64,
    /// Zero bytes between those and the next header.
    padding: u64,
    sparse: Option<Map>,
    ended: bool,
    concatenated: bool,
}

impl<R: Read> Reader<BufReader<R>> {
    /// A reader over an uncompressed archive, which two zero blocks end.
    pub fn new(r: R) -> Self {
        Self::buffered(BufReader::with_capacity(BUFFER, r))
    }
}

impl<R: BufRead> Reader<R> {
    /// As [`Reader::new`], of bytes that lie in memory already.
    pub fn buffered(input: R) -> Self {
        Self {
            input,
            offset: 0,
            path: Vec::new(),
            remaining: 0,
            padding: 0,
            sparse: None,
            ended: false,
            concatenated: false,
        }
    }

    /// Whether archives may follow one another: zero blocks between headers are skipped then, however many.
    #[must_use]
    pub fn concatenated(mut self, concatenated: bool) -> Self {
        self.concatenated = concatenated;
        self
    }

    /// Moves to the next entry, past what was not read of the current one; `None` at the end of the archive.
    ///
    /// # Errors
    /// A stream that fails or is truncated, a malformed header, or an entry of unknown type.
    #[allow(
        clippy::should_implement_trait,
        reason = "an entry's data is read through the reader in between"
    )]
    pub fn next(&mut self) -> Result<Option<Entry>, Error> {
        self.skip_data()?;
        let mut pending = Pending::default();
        loop {
            let start = self.offset;
            let Some(block) = self.header()? else {
                if pending.is_empty() {
                    return Ok(None);
                }
                return Err(Error::Truncated {
                    offset: start,
                    within: "an entry of which only the extended header is there".to_owned(),
                });
            };
            let malformed = |reason: String| Error::Header {
                offset: start,
                reason,
            };
            let size = || {
                field(&block, "size", 124..136)
                    .and_then(|v| u64::try_from(v).map_err(|_| "size < 0".into()))
            };
            match block[156] {
                b'x' | b'X' => {
                    let data = self.extended(
                        size().map_err(malformed)?,
                        PAX_MAX,
                        "a PAX extended header",
                    )?;
                    pending.extension = Some(pax::Extension::parse(&data).map_err(malformed)?);
                }
                b'g' => {
                    // Container engines ignore these; what counts for an entry stands in its own header.
                    self.extended(size().map_err(malformed)?, PAX_MAX, "a PAX global header")?;
                }
                b'L' => {
                    let data = self.extended(
                        size().map_err(malformed)?,
                        NAME_MAX as u64 + 1,
                        "a GNU long name",
                    )?;
                    pending.long_path = Some(header::text(&data).to_vec());
                }
                b'K' => {
                    let data = self.extended(
                        size().map_err(malformed)?,
                        NAME_MAX as u64 + 1,
                        "a GNU long link",
                    )?;
                    pending.long_link = Some(header::text(&data).to_vec());
                }
                _ => return self.entry(&block, start, pending).map(Some),
            }
        }
    }

    /// Whether the current entry is a sparse file, whose holes are not in the stream.
    pub fn is_sparse(&self) -> bool {
        self.sparse.is_some()
    }

    /// The data of the current entry: empty unless it is a regular file; holes read as zeros. It goes on where an
    /// earlier call's reader stopped.
    pub fn data(&mut self) -> Data<'_, R> {
        Data { reader: self }
    }

    /// Reads to the end of the stream, past the end marker and whatever follows it, so that whoever digests the
    /// stream has seen all of it. Gives the length of the stream in bytes.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn finish(mut self) -> Result<u64, Error> {
        loop {
            let n = fill(&mut self.input, self.offset)?.len();
            if n == 0 {
                return Ok(self.offset);
            }
            self.input.consume(n);
            self.offset += n as u64;
        }
    }

    /// The next header block; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Block>, Error> {
        let mut zeros = 0;
        while !self.ended {
            let start = self.offset;
            let mut block = [0; BLOCK];
            match self.read_full(&mut block)? {
                0 => break,
                BLOCK => {}
                _ if zeros >= END_MARK => break,
                _ => return Err(self.truncated("a header block")),
            }
            if block == [0; BLOCK] {
                zeros += 1;
                if zeros == END_MARK && !self.concatenated {
                    break;
                }
                continue;
            }
            let malformed = |reason: &str| {
                Err(Error::Header {
                    offset: start,
                    reason: reason.to_owned(),
                })
            };
            if zeros > 0 && !self.concatenated {
                return malformed("it follows a single zero block; two of them end an archive");
            }
            if !header::checksum_fits(&block) {
                if zeros >= END_MARK {
                    break;
                }
                return malformed("the checksum does not fit: corrupt, or not a tar archive");
            }
            return Ok(Some(block));
        }
        self.ended = true;
        Ok(None)
    }

    /// The data of an extended header of at most `limit` bytes.
    fn extended(&mut self, size: u64, limit: u64, what: &str) -> Result<Vec<u8>, Error> {
        if size > limit {
            let reason = format!("{what} of {size} bytes is above the limit of {limit}");
            return Err(Error::Header {
                offset: self.offset,
                reason,
            });
        }
        // Bounded by the limit.
        let mut data = vec![0; size as usize];
        if self.read_full(&mut data)? < data.len() {
            return Err(self.truncated(what));
        }
        self.padding = padding(size);
        self.skip_data()?;
        Ok(data)
    }

    /// Joins a header with what preceded it.
    fn entry(&mut self, block: &Block, start: u64, pending: Pending) -> Result<Entry, Error> {
        let Pending {
            extension,
            long_path,
            long_link,
        } = pending;
        let mut extension = extension.unwrap_or_default();
        let sparse_name = extension.sparse.name.take();
        let path = sparse_name
            .or(long_path)
            .or(extension.path.take())
            .unwrap_or_else(|| header::path(block));
        let link = long_link
            .or(extension.link.take())
            .unwrap_or_else(|| header::text(&block[157..257]).to_vec());
        let malformed = |reason: String| Error::Header {
            offset: start,
            reason: format!("{}: {reason}", show(&path)),
        };
        if path.len() > NAME_MAX || link.len() > NAME_MAX {
            return Err(malformed(format!(
                "the path or its link target has more than {NAME_MAX} bytes"
            )));
        }
        let kind = header::kind(block[156], &path, link).map_err(malformed)?;
        let mut entry = Entry {
            kind,
            mode: (field(block, "mode", 100..108).map_err(malformed)? & 0o7777) as u32,
            uid: header::owner(block, "uid", 108..116, extension.uid).map_err(malformed)?,
            gid: header::owner(block, "gid", 116..124, extension.gid).map_err(malformed)?,
            size: 0,
            mtime: 0,
            mtime_nsec: 0,
            rdev: 0,
            xattrs: std::mem::take(&mut extension.xattrs),
            offset: self.offset,
            path: Vec::new(),
        };
        (entry.mtime, entry.mtime_nsec) = match extension.mtime {
            Some(time) => time,
            None => (field(block, "mtime", 136..148).map_err(malformed)?, 0),
        };
        match entry.kind {
            EntryKind::Character | EntryKind::Block => {
                entry.rdev = header::rdev(block).map_err(malformed)?
            }
            EntryKind::Regular => {
                let stored = match extension.size {
                    Some(size) => size,
                    None => field(block, "size", 124..136)
                        .and_then(|v| {
                            u64::try_from(v).map_err(|_| "the size is negative".to_owned())
                        })
                        .map_err(malformed)?,
                };
                self.remaining = stored;
                self.padding = padding(stored);
                self.sparse = self.sparse_map(block, &extension.sparse, stored).map_err(
                    |error| match error {
                        Refused::Reason(reason) => malformed(reason),
                        Refused::Stream(error) => error,
                    },
                )?;
                entry.offset = self.offset;
                entry.size = self.sparse.as_ref().map_or(stored, Map::size);
            }
            _ => {}
        }
        self.path.clone_from(&path);
        entry.path = path;
        Ok(entry)
    }

    /// Moves to the next header.
    fn skip_data(&mut self) -> Result<(), Error> {
        self.sparse = None;
        let data = std::mem::take(&mut self.remaining);
        if self.skip(data)? < data {
            let within = format!("the data of {}", show(&self.path));
            return Err(Error::Truncated {
                offset: self.offset,
                within,
            });
        }
        // Some writers leave out the padding of the last entry.
        let padding = std::mem::take(&mut self.padding);
        self.skip(padding)?;
        Ok(())
    }

    /// Passes over `n` bytes; gives how many there were.
    fn skip(&mut self, n: u64) -> Result<u64, Error> {
        let mut done = 0;
        while done < n {
            let available = fill(&mut self.input, self.offset)?.len();
            if available == 0 {
                break;
            }
            let step = usize::try_from(n - done)
                .unwrap_or(usize::MAX)
                .min(available);
            self.input.consume(step);
            self.offset += step as u64;
            done += step as u64;
        }
        Ok(done)
    }

    /// Fills `buf`; gives how many bytes there were.
    pub(super) fn read_full(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        let mut done = 0;
        while done < buf.len() {
            match self.input.read(&mut buf[done..]) {
                Ok(0) => break,
                Ok(n) => {
                    done += n;
                    self.offset += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Error::Read {
                        offset: self.offset,
                        source,
                    });
                }
            }
        }
        Ok(done)
    }

    pub(super) fn truncated(&self, within: &str) -> Error {
        Error::Truncated {
            offset: self.offset,
            within: within.to_owned(),
        }
    }

    /// Reads stored bytes of the current entry; at least one unless `buf` is empty.
    fn stored(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buf)?;
        if n == 0 && !buf.is_empty() {
            return Err(self.ends_within());
        }
        self.took(n);
        Ok(n)
    }

    /// Counts stored bytes of the current entry.
    fn took(&mut self, n: usize) {
        self.offset += n as u64;
        self.remaining -= n as u64;
    }

    /// The error for a stream that ends within the data of the current entry.
    fn ends_within(&self) -> io::Error {
        let within = format!("the data of {}", show(&self.path));
        io::Error::new(io::ErrorKind::UnexpectedEof, self.truncated(&within))
    }
}

/// Bytes of the stream, at least one unless it is at its end.
fn fill(input: &mut impl BufRead, offset: u64) -> Result<&[u8], Error> {
    lend(input).map_err(|source| Error::Read { offset, source })
}

/// As [`BufRead::fill_buf`], however often that is interrupted.
fn lend(input: &mut impl BufRead) -> io::Result<&[u8]> {
    while let Err(error) = input.fill_buf() {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // There is a buffer now, so this does not fail.
    input.fill_buf()
}

/// The data of an entry, see [`Reader::data`].
pub struct Data<'a, R> {
    reader: &'a mut Reader<R>,
}

impl<R: BufRead> BufRead for Data<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let reader = &mut *self.reader;
        let limit = match reader.sparse.as_mut().map(Map::run) {
            None => reader.remaining,
            Some(Run::End) => 0,
            Some(Run::Data(length)) => length,
            Some(Run::Hole(length)) => return Ok(up_to(&ZEROS, length)),
        };
        if limit == 0 {
            return Ok(&[]);
        }
        if lend(&mut reader.input)?.is_empty() {
            return Err(reader.ends_within());
        }
        Ok(up_to(lend(&mut reader.input)?, limit))
    }

    fn consume(&mut self, n: usize) {
        let reader = &mut *self.reader;
        let hole = matches!(reader.sparse.as_mut().map(Map::run), Some(Run::Hole(_)));
        if !hole {
            reader.input.consume(n);
            reader.took(n);
        }
        if let Some(map) = &mut reader.sparse {
            map.advance(n);
        }
    }
}

/// The first `limit` bytes, or all if there are fewer.
fn up_to(bytes: &[u8], limit: u64) -> &[u8] {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    bytes.get(..limit).unwrap_or(bytes)
}

impl<R: BufRead> Read for Data<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let reader = &mut *self.reader;
        let limit = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(buf.len());
        let Some(map) = &mut reader.sparse else {
            let n = limit(reader.remaining);
            return reader.stored(&mut buf[..n]);
        };
        let n = match map.run() {
            Run::End => 0,
            Run::Hole(length) => {
                let n = limit(length);
                buf[..n].fill(0);
                n
            }
            Run::Data(length) => {
                let n = limit(length);
                reader.stored(&mut buf[..n])?
            }
        };
        if let Some(map) = &mut reader.sparse {
            map.advance(n);
        }
        Ok(n)
    }
}

/// Zeros that fill up the last block.
pub(super) fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

//! Inflating layers: gzip, zstd or none, told apart by their first bytes.

use std::fmt;
use std::io::{self, BufRead, BufReader, Cursor, Read};

mod checksums;
mod frames;
mod gzip;
mod index;

use checksums::Check;

pub use checksums::Checksums;
pub use frames::{Boundary, FramingReader};
pub use index::{GzipIndex, Place};

/// Compressed bytes taken from the source at a time.
const INPUT: usize = 256 << 10;
/// Bytes that tell the kinds apart.
const MAGIC: usize = 4;
/// Largest window of a zstd frame that is accepted, as a power of two: 128 MiB.
const WINDOW_LOG_MAX: u32 = 27;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// A plain tar.
    None,
    /// Gzip, of any number of members.
    Gzip,
    /// Zstandard, of any number of frames.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// Tells from the first bytes of a stream (four are enough) how it is compressed.
pub fn detect(first_bytes: &[u8]) -> Compression {
    match first_bytes {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        // A frame, or a skippable frame before one.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// Tells how a stream is compressed and gives it back whole, still compressed.
///
/// # Errors
/// Those of `r`.
pub fn detecting(
    mut r: impl Read + Send + 'static,
) -> io::Result<(Compression, Box<dyn Read + Send>)> {
    let mut first = Vec::with_capacity(MAGIC);
    r.by_ref().take(MAGIC as u64).read_to_end(&mut first)?;
    Ok((detect(&first), Box::new(Cursor::new(first).chain(r))))
}

/// The inflated bytes of a stream. Ask for many at a time (64 KiB and more): each read works straight into the
/// caller's buffer.
///
/// # Errors
/// Here only when the decoder cannot be set up. Reads fail on corrupt or truncated data, on a zstd window above
/// 128 MiB, and on anything behind the compressed data but zero padding after gzip.
pub fn decompress(
    r: impl Read + Send + 'static,
    what: Compression,
) -> io::Result<Box<dyn Read + Send>> {
    match what {
        Compression::None => Ok(Box::new(r)),
        Compression::Gzip => {
            let r = BufReader::with_capacity(INPUT, r);
            Ok(Box::new(gzip::Reader::new(r, (), Check::Here(0))))
        }
        Compression::Zstd => unpack_zstd(BufReader::with_capacity(INPUT, r)),
    }
}

/// As [`decompress`], for a thread that is to do nothing else: input is taken from where it lies in memory, and the
/// checksums of gzip members are left to somebody else, who has to look at all that is read.
///
/// # Errors
/// As [`decompress`].
pub fn decompress_apart(
    r: impl BufRead + Send + 'static,
    what: Compression,
) -> io::Result<(Box<dyn Read + Send>, Checksums)> {
    match what {
        Compression::None => Ok((Box::new(r), Checksums::none())),
        Compression::Gzip => {
            let (checksums, ends) = Checksums::new();
            let reader = gzip::Reader::new(r, (), Check::Apart(ends));
            Ok((Box::new(reader), checksums))
        }
        Compression::Zstd => Ok((unpack_zstd(r)?, Checksums::none())),
    }
}

fn unpack_zstd(r: impl BufRead + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(r)?;
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    Ok(Box::new(Zstd { decoder, done: 0 }))
}

/// The inflated bytes of a gzip stream, and an index of places from which they can be inflated again. Reads fail as with
/// [`decompress`].
///
/// The index depends on the bytes of the stream, on the pieces that it comes in and on how many bytes are asked for at a
/// time: where input ends for the moment, the decoder's stops are not all known. So the pieces should all be full, as
/// those of a [`Pipe`](crate::piece::Pipe) are.
pub struct IndexingReader<R>(gzip::Reader<R, index::Indexer>);

impl<R: BufRead> IndexingReader<R> {
    /// Will inflate `r`.
    pub fn new(r: R) -> Self {
        Self::checked(r, Check::Here(0))
    }

    /// The same; the checksums of members are left to somebody else, who has to look at all that is read.
    pub fn apart(r: R) -> (Self, Checksums) {
        let (checksums, ends) = Checksums::new();
        (Self::checked(r, Check::Apart(ends)), checksums)
    }

    fn checked(r: R, check: Check) -> Self {
        Self(gzip::Reader::new(r, index::Indexer::default(), check))
    }

    /// The index of what was read, which should be all.
    pub fn into_index(self) -> GzipIndex {
        self.0.into_watch().finish()
    }
}

impl<R: BufRead> Read for IndexingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

/// Names what failed: the decoder's messages alone do not say that the layer is at fault.
struct Zstd<R: BufRead> {
    decoder: zstd::stream::read::Decoder<'static, R>,
    done: u64,
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.decoder.read(buf) {
            Ok(n) => {
                self.done += n as u64;
                Ok(n)
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "the zstd data is truncated: it ends after {} inflated bytes, within a frame",
                    self.done
                ),
            )),
            Err(error) if error.get_ref().is_some() => Err(io::Error::new(
                error.kind(),
                format!(
                    "the zstd data is corrupt after {} inflated bytes: {error}",
                    self.done
                ),
            )),
            Err(error) => Err(error),
        }
    }
}

//! The tail of a blob: pieces with a tar header *behind* each, and the table of contents that comes last.
//!
//! A piece is not padded, its 512-byte GNU tar header follows it, and nothing follows the last header. So a blob is
//! walked from its end: the last 512 bytes are the header of the table of contents ([`TOC`]) or of a raw bootstrap
//! ([`BOOTSTRAP`]), or there is no metadata in the blob.

use zerocopy::IntoBytes;

use crate::raw::{self, TocEntryRaw};
use crate::{Compressor, Digest, Error};

/// Name of the chunk data.
pub const DATA: &str = "image.blob";
/// Name of the chunk table (in tar headers: with its header).
pub const META: &str = "blob.meta";
/// Name of the chunk table's header.
pub const META_HEADER: &str = "blob.meta.header";
/// Name of the array of chunk digests.
pub const DIGESTS: &str = "blob.digest";
/// Name of the bootstrap.
pub const BOOTSTRAP: &str = "image.boot";
/// Name of the table of contents.
pub const TOC: &str = "rafs.blob.toc";

/// Length of a tar header.
pub const TAR_HEADER_SIZE: usize = 512;
/// Length of an entry of the table of contents.
pub const ENTRY_SIZE: usize = TocEntryRaw::SIZE;
/// How many bytes at the end of a blob [`parse_tail`] wants: the longest table of contents with its header.
pub const TAIL_SIZE: usize = 4096;

const GNU_MAGIC: &[u8; 8] = b"ustar  \0";
/// Sizes from here on are stored in base 256.
const OCTAL_SIZE_END: u64 = 1 << 33;

/// The tar header that follows a piece of `size` bytes. The bytes matter, for they are digested: mode and owner are
/// NULs, numbers have leading zeros.
///
/// `name` is cut at 100 bytes; the names of this module are shorter.
pub fn tar_header(name: &str, size: u64) -> [u8; TAR_HEADER_SIZE] {
    let mut header = [0; TAR_HEADER_SIZE];
    put(
        &mut header,
        0,
        name.as_bytes().get(..100).unwrap_or(name.as_bytes()),
    );
    if size < OCTAL_SIZE_END {
        put(&mut header, 124, format!("{size:011o}").as_bytes());
    } else {
        put(&mut header, 124, &[0x80, 0, 0, 0]);
        put(&mut header, 128, &size.to_be_bytes());
    }
    put(&mut header, 136, b"00000000000");
    put(&mut header, 156, b"0");
    put(&mut header, 257, GNU_MAGIC);
    let sum = checksum(&header);
    put(&mut header, 148, format!("{sum:07o}").as_bytes());
    header
}

fn put(header: &mut [u8; TAR_HEADER_SIZE], offset: usize, bytes: &[u8]) {
    for (to, from) in header.iter_mut().skip(offset).zip(bytes) {
        *to = *from;
    }
}

/// Sum of all bytes, those of the checksum itself taken as spaces.
fn checksum(header: &[u8; TAR_HEADER_SIZE]) -> u32 {
    header
        .iter()
        .enumerate()
        .map(|(i, &b)| u32::from(if (148..156).contains(&i) { b' ' } else { b }))
        .sum()
}

/// Name and size of the piece before a tar header.
///
/// # Errors
/// [`Error::Field`] if it is no GNU tar header of a regular file, or if its checksum is wrong.
pub fn parse_tar_header(header: &[u8; TAR_HEADER_SIZE]) -> Result<(&str, u64), Error> {
    let field = |range: std::ops::Range<usize>| header.get(range).unwrap_or_default();
    if field(257..265) != GNU_MAGIC {
        return Err(Error::field(
            "magic of a tar header",
            257,
            field(257..265).escape_ascii(),
            "GNU tar's",
        ));
    }
    if field(156..157) != b"0" {
        return Err(Error::field(
            "type of a tar header",
            156,
            field(156..157).escape_ascii(),
            "0, a regular file",
        ));
    }
    let sum = checksum(header);
    if octal(field(148..156)) != Some(u64::from(sum)) {
        return Err(Error::field(
            "checksum of a tar header",
            148,
            field(148..156).escape_ascii(),
            format!("{sum:07o}"),
        ));
    }
    let name = field(0..100);
    let name = name
        .split(|&b| b == 0)
        .next()
        .and_then(|name| std::str::from_utf8(name).ok());
    let name = name.ok_or_else(|| {
        Error::field(
            "name of a tar header",
            0,
            field(0..100).escape_ascii(),
            "text",
        )
    })?;
    let size = size(field(124..136)).ok_or_else(|| {
        Error::field(
            "size of a tar header",
            124,
            field(124..136).escape_ascii(),
            "a number",
        )
    })?;
    Ok((name, size))
}

fn size(field: &[u8]) -> Option<u64> {
    match field {
        [0x80, 0, 0, 0, rest @ ..] => Some(u64::from_be_bytes(rest.try_into().ok()?)),
        octal_digits => octal(octal_digits),
    }
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    u64::from_str_radix(text, 8).ok()
}

/// Whether a tar header field cannot be one at all.
fn is_tar_header(header: &[u8; TAR_HEADER_SIZE]) -> bool {
    header.get(257..265) == Some(GNU_MAGIC)
}

/// One piece of a blob, as the table of contents lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TocEntry {
    /// How the piece is stored.
    pub compressor: Compressor,
    /// Name of the piece, at most 16 bytes.
    pub name: String,
    /// SHA-256 of the uncompressed piece (for [`DATA`]: of the stored bytes and their tar header); zeros if unknown.
    pub digest: Digest,
    /// Where the piece begins in the blob file.
    pub compressed_offset: u64,
    /// Stored size in bytes.
    pub compressed_size: u64,
    /// Size once decompressed; for [`DATA`] that of the uncompressed address space.
    pub uncompressed_size: u64,
}

impl TocEntry {
    fn parse(bytes: &[u8; ENTRY_SIZE], offset: u64) -> Result<Self, Error> {
        let raw: &TocEntryRaw = raw::read(bytes)
            .ok_or_else(|| Error::bounds("a table of contents entry", offset, 128, offset))?;
        let flags = raw.flags.get();
        let compressor = match flags {
            1 => Compressor::None,
            2 => Compressor::Zstd,
            4 => Compressor::Lz4Block,
            _ => {
                return Err(Error::field(
                    "flags of a table of contents entry",
                    offset,
                    format!("{flags:#x}"),
                    "1, 2 or 4",
                ));
            }
        };
        let name = raw::text(&raw.name).filter(|name| !name.is_empty() && !name.contains('\0'));
        let name = name.ok_or_else(|| {
            Error::field(
                "name of a table of contents entry",
                offset + 8,
                raw.name.escape_ascii(),
                "text",
            )
        })?;
        Ok(Self {
            compressor,
            name: name.to_owned(),
            digest: raw.digest,
            compressed_offset: raw.compressed_offset.get(),
            compressed_size: raw.compressed_size.get(),
            uncompressed_size: raw.uncompressed_size.get(),
        })
    }

    /// Appends the 128 bytes of the entry.
    ///
    /// # Errors
    /// [`Error`] if the name is too long or the piece is compressed with gzip.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), Error> {
        let flags = match self.compressor {
            Compressor::None => 1u32,
            Compressor::Zstd => 2,
            Compressor::Lz4Block => 4,
            Compressor::Gzip => {
                return Err(Error::field(
                    "compressor of a table of contents entry",
                    0,
                    "gzip",
                    "none, zstd or lz4_block",
                ));
            }
        };
        let mut name = [0; 16];
        crate::encode::narrow(
            "length of a name in a table of contents",
            self.name.len() as u64,
            name.len() as u64,
        )?;
        for (to, from) in name.iter_mut().zip(self.name.bytes()) {
            *to = from;
        }
        let raw = TocEntryRaw {
            flags: flags.into(),
            reserved: 0.into(),
            name,
            digest: self.digest,
            compressed_offset: self.compressed_offset.into(),
            compressed_size: self.compressed_size.into(),
            uncompressed_size: self.uncompressed_size.into(),
            reserved2: [0; 48],
        };
        out.extend_from_slice(raw.as_bytes());
        Ok(())
    }
}

/// A table of contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toc {
    /// Where its entries begin in the blob file.
    pub offset: u64,
    /// The entries in stored order.
    pub entries: Vec<TocEntry>,
}

impl Toc {
    /// Entry of a piece; `None` if the blob does not have it.
    pub fn entry(&self, name: &str) -> Option<&TocEntry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// Bytes of the entries and the tar header: what `toc_size` in the blob table says, and where its digest is over.
    pub fn size(&self) -> u64 {
        (self.entries.len() * ENTRY_SIZE + TAR_HEADER_SIZE) as u64
    }
}

/// Where the bootstrap lies in a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InlineBootstrap {
    /// Where its stored bytes begin in the blob file.
    pub offset: u64,
    /// Stored size in bytes.
    pub compressed_size: u64,
    /// Size of the bootstrap in bytes.
    pub uncompressed_size: u64,
    /// How it is stored.
    pub compressor: Compressor,
    /// SHA-256 of the bootstrap, if known.
    pub digest: Option<Digest>,
}

/// What lies at the end of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tail {
    /// The table of contents, if there is one.
    pub toc: Option<Toc>,
    /// The bootstrap, if the blob holds one.
    pub bootstrap: Option<InlineBootstrap>,
}

/// Parses the last bytes of a blob: [`TAIL_SIZE`] of them, or all if the blob is shorter. A blob without metadata has
/// an empty tail.
///
/// # Errors
/// [`Error`] if there is a tar header of ours that is damaged, or pieces that do not lie within the blob. Offsets are
/// those in the blob file.
pub fn parse_tail(last_bytes: &[u8], file_size: u64) -> Result<Tail, Error> {
    let Some((before, header)) = last_bytes.split_last_chunk::<TAR_HEADER_SIZE>() else {
        return Ok(Tail::default());
    };
    let end = file_size.checked_sub(TAR_HEADER_SIZE as u64);
    let end = end.ok_or_else(|| {
        Error::field(
            "size of a blob",
            0,
            file_size,
            format!("at least {}", last_bytes.len()),
        )
    })?;
    if !is_tar_header(header) {
        return Ok(Tail::default());
    }
    let (name, size) = parse_tar_header(header)?;
    match name {
        TOC => parse_toc(before, size, end),
        BOOTSTRAP => {
            let offset = end.checked_sub(size).ok_or_else(|| {
                Error::bounds("the bootstrap before its tar header", 0, size, end)
            })?;
            let bootstrap = InlineBootstrap {
                offset,
                compressed_size: size,
                uncompressed_size: size,
                compressor: Compressor::None,
                digest: None,
            };
            Ok(Tail {
                toc: None,
                bootstrap: Some(bootstrap),
            })
        }
        _ => Ok(Tail::default()),
    }
}

/// The entries are the last `size` bytes of `before`, which ends at byte `end` of the blob.
fn parse_toc(before: &[u8], size: u64, end: u64) -> Result<Tail, Error> {
    let limit = (TAIL_SIZE - TAR_HEADER_SIZE) as u64;
    if size > limit || !size.is_multiple_of(ENTRY_SIZE as u64) {
        return Err(Error::field(
            "size of the table of contents",
            end + 124,
            size,
            format!("a multiple of 128, at most {limit}"),
        ));
    }
    let start = before.len().checked_sub(size as usize);
    let (Some(start), Some(offset)) = (start, end.checked_sub(size)) else {
        return Err(Error::bounds(
            "the table of contents before its tar header",
            0,
            size,
            end,
        ));
    };
    let bytes = before.get(start..).unwrap_or_default();
    let mut toc = Toc {
        offset,
        entries: Vec::new(),
    };
    for (i, bytes) in bytes.as_chunks::<ENTRY_SIZE>().0.iter().enumerate() {
        toc.entries
            .push(TocEntry::parse(bytes, offset + (i * ENTRY_SIZE) as u64)?);
    }
    let bootstrap = match toc.entry(BOOTSTRAP) {
        None => None,
        Some(entry) => {
            if entry
                .compressed_offset
                .checked_add(entry.compressed_size)
                .is_none_or(|end| end > offset)
            {
                return Err(Error::bounds(
                    "the bootstrap in the table of contents",
                    entry.compressed_offset,
                    entry.compressed_size,
                    offset,
                ));
            }
            Some(InlineBootstrap {
                offset: entry.compressed_offset,
                compressed_size: entry.compressed_size,
                uncompressed_size: entry.uncompressed_size,
                compressor: entry.compressor,
                digest: (entry.digest != [0; 32]).then_some(entry.digest),
            })
        }
    };
    Ok(Tail {
        toc: Some(toc),
        bootstrap,
    })
}

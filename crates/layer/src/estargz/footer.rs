//! Finding the TOC: the footer and the gzip member before it.
//!
//! The footer is an empty gzip member whose header has an extra field:
//!
//! | Offset | Bytes | What |
//! |---|---|---|
//! | 0 | 10 | gzip header with the flag FEXTRA: `1f 8b 08 04`, then time, flags and system, which do not count |
//! | 10 | 2 | length of the extra field, little endian: 26, in old stargz 22 |
//! | 12 | 4 | `SG`, 22 as two bytes; not in old stargz |
//! | 16 | 22 | where the TOC begins in the blob as 16 hexadecimal digits, `STARGZ` |
//! | 38 | 5 | an empty stored block: `01 00 00 ff ff` |
//! | 43 | 8 | CRC and length, both 0 |

use std::io::Read;

use super::TOC_NAME;
use crate::compression::{Compression, decompress};
use crate::error::{Error, show};
use crate::path;
use crate::tar::{EntryKind, Reader};

/// Size of the footer in bytes.
pub const FOOTER_SIZE: usize = 51;
/// Size of the footer of old stargz in bytes.
pub const FOOTER_SIZE_LEGACY: usize = 47;

const GZIP_WITH_EXTRA: [u8; 4] = [0x1f, 0x8b, 8, 4];
/// Digits of the offset, and the magic behind them.
const FIELD: usize = 16 + MAGIC.len();
const MAGIC: &[u8] = b"STARGZ";

/// What the end of an eStargz blob says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// Where the gzip member with the TOC begins in the blob, in bytes. The layer's data ends there.
    pub toc_offset: u64,
    /// Size of the footer in bytes: the TOC's member ends that much before the end of the blob.
    pub size: usize,
}

impl Footer {
    /// Parses the last [`FOOTER_SIZE`] bytes of a blob of `blob_size` bytes, or all of a smaller one.
    ///
    /// # Errors
    /// [`Error::Footer`] if that is no footer, or one that points beyond the blob.
    pub fn parse(tail: &[u8], blob_size: u64) -> Result<Self, Error> {
        let kinds = [
            (FOOTER_SIZE, &b"\x1a\x00SG\x16\x00"[..]),
            (FOOTER_SIZE_LEGACY, b"\x16\x00"),
        ];
        for (size, extra) in kinds {
            let Some(start) = tail.len().checked_sub(size) else {
                continue;
            };
            let field = tail
                .get(start..)
                .filter(|footer| footer.starts_with(&GZIP_WITH_EXTRA))
                .and_then(|footer| footer.get(10..)?.strip_prefix(extra)?.get(..FIELD))
                .and_then(|field| field.strip_suffix(MAGIC));
            if let Some(digits) = field {
                return Self::of_digits(digits, size, blob_size);
            }
        }
        Err(Error::Footer {
            reason: "it does not end in a footer of eStargz".to_owned(),
        })
    }

    fn of_digits(digits: &[u8], size: usize, blob_size: u64) -> Result<Self, Error> {
        let refused = |reason: String| Error::Footer { reason };
        // Signs are numbers to the parser, and none here.
        let toc_offset = std::str::from_utf8(digits)
            .ok()
            .filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|text| u64::from_str_radix(text, 16).ok())
            .ok_or_else(|| {
                refused(format!(
                    "its footer gives {} as the place of the table of contents",
                    show(digits)
                ))
            })?;
        let end = blob_size.saturating_sub(size as u64);
        if toc_offset >= end {
            return Err(refused(format!(
                "its footer says that the table of contents begins at byte {toc_offset}, but only {end} bytes are before the footer"
            )));
        }
        Ok(Self { toc_offset, size })
    }
}

/// Gives the TOC's JSON out of the bytes between [`Footer::toc_offset`] and the footer to `read`.
///
/// # Errors
/// What `read` says, or why `member` is no gzipped tar with a TOC in it.
pub fn read_toc_member<T>(
    member: impl Read + Send + 'static,
    read: impl FnOnce(&mut dyn Read) -> Result<T, Error>,
) -> Result<T, Error> {
    let tar = decompress(member, Compression::Gzip)
        .map_err(|source| Error::Read { offset: 0, source })?;
    let mut tar = Reader::new(tar);
    let entry = tar.next()?;
    let is_toc = |entry: &crate::tar::Entry| {
        entry.kind == EntryKind::Regular && path::clean(&entry.path) == [TOC_NAME.as_bytes()]
    };
    if !entry.as_ref().is_some_and(is_toc) {
        let found = entry.map_or("nothing".to_owned(), |entry| show(&entry.path));
        return Err(Error::Footer {
            reason: format!(
                "its footer points to an archive that begins with {found} instead of {TOC_NAME}"
            ),
        });
    }
    read(&mut tar.data())
}

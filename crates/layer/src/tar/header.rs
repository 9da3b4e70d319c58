//! Fields of a 512-byte header block.

use std::ops::Range;

use tar::Header;

use super::EntryKind;
use crate::error::show;

/// Size of a tar block, in bytes.
pub(super) const BLOCK: usize = 512;
pub(super) type Block = [u8; BLOCK];

/// The dialect of a header, which decides what the bytes behind the group name mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// No magic: nothing behind the link name.
    V7,
    /// POSIX: a prefix of 155 bytes.
    Ustar,
    /// Schilling's: a prefix of 131 bytes, then times.
    Star,
    /// GNU: no prefix, but times and a sparse map.
    Gnu,
}

/// Tells the dialect by magic and trailer.
pub(super) fn dialect(block: &Block) -> Dialect {
    match &block[257..265] {
        [b'u', b's', b't', b'a', b'r', 0, ..] if block[508..] == *b"tar\0" => Dialect::Star,
        [b'u', b's', b't', b'a', b'r', 0, ..] => Dialect::Ustar,
        b"ustar  \0" => Dialect::Gnu,
        _ => Dialect::V7,
    }
}

/// Whether the checksum is right, summed over unsigned bytes as POSIX says or signed ones as old programs did.
pub(super) fn checksum_fits(block: &Block) -> bool {
    let old = Header::from_byte_slice(block).as_old();
    let Ok(Some(recorded)) = octal(&old.cksum) else {
        return false;
    };
    // The field itself counts as blanks.
    let sum = |value: fn(u8) -> i32| {
        let all: i32 = block.iter().map(|&b| value(b)).sum();
        let field: i32 = old.cksum.iter().map(|&b| value(b)).sum();
        i64::from(all - field + old.cksum.len() as i32 * i32::from(b' '))
    };
    recorded == sum(i32::from) || recorded == sum(|b| i32::from(b as i8))
}

/// A number in octal digits, with spaces and NULs around it; `None` if there are no digits.
fn octal(field: &[u8]) -> Result<Option<i64>, ()> {
    let blank = |b: &u8| matches!(b, b' ' | 0);
    let Some(start) = field.iter().position(|b| !blank(b)) else {
        return Ok(None);
    };
    let digits = field[start..].split(blank).next().unwrap_or_default();
    let rest = &field[start + digits.len()..];
    // Old programs leave bytes behind the terminating NUL; behind a space there must be nothing.
    if !rest.iter().take_while(|&&b| b != 0).all(blank) {
        return Err(());
    }
    let mut value = 0i64;
    for &b in digits {
        if !(b'0'..=b'7').contains(&b) {
            return Err(());
        }
        value = value
            .checked_mul(8)
            .and_then(|v| v.checked_add(i64::from(b - b'0')))
            .ok_or(())?;
    }
    Ok(Some(value))
}

/// A number in octal digits or, if the top bit is set, in big-endian two's complement. A blank field is 0.
pub(super) fn number(field: &[u8]) -> Result<i64, ()> {
    let Some(&first) = field.first() else {
        return Ok(0);
    };
    if first & 0x80 == 0 {
        return Ok(octal(field)?.unwrap_or(0));
    }
    // The top bit is the mark; the next one is the sign.
    let negative = first & 0x40 != 0;
    let mut value: i128 = if negative {
        i128::from(first | 0x80) - 0x100
    } else {
        i128::from(first & 0x3f)
    };
    for &b in &field[1..] {
        value = (value << 8) | i128::from(b);
    }
    i64::try_from(value).map_err(|_| ())
}

/// A text field: what stands before the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// The path that the block itself holds.
pub(super) fn path(block: &Block) -> Vec<u8> {
    let name = text(&block[..100]);
    let prefix = match dialect(block) {
        Dialect::V7 => &[][..],
        Dialect::Ustar => text(&block[345..500]),
        Dialect::Star => text(&block[345..476]),
        Dialect::Gnu => misplaced_prefix(block),
    };
    if prefix.is_empty() {
        name.to_vec()
    } else {
        [prefix, b"/", name].concat()
    }
}

/// Archives by Go programs older than 2017 (many published layers) may have a prefix in a header of the GNU
/// dialect, which has none: it is one if the times that should be in its place are no numbers but it is text.
fn misplaced_prefix(block: &Block) -> &[u8] {
    let is_time = |field: &[u8]| field[0] == 0 || number(field).is_ok();
    let prefix = text(&block[345..500]);
    if (is_time(&block[345..357]) && is_time(&block[357..369])) || !prefix.is_ascii() {
        &[]
    } else {
        prefix
    }
}

/// A number field, by name for messages.
pub(super) fn field(block: &Block, name: &str, range: Range<usize>) -> Result<i64, String> {
    number(&block[range.clone()])
        .map_err(|()| format!("{name} is not a number: {}", show(&block[range])))
}

/// An owner; small negative numbers stand for the highest ids.
pub(super) fn owner(
    block: &Block,
    name: &str,
    range: Range<usize>,
    pax: Option<i64>,
) -> Result<u32, String> {
    let value = match pax {
        Some(value) => value,
        None => field(block, name, range)?,
    };
    let id = if value < 0 {
        i32::try_from(value).ok().map(|v| v as u32)
    } else {
        u32::try_from(value).ok()
    };
    id.ok_or_else(|| format!("{name} {value} does not fit 32 bits"))
}

/// The device number; blank fields, and dialects without them, mean 0.
pub(super) fn rdev(block: &Block) -> Result<u32, String> {
    if dialect(block) == Dialect::V7 {
        return Ok(0);
    }
    device_number(
        field(block, "device major", 329..337)?,
        field(block, "device minor", 337..345)?,
    )
}

/// A device number in Linux's 32-bit encoding.
pub(crate) fn device_number(major: i64, minor: i64) -> Result<u32, String> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major @ ..0x1000), Ok(minor @ ..0x10_0000)) => {
            Ok((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
        }
        _ => Err(format!(
            "device number {major},{minor} does not fit Linux's encoding"
        )),
    }
}

/// The type of an entry; old archives mark a directory by a slash at the end of its name.
pub(super) fn kind(flag: u8, path: &[u8], link: Vec<u8>) -> Result<EntryKind, String> {
    Ok(match flag {
        0 if path.ends_with(b"/") => EntryKind::Directory,
        0 | b'0' | b'7' | b'S' => EntryKind::Regular,
        b'1' => EntryKind::HardLink(link),
        b'2' => EntryKind::Symlink(link),
        b'3' => EntryKind::Character,
        b'4' => EntryKind::Block,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        _ => {
            return Err(format!(
                "entries of type {:?} are not supported",
                char::from(flag)
            ));
        }
    })
}

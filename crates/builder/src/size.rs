//! Sizes as people write them.

/// Reads a number of bytes such as `268435456`, `0x1000`, `64MiB` or `1g`; all suffixes are powers of 1024.
///
/// # Errors
/// [`SizeError`] if it is no such number, zero, or does not fit this machine.
pub fn parse_size(text: &str) -> Result<usize, SizeError> {
    let lower = text.trim().to_ascii_lowercase();
    if let Some(digits) = lower.strip_prefix("0x") {
        return bytes(digits, 16, 0);
    }
    let number = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match lower.strip_prefix(number).unwrap_or_default() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err(SizeError),
    };
    bytes(number.trim_end(), 10, shift)
}

fn bytes(digits: &str, radix: u32, shift: u32) -> Result<usize, SizeError> {
    let number = u64::from_str_radix(digits, radix).ok();
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .and_then(|size| usize::try_from(size).ok())
        .filter(|&size| size != 0)
        .ok_or(SizeError)
}

/// A text is no size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it must be a number of bytes, or a size such as 256MiB")]
pub struct SizeError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes() {
        for (text, want) in [
            ("64MiB", 64 << 20),
            ("1g", 1 << 30),
            ("512K", 512 << 10),
            ("0x100", 256),
            ("0xb", 11),
            ("7", 7),
            ("7B", 7),
            ("3 mb", 3 << 20),
        ] {
            assert_eq!(parse_size(text), Ok(want), "{text}");
        }
        for bad in [
            "",
            "0",
            "x",
            "-1",
            "1T",
            "MiB",
            "1MiBB",
            "1iB",
            "99999999999999999999",
            "99999999999G",
        ] {
            assert_eq!(parse_size(bad), Err(SizeError), "{bad}");
        }
    }
}

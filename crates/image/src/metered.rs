//! A bound for what others read into memory.

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};

/// Most bytes that the headers of one tar entry may take: its own, and extended ones before it.
pub(crate) const HEADERS_MAX: u64 = 1 << 20;

/// Passes bytes through as long as there is an allowance, which its user sets anew from time to time: the tar reader
/// takes extended headers into memory whatever size they claim.
pub(crate) struct Metered<'a, R> {
    inner: R,
    allowance: &'a Cell<u64>,
}

impl<'a, R> Metered<'a, R> {
    pub(crate) fn new(inner: R, allowance: &'a Cell<u64>) -> Self {
        Self { inner, allowance }
    }
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.allowance.get();
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        if want == 0 && !buf.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a tar entry has more than {HEADERS_MAX} bytes of headers"),
            ));
        }
        let got = self.inner.read(&mut buf[..want])?;
        self.allowance.set(left - got as u64);
        Ok(got)
    }
}

impl<R: Seek> Seek for Metered<'_, R> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.inner.seek(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_passes_and_no_more() {
        let allowance = Cell::new(3);
        let mut reader = Metered::new(&b"abcdef"[..], &allowance);
        let mut buf = [0; 8];
        assert_eq!(reader.read(&mut buf).unwrap(), 3);
        assert!(reader.read(&mut buf).is_err());
        allowance.set(100);
        assert_eq!(reader.read(&mut buf).unwrap(), 3);
        assert_eq!(reader.read(&mut buf).unwrap(), 0);
    }
}

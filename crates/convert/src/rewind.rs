//! A stream whose beginning can be read again.

use std::io::{self, Cursor, Read};

/// Most bytes that are kept: more than is read of a layer in zstd before it turns out that it can't be read in pieces.
const KEPT_MAX: usize = 24 << 20;

/// Keeps what is read through it, as long as that is not too much.
pub(crate) struct Rewind<R> {
    inner: R,
    kept: Option<Vec<u8>>,
}

impl<R: Read> Rewind<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            kept: Some(Vec::new()),
        }
    }

    /// Keeps nothing from now on: nobody will want it again.
    pub(crate) fn forget(&mut self) {
        self.kept = None;
    }

    /// The whole stream from its beginning, if that was kept.
    pub(crate) fn again(self) -> Option<impl Read> {
        Some(Cursor::new(self.kept?).chain(self.inner))
    }
}

impl<R: Read> Read for Rewind<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        if let Some(kept) = &mut self.kept {
            if kept.len() + got > KEPT_MAX {
                self.kept = None;
            } else {
                kept.extend_from_slice(&buf[..got]);
            }
        }
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_comes_again_unless_it_was_long() {
        let bytes = testkit::prose(1, 10_000);
        for read in [0, 1, 5000, 10_000] {
            let mut stream = Rewind::new(&bytes[..]);
            stream.read_exact(&mut vec![0; read]).unwrap();
            let mut all = Vec::new();
            stream.again().unwrap().read_to_end(&mut all).unwrap();
            assert!(all == bytes);
        }
        let mut stream = Rewind::new(io::repeat(0));
        stream.read_exact(&mut vec![0; KEPT_MAX + 1]).unwrap();
        assert!(stream.again().is_none());
    }
}

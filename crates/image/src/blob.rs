//! Verification of blobs while they stream.

use std::io::{self, Read};

use crate::{Descriptor, Digest, Error, Hasher};

/// Passes bytes through while it counts and digests them. At their end it fails with [`io::ErrorKind::InvalidData`]
/// and an [`Error`] inside if they are not the blob they should be. A reader that stops early has verified nothing.
pub struct Verifying<R> {
    inner: R,
    expected: Digest,
    size: u64,
    seen: u64,
    hasher: Hasher,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    Verified,
    Failed,
}

impl<R: Read> Verifying<R> {
    /// Verifies that `inner` is the blob that `descriptor` names.
    pub fn new(inner: R, descriptor: &Descriptor) -> Self {
        Self {
            inner,
            expected: descriptor.digest,
            size: descriptor.size,
            seen: 0,
            hasher: Hasher::new(),
            state: State::Reading,
        }
    }

    fn verify(&mut self) -> Result<(), Error> {
        if self.seen != self.size {
            return Err(self.size_mismatch());
        }
        let actual = std::mem::take(&mut self.hasher).finish();
        if actual != self.expected {
            return Err(Error::DigestMismatch {
                expected: self.expected,
                actual,
            });
        }
        Ok(())
    }

    fn size_mismatch(&self) -> Error {
        Error::SizeMismatch {
            digest: self.expected,
            expected: self.size,
            actual: self.seen,
        }
    }

    fn fail(&mut self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
        self.state = State::Failed;
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

impl<R: Read> Read for Verifying<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.state {
            State::Reading if buf.is_empty() => return Ok(0),
            State::Reading => {}
            State::Verified => return Ok(0),
            State::Failed => return Err(self.fail("the blob has failed its verification")),
        }
        let got = self.inner.read(buf)?;
        self.seen += got as u64;
        if got == 0 {
            return match self.verify() {
                Ok(()) => {
                    self.state = State::Verified;
                    Ok(0)
                }
                Err(error) => Err(self.fail(error)),
            };
        }
        if self.seen > self.size {
            let error = self.size_mismatch();
            return Err(self.fail(error));
        }
        self.hasher.update(&buf[..got]);
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verify(data: &[u8], descriptor: &Descriptor) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Verifying::new(data, descriptor)
            .read_to_end(&mut out)
            .map(|_| out)
    }

    #[test]
    fn only_the_named_bytes_pass() {
        let descriptor = Descriptor::new("t", Digest::of(b"hello"), 5);
        assert_eq!(verify(b"hello", &descriptor).unwrap(), b"hello");
        for (bad, word) in [
            (&b"hellO"[..], "corrupt"),
            (b"hell", "4 bytes instead of 5"),
            (b"hello!", "instead of 5"),
        ] {
            let error = verify(bad, &descriptor).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains(word), "{error}");
            assert!(
                error.to_string().contains(&descriptor.digest.to_string()),
                "{error}"
            );
        }
    }

    #[test]
    fn an_empty_buffer_is_no_end() {
        let descriptor = Descriptor::new("t", Digest::of(b"hello"), 5);
        let mut reader = Verifying::new(&b"hello"[..], &descriptor);
        assert_eq!(reader.read(&mut []).unwrap(), 0);
        let mut out = Vec::new();
        reader.read_to_end(&mut out).unwrap();
        assert_eq!(out, b"hello");
    }
}

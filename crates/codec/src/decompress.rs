use std::cell::RefCell;
use std::io::{self, Read as _};

use rafs_format::Compressor;

/// Stored bytes that do not decode to what their record promises.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The decoder refused the bytes.
    #[error("corrupt {compressor} data")]
    Corrupt {
        /// Compressor of the data.
        compressor: Compressor,
        /// What the library said.
        source: io::Error,
    },
    /// The bytes decode to another length than recorded.
    #[error("{compressor} data decodes to {actual} bytes instead of {expected}")]
    Length {
        /// Compressor of the data.
        compressor: Compressor,
        /// Length in bytes that the record promises.
        expected: usize,
        /// Length in bytes that came out (the first byte too many counts).
        actual: usize,
    },
}

/// Decompresses `stored` into exactly `out.len()` bytes. [`Compressor::None`] copies.
///
/// # Errors
/// [`DecodeError`] if the data is corrupt or of another length; `out` then holds no defined bytes.
pub fn decompress(
    compressor: Compressor,
    stored: &[u8],
    out: &mut [u8],
) -> Result<(), DecodeError> {
    let expected = out.len();
    let corrupt = |source| DecodeError::Corrupt { compressor, source };
    let actual = match compressor {
        Compressor::None => {
            if stored.len() == expected {
                out.copy_from_slice(stored);
            }
            stored.len()
        }
        Compressor::Lz4Block => {
            let size =
                i32::try_from(expected).map_err(|_| corrupt(io::ErrorKind::FileTooLarge.into()))?;
            lz4::block::decompress_to_buffer(stored, Some(size), out).map_err(corrupt)?
        }
        Compressor::Zstd => unzstd(stored, out).map_err(corrupt)?,
        Compressor::Gzip => {
            let mut decoder = flate2::bufread::GzDecoder::new(stored);
            decoder.read_exact(out).map_err(corrupt)?;
            expected + decoder.read(&mut [0]).map_err(corrupt)?
        }
    };
    if actual == expected {
        Ok(())
    } else {
        Err(DecodeError::Length {
            compressor,
            expected,
            actual,
        })
    }
}

/// Decodes zstd frames with a context that each thread keeps: making one costs more than decoding a small chunk.
fn unzstd(stored: &[u8], out: &mut [u8]) -> io::Result<usize> {
    thread_local! {
        static CONTEXT: RefCell<zstd::bulk::Decompressor<'static>> = RefCell::default();
    }
    CONTEXT.with_borrow_mut(|context| context.decompress_to_buffer(stored, out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Encoder;

    #[test]
    fn what_was_encoded_decodes_and_any_other_length_is_an_error() {
        let chunk: Vec<u8> = (0..100_000_u32).map(|i| (i / 7) as u8).collect();
        for compressor in [Compressor::Lz4Block, Compressor::Zstd, Compressor::None] {
            let mut stored = Vec::new();
            Encoder::new(compressor, 3)
                .unwrap()
                .encode(&chunk, &mut stored)
                .unwrap();
            let mut out = vec![0; chunk.len()];
            decompress(compressor, &stored, &mut out).unwrap();
            assert_eq!(out, chunk);
            for wrong in [chunk.len() - 1, chunk.len() + 1] {
                assert!(
                    decompress(compressor, &stored, &mut vec![0; wrong]).is_err(),
                    "{compressor} {wrong}"
                );
            }
            assert!(
                decompress(compressor, &stored[..stored.len() - 1], &mut out).is_err(),
                "{compressor}"
            );
            assert!(
                decompress(compressor, &[], &mut out).is_err(),
                "{compressor}"
            );
        }
    }
}

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

/// Inflates the first `out.len()` bytes of the gzip member at the beginning of `stored`. Whatever follows, within the
/// member or behind it, does not count and may be missing; so nothing is said about the member's checksum.
///
/// # Errors
/// [`DecodeError`] if the data is corrupt or of fewer bytes; `out` then holds no defined bytes.
pub fn gunzip_head(stored: &[u8], out: &mut [u8]) -> Result<(), DecodeError> {
    let compressor = Compressor::Gzip;
    let mut decoder = flate2::bufread::GzDecoder::new(stored);
    let mut actual = 0;
    while let Some(rest) = out.get_mut(actual..).filter(|rest| !rest.is_empty()) {
        match decoder.read(rest) {
            Ok(0) => {
                return Err(DecodeError::Length {
                    compressor,
                    expected: out.len(),
                    actual,
                });
            }
            Ok(n) => actual += n,
            Err(source) => return Err(DecodeError::Corrupt { compressor, source }),
        }
    }
    Ok(())
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
    fn the_head_of_a_gzip_member_does_not_need_the_rest() {
        use std::io::Write as _;

        let data: Vec<u8> = (0..100_000_u32).map(|i| (i / 7) as u8).collect();
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        writer.write_all(&data).unwrap();
        let whole = writer.finish().unwrap();
        for (stored, len) in [
            (&whole[..], 1),
            (&whole[..], 50_000),
            (&whole[..], data.len()),
            (&whole[..whole.len() - 8], data.len()),
            (&whole[..whole.len() / 2], 20_000),
            (&[&whole[..], b"another member"].concat(), data.len()),
        ] {
            let mut out = vec![0; len];
            gunzip_head(stored, &mut out).unwrap();
            assert!(out == data[..len], "{len}");
        }
        let mut out = vec![0; data.len()];
        for (stored, len) in [
            (&whole[..], data.len() + 1),
            (&whole[..whole.len() / 2], data.len()),
            (&whole[..9], 1),
            (&data[..], 1),
            (&[], 1),
        ] {
            out.resize(len, 0);
            assert!(gunzip_head(stored, &mut out).is_err(), "{len}");
        }
    }

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

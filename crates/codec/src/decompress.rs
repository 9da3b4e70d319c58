use std::io::Read as _;

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
        source: std::io::Error,
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
pub fn decompress(compressor: Compressor, stored: &[u8], out: &mut [u8]) -> Result<(), DecodeError> {
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
            lz4::block::decompress_to_buffer(stored, i32::try_from(expected).ok(), out).map_err(corrupt)?
        }
        Compressor::Zstd => zstd::bulk::decompress_to_buffer(stored, out).map_err(corrupt)?,
        Compressor::Gzip => {
            let mut decoder = flate2::bufread::GzDecoder::new(stored);
            decoder.read_exact(out).map_err(corrupt)?;
            expected + decoder.read(&mut [0]).map_err(corrupt)?
        }
    };
    if actual == expected { Ok(()) } else { Err(DecodeError::Length { compressor, expected, actual }) }
}

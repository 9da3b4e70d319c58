use std::io;

use rafs_format::Compressor;

/// How [`Encoder::encode`] stored a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// As it is: there is no compressor, or compression would not have made it smaller.
    Raw,
    /// Compressed.
    Compressed,
}

/// Compresses chunks one after another with a context that is kept between them; one per thread.
pub struct Encoder {
    compressor: Compressor,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Encoder {
    /// zstd level when none is asked for: what the deployed builder uses.
    pub const ZSTD_LEVEL_DEFAULT: i32 = 3;

    /// An encoder; `level` is a zstd level and ignored by the other compressors.
    ///
    /// # Errors
    /// `InvalidInput` for gzip, which only occurs in images made by others, and for an unknown zstd level.
    pub fn new(compressor: Compressor, level: i32) -> io::Result<Self> {
        let zstd = match compressor {
            Compressor::Zstd => Some(zstd::bulk::Compressor::new(level)?),
            Compressor::None | Compressor::Lz4Block => None,
            Compressor::Gzip => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "chunks are never written with gzip",
                ));
            }
        };
        Ok(Self { compressor, zstd })
    }

    /// Appends the stored form of `chunk` to `out`: compressed if that is smaller, else the bytes as they are.
    ///
    /// # Errors
    /// What the compression library reports; `out` is then unchanged.
    pub fn encode(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> io::Result<Stored> {
        let start = out.len();
        let written = match (self.compressor, &mut self.zstd) {
            (Compressor::Zstd, Some(zstd)) => {
                out.resize(start + zstd::zstd_safe::compress_bound(chunk.len()), 0);
                zstd.compress_to_buffer(chunk, &mut out[start..])
            }
            (Compressor::Lz4Block, _) => {
                let bound = lz4::block::compress_bound(chunk.len())?;
                out.resize(start + bound, 0);
                lz4::block::compress_to_buffer(chunk, None, false, &mut out[start..])
            }
            _ => Ok(chunk.len()),
        };
        let written = match written {
            Ok(written) => written,
            Err(error) => {
                out.truncate(start);
                return Err(error);
            }
        };
        if written >= chunk.len() {
            out.truncate(start);
            out.extend_from_slice(chunk);
            return Ok(Stored::Raw);
        }
        out.truncate(start + written);
        Ok(Stored::Compressed)
    }
}

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

/// Compresses chunks one after another with a context and an output buffer that are kept between them; one per
/// thread.
pub struct Encoder {
    compressor: Compressor,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    /// Output of the compressor; initialised up to the largest bound met so far.
    scratch: Vec<u8>,
}

impl Encoder {
    /// zstd level when none is asked for: what the deployed builder uses.
    pub const ZSTD_LEVEL_DEFAULT: i32 = 3;

    /// An encoder; `level` is a zstd level and ignored by the other compressors.
    ///
    /// # Errors
    /// `InvalidInput` for gzip, which only occurs in images made by others, and for an unknown zstd level.
    pub fn new(compressor: Compressor, level: i32) -> io::Result<Self> {
        let invalid = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        let zstd = match compressor {
            Compressor::Zstd if !zstd::compression_level_range().contains(&level) => {
                let range = zstd::compression_level_range();
                return invalid(format!(
                    "zstd knows the levels {} to {}, not {level}",
                    range.start(),
                    range.end()
                ));
            }
            Compressor::Zstd => Some(zstd::bulk::Compressor::new(level)?),
            Compressor::None | Compressor::Lz4Block => None,
            Compressor::Gzip => return invalid("chunks are never written with gzip".to_owned()),
        };
        Ok(Self {
            compressor,
            zstd,
            scratch: Vec::new(),
        })
    }

    /// The compressed form of `chunk`; `None` if there is no compressor or if it would not be smaller.
    ///
    /// # Errors
    /// What the compression library reports.
    pub fn compress(&mut self, chunk: &[u8]) -> io::Result<Option<&[u8]>> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let written = self.compress_at(chunk, &mut scratch, 0);
        self.scratch = scratch;
        Ok(written?.map(|written| &self.scratch[..written]))
    }

    /// Writes the compressed form of `chunk` into `out` from `start` on and gives its length; `None` if there is no
    /// compressor or if it would not be smaller. `out` grows as needed; what it holds behind the result is undefined.
    ///
    /// # Errors
    /// What the compression library reports.
    pub fn compress_at(
        &mut self,
        chunk: &[u8],
        out: &mut Vec<u8>,
        start: usize,
    ) -> io::Result<Option<usize>> {
        let bound = match self.compressor {
            Compressor::Zstd => zstd::zstd_safe::compress_bound(chunk.len()),
            Compressor::Lz4Block => lz4::block::compress_bound(chunk.len())?,
            Compressor::None | Compressor::Gzip => return Ok(None),
        };
        let end = start + bound;
        if out.is_empty() {
            // Zeroed by the system, page by page as they are used.
            *out = vec![0; end];
        } else if out.len() < end {
            out.resize(end, 0);
        }
        let room = &mut out[start..end];
        let written = match &mut self.zstd {
            Some(zstd) => zstd.compress_to_buffer(chunk, room)?,
            None => lz4::block::compress_to_buffer(chunk, None, false, room)?,
        };
        Ok((written < chunk.len()).then_some(written))
    }

    /// Appends the stored form of `chunk` to `out`: compressed if that is smaller, else the bytes as they are.
    ///
    /// # Errors
    /// What the compression library reports; `out` is then unchanged.
    pub fn encode(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> io::Result<Stored> {
        match self.compress(chunk)? {
            Some(compressed) => {
                out.extend_from_slice(compressed);
                Ok(Stored::Compressed)
            }
            None => {
                out.extend_from_slice(chunk);
                Ok(Stored::Raw)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decompress;

    #[test]
    fn what_is_encoded_decodes_whatever_the_compressor() {
        let text: Vec<u8> = (0..100_000_u32)
            .flat_map(|i| (i / 7).to_le_bytes())
            .collect();
        for compressor in [Compressor::None, Compressor::Lz4Block, Compressor::Zstd] {
            let mut encoder = Encoder::new(compressor, Encoder::ZSTD_LEVEL_DEFAULT).unwrap();
            for chunk in [&text[..], &text[..5000], b"abc", &text[..40_000]] {
                let mut out = b"before".to_vec();
                let stored = encoder.encode(chunk, &mut out).unwrap();
                let mut back = vec![0; chunk.len()];
                let how = if stored == Stored::Compressed {
                    compressor
                } else {
                    Compressor::None
                };
                decompress(how, &out[6..], &mut back).unwrap();
                assert_eq!(back, chunk, "{compressor}");
                assert_eq!(
                    stored == Stored::Raw,
                    compressor == Compressor::None || chunk.len() == 3,
                    "{compressor}"
                );
            }
        }
    }

    #[test]
    fn a_context_that_was_used_before_gives_the_same_bytes() {
        let chunk: Vec<u8> = (0..50_000_u32).map(|i| ((i * i) >> 7) as u8).collect();
        let mut fresh = Encoder::new(Compressor::Zstd, 3).unwrap();
        let expected = fresh.compress(&chunk).unwrap().unwrap().to_vec();
        let mut used = Encoder::new(Compressor::Zstd, 3).unwrap();
        used.compress(&[1; 300_000]).unwrap();
        assert_eq!(used.compress(&chunk).unwrap().unwrap(), expected);
    }

    #[test]
    fn what_stands_before_a_compressed_chunk_stays() {
        let chunk: Vec<u8> = (0..50_000_u32).map(|i| (i / 9) as u8).collect();
        for compressor in [Compressor::Lz4Block, Compressor::Zstd] {
            let mut encoder = Encoder::new(compressor, 3).unwrap();
            let expected = encoder.compress(&chunk).unwrap().unwrap().to_vec();
            for mut out in [b"before".to_vec(), b"before and much more".repeat(9000)] {
                let written = encoder.compress_at(&chunk, &mut out, 6).unwrap();
                assert_eq!(written, Some(expected.len()), "{compressor}");
                assert_eq!(&out[..6], b"before");
                assert!(out[6..6 + expected.len()] == expected, "{compressor}");
            }
            assert_eq!(
                encoder.compress_at(b"abc", &mut Vec::new(), 0).unwrap(),
                None
            );
        }
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        assert!(Encoder::new(Compressor::Gzip, 3).is_err());
        assert!(Encoder::new(Compressor::Zstd, 99).is_err());
    }
}

//! Inflating from the middle of a gzip file.
//!
//! A deflate block may begin at any bit, and refers to up to 32 KiB of output before it. zlib is told both by
//! `inflatePrime` and `inflateSetDictionary`, of which safe Rust has only the second. So the bits come to the decoder
//! in a byte of which the lower bits are the end of an *aligner*: deflate blocks that yield nothing, as many bits long
//! as it takes to stand at the right bit of the last byte.

use std::io;

use rafs_format::Compressor;
use zlib_rs::{Inflate, InflateFlush, Status};

use crate::DecodeError;

/// Largest window of deflate, in bytes: how far back a block may refer.
pub const DEFLATE_WINDOW: usize = 32 << 10;
/// Largest window, as a power of two.
const WINDOW_BITS: u8 = 15;
/// What makes zlib expect a gzip header and trailer around the data.
const GZIP: u8 = 16;
/// CRC-32 and length behind the data of a member.
const TRAILER: usize = 8;
/// Bytes inflated at a time where they are not wanted.
const SKIP: usize = 32 << 10;

/// A place within a gzip file at which a deflate block begins, and what inflating from there needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SliceStart<'a> {
    /// The byte before the first whole one, if `bits` is not 0.
    pub byte: u8,
    /// How many high-order bits of `byte` belong to the block, 0 to 7.
    pub bits: u8,
    /// Output of the same member before the block, at most [`DEFLATE_WINDOW`] bytes.
    pub window: &'a [u8],
}

/// Inflates part of a gzip file, front to back, over the ends of members.
pub struct SliceDecoder<'a> {
    inflate: Inflate,
    input: &'a [u8],
    /// Whether the member was begun in its midst: there was no header, and its trailer is passed over.
    raw: bool,
    /// Whether the member has ended.
    ended: bool,
}

impl<'a> SliceDecoder<'a> {
    /// Will inflate `input`, which begins with the first whole byte of the block at `start`.
    ///
    /// # Errors
    /// [`DecodeError::Corrupt`] for a start that cannot be.
    pub fn new(start: SliceStart<'_>, input: &'a [u8]) -> Result<Self, DecodeError> {
        if start.bits > 7 || start.window.len() > DEFLATE_WINDOW {
            return Err(corrupt("the place where it begins makes no sense"));
        }
        let mut inflate = Inflate::new(false, WINDOW_BITS);
        if !start.window.is_empty() {
            let set = inflate.set_dictionary(start.window);
            set.map_err(|error| corrupt(error.as_str()))?;
        }
        if start.bits != 0 {
            let aligner = aligner(start.byte, start.bits);
            let status = inflate.decompress(&aligner, &mut [], InflateFlush::NoFlush);
            let taken = inflate.total_in() == aligner.len() as u64;
            if !taken || !matches!(status, Ok(Status::Ok | Status::BufError)) {
                return Err(corrupt("the bits where it begins are no block"));
            }
        }
        Ok(Self {
            inflate,
            input,
            raw: true,
            ended: false,
        })
    }

    /// Fills `out` with what comes next.
    ///
    /// # Errors
    /// [`DecodeError::Corrupt`] if the data is corrupt or ends before.
    pub fn read_exact(&mut self, mut out: &mut [u8]) -> Result<(), DecodeError> {
        while !out.is_empty() {
            if self.ended {
                self.next_member()?;
            }
            let (before_in, before_out) = (self.inflate.total_in(), self.inflate.total_out());
            let result = self
                .inflate
                .decompress(self.input, out, InflateFlush::NoFlush);
            // Both differences are at most the lengths of the slices just given.
            let consumed = (self.inflate.total_in() - before_in) as usize;
            let produced = (self.inflate.total_out() - before_out) as usize;
            self.input = self.input.get(consumed..).unwrap_or_default();
            out = out.get_mut(produced..).unwrap_or_default();
            match result {
                Ok(Status::StreamEnd) => self.ended = true,
                Ok(_) if consumed == 0 && produced == 0 && !out.is_empty() => {
                    return Err(corrupt("it ends too soon"));
                }
                Ok(_) => {}
                Err(error) => {
                    let text = self.inflate.error_message();
                    return Err(corrupt(text.unwrap_or(error.as_str())));
                }
            }
        }
        Ok(())
    }

    /// Passes over the next `len` bytes of output.
    ///
    /// # Errors
    /// As [`SliceDecoder::read_exact`].
    pub fn skip(&mut self, mut len: u64) -> Result<(), DecodeError> {
        let mut scratch = vec![0; SKIP.min(usize::try_from(len).unwrap_or(SKIP))];
        while len > 0 {
            let part = usize::try_from(len).unwrap_or(SKIP).min(SKIP);
            self.read_exact(&mut scratch[..part])?;
            len -= part as u64;
        }
        Ok(())
    }

    /// Goes on with what follows a member: another one with a header of its own.
    fn next_member(&mut self) -> Result<(), DecodeError> {
        let trailer = if self.raw { TRAILER } else { 0 };
        self.input = self.input.get(trailer..).unwrap_or_default();
        if self.input.is_empty() {
            return Err(corrupt("it ends too soon"));
        }
        self.inflate = Inflate::new(true, GZIP + WINDOW_BITS);
        (self.raw, self.ended) = (false, false);
        Ok(())
    }
}

fn corrupt(what: &str) -> DecodeError {
    DecodeError::Corrupt {
        compressor: Compressor::Gzip,
        source: io::Error::new(io::ErrorKind::InvalidData, what.to_owned()),
    }
}

/// Blocks without output that end where the `bits` high-order bits of the last byte begin, which are those of `byte`.
fn aligner(byte: u8, bits: u8) -> Vec<u8> {
    let mut out = Bits::default();
    let end = 8 - u32::from(bits);
    // The one block is 91 bits long, the other 10: with one or none of the first, and some of the second, any bit of a
    // byte can be reached.
    if end % 2 == 1 {
        out.empty_dynamic_block();
    }
    while out.len % 8 != end {
        out.empty_fixed_block();
    }
    out.push(u32::from(byte) >> end, u32::from(bits));
    out.bytes
}

/// Bits as deflate has them: the first is the lowest of the first byte.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    len: u32,
}

impl Bits {
    /// Appends the `count` low-order bits of `value`, the lowest first.
    fn push(&mut self, value: u32, count: u32) {
        for bit in (0..count).map(|at| (value >> at & 1) as u8) {
            if self.len.is_multiple_of(8) {
                self.bytes.push(0);
            }
            if let Some(last) = self.bytes.last_mut() {
                *last |= bit << (self.len % 8);
            }
            self.len += 1;
        }
    }

    /// A block of the fixed codes (type 1, not the last one) that holds the end-of-block code alone: 10 bits.
    fn empty_fixed_block(&mut self) {
        self.push(0b010, 3);
        self.push(0, 7);
    }

    /// A block with codes of its own (type 2, not the last one) that holds the end-of-block code alone: 91 bits.
    ///
    /// The codes are for the literals 255 and 256 (the end of the block) and for the first distance, one bit each.
    fn empty_dynamic_block(&mut self) {
        self.push(0b100, 3);
        self.push(0, 5); // 257 literal codes
        self.push(0, 5); // 1 distance code
        self.push(14, 4); // 18 lengths of the code of lengths
        // In the order that RFC 1951 prescribes: "repeat 0" (18) and "length 1" (1) have one bit, the others none.
        for at in 0..18 {
            self.push(u32::from(at == 2 || at == 17), 3);
        }
        // With these lengths the code of 1 is 0, and that of 18 is 1.
        for zeros in [138, 117] {
            self.push(1, 1);
            self.push(zeros - 11, 7);
        }
        self.push(0b000, 3); // length 1 for the literals 255 and 256 and for the distance
        self.push(1, 1); // the end of the block, the second of two literals
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder};

    use super::*;

    fn deflate(data: &[u8]) -> Vec<u8> {
        let mut out = DeflateEncoder::new(Vec::new(), Compression::new(6));
        out.write_all(data).unwrap();
        out.finish().unwrap()
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut out = GzEncoder::new(Vec::new(), Compression::new(6));
        out.write_all(data).unwrap();
        out.finish().unwrap()
    }

    /// `deflated` with `bits` of its bits in a byte of their own, and the rest.
    fn shifted(deflated: &[u8], bits: u8) -> (u8, Vec<u8>) {
        let mut out = Bits::default();
        out.push(0b101_0101, 8 - u32::from(bits));
        for &byte in deflated {
            out.push(byte.into(), 8);
        }
        (out.bytes[0], out.bytes[1..].to_vec())
    }

    #[test]
    fn a_block_may_begin_at_any_bit() {
        let text: Vec<u8> = (0..50_000_u32).map(|i| ((i * i) >> 9) as u8).collect();
        let deflated = deflate(&text);
        for bits in 1..8 {
            let (byte, input) = shifted(&deflated, bits);
            let start = SliceStart {
                byte,
                bits,
                window: b"before",
            };
            // Shifting may have moved the last bits out of the last byte, which is then one too many.
            let ended = [input.len(), input.len() - 1].map(|len| {
                let mut input = input[..len].to_vec();
                input.extend([0; 8]);
                input.extend(gzip(b"the next member"));
                let mut decoder = SliceDecoder::new(start, &input).unwrap();
                let mut out = vec![0; text.len() - 1000];
                decoder.skip(1000).unwrap();
                decoder.read_exact(&mut out).unwrap();
                assert!(out == text[1000..], "{bits} bits");
                let mut next = [0; 15];
                let ended = decoder.read_exact(&mut next).is_ok() && &next == b"the next member";
                if ended {
                    let error = decoder.read_exact(&mut [0]).unwrap_err();
                    let text = std::error::Error::source(&error).unwrap().to_string();
                    assert!(text.contains("too soon"), "{text}");
                }
                ended
            });
            assert!(ended[0] != ended[1], "{bits} bits: {ended:?}");
        }
    }

    #[test]
    fn blocks_refer_to_the_window() {
        let window: Vec<u8> = (0..DEFLATE_WINDOW as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let mut all = flate2::Compress::new(Compression::new(6), false);
        all.set_dictionary(&window).unwrap();
        let mut deflated = Vec::with_capacity(1 << 16);
        all.compress_vec(
            &window[..1000],
            &mut deflated,
            flate2::FlushCompress::Finish,
        )
        .unwrap();
        assert!(deflated.len() < 100, "it refers to the window");
        let mut out = [0; 1000];
        let start = |window| SliceStart {
            byte: 0,
            bits: 0,
            window,
        };
        let mut decoder = SliceDecoder::new(start(&window[..]), &deflated).unwrap();
        decoder.read_exact(&mut out).unwrap();
        assert!(out == window[..1000]);
        let mut decoder = SliceDecoder::new(start(&[]), &deflated).unwrap();
        assert!(decoder.read_exact(&mut out).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        let start = SliceStart {
            byte: 0,
            bits: 8,
            window: &[],
        };
        assert!(SliceDecoder::new(start, &[]).is_err());
        let window = vec![0; DEFLATE_WINDOW + 1];
        let start = SliceStart {
            byte: 0,
            bits: 0,
            window: &window,
        };
        assert!(SliceDecoder::new(start, &[]).is_err());
        for byte in 0..=255 {
            for bits in 0..8 {
                let start = SliceStart {
                    byte,
                    bits,
                    window: &[],
                };
                if let Ok(mut decoder) = SliceDecoder::new(start, &[byte; 40]) {
                    decoder.read_exact(&mut [0; 100_000]).ok();
                }
            }
        }
    }
}

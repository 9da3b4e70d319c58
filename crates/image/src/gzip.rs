//! Gzip on several threads: blocks of a fixed size are deflated side by side and make one stream of one member.
//!
//! Each block knows the window before it, so it finds the matches that a single run would have found, and all but the
//! last end on a byte boundary. The stream depends on the content alone, never on the number of threads.

use std::io;

use flate2::{Compress, Compression, Crc, FlushCompress, Status};
use rayon::prelude::*;

/// Bytes that are deflated as one block.
const BLOCK: usize = 256 << 10;
/// Bytes before a block that it can refer to.
const WINDOW: usize = 32 << 10;
/// Room that is added to the output of a block when it is full.
const ROOM: usize = 64 << 10;
/// Bootstraps are inode records, half of them alike, and digests, which nothing makes smaller: level 6 takes twice the
/// time to save 4%.
const LEVEL: u32 = 2;
/// Method, no flags, no time, no extra flags, unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// Compresses the concatenation of `pieces` on the threads of `pool`.
///
/// # Errors
/// What the compressor reports.
pub(crate) fn compress(pieces: &[&[u8]], pool: &rayon::ThreadPool) -> io::Result<Vec<u8>> {
    let len: usize = pieces.iter().map(|piece| piece.len()).sum();
    let blocks = len.div_ceil(BLOCK).max(1);
    let deflated: Vec<(Vec<u8>, Crc)> = pool.install(|| {
        (0..blocks)
            .into_par_iter()
            .map(|number| {
                let (start, end) = (number * BLOCK, len.min((number + 1) * BLOCK));
                let window = start.min(WINDOW);
                let bytes = gather(pieces, start - window, end);
                deflate(&bytes, window, number + 1 == blocks)
            })
            .collect::<io::Result<_>>()
    })?;
    let mut out = HEADER.to_vec();
    let mut crc = Crc::new();
    for (bytes, block_crc) in &deflated {
        out.extend_from_slice(bytes);
        crc.combine(block_crc);
    }
    out.extend_from_slice(&crc.sum().to_le_bytes());
    // The format counts modulo 2^32.
    out.extend_from_slice(&(len as u32).to_le_bytes());
    Ok(out)
}

/// The bytes of the concatenation from `start` to `end`.
fn gather(pieces: &[&[u8]], start: usize, end: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(end - start);
    let mut offset = 0;
    for piece in pieces {
        let from = start.clamp(offset, offset + piece.len()) - offset;
        let to = end.clamp(offset, offset + piece.len()) - offset;
        out.extend_from_slice(&piece[from..to]);
        offset += piece.len();
    }
    out
}

/// Deflates what stands behind the first `window` bytes.
fn deflate(bytes: &[u8], window: usize, last: bool) -> io::Result<(Vec<u8>, Crc)> {
    let (window, block) = bytes.split_at(window);
    let mut crc = Crc::new();
    crc.update(block);
    let mut deflate = Compress::new(Compression::new(LEVEL), false);
    if !window.is_empty() {
        deflate.set_dictionary(window)?;
    }
    let flush = if last {
        FlushCompress::Finish
    } else {
        FlushCompress::Sync
    };
    let mut out = Vec::with_capacity(block.len() / 2 + ROOM);
    loop {
        // At most the length of the block.
        let taken = deflate.total_in() as usize;
        let status = deflate.compress_vec(&block[taken..], &mut out, flush)?;
        // A flush is complete when it leaves room.
        let flushed = deflate.total_in() == block.len() as u64 && out.len() < out.capacity();
        if status == Status::StreamEnd || (flushed && !last) {
            return Ok((out, crc));
        }
        out.reserve(ROOM);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
    }

    /// Bytes that compress in part: runs and noise in turn.
    fn mixed(len: usize) -> Vec<u8> {
        let mut state = 1_u32;
        (0..len)
            .map(|at| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if at / 1000 % 2 == 0 {
                    (at / 64) as u8
                } else {
                    (state >> 24) as u8
                }
            })
            .collect()
    }

    #[test]
    fn one_member_holds_all_pieces_whatever_the_threads() {
        for len in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5] {
            let data = mixed(len);
            let (head, tail) = data.split_at(len / 3);
            let stored = compress(&[head, &[], tail], &pool(1)).unwrap();
            assert_eq!(compress(&[&data], &pool(3)).unwrap(), stored, "{len}");
            let mut back = Vec::new();
            // This decoder stops behind the first member and checks its checksum and length.
            let mut decoder = flate2::bufread::GzDecoder::new(&stored[..]);
            decoder.read_to_end(&mut back).unwrap();
            assert!(back == data, "{len}");
            assert!(decoder.into_inner().is_empty(), "{len}");
        }
    }

    #[test]
    fn noise_and_blocks_that_see_the_window_before_them() {
        let noise: Vec<u8> = mixed(4 * BLOCK)
            .chunks(1000)
            .skip(1)
            .step_by(2)
            .flatten()
            .copied()
            .collect();
        let stored = compress(&[&noise], &pool(2)).unwrap();
        assert!(stored.len() < noise.len() + noise.len() / 100);
        // 32 KiB of noise over and over: only a block without a window has to store them again.
        let period = &noise[..WINDOW - 512];
        let repeated = period.repeat(3 * BLOCK / period.len());
        let stored = compress(&[&repeated], &pool(2)).unwrap();
        assert!(stored.len() < 2 * period.len(), "{}", stored.len());
    }
}

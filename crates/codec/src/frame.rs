//! What a zstd frame says of itself.

use zstd::zstd_safe;

/// Bytes of a frame that say how much it holds, at most: magic number and header.
pub const ZSTD_HEADER_MAX: usize = 18;

/// How many bytes the zstd frame at the beginning of `bytes` holds once decoded; `None` if there is none, or if it does
/// not say.
pub fn zstd_content_size(bytes: &[u8]) -> Option<u64> {
    zstd_safe::get_frame_content_size(bytes).ok().flatten()
}

/// Length of the zstd frame at the beginning of `bytes`, which may go on behind it; `None` if there is no whole frame.
pub fn zstd_frame_size(bytes: &[u8]) -> Option<usize> {
    zstd_safe::find_frame_compressed_size(bytes).ok()
}

#[cfg(test)]
mod tests {
    use rafs_format::Compressor;

    use super::*;
    use crate::Encoder;

    #[test]
    fn a_frame_says_how_long_it_is_and_what_it_holds() {
        let mut encoder = Encoder::new(Compressor::Zstd, 3).unwrap();
        for chunk in [
            vec![7; 100],
            (0..90_000_u32).map(|i| (i / 9) as u8).collect(),
        ] {
            let mut stored = encoder.compress(&chunk).unwrap().unwrap().to_vec();
            let size = stored.len();
            let head = &stored[..size.min(ZSTD_HEADER_MAX)];
            assert_eq!(zstd_content_size(head), Some(chunk.len() as u64));
            assert_eq!(zstd_frame_size(&stored[..size - 1]), None);
            stored.extend_from_slice(b"more");
            assert_eq!(zstd_frame_size(&stored), Some(size));
        }
        for other in [&b""[..], b"no frame, but long enough for one"] {
            assert_eq!(
                (zstd_content_size(other), zstd_frame_size(other)),
                (None, None)
            );
        }
    }
}

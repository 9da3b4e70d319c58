//! Compression, encryption, digests and checksums of chunks. No I/O, no threads.
#![forbid(unsafe_code)]

mod cipher;
mod compress;
mod decompress;
mod digest;
mod frame;
mod slice;

pub use cipher::{BlobCipher, CipherError};
pub use compress::{Encoder, Stored};
pub use decompress::{DecodeError, decompress, gunzip_head};
pub use digest::{crc32c, crc32c_append, digest};
pub use frame::{ZSTD_HEADER_MAX, zstd_content_size, zstd_frame_size};
pub use slice::{DEFLATE_WINDOW, SliceDecoder, SliceStart};

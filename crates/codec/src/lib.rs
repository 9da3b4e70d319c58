//! Compression, digests and checksums of chunks. No I/O, no threads.
#![forbid(unsafe_code)]

mod compress;
mod decompress;
mod digest;

pub use compress::{Encoder, Stored};
pub use decompress::{DecodeError, decompress};
pub use digest::{crc32c, digest};

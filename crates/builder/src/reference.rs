//! Images whose chunks stay where they are: in a layer's tar, as it is or gzipped, instead of a new blob.
//!
//! | Kind | Chunks lie in | Beside it |
//! |---|---|---|
//! | [`build_tarfs`] | the uncompressed tar, a device of 512-byte blocks | nothing |
//! | [`build_estargz`] | gzip members of an eStargz layer | a copy of the chunk table for the reader's cache |
//! | [`build_targz`] | a tar, plain or gzipped (zran) | a blob with the chunk table and, for gzip, where to begin inflating |
//! | [`build_targz_with`] | the same, or a tar in frames of zstd | the same |

mod estargz;
mod frames;
mod tarfs;
mod targz;

use std::io;

pub use estargz::build_estargz;
pub use tarfs::build_tarfs;
pub use targz::{Onlooker, build_targz, build_targz_with};

/// The error for a file that has no place in the tar as a whole.
fn sparse() -> io::Error {
    let text = "it is a sparse file: its holes are not in the tar, so it cannot be read from there; use tar-rafs";
    io::Error::new(io::ErrorKind::Unsupported, text)
}

//! Bootstraps from and to trees: the one place that turns an [`Image`](tree::Image) into RAFS v5 or v6 and back.
//!
//! [`encode`] writes the bootstrap of an image in the image's version, [`load_image`] reads one back.
#![forbid(unsafe_code)]

mod error;
mod load;
mod v6;

pub use error::Error;
pub use load::load_image;
pub use v6::encode_v6;

use rafs_format::Version;
use tree::Image;

/// Encodes the bootstrap of an image in the image's own version.
///
/// # Errors
/// [`Error`] naming the path or table that the format cannot express.
pub fn encode(image: &Image) -> Result<Vec<u8>, Error> {
    match image.version {
        Version::V5 => Err(Error::File {
            path: "the bootstrap".to_owned(),
            what: "RAFS v5 is not written yet".to_owned(),
        }),
        Version::V6 => encode_v6(image),
    }
}

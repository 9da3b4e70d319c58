//! Bootstraps from and to trees: the one place that turns an [`Image`](tree::Image) into RAFS v5 or v6 and back.
//!
//! [`encode`] writes the bootstrap of an image in the image's version. [`Parsed`] is a bootstrap of either version:
//! it can be checked, loaded as an image again, or be looked at in v6 layout, which all readers share.
#![forbid(unsafe_code)]

mod error;
mod limits;
mod load;
mod parsed;
mod v5;
mod v6;

pub use error::Error;
pub use load::load_image;
pub use parsed::Parsed;
pub use v5::{encode_v5, load_v5, view_v5};
pub use v6::encode_v6;

use rafs_format::Version;
use tree::Image;

/// Encodes the bootstrap of an image in the image's own version.
///
/// # Errors
/// [`Error`] naming the path, table or blob that the format cannot express.
pub fn encode(image: &Image) -> Result<Vec<u8>, Error> {
    match image.version {
        Version::V5 => encode_v5(image),
        Version::V6 => encode_v6(image),
    }
}

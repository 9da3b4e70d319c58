use rafs_format::{BlobInfo, Bootstrap, CheckError, Summary, Version, v5};
use tree::Image;

use crate::{Error, load_image, load_v5, view_v5};

/// A bootstrap of either version, its tables validated.
#[derive(Debug, Clone)]
pub enum Parsed {
    /// RAFS v5.
    V5(v5::Bootstrap<Vec<u8>>),
    /// RAFS v6.
    V6(Bootstrap<Vec<u8>>),
}

impl Parsed {
    /// Parses the tables of a bootstrap of the version that its magic number tells.
    ///
    /// # Errors
    /// [`rafs_format::Error`] naming the first field that is wrong.
    pub fn parse(data: Vec<u8>) -> Result<Self, rafs_format::Error> {
        Ok(match rafs_format::version(&data)? {
            Version::V5 => Self::V5(v5::Bootstrap::parse(data)?),
            Version::V6 => Self::V6(Bootstrap::parse(data)?),
        })
    }

    /// Version of the bootstrap.
    pub fn version(&self) -> Version {
        match self {
            Self::V5(_) => Version::V5,
            Self::V6(_) => Version::V6,
        }
    }

    /// The blob table.
    pub fn blobs(&self) -> &[BlobInfo] {
        match self {
            Self::V5(bootstrap) => bootstrap.blobs(),
            Self::V6(bootstrap) => bootstrap.blobs(),
        }
    }

    /// The blob table, to put real ids where placeholders are. The bytes stay as they are.
    pub fn blobs_mut(&mut self) -> &mut [BlobInfo] {
        match self {
            Self::V5(bootstrap) => bootstrap.blobs_mut(),
            Self::V6(bootstrap) => bootstrap.blobs_mut(),
        }
    }

    /// Checks everything that a reader relies on, the digests of v5's inodes included.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<Summary, CheckError> {
        match self {
            Self::V5(bootstrap) => bootstrap.check(codec::digest),
            Self::V6(bootstrap) => bootstrap.check(),
        }
    }

    /// Decodes all of it. Chunks lie where the bootstrap says.
    ///
    /// # Errors
    /// [`Error::Load`] and [`Error::Damaged`] naming the path at fault.
    pub fn load(&self) -> Result<Image, Error> {
        match self {
            Self::V5(bootstrap) => load_v5(bootstrap),
            Self::V6(bootstrap) => load_image(bootstrap),
        }
    }

    /// The form that readers work on: v6 layout, whatever the version is. Chunks of v5 lie at block boundaries of
    /// their blobs' uncompressed address spaces then, see [`view_v5`].
    ///
    /// # Errors
    /// As [`Parsed::load`], and what v6 has no room for.
    pub fn into_view(self) -> Result<Bootstrap<Vec<u8>>, Error> {
        match self {
            Self::V5(bootstrap) => view_v5(&bootstrap),
            Self::V6(bootstrap) => Ok(bootstrap),
        }
    }
}

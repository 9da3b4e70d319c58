use crate::Version;

/// Why bytes are not a usable piece of a RAFS image. Offsets are those in the file (or table) that was parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A bootstrap of the other version than the one that is parsed.
    #[error("the bootstrap has RAFS {version} layout, which is not expected here")]
    OtherVersion {
        /// Version of the bootstrap.
        version: Version,
    },
    /// Neither magic number is where a bootstrap has it.
    #[error("not a RAFS bootstrap: no magic number at byte 0 or 1024 of {len} bytes")]
    NotBootstrap {
        /// Length of the data in bytes.
        len: usize,
    },
    /// A part of the format that is known and not handled.
    #[error("{what} at byte {offset:#x}: {feature} is not supported")]
    Unsupported {
        /// Structure or field that asks for it.
        what: &'static str,
        /// Where the field lies.
        offset: u64,
        /// What is asked for.
        feature: String,
    },
    /// A structure would lie, in part, beyond the end of what holds it.
    #[error("{what} at byte {offset:#x} with {size} bytes ends beyond byte {limit:#x}")]
    OutOfBounds {
        /// Structure that does not fit.
        what: &'static str,
        /// Where it would begin.
        offset: u64,
        /// Its size in bytes.
        size: u64,
        /// Where what holds it ends.
        limit: u64,
    },
    /// A field has a value that the format forbids.
    #[error("{what} at byte {offset:#x} is {actual}, expected {expected}")]
    Field {
        /// Structure and field.
        what: &'static str,
        /// Where the field (or its structure) lies.
        offset: u64,
        /// Value found.
        actual: String,
        /// What would be legal.
        expected: String,
    },
    /// A field has a value that does not fit the on-disk field, on encoding.
    #[error("{what} of {value} is too large: the format allows at most {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its value.
        value: u64,
        /// Greatest value that fits.
        limit: u64,
    },
    /// An xattr whose name is in no namespace that the format can hold, on encoding.
    #[error("the extended attribute {name:?} is in a namespace that RAFS cannot hold")]
    XattrNamespace {
        /// Full name.
        name: String,
    },
}

impl Error {
    #[cold]
    pub(crate) fn field(
        what: &'static str,
        offset: u64,
        actual: impl ToString,
        expected: impl ToString,
    ) -> Self {
        Self::Field {
            what,
            offset,
            actual: actual.to_string(),
            expected: expected.to_string(),
        }
    }

    #[cold]
    pub(crate) fn bounds(what: &'static str, offset: u64, size: u64, limit: u64) -> Self {
        Self::OutOfBounds {
            what,
            offset,
            size,
            limit,
        }
    }
}

/// `Ok` if `actual` is `expected`.
pub(crate) fn expect_equal<T: PartialEq + ToString>(
    what: &'static str,
    offset: u64,
    actual: T,
    expected: T,
) -> Result<(), Error> {
    if actual == expected {
        Ok(())
    } else {
        Err(Error::field(what, offset, actual, expected))
    }
}

//! What the contract has and this version has not: refused before any work, never swallowed.

use std::fmt::{self, Display};

/// A flag with the value that is not supported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported(String);

impl Unsupported {
    /// A flag with this value.
    pub fn value(flag: &str, value: impl Display) -> Self {
        Self(format!("{flag} {value}"))
    }
}

impl Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not supported yet: {}", self.0)
    }
}

impl std::error::Error for Unsupported {}

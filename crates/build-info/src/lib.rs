//! What the programs were built from, for their `--version`. The same source gives the same facts; what is not known
//! is `unknown`.
#![forbid(unsafe_code)]

/// The commit, in hexadecimal.
pub const COMMIT: &str = env!("BUILD_COMMIT");
/// The time of that commit in ISO 8601.
pub const TIME: &str = env!("BUILD_TIME");
/// Cargo's profile.
pub const PROFILE: &str = env!("BUILD_PROFILE");
/// What the compiler says of itself.
pub const RUSTC: &str = env!("BUILD_RUSTC");
/// The version as a tag.
pub const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests {
    #[test]
    fn consumers_find_a_tag() {
        assert!(super::VERSION.starts_with('v'));
        assert!(super::RUSTC.starts_with("rustc"), "{}", super::RUSTC);
    }
}

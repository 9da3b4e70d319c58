//! What a check must say of damage.

use rafs_format::CheckError;

/// The error must be about this file, or about none, and it or its cause must say this.
#[track_caller]
pub fn assert_says(error: &CheckError, path: Option<&str>, what: &str) {
    assert_eq!(error.path.as_deref(), path.map(str::as_bytes), "{error}");
    let source = error
        .source
        .as_ref()
        .map(|s| s.to_string())
        .unwrap_or_default();
    assert!(
        format!("{error}: {source}").contains(what),
        "{error}: {source}"
    );
}

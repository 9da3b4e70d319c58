//! What the signatures of both protocols share.

use std::fmt::Write as _;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

/// One request as it is signed.
#[derive(Debug)]
pub(crate) struct ToSign<'a> {
    /// `GET`, ...
    pub(crate) method: &'a str,
    /// Host, and port if it is not the usual one.
    pub(crate) host: &'a str,
    /// Path of the address, encoded.
    pub(crate) path: &'a str,
    /// Bucket and name of the object, as they are.
    pub(crate) resource: &'a str,
    /// Parameters, not encoded.
    pub(crate) query: &'a [(&'static str, String)],
    /// Headers in lower case.
    pub(crate) headers: &'a [(&'static str, String)],
    /// SHA-256 of the body, hexadecimal.
    pub(crate) payload: &'a str,
}

/// The headers to be sent besides, and the signature.
pub(crate) struct Signed {
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) authorization: Option<String>,
}

/// HMAC with SHA-256.
pub(crate) fn hmac_sha256(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length will do for a key");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// HMAC with SHA-1.
pub(crate) fn hmac_sha1(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<sha1::Sha1>::new_from_slice(key).expect("any length will do for a key");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// SHA-256 in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Percent-encodes all but letters, digits, `-`, `.`, `_`, `~` and the bytes in `kept`.
pub(crate) fn encode(text: &str, kept: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || kept.contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("writing to a string cannot fail");
        }
    }
    out
}

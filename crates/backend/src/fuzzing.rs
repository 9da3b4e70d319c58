//! Entry points for fuzz targets; no part of the interface.

use std::path::Path;

use registry::Settings;

use crate::keys::Keys;
use crate::{access, disk, hosts};

/// Any text as `hosts.toml`.
pub fn hosts(text: &str) {
    for host in hosts::parse(text, Path::new("/")).unwrap_or_default() {
        assert!(!host.name().is_empty() && !host.root.ends_with('/'));
    }
}

/// Any text as the keys that all types of backends have.
pub fn keys(text: &str) {
    if let Ok(keys) = Keys::parse("registry", text) {
        let _ = keys.settings(&Settings::default());
        let _ = keys.proxy();
        let _ = keys.mirrors("registry.example");
    }
}

/// Any text as the answer of a program that gives keys, and as a command line.
pub fn credential_process(text: &[u8]) {
    access::fuzz(text);
}

/// Any bytes as a disk, and as entries of its partition table.
pub fn partitions(bytes: &[u8]) {
    let _ = disk::partitions(&bytes.to_vec());
    for entry in bytes.chunks(128) {
        if let Some(Some((id, place))) = disk::partition(entry) {
            assert!(!id.is_empty() && place.start < place.end);
        }
    }
}

//! Any bytes as a v5 bootstrap, or a good one with some bytes overwritten: parse, check, call every accessor.
#![no_main]

#[path = "../../crates/rafs-format/tests/v5/sample.rs"]
mod sample;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rafs_format::v5::Bootstrap;

static SAMPLE: LazyLock<Vec<u8>> = LazyLock::new(sample::bootstrap);

fuzz_target!(|data: &[u8]| {
    match data {
        [0, changes @ ..] => walk(&changed(changes)),
        raw => walk(raw),
    }
});

/// The sample with bytes overwritten: three bytes of input are an offset and a value.
fn changed(changes: &[u8]) -> Vec<u8> {
    let mut bytes = SAMPLE.clone();
    for change in changes.as_chunks::<3>().0 {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
        bytes[at] = change[2];
    }
    bytes
}

fn walk(bytes: &[u8]) {
    let Ok(bootstrap) = Bootstrap::parse(bytes) else {
        return;
    };
    let _ = bootstrap.check(sample::hash);
    bootstrap.prefetch().for_each(drop);
    for index in 0..=bootstrap.names().saturating_add(1) {
        let Ok(inode) = bootstrap.inode(index) else {
            continue;
        };
        let _ = inode.xattrs();
        let _ = inode.children().len();
        inode.chunks().for_each(|chunk| drop(chunk));
    }
}

//! Any bytes as a v5 bootstrap, or a good one with some bytes overwritten: parse, check, call every accessor.
#![no_main]

#[path = "common/changed.rs"]
mod changed;
#[path = "../../crates/rafs-format/tests/v5/sample.rs"]
mod sample;

use std::sync::LazyLock;

use changed::changed;
use libfuzzer_sys::fuzz_target;
use rafs_format::v5::Bootstrap;

static SAMPLE: LazyLock<Vec<u8>> = LazyLock::new(sample::bootstrap);

fuzz_target!(|data: &[u8]| walk(&changed(&SAMPLE, data)));

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

//! Any bytes as a bootstrap, or a good bootstrap with some bytes overwritten: parse, check, call every accessor.
#![no_main]

#[path = "common/changed.rs"]
mod changed;
#[path = "../../crates/rafs-format/tests/damage/sample.rs"]
mod sample;

use std::sync::LazyLock;

use changed::changed;
use libfuzzer_sys::fuzz_target;
use rafs_format::{Bootstrap, Nid};

static SAMPLE: LazyLock<Vec<u8>> = LazyLock::new(sample::bootstrap);

fuzz_target!(|data: &[u8]| walk(&changed(&SAMPLE, data)));

fn walk(bytes: &[u8]) {
    let Ok(bootstrap) = Bootstrap::parse(bytes) else {
        return;
    };
    let _ = bootstrap.check();
    bootstrap.chunk_table().for_each(|record| drop(record));
    for nid in bootstrap.prefetch() {
        let _ = bootstrap.inode(nid);
    }
    for nid in 0..=bytes.len() as u64 / Nid::SLOT_SIZE {
        let Ok(inode) = bootstrap.inode(Nid(nid)) else {
            continue;
        };
        let _ = bootstrap.xattrs(&inode);
        let _ = bootstrap.symlink(&inode);
        if let Ok(chunks) = bootstrap.chunks(&inode) {
            chunks.for_each(|chunk| drop(chunk));
        }
        let Ok(entries) = bootstrap.entries(&inode) else {
            continue;
        };
        for entry in entries.filter_map(Result::ok) {
            let _ = bootstrap.lookup(&inode, entry.name);
        }
        let _ = bootstrap
            .entries_from(&inode, 7)
            .map(|mut entries| entries.next());
    }
}

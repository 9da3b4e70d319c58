//! Any bytes as the end of a blob, alone and behind a header that fits: what is found lies within the blob.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rafs_format::toc;

fuzz_target!(|data: &[u8]| {
    check(data);
    for name in [toc::TOC, toc::BOOTSTRAP, toc::META] {
        let mut blob = data.to_vec();
        blob.extend(toc::tar_header(name, data.len() as u64));
        check(&blob);
    }
});

fn check(blob: &[u8]) {
    let tail = &blob[blob.len().saturating_sub(toc::TAIL_SIZE)..];
    let Ok(tail) = toc::parse_tail(tail, blob.len() as u64) else {
        return;
    };
    if let Some(bootstrap) = tail.bootstrap {
        assert!(bootstrap.offset + bootstrap.compressed_size <= blob.len() as u64);
    }
    if let Some(contents) = tail.toc {
        let mut again = Vec::new();
        for entry in &contents.entries {
            entry
                .encode(&mut again)
                .expect("what was parsed can be encoded");
        }
        assert_eq!(contents.offset + contents.size(), blob.len() as u64);
    }
}

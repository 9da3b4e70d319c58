//! Bootstraps of both versions.

use std::sync::LazyLock;

use bootstrap::Parsed;
use rafs_format::{Bootstrap, Nid, v5};

use crate::Target;
use crate::sample::changed;

#[path = "../../rafs-format/tests/v5/sample.rs"]
#[allow(dead_code, reason = "tests need more of it")]
#[allow(clippy::unwrap_used, reason = "a sample that cannot be made is a bug")]
mod sample_v5;
#[path = "../../rafs-format/tests/damage/sample.rs"]
#[allow(clippy::unwrap_used, reason = "a sample that cannot be made is a bug")]
mod sample_v6;

static SAMPLE_V6: LazyLock<Vec<u8>> = LazyLock::new(sample_v6::bootstrap);
static SAMPLE_V5: LazyLock<Vec<u8>> = LazyLock::new(sample_v5::bootstrap);

/// Any bytes as a bootstrap, or a good one with some bytes overwritten: parse, check, call every accessor.
pub const V6: Target = Target {
    name: "bootstrap",
    run: |input| walk(&changed(&SAMPLE_V6, input)),
    samples,
    changes: 5000,
};

/// The same for v5.
pub const V5: Target = Target {
    name: "bootstrap_v5",
    run: |input| walk_v5(&changed(&SAMPLE_V5, input)),
    samples,
    changes: 5000,
};

/// Either version becomes a tree; what is sound can be written again and is sound then.
pub const LOAD: Target = Target {
    name: "load",
    run: |input| match input {
        [5, rest @ ..] => load(&changed(&SAMPLE_V5, rest)),
        [_, rest @ ..] => load(&changed(&SAMPLE_V6, rest)),
        [] => {}
    },
    samples: || {
        let with = |version: u8| {
            samples()
                .into_iter()
                .map(move |s| [&[version], &s[..]].concat())
        };
        with(5).chain(with(6)).collect()
    },
    changes: 5000,
};

/// Changes to the samples: none, and one within the superblock, the first inodes, and the rest.
fn samples() -> Vec<Vec<u8>> {
    vec![
        vec![0],
        vec![0, 0x50, 4, 9],
        vec![0, 0, 0x10, 2, 8, 0x10, 0xff],
        vec![0, 0, 0x20, 1, 7, 0x30, 0x80, 0, 0x40, 3],
        b"neither nor".to_vec(),
    ]
}

fn walk(bytes: &[u8]) {
    let Ok(bootstrap) = Bootstrap::parse(bytes) else {
        return;
    };
    let _ = bootstrap.check();
    bootstrap.chunk_table().for_each(drop);
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
            chunks.for_each(drop);
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

fn walk_v5(bytes: &[u8]) {
    let Ok(bootstrap) = v5::Bootstrap::parse(bytes) else {
        return;
    };
    let _ = bootstrap.check(sample_v5::hash);
    bootstrap.prefetch().for_each(drop);
    for index in 0..=bootstrap.names().saturating_add(1) {
        let Ok(inode) = bootstrap.inode(index) else {
            continue;
        };
        let _ = inode.xattrs();
        let _ = inode.children().len();
        inode.chunks().for_each(drop);
    }
}

fn load(bytes: &[u8]) {
    let Ok(parsed) = Parsed::parse(bytes.to_vec()) else {
        return;
    };
    let sound = parsed.check().is_ok();
    if let Ok(image) = parsed.load() {
        let names = image.tree.name_count();
        if let Ok(again) = bootstrap::encode(&image)
            && sound
        {
            let again = Parsed::parse(again).expect("what was written can be read");
            let summary = again.check().expect("what was sound is sound again");
            assert_eq!(summary.names, names);
        }
    }
    let _ = parsed.into_view().map(|view| view.check());
}

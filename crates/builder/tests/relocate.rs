//! Damaged bootstraps: whatever they say, chunks are refused and not believed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use builder::{
    Budget, BuildOptions, CompactOptions, CompactPlan, Origin, PrefetchFile, Selection,
    compact_group, write_prefetch_blob,
};
use proptest::prelude::*;
use storage::{BlobReader, BlobSource, LoadedBootstrap};
use tree::Content;

/// Every blob, endless and empty of sense.
struct Zeros;

impl BlobReader for Zeros {
    fn read_exact_at(&self, buf: &mut [u8], _: u64) -> io::Result<()> {
        buf.fill(0);
        Ok(())
    }

    fn size(&self) -> u64 {
        1 << 40
    }
}

impl BlobSource for Zeros {
    fn open(&self, _: &str) -> io::Result<Arc<dyn BlobReader>> {
        Ok(Arc::new(Self))
    }
}

fn options() -> BuildOptions {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    BuildOptions::new(Arc::new(pool.unwrap()), Budget::new(0))
}

/// Compacts and optimizes what a bootstrap says, if it can be read at all.
fn relocate(bytes: Vec<u8>, options: &BuildOptions) {
    let Ok(loaded) = LoadedBootstrap::from_bytes(bytes) else {
        return;
    };
    let Ok(image) = loaded.image() else { return };
    let origin = Origin {
        loaded: &loaded,
        source: Arc::new(Zeros),
    };
    let wanted = CompactOptions {
        min_used_ratio: 100,
        small: u64::MAX,
        merged_max: u64::MAX,
        blobs_min: 0,
        keep: BTreeSet::new(),
    };
    let mut compacted = image.clone();
    if let Ok(plan) = CompactPlan::new(&mut compacted, &wanted) {
        for group in &plan.groups {
            let written = compact_group(&compacted, group, &origin, options, io::sink());
            assert!(written.is_err(), "zeros are no chunks of an image");
        }
    }
    let mut files = Vec::new();
    let mut walk = image.tree.walk();
    while let Some(visit) = walk.next() {
        if let Content::Regular { .. } = image.tree.inode(visit.id).content {
            files.push(PrefetchFile {
                path: String::from_utf8_lossy(&walk.path(&visit)).into_owned(),
                ranges: None,
            });
        }
    }
    let selection = Selection::new(&image, &files);
    if !selection.is_empty() {
        let mut image = image.clone();
        let written = write_prefetch_blob(&mut image, &selection, &origin, options, io::sink());
        assert!(written.is_err(), "zeros are no chunks of an image");
    }
}

#[test]
fn sound_bootstraps_reach_the_chunks() {
    let options = options();
    for (_, bytes) in testkit::fixture::bootstraps() {
        relocate(bytes, &options);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn damage_is_refused(which in any::<prop::sample::Index>(),
                         flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        use std::sync::LazyLock;
        static SOUND: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(testkit::fixture::bootstraps);
        static OPTIONS: LazyLock<BuildOptions> = LazyLock::new(options);
        let mut bytes = which.get(&SOUND[..]).1.clone();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= value;
        }
        relocate(bytes, &OPTIONS);
    }
}

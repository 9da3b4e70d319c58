//! An eStargz layer is mounted as it is, by the bootstrap of its table of contents.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::path::Path;
use std::sync::Arc;

use storage::{BlobSource, ChunkStore, DirSource, StoreOptions, load_bootstrap};
use testkit::estargz::estargz;
use testkit::oracle;
use testkit::run::run;
use testkit::tar::Entry;

const CHUNK: usize = 0x40_0000;

#[test]
fn privileged_files_are_read_lazily_and_damage_is_an_error() {
    let name = "privileged_files_are_read_lazily_and_damage_is_an_error";
    if let Some(why) = oracle::no_fuse() {
        return testkit::skip(name, why);
    }
    let files = [
        ("dir/small", testkit::prose(1, 3000)),
        ("dir/large", testkit::noise(2, CHUNK + 77)),
        ("zeros", vec![0; 100_000]),
        ("damaged", testkit::noise(3, 10_000)),
    ];
    let entries: Vec<Entry> = files
        .iter()
        .map(|(path, data)| Entry::file(path, data))
        .collect();
    let mut made = estargz(&entries, CHUNK);
    let dir = tempfile::tempdir().unwrap();
    let id = testkit::sha256(&made.blob);
    let (toc, boot) = (dir.path().join("toc"), dir.path().join("boot"));
    std::fs::write(&toc, &made.toc).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    run(
        env!("CARGO_BIN_EXE_nydus-image"),
        [
            "create",
            "--source-type",
            "stargz_index",
            "--bootstrap",
            &text(&boot),
            "--blob-id",
            &id,
            &text(&toc),
        ],
    )
    .ok();
    // The last file is stored as it is, right before the table.
    let place = made.toc_offset as usize - 1000;
    made.blob[place] ^= 1;
    std::fs::write(dir.path().join(&id), &made.blob).unwrap();

    let loaded = load_bootstrap(&boot).unwrap();
    let blobs = Arc::new(DirSource(dir.path().to_owned())) as Arc<dyn BlobSource>;
    let options = StoreOptions {
        cache_dir: Some(dir.path().join("cache")),
        ..StoreOptions::default()
    };
    let store = ChunkStore::open(&loaded.bootstrap, blobs, options).unwrap();
    let root = dir.path().join("root");
    let mounted = mount::mount(
        Arc::new(loaded.bootstrap),
        Arc::new(store),
        &root,
        &mount::Options::default(),
    )
    .unwrap();
    for (path, data) in &files[..3] {
        assert!(std::fs::read(root.join(path)).unwrap() == *data, "{path}");
    }
    assert!(std::fs::read(root.join("damaged")).is_err());
    drop(mounted);
}

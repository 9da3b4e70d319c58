//! Images that the deployed builder made: everything in them is read back and compared with the source.

use std::collections::HashMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rafs_format::{Bootstrap, ChunkPointer, FileType, Inode};
use storage::{
    BlobSource, ChunkStore, DirSource, Error, LoadedBootstrap, ReadCause, StoreOptions,
    complete_cache_files, load_bootstrap,
};

use crate::image::cached;

/// Content digests by path.
type Files = HashMap<Vec<u8>, String>;

fn expected(path: &Path) -> Files {
    let expect = testkit::expect::Expect::load(path).unwrap();
    expect
        .entries
        .into_iter()
        .filter_map(|(path, entry)| Some((path, entry.sha256?)))
        .collect()
}

/// The blobs of the golden images under their ids.
fn blob_dir(shared: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(shared.join("golden")).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "blob")
        {
            let id = testkit::sha256(&std::fs::read(&path).unwrap());
            symlink(&path, dir.path().join(id)).unwrap();
        }
    }
    dir
}

fn regular_files(bootstrap: &Bootstrap<Vec<u8>>) -> Vec<(Vec<u8>, Inode)> {
    let mut files = Vec::new();
    let mut dirs = vec![(Vec::new(), bootstrap.inode(bootstrap.root()).unwrap())];
    while let Some((path, dir)) = dirs.pop() {
        for entry in bootstrap.entries(&dir).unwrap() {
            let entry = entry.unwrap();
            if entry.name == b"." || entry.name == b".." {
                continue;
            }
            let path = if path.is_empty() {
                entry.name.to_vec()
            } else {
                [&path, &b"/"[..], entry.name].concat()
            };
            match (entry.file_type, bootstrap.inode(entry.nid).unwrap()) {
                (FileType::Directory, inode) => dirs.push((path, inode)),
                (FileType::Regular, inode) => files.push((path, inode)),
                _ => {}
            }
        }
    }
    files
}

/// Reads all files in pieces of `piece` bytes and compares their digests.
fn check_files(bootstrap: &Bootstrap<Vec<u8>>, store: &ChunkStore, expected: &Files, piece: usize) {
    let chunk_size = bootstrap.superblock().chunk_size;
    let files = regular_files(bootstrap);
    assert_eq!(files.len(), expected.len());
    for (path, inode) in files {
        let chunks: Vec<ChunkPointer> = bootstrap
            .chunks(&inode)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let mut content = vec![0xEE; inode.size as usize];
        let mut offset = 0;
        for part in content.chunks_mut(piece) {
            store
                .read_file_range(&chunks, chunk_size, offset, part)
                .unwrap();
            offset += part.len() as u64;
        }
        assert_eq!(
            testkit::sha256(&content),
            expected[&path],
            "{}",
            path.escape_ascii()
        );
        assert!(
            store
                .read_file_range(&chunks, chunk_size, inode.size, &mut [0])
                .is_err(),
            "beyond the end"
        );
    }
}

fn check_image(loaded: &LoadedBootstrap, source: Arc<dyn BlobSource>, expected: &Files) {
    let bootstrap = &loaded.bootstrap;
    let dir = tempfile::tempdir().unwrap();
    for piece in [128 << 10, 5000] {
        let store = ChunkStore::open(bootstrap, Arc::clone(&source), cached(dir.path())).unwrap();
        check_files(bootstrap, &store, expected, piece);
        // The second round finds all in the cache.
        assert_eq!(
            store.stats().fetches == 0,
            piece == 5000,
            "{}",
            store.stats()
        );
        assert_eq!(
            (store.stats().cache_errors, store.stats().verify_failures),
            (0, 0)
        );
    }
    let store = ChunkStore::open(bootstrap, source, StoreOptions::default()).unwrap();
    check_files(bootstrap, &store, expected, 3 << 20);
}

#[test]
fn native_layers_of_the_deployed_builder_read_back() {
    let Some(shared) = testkit::shared_or_skip("native_layers_of_the_deployed_builder_read_back")
    else {
        return;
    };
    let golden = shared.join("golden");
    let lower = expected(&golden.join("lower.tar.expect.json"));
    for name in ["zstd", "lz4-sha256", "none", "zstd-64k", "batch", "encrypt"] {
        let loaded = load_bootstrap(&golden.join(format!("v6-{name}.blob"))).unwrap();
        assert_eq!(
            loaded.own_blob.as_ref().unwrap().0.as_str(),
            format!("v6-{name}")
        );
        check_image(&loaded, loaded.source(None).unwrap(), &lower);
    }
}

#[test]
fn layers_over_separate_blobs_read_back() {
    let Some(shared) = testkit::shared_or_skip("layers_over_separate_blobs_read_back") else {
        return;
    };
    let golden = shared.join("golden");
    let blobs = blob_dir(&shared);
    let rest: Arc<dyn BlobSource> = Arc::new(DirSource(blobs.path().to_owned()));
    let cases = [
        ("v6-separate.boot", "lower.tar.expect.json"),
        ("merged/v6.boot", "merged.expect.json"),
        ("v6-dict-upper.blob", "upper.tar.expect.json"),
        ("v6-upper.blob", "upper.tar.expect.json"),
    ];
    for (boot, expect) in cases {
        let loaded = load_bootstrap(&golden.join(boot)).unwrap();
        let mut files = expected(&golden.join(expect));
        if expect.starts_with("upper") {
            // A layer keeps its whiteouts as empty files.
            let known = regular_files(&loaded.bootstrap).into_iter();
            let markers = known.filter(|(path, _)| {
                path.rsplit(|&b| b == b'/')
                    .next()
                    .unwrap()
                    .starts_with(b".wh.")
            });
            let empty = testkit::sha256(b"");
            files.extend(markers.map(|(path, _)| (path, empty.clone())));
        }
        check_image(
            &loaded,
            loaded.source(Some(Arc::clone(&rest))).unwrap(),
            &files,
        );
    }
}

#[test]
fn a_complete_cache_file_is_the_uncompressed_blob() {
    let Some(shared) = testkit::shared_or_skip("a_complete_cache_file_is_the_uncompressed_blob")
    else {
        return;
    };
    let golden = shared.join("golden");
    let mut files = Vec::new();
    for name in ["zstd", "none", "batch", "encrypt"] {
        let dir = tempfile::tempdir().unwrap();
        let loaded = load_bootstrap(&golden.join(format!("v6-{name}.blob"))).unwrap();
        let paths =
            complete_cache_files(&loaded.bootstrap, loaded.source(None).unwrap(), dir.path())
                .unwrap();
        assert_eq!(paths, [dir.path().join(format!("v6-{name}.blob.data"))]);
        let data = std::fs::read(&paths[0]).unwrap();
        assert_eq!(
            data.len() as u64,
            u64::from(loaded.bootstrap.devices()[0].blocks) * 4096
        );
        files.push(data);
        // Again, without any blob.
        let none: Arc<dyn BlobSource> = Arc::new(DirSource(PathBuf::from("/nonexistent")));
        complete_cache_files(&loaded.bootstrap, none, dir.path()).unwrap();
    }
    assert!(files.iter().all(|file| *file == files[0]));
}

#[test]
fn chunks_in_a_gzip_layer_read_back() {
    let Some(shared) = testkit::shared_or_skip("chunks_in_a_gzip_layer_read_back") else {
        return;
    };
    let golden = shared.join("golden");
    let loaded = load_bootstrap(&golden.join("v6-zran.blob")).unwrap();
    let blobs = gzip_layer(&golden);
    let rest: Arc<dyn BlobSource> = Arc::new(DirSource(blobs.path().to_owned()));
    let source = loaded.source(Some(rest)).unwrap();
    check_image(
        &loaded,
        source,
        &expected(&golden.join("lower.tar.expect.json")),
    );
    // The layer is needed, the table alone does not do.
    let store = ChunkStore::open(
        &loaded.bootstrap,
        loaded.source(None).unwrap(),
        StoreOptions::default(),
    );
    let (_, inode) = regular_files(&loaded.bootstrap)
        .into_iter()
        .find(|(_, inode)| inode.size != 0)
        .unwrap();
    let chunk = loaded.bootstrap.chunks(&inode).unwrap().next().unwrap();
    let error = store.unwrap().chunk(chunk.unwrap()).unwrap_err();
    assert!(matches!(*error.cause, ReadCause::Open(_)), "{error}");
}

/// The layer of the golden zran image under its id.
fn gzip_layer(golden: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let layer = golden.join("lower.tar.gz");
    let id = testkit::sha256(&std::fs::read(&layer).unwrap());
    symlink(&layer, dir.path().join(id)).unwrap();
    dir
}

#[test]
fn damage_of_a_gzip_layer_is_an_error_or_harmless() {
    let Some(shared) = testkit::shared_or_skip("damage_of_a_gzip_layer_is_an_error_or_harmless")
    else {
        return;
    };
    let golden = shared.join("golden");
    let loaded = load_bootstrap(&golden.join("v6-zran.blob")).unwrap();
    let layer = std::fs::read(golden.join("lower.tar.gz")).unwrap();
    let expected = expected(&golden.join("lower.tar.expect.json"));
    let id = loaded.bootstrap.blobs()[0].id.clone();
    let dir = tempfile::tempdir().unwrap();
    for at in (0..layer.len()).step_by(layer.len() / 23) {
        let mut damaged = layer.clone();
        damaged[at] ^= 0x55;
        std::fs::write(dir.path().join(id.as_str()), damaged).unwrap();
        let rest: Arc<dyn BlobSource> = Arc::new(DirSource(dir.path().to_owned()));
        let source = loaded.source(Some(rest)).unwrap();
        let store = ChunkStore::open(&loaded.bootstrap, source, StoreOptions::default()).unwrap();
        let chunk_size = loaded.bootstrap.superblock().chunk_size;
        let mut failed = 0;
        for (path, inode) in regular_files(&loaded.bootstrap) {
            let chunks: Vec<ChunkPointer> = loaded
                .bootstrap
                .chunks(&inode)
                .unwrap()
                .map(Result::unwrap)
                .collect();
            let mut content = vec![0; inode.size as usize];
            match store.read_file_range(&chunks, chunk_size, 0, &mut content) {
                Ok(()) => assert_eq!(testkit::sha256(&content), expected[&path]),
                Err(_) => failed += 1,
            }
        }
        // The first bytes are the header, which nobody needs.
        assert!(failed > 0 || at < 20, "byte {at}");
    }
}

#[test]
fn kinds_that_cannot_be_read_are_named() {
    let Some(shared) = testkit::shared_or_skip("kinds_that_cannot_be_read_are_named") else {
        return;
    };
    let golden = shared.join("golden");
    let loaded = load_bootstrap(&golden.join("tarfs/v6-tarfs.boot")).unwrap();
    let source = loaded.source(None).unwrap();
    let error = ChunkStore::open(&loaded.bootstrap, source, StoreOptions::default())
        .err()
        .unwrap();
    assert!(
        matches!(&error, Error::Unsupported { feature, .. } if feature.contains("tarfs")),
        "{error}"
    );
    let error = load_bootstrap(&golden.join("lower.tar")).unwrap_err();
    let Error::File { source, .. } = &error else {
        panic!("{error}")
    };
    assert!(matches!(**source, Error::NoBootstrap), "{source}");
}

#[test]
fn a_flipped_byte_of_a_blob_is_an_error_or_harmless() {
    let Some(shared) = testkit::shared_or_skip("a_flipped_byte_of_a_blob_is_an_error_or_harmless")
    else {
        return;
    };
    let golden = shared.join("golden");
    for name in ["v6-upper", "v6-dict-upper"] {
        let path = golden.join(format!("{name}.blob"));
        let good = load_bootstrap(&path).unwrap();
        let blob = std::fs::read(&path).unwrap();
        let blobs = blob_dir(&shared);
        let rest: Arc<dyn BlobSource> = Arc::new(DirSource(blobs.path().to_owned()));
        let expected = contents(
            &good.bootstrap,
            &good.source(Some(Arc::clone(&rest))).unwrap(),
        );
        let dir = tempfile::tempdir().unwrap();
        let mut refused = 0;
        let data = (0..blob.len()).step_by(blob.len() / 60 + 1);
        for at in data.chain((blob.len() - 9000..blob.len()).step_by(67)) {
            let mut bad = blob.clone();
            bad[at] ^= 0x10;
            let path = dir.path().join(format!("{name}.blob"));
            std::fs::write(&path, bad).unwrap();
            let Ok(loaded) = load_bootstrap(&path) else {
                refused += 1;
                continue;
            };
            let source = loaded.source(Some(Arc::clone(&rest))).unwrap();
            for (file, content) in contents(&loaded.bootstrap, &source) {
                match content {
                    Some(content) => {
                        assert_eq!(Some(content), expected[&file], "byte {at} of {name}")
                    }
                    None => refused += 1,
                }
            }
        }
        assert!(refused > 20, "{name}: only {refused} flips were noticed");
    }
}

#[test]
fn a_truncated_blob_is_refused() {
    let Some(shared) = testkit::shared_or_skip("a_truncated_blob_is_refused") else {
        return;
    };
    let blob = std::fs::read(shared.join("golden/v6-upper.blob")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("id.more.blob");
    let lengths = (0..2000)
        .step_by(99)
        .chain((blob.len() - 6000..blob.len()).step_by(101));
    for len in lengths {
        std::fs::write(&path, &blob[..len]).unwrap();
        assert!(load_bootstrap(&path).is_err(), "{len} bytes");
    }
    std::fs::write(&path, &blob).unwrap();
    let loaded = load_bootstrap(&path).unwrap();
    assert_eq!(loaded.bootstrap.blobs()[0].id.as_str(), "id");
    let nameless = dir.path().join(".blob");
    std::fs::write(&nameless, &blob).unwrap();
    let error = load_bootstrap(&nameless).unwrap_err();
    assert!(
        matches!(&error, Error::File { source, .. } if matches!(**source, Error::BlobName { .. })),
        "{error}"
    );
}

/// Digests of all files; `None` where a read fails.
fn contents(
    bootstrap: &Bootstrap<Vec<u8>>,
    source: &Arc<dyn BlobSource>,
) -> HashMap<Vec<u8>, Option<String>> {
    let store = ChunkStore::open(bootstrap, Arc::clone(source), StoreOptions::default()).unwrap();
    let read = |inode: &Inode| {
        let chunks: Vec<ChunkPointer> = bootstrap
            .chunks(inode)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let mut content = vec![0xEE; inode.size as usize];
        store
            .read_file_range(&chunks, bootstrap.superblock().chunk_size, 0, &mut content)
            .ok()?;
        Some(testkit::sha256(&content))
    };
    regular_files(bootstrap)
        .into_iter()
        .map(|(path, inode)| (path, read(&inode)))
        .collect()
}
